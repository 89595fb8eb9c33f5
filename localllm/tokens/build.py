"""GGUF metadata to one `tokenizers.Tokenizer` and the facts about its special tokens.

Refuses, by name, the tokenizer kinds that this build does not know.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from tokenizers import Regex, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Core
from tokenizers.models import BPE

from localllm.errors import BadModelFile, UnsupportedModel
from localllm.tokens.normalize import adds_prefix, charsmap, marking_normalizer, merges_spaces, merging_normalizer
from localllm.tokens.pretokenizers import pretokenizer_or_default, splitter
from localllm.tokens.specials import metadata_id
from localllm.tokens.spm import merges_from_scores
from localllm.tokens.tiktoken import merges_from_ranks
from localllm.tokens.unigram import build_unigram
from localllm.tokens.vocabulary import (
    SPACE_MARK,
    BuiltTokenizer,
    Defaults,
    finished,
    first_ids,
    read_scores,
    read_vocabulary,
)
from localllm.tokens.wordpiece import build_wordpiece

__all__ = ["SPACE_MARK", "BuiltTokenizer", "build_from_gguf"]

_SPACED = ("gemma4", "granite-embed-multi-311m", "sarvam-moe")


def build_from_gguf(metadata: Mapping[str, Any]) -> BuiltTokenizer:
    """Build from `tokenizer.*` keys. Raises UnsupportedModel (kind) or BadModelFile."""
    kind = metadata.get("tokenizer.ggml.model")
    builders = {
        "gpt2": _build_bpe,
        "gemma4": _build_spaced_bpe,
        "llama": _build_spm,
        "bert": build_wordpiece,
        "t5": build_unigram,
    }
    if kind is None:
        raise BadModelFile("the file has no tokenizer (tokenizer.ggml.model is missing)")
    if kind in ("none", "no_vocab"):
        raise UnsupportedModel(
            f"this model comes without a tokenizer (tokenizer.ggml.model is {kind!r})",
            hint="it takes no text; look for a version of it that has one",
        )
    if not isinstance(kind, str) or kind not in builders:
        raise UnsupportedModel(
            f"this build has no tokenizer of the kind {kind!r}", hint=f"it runs {', '.join(sorted(builders))}"
        )
    return builders[kind](metadata)


def _build_bpe(metadata: Mapping[str, Any]) -> BuiltTokenizer:
    pre = metadata.get("tokenizer.ggml.pre") or ""
    if not isinstance(pre, str):
        raise BadModelFile(f"tokenizer.ggml.pre is {pre!r}, which is no name")
    if pre in _SPACED:
        return _build_spaced_bpe(metadata)
    entry, notes = pretokenizer_or_default(pre)
    texts, types = read_vocabulary(metadata)
    core = Core(_bpe(texts, _merges(metadata, texts), ignore_merges=entry.ignore_merges))
    core.pre_tokenizer = splitter(entry)
    if entry.normalize_nfc:
        core.normalizer = normalizers.NFC()
    return finished(metadata, core, texts, types, Defaults(add_bos=entry.add_bos), is_byte_level=True, notes=notes)


def _build_spaced_bpe(metadata: Mapping[str, Any]) -> BuiltTokenizer:
    """BPE with explicit merges over raw text in which U+2581 stands for a space (Gemma 4)."""
    texts, types = read_vocabulary(metadata)
    core = Core(_bpe(texts, _merges(metadata, texts), byte_fallback=True))
    core.normalizer = normalizers.Replace(" ", SPACE_MARK)
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"[^\n]+|[\n]+"), "isolated")
    add_bos = metadata.get("tokenizer.ggml.pre") != "sarvam-moe"
    # early files of Gemma 4 say that it wants no beginning, which is wrong
    said = {**metadata, "tokenizer.ggml.add_bos_token": True} if add_bos else metadata
    return finished(said, core, texts, types, Defaults(add_bos=add_bos), is_byte_level=False)


def _build_spm(metadata: Mapping[str, Any]) -> BuiltTokenizer:
    """SentencePiece BPE: the pair whose union has the best score is merged first."""
    texts, types = read_vocabulary(metadata)
    scores = read_scores(metadata, len(texts))
    unk = metadata_id(metadata, "unknown_token_id", len(texts))
    unk_text = texts[unk if unk is not None else 0]
    core = Core(_bpe(texts, merges_from_scores(texts, types, scores), unk_token=unk_text, byte_fallback=True))
    core.normalizer = _spm_normalizer(metadata)
    defaults = Defaults({"bos": 1, "eos": 2, "unknown": 0}, add_bos=True)
    return finished(
        metadata, core, texts, types, defaults, is_byte_level=False, adds_space_prefix=adds_prefix(metadata)
    )


def _spm_normalizer(metadata: Mapping[str, Any]) -> normalizers.Normalizer:
    """Files with a character map follow it in full; the others never merge spaces, whatever they say."""
    if not (charsmap(metadata) and merges_spaces(metadata)):
        return marking_normalizer(metadata)
    marking = marking_normalizer({**metadata, "tokenizer.ggml.precompiled_charsmap": None})
    return normalizers.Sequence([merging_normalizer(metadata), marking])


def _merges(metadata: Mapping[str, Any], texts: Sequence[str]) -> list[tuple[str, str]]:
    lines = metadata.get("tokenizer.ggml.merges")
    if lines is None and metadata.get("tokenizer.ggml.pre") == "kimi-k2":
        return merges_from_ranks(texts)  # its files have none: a token's id is its rank
    if not isinstance(lines, Sequence):
        raise BadModelFile("tokenizer.ggml.merges is missing")
    return [_merge(line, number) for number, line in enumerate(lines)]


def _merge(line: object, number: int) -> tuple[str, str]:
    # a part may itself begin with a space, so the separator is looked for from the second character on
    cut = line.find(" ", 1) if isinstance(line, str) else -1
    if not isinstance(line, str) or cut < 0:
        raise BadModelFile(f"tokenizer.ggml.merges[{number}] is {line!r}, which is no pair")
    return line[:cut], line[cut + 1 :]


def _bpe(
    texts: Sequence[str],
    merges: list[tuple[str, str]],
    *,
    unk_token: str | None = None,
    byte_fallback: bool = False,
    ignore_merges: bool = False,
) -> BPE:
    try:
        return BPE(
            first_ids(texts),
            merges,
            unk_token=unk_token,
            fuse_unk=unk_token is not None,
            byte_fallback=byte_fallback,
            ignore_merges=ignore_merges,
        )
    except Exception as error:  # the package raises plain Exception
        raise BadModelFile(f"the tokenizer's merges do not fit its vocabulary: {error}") from error
