"""GGUF metadata to one `tokenizers.Tokenizer` and the facts about its special tokens.

Refuses, by name, the tokenizer kinds and pre-tokenizers that this build does not know; never guesses one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tokenizers import AddedToken, Regex, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Core
from tokenizers.models import BPE

from localllm.errors import BadModelFile, UnsupportedModel
from localllm.tokens.pretokenizers import pretokenizer_named, splitter
from localllm.tokens.specials import (
    HARMONY_FRAME,
    SpecialTokens,
    TokenType,
    end_of_generation_ids,
    end_of_turn_id,
    metadata_id,
)
from localllm.tokens.spm import merges_from_scores

SPACE_MARK = "\u2581"
_MATCHED_WHOLE = (TokenType.CONTROL, TokenType.USER_DEFINED, TokenType.UNKNOWN)


@dataclass(frozen=True, slots=True)
class BuiltTokenizer:
    """A tokenizer ready to use. `texts[i]` and `types[i]` describe token i.

    `is_byte_level`: normal tokens are spelled in GPT-2's byte alphabet; otherwise U+2581 stands for a space and BYTE
    tokens read `<0x41>`. `is_trusted_pattern` is False when the splits come from the file rather than from our table.
    """

    core: Core
    texts: Sequence[str]
    types: Sequence[int]
    special: SpecialTokens
    is_byte_level: bool
    adds_space_prefix: bool = False
    is_trusted_pattern: bool = True
    chat_templates: Mapping[str, str] = field(default_factory=dict)

    @property
    def vocab_size(self) -> int:
        return len(self.texts)

    @property
    def chat_template(self) -> str | None:
        return self.chat_templates.get("default")


def build_from_gguf(metadata: Mapping[str, Any]) -> BuiltTokenizer:
    """Build from `tokenizer.*` keys. Raises UnsupportedModel (kind or pre-tokenizer) or BadModelFile."""
    kind = metadata.get("tokenizer.ggml.model")
    if kind in ("gpt2", "gemma4"):
        return _build_bpe(
            metadata, str(metadata.get("tokenizer.ggml.pre") or "default") if kind == "gpt2" else "gemma4"
        )
    if kind == "llama":
        return _build_spm(metadata)
    if kind is None:
        raise BadModelFile("the file has no tokenizer (tokenizer.ggml.model is missing)")
    raise UnsupportedModel(
        f"this build has no tokenizer of the kind {kind!r}", hint="it runs gpt2 and llama tokenizers"
    )


# --- GGUF


def _build_bpe(metadata: Mapping[str, Any], pre: str) -> BuiltTokenizer:
    if pre in ("gemma4", "granite-embed-multi-311m", "sarvam-moe"):
        return _build_spaced_bpe(metadata, add_bos=pre != "sarvam-moe")
    entry = pretokenizer_named(pre)
    texts, types = _vocabulary(metadata)
    core = Core(_bpe(texts, _merges(metadata), ignore_merges=entry.ignore_merges))
    core.pre_tokenizer = splitter(entry)
    if entry.normalize_nfc:
        core.normalizer = normalizers.NFC()
    return _finished(metadata, core, texts, types, is_byte_level=True, add_bos=entry.add_bos)


def _build_spaced_bpe(metadata: Mapping[str, Any], *, add_bos: bool) -> BuiltTokenizer:
    """BPE with explicit merges over raw text in which U+2581 stands for a space (Gemma 4)."""
    texts, types = _vocabulary(metadata)
    core = Core(_bpe(texts, _merges(metadata), byte_fallback=True))
    core.normalizer = normalizers.Replace(" ", SPACE_MARK)
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"[^\n]+|[\n]+"), "isolated")
    built_metadata = {**metadata, "tokenizer.ggml.add_bos_token": True} if add_bos else metadata
    return _finished(built_metadata, core, texts, types, is_byte_level=False, add_bos=add_bos)


def _build_spm(metadata: Mapping[str, Any]) -> BuiltTokenizer:
    """SentencePiece BPE: the pair whose union has the best score is merged first."""
    texts, types = _vocabulary(metadata)
    scores: Any = metadata.get("tokenizer.ggml.scores")
    if not _is_list(scores, float, int) or len(scores) < len(texts):
        raise BadModelFile("tokenizer.ggml.scores is missing, no list of numbers, or shorter than the vocabulary")
    unk = metadata_id(metadata, "unknown_token_id", len(texts))
    unk_text = texts[unk if unk is not None else 0]
    core = Core(_bpe(texts, merges_from_scores(texts, types, scores), unk_token=unk_text, byte_fallback=True))
    adds_prefix = bool(metadata.get("tokenizer.ggml.add_space_prefix", True))
    replace = normalizers.Replace(" ", SPACE_MARK)
    core.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE_MARK), replace]) if adds_prefix else replace
    defaults = {
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }
    return _finished(
        {**defaults, **metadata}, core, texts, types, is_byte_level=False, add_bos=True, adds_space_prefix=adds_prefix
    )


def _vocabulary(metadata: Mapping[str, Any]) -> tuple[list[str], list[int]]:
    texts: Any = metadata.get("tokenizer.ggml.tokens")
    if not _is_list(texts, str) or not texts:
        raise BadModelFile("tokenizer.ggml.tokens is missing or no list of strings")
    types: Any = metadata.get("tokenizer.ggml.token_type")
    if types is None:
        types = [int(TokenType.NORMAL)] * len(texts)
    if not _is_list(types, int):
        raise BadModelFile("tokenizer.ggml.token_type is no list of numbers")
    if len(types) < len(texts):
        raise BadModelFile(f"tokenizer.ggml.token_type has {len(types)} entries for {len(texts)} tokens")
    return list(texts), _corrected_types(texts, list(types[: len(texts)]))


def _is_list(value: object, *kinds: type) -> bool:
    return (
        isinstance(value, Sequence)
        and not isinstance(value, str | bytes)
        and all(isinstance(entry, kinds) for entry in value)
    )


def _corrected_types(texts: Sequence[str], types: list[int]) -> list[int]:
    """The frame of a harmony message must stay visible to whoever parses it, though files mark it as control."""
    frame = frozenset(HARMONY_FRAME)
    user_defined = int(TokenType.USER_DEFINED)
    return [user_defined if text in frame else kind for text, kind in zip(texts, types, strict=True)]


def _merges(metadata: Mapping[str, Any]) -> list[tuple[str, str]]:
    lines = metadata.get("tokenizer.ggml.merges")
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
            _ids_by_text(texts),
            merges,
            unk_token=unk_token,
            fuse_unk=unk_token is not None,
            byte_fallback=byte_fallback,
            ignore_merges=ignore_merges,
        )
    except Exception as error:  # the package raises plain Exception
        raise BadModelFile(f"the tokenizer's merges do not fit its vocabulary: {error}") from error


def _ids_by_text(texts: Sequence[str]) -> dict[str, int]:
    """The first id of each text; later duplicates can be decoded but are never produced."""
    ids: dict[str, int] = {}
    for token_id, text in enumerate(texts):
        ids.setdefault(text, token_id)
    return ids


def _finished(
    metadata: Mapping[str, Any],
    core: Core,
    texts: list[str],
    types: list[int],
    *,
    is_byte_level: bool,
    add_bos: bool,
    adds_space_prefix: bool = False,
) -> BuiltTokenizer:
    ids_by_text = _ids_by_text(texts)
    special = _special_tokens(metadata, ids_by_text, len(texts), add_bos=add_bos)
    for token_id in special.eog_ids:
        types[token_id] = int(TokenType.CONTROL)
    _add_whole_tokens(core, texts, types, ids_by_text)
    return BuiltTokenizer(
        core, texts, types, special, is_byte_level, adds_space_prefix, chat_templates=_gguf_templates(metadata)
    )


def _special_tokens(
    metadata: Mapping[str, Any], ids_by_text: Mapping[str, int], vocab_size: int, *, add_bos: bool
) -> SpecialTokens:
    bos, eos, pad, unk = (
        metadata_id(metadata, f"{name}_token_id", vocab_size) for name in ("bos", "eos", "padding", "unknown")
    )
    eot = end_of_turn_id(metadata, ids_by_text, vocab_size)
    return SpecialTokens(
        bos_id=bos,
        eos_id=eos,
        eot_id=eot,
        pad_id=pad,
        unk_id=unk,
        prefix_ids=(bos,) if bos is not None and metadata.get("tokenizer.ggml.add_bos_token", add_bos) else (),
        suffix_ids=(eos,) if eos is not None and metadata.get("tokenizer.ggml.add_eos_token", False) else (),
        eog_ids=end_of_generation_ids(metadata, ids_by_text, vocab_size, (eos, eot)),
    )


def _add_whole_tokens(core: Core, texts: list[str], types: list[int], ids_by_text: Mapping[str, int]) -> None:
    """Tokens that are matched as a whole before any splitting; control ones only when the caller parses them."""
    whole = [
        AddedToken(text, special=kind != TokenType.USER_DEFINED, normalized=False)
        for token_id, (text, kind) in enumerate(zip(texts, types, strict=True))
        if kind in _MATCHED_WHOLE and text and ids_by_text[text] == token_id
    ]
    core.add_tokens(whole)


def _gguf_templates(metadata: Mapping[str, Any]) -> dict[str, str]:
    templates = {}
    for key, value in metadata.items():
        if key == "tokenizer.chat_template":
            templates["default"] = value
        elif key.startswith("tokenizer.chat_template."):
            templates[key.removeprefix("tokenizer.chat_template.")] = value
    return {name: text for name, text in templates.items() if isinstance(text, str)}
