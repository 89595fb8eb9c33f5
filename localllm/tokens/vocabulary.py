"""What all kinds of tokenizers in GGUF metadata share: the lists of tokens, special tokens, templates; and the result.

Metadata comes from strangers: each list is checked before it is used, and refused as BadModelFile.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tokenizers import AddedToken
from tokenizers import Tokenizer as Core

from localllm.errors import BadModelFile
from localllm.tokens.specials import (
    HARMONY_FRAME,
    SpecialTokens,
    TokenType,
    end_of_generation_ids,
    end_of_turn_id,
    metadata_id,
)

SPACE_MARK = "\u2581"
_MATCHED_WHOLE = (TokenType.CONTROL, TokenType.USER_DEFINED, TokenType.UNKNOWN)
EATS_LEFT_KEY, EATS_RIGHT_KEY = "localllm.tokenizer.lstrip_token_ids", "localllm.tokenizer.rstrip_token_ids"
METASPACE_KEY = "localllm.tokenizer.metaspace"
_BYTE = re.compile("<0x[0-9A-Fa-f]{2}>")
_NO_ROLES = dict.fromkeys(("bos", "eos", "padding", "unknown", "seperator", "mask"))
_USUAL_ROLES: Mapping[str, Mapping[str, int]] = {
    "llama": {"unknown": 0, "bos": 1, "eos": 2},
    "bert": {"padding": 0, "unknown": 100, "bos": 101, "seperator": 102, "mask": 103},
    "t5": {"padding": 0, "eos": 1, "unknown": 2},
}
_ROBERTAS = ("roberta-bpe", "jina-v1-en", "jina-v2-code")
_NEVER_STRIP = ("<unk>", "<s>", "<|endoftext|>")


@dataclass(frozen=True, slots=True)
class BuiltTokenizer:
    """A tokenizer ready to use. `texts[i]` and `types[i]` describe token i.

    `is_byte_level`: normal tokens are spelled in GPT-2's byte alphabet; otherwise U+2581 stands for a space and BYTE
    tokens read `<0x41>`. `is_trusted_pattern` is False when the splits come from the file rather than from our table.
    `plain_core` is there where `core` cannot leave special tokens alone; it never makes one. `notes` are for people.
    """

    core: Core
    texts: Sequence[str]
    types: Sequence[int]
    special: SpecialTokens
    is_byte_level: bool
    adds_space_prefix: bool = False
    is_trusted_pattern: bool = True
    chat_templates: Mapping[str, str] = field(default_factory=dict)
    plain_core: Core | None = None
    notes: tuple[str, ...] = ()

    @property
    def vocab_size(self) -> int:
        return len(self.texts)

    @property
    def chat_template(self) -> str | None:
        return self.chat_templates.get("default")


@dataclass(frozen=True, slots=True)
class Defaults:
    """What a kind of tokenizer does where the metadata is silent. `ids` are named as in `tokenizer.ggml.*_token_id`."""

    ids: Mapping[str, int] = field(default_factory=dict)
    add_bos: bool = False
    add_eos: bool = False
    add_sep: bool = False


def read_vocabulary(metadata: Mapping[str, Any]) -> tuple[list[str], list[int]]:
    """The tokens and their types; BadModelFile for lists that are none."""
    texts: Any = metadata.get("tokenizer.ggml.tokens")
    if not is_list(texts, str) or not texts:
        raise BadModelFile("tokenizer.ggml.tokens is missing or no list of strings")
    types: Any = metadata.get("tokenizer.ggml.token_type")
    if types is None:
        types = _guessed_types(metadata, texts)
    if not is_list(types, int):
        raise BadModelFile("tokenizer.ggml.token_type is no list of numbers")
    if len(types) < len(texts):
        raise BadModelFile(f"tokenizer.ggml.token_type has {len(types)} entries for {len(texts)} tokens")
    return list(texts), _corrected_types(texts, list(types[: len(texts)]))


def _guessed_types(metadata: Mapping[str, Any], texts: Sequence[str]) -> list[int]:
    """Of files that say none: bytes are known by their names, special tokens by their roles."""
    kind = metadata.get("tokenizer.ggml.model")
    has_bytes = kind in ("llama", "t5")
    types = [int(TokenType.BYTE if has_bytes and _BYTE.fullmatch(text) else TokenType.NORMAL) for text in texts]
    for role, usual in {**_NO_ROLES, **_USUAL_ROLES.get(str(kind), {})}.items():
        token_id = metadata_id({f"tokenizer.ggml.{role}_token_id": usual, **metadata}, f"{role}_token_id", len(texts))
        if token_id is not None:
            types[token_id] = int(TokenType.UNKNOWN if role == "unknown" else TokenType.CONTROL)
    return types


def read_scores(metadata: Mapping[str, Any], size: int) -> list[float]:
    """One score per token; BadModelFile where there are fewer."""
    scores: Any = metadata.get("tokenizer.ggml.scores")
    if not is_list(scores, float, int) or len(scores) < size:
        raise BadModelFile("tokenizer.ggml.scores is missing, no list of numbers, or shorter than the vocabulary")
    return [float(score) for score in scores[:size]]


def is_list(value: object, *kinds: type) -> bool:
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


def first_ids(texts: Iterable[str]) -> dict[str, int]:
    """The first id of each text; later duplicates can be decoded but are never produced."""
    ids: dict[str, int] = {}
    for token_id, text in enumerate(texts):
        ids.setdefault(text, token_id)
    return ids


def finished(
    metadata: Mapping[str, Any],
    core: Core,
    texts: list[str],
    types: list[int],
    defaults: Defaults,
    *,
    is_byte_level: bool,
    adds_space_prefix: bool = False,
    plain_core: Core | None = None,
    notes: tuple[str, ...] = (),
) -> BuiltTokenizer:
    """Special tokens found, whole tokens added to the cores, templates read."""
    ids_by_text = first_ids(texts)
    special = _special_tokens(metadata, ending_names(ids_by_text, types), len(texts), defaults)
    for token_id in special.eog_ids:
        types[token_id] = int(TokenType.CONTROL)
    whole = _whole_tokens(metadata, texts, types, ids_by_text)
    core.add_tokens(whole)
    if plain_core is not None:
        plain_core.add_tokens([token for token in whole if not token.special])
    return BuiltTokenizer(
        core,
        texts,
        types,
        special,
        is_byte_level,
        adds_space_prefix,
        chat_templates=_templates(metadata),
        plain_core=plain_core,
        notes=notes,
    )


def ending_names(ids_by_text: Mapping[str, int], types: Sequence[int]) -> dict[str, int]:
    """Without the `</s>` that is a tag of HTML: as a token that people see, it ends nothing."""
    return {text: one for text, one in ids_by_text.items() if text != "</s>" or types[one] == TokenType.CONTROL}


def _special_tokens(
    metadata: Mapping[str, Any], ids_by_text: Mapping[str, int], vocab_size: int, defaults: Defaults
) -> SpecialTokens:
    said = {f"tokenizer.ggml.{name}_token_id": token_id for name, token_id in defaults.ids.items()} | dict(metadata)
    names = ("bos", "eos", "padding", "unknown", "seperator")
    bos, eos, pad, unk, sep = (metadata_id(said, f"{name}_token_id", vocab_size) for name in names)
    eot = end_of_turn_id(metadata, ids_by_text, vocab_size)
    adds_eos = metadata.get("tokenizer.ggml.add_eos_token", defaults.add_eos)
    end = eos if adds_eos else sep if defaults.add_sep else None
    suffix = () if end is None else (end,)
    return SpecialTokens(
        bos_id=bos,
        eos_id=eos,
        eot_id=eot,
        pad_id=pad,
        unk_id=unk,
        sep_id=sep,
        prefix_ids=(bos,) if bos is not None and metadata.get("tokenizer.ggml.add_bos_token", defaults.add_bos) else (),
        suffix_ids=suffix,
        between_ids=(*suffix, *_second_mark(metadata, suffix, sep)),
        eog_ids=end_of_generation_ids(metadata, ids_by_text, vocab_size, (eos, eot)),
    )


def _second_mark(metadata: Mapping[str, Any], suffix: tuple[int, ...], sep: int | None) -> tuple[int, ...]:
    """RoBERTa's kind ends the first text of a pair and begins the second; older files of it do not say so."""
    is_usual = metadata.get("tokenizer.ggml.model") == "t5" or metadata.get("tokenizer.ggml.pre") in _ROBERTAS
    if not suffix or not metadata.get("tokenizer.ggml.add_sep_token", is_usual):
        return ()
    return suffix if sep is None else (sep,)


def _whole_tokens(
    metadata: Mapping[str, Any], texts: list[str], types: list[int], ids_by_text: Mapping[str, int]
) -> list[AddedToken]:
    """Tokens that are matched as a whole before any splitting; control ones only when the caller parses them."""
    left, right = (_ids_in(metadata, key) for key in (EATS_LEFT_KEY, EATS_RIGHT_KEY))
    return [
        AddedToken(
            text,
            special=kind != TokenType.USER_DEFINED,
            normalized=False,
            lstrip=token_id in left or _eats_left(metadata, text),
            rstrip=token_id in right or _eats_right(metadata, text),
        )
        for token_id, (text, kind) in enumerate(zip(texts, types, strict=True))
        if kind in _MATCHED_WHOLE and text and ids_by_text[text] == token_id
    ]


# GGUF has no field for tokens that eat the spaces beside them. Our converter writes one; of files from other converters
# these are the models that have such tokens.


def _ids_in(metadata: Mapping[str, Any], key: str) -> frozenset[int]:
    ids: Any = metadata.get(key)
    return frozenset(ids) if is_list(ids, int) else frozenset()


def _eats_left(metadata: Mapping[str, Any], text: str) -> bool:
    pre, architecture = metadata.get("tokenizer.ggml.pre"), metadata.get("general.architecture")
    if text == "<mask>":
        return pre in ("jina-v2-de", "jina-v2-es", "jina-v2-code") or architecture in ("nomic-bert-moe", "jina-bert-v3")
    return text == "[MASK]" and architecture == "modern-bert"


def _eats_right(metadata: Mapping[str, Any], text: str) -> bool:
    is_phi3 = metadata.get("tokenizer.ggml.model") == "llama" and re.search(
        r"phi[-_ ]?3", str(metadata.get("general.name", "")), re.IGNORECASE
    )
    return bool(is_phi3) and text not in _NEVER_STRIP


def _templates(metadata: Mapping[str, Any]) -> dict[str, str]:
    templates = {}
    for key, value in metadata.items():
        if key == "tokenizer.chat_template":
            templates["default"] = value
        elif key.startswith("tokenizer.chat_template."):
            templates[key.removeprefix("tokenizer.chat_template.")] = value
    return {name: text for name, text in templates.items() if isinstance(text, str)}
