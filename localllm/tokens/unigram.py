"""Unigram vocabularies (T5, XLM-R): pieces with log-probabilities; the likeliest way to cut a text is taken."""

from collections.abc import Mapping, Sequence
from secrets import token_hex
from typing import Any

from tokenizers import Tokenizer as Core
from tokenizers import pre_tokenizers
from tokenizers.models import Unigram

from localllm.errors import BadModelFile
from localllm.tokens.normalize import adds_prefix, marking_normalizer, merges_spaces, merging_normalizer
from localllm.tokens.specials import TokenType, metadata_id
from localllm.tokens.vocabulary import SPACE_MARK, BuiltTokenizer, Defaults, finished, read_scores, read_vocabulary

_DEFAULTS = {"eos": 1, "unknown": 2, "padding": 0}
_HIDDEN = (TokenType.CONTROL, TokenType.UNKNOWN)


def build_unigram(metadata: Mapping[str, Any]) -> BuiltTokenizer:
    """A second core, in which the spellings of control tokens are not in the vocabulary, reads text that is only text:
    a unigram model would find them as pieces."""
    texts, types = read_vocabulary(metadata)
    scores = read_scores(metadata, len(texts))
    unk = metadata_id(
        {"tokenizer.ggml.unknown_token_id": _DEFAULTS["unknown"], **metadata}, "unknown_token_id", len(texts)
    )
    cores = [_core(metadata, spelled, types, scores, unk) for spelled in (texts, without_control(texts, types))]
    return finished(
        metadata,
        cores[0],
        texts,
        types,
        Defaults(_DEFAULTS, add_eos=True),
        is_byte_level=False,
        adds_space_prefix=adds_prefix(metadata),
        plain_core=cores[1],
    )


def without_control(texts: Sequence[str], types: Sequence[int]) -> list[str]:
    """The texts, but those of control tokens changed to what no text holds: whoever could guess it could write them."""
    secret = token_hex(16)
    return [
        f"\U0010fffe{secret}-{token_id}\U0010fffe" if kind in _HIDDEN else text
        for token_id, (text, kind) in enumerate(zip(texts, types, strict=True))
    ]


def _core(
    metadata: Mapping[str, Any], texts: Sequence[str], types: Sequence[int], scores: Sequence[float], unk: int | None
) -> Core:
    has_bytes = sum(kind == TokenType.BYTE for kind in types) == 256
    try:
        core = Core(Unigram(list(zip(texts, scores, strict=True)), unk, has_bytes))
    except Exception as error:  # the package raises plain Exception
        raise BadModelFile(f"the tokenizer's pieces are damaged: {error}") from error
    if merges_spaces(metadata):
        core.normalizer = merging_normalizer(metadata)
        core.pre_tokenizer = pre_tokenizers.Metaspace(SPACE_MARK, "always" if adds_prefix(metadata) else "never", True)
    else:  # runs of spaces are pieces of their own, and the text must not be cut at each space
        core.normalizer = marking_normalizer(metadata)
    return core
