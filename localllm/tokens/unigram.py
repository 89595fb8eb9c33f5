"""Unigram vocabularies (T5, XLM-R): pieces with log-probabilities; the likeliest way to cut a text is taken."""

from collections.abc import Mapping, Sequence
from typing import Any

from tokenizers import Regex, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Core
from tokenizers.models import Unigram

from localllm.errors import BadModelFile
from localllm.tokens.specials import TokenType, metadata_id
from localllm.tokens.vocabulary import SPACE_MARK, BuiltTokenizer, Defaults, finished, read_scores, read_vocabulary

_DEFAULTS = {"eos": 1, "unknown": 2, "padding": 0}
_HIDDEN = (TokenType.CONTROL, TokenType.UNKNOWN)
MAX_CHARSMAP_BYTES = 16 << 20


def build_unigram(metadata: Mapping[str, Any]) -> BuiltTokenizer:
    """A second core, in which the spellings of control tokens are not in the vocabulary, reads text that is only text:
    a unigram model would find them as pieces."""
    texts, types = read_vocabulary(metadata)
    scores = read_scores(metadata, len(texts))
    unk = metadata_id(
        {"tokenizer.ggml.unknown_token_id": _DEFAULTS["unknown"], **metadata}, "unknown_token_id", len(texts)
    )
    adds_prefix = bool(metadata.get("tokenizer.ggml.add_space_prefix", True))
    merges_spaces = bool(metadata.get("tokenizer.ggml.remove_extra_whitespaces", False))
    cores = [
        _core(spelled, types, scores, unk, _charsmap(metadata), adds_prefix, merges_spaces)
        for spelled in (texts, without_control(texts, types))
    ]
    return finished(
        metadata,
        cores[0],
        texts,
        types,
        Defaults(_DEFAULTS, add_eos=True),
        is_byte_level=False,
        adds_space_prefix=adds_prefix,
        plain_core=cores[1],
    )


def without_control(texts: Sequence[str], types: Sequence[int]) -> list[str]:
    """The texts, but those of control tokens changed to what no text of a person holds."""
    return [
        f"\U0010fffe{token_id}\U0010fffe" if kind in _HIDDEN else text
        for token_id, (text, kind) in enumerate(zip(texts, types, strict=True))
    ]


def _core(
    texts: Sequence[str],
    types: Sequence[int],
    scores: Sequence[float],
    unk: int | None,
    charsmap: bytes,
    adds_prefix: bool,
    merges_spaces: bool,
) -> Core:
    has_bytes = sum(kind == TokenType.BYTE for kind in types) == 256
    try:
        core = Core(Unigram(list(zip(texts, scores, strict=True)), unk, has_bytes))
        steps: list[normalizers.Normalizer] = [normalizers.Precompiled(charsmap)] if charsmap else []
    except Exception as error:  # the package raises plain Exception
        raise BadModelFile(f"the tokenizer's pieces or its character map are damaged: {error}") from error
    if merges_spaces:
        steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    if steps:
        core.normalizer = normalizers.Sequence(steps)
    scheme = "always" if adds_prefix else "never"
    # runs of spaces are pieces of their own where they are kept, so there the text must not be cut at each space
    core.pre_tokenizer = pre_tokenizers.Metaspace(SPACE_MARK, scheme, merges_spaces)
    return core


def _charsmap(metadata: Mapping[str, Any]) -> bytes:
    said = metadata.get("tokenizer.ggml.precompiled_charsmap")
    if said is None:
        return b""
    if isinstance(said, tuple):  # with its type, as it goes into a file
        said = said[1]
    try:
        raw = bytes(int(value) & 0xFF for value in said)
    except (TypeError, ValueError) as error:
        raise BadModelFile("tokenizer.ggml.precompiled_charsmap is no list of bytes") from error
    if len(raw) > MAX_CHARSMAP_BYTES:
        raise BadModelFile("tokenizer.ggml.precompiled_charsmap is larger than any real one")
    return raw
