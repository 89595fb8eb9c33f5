"""tokenizer.model of SentencePiece: a protocol buffer, read here field by field with every length checked.

Only what says how text is cut is read; fields that are unknown are passed over, as the format wants it.
"""

import struct
from collections.abc import Iterator
from typing import Any

from localllm.errors import BadModelFile, UnsupportedModel
from localllm.formats.gguf_metadata import ValueType
from localllm.tokens.specials import TokenType

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_PIECES, _TRAINER, _NORMALIZER = 1, 2, 3  # fields of the model
_TEXT, _SCORE, _TYPE = 1, 2, 3  # fields of a piece
_MODEL_TYPE, _WHITESPACE_SUFFIX = 3, 24  # fields of the trainer's specification
_ROLES = {40: ("unknown", 0), 41: ("bos", 1), 42: ("eos", 2), 43: ("padding", -1)}
_CHARSMAP, _ADD_PREFIX, _REMOVE_SPACES = 2, 3, 4  # fields of the normalizer's specification
_KINDS = {1: "t5", 2: "llama"}  # unigram, BPE; the others are words and characters
_MAX_PIECES = 1 << 21
_TYPES = frozenset(int(kind) for kind in TokenType) - {int(TokenType.UNDEFINED)}

Fields = dict[int, list[int | bytes]]


def sentencepiece_metadata(raw: bytes, name: str) -> dict[str, Any]:
    """The `tokenizer.ggml.*` keys for a model file's bytes. BadModelFile where they are none of one."""
    try:
        model = _fields(raw)
        pieces = [_piece(_fields(_as_bytes(entry))) for entry in model.get(_PIECES, [])]
        trainer = _fields(_as_bytes(_last(model, _TRAINER, b"")))
        normalizer = _fields(_as_bytes(_last(model, _NORMALIZER, b"")))
    except (ValueError, struct.error, UnicodeDecodeError) as error:
        raise BadModelFile(f"{name} is no SentencePiece model: {error}") from error
    if not 0 < len(pieces) <= _MAX_PIECES:
        raise BadModelFile(f"{name} is no SentencePiece model: it has {len(pieces)} pieces")
    kind = _KINDS.get(_as_int(_last(trainer, _MODEL_TYPE, 1)))
    if kind is None or _last(trainer, _WHITESPACE_SUFFIX, 0):
        raise UnsupportedModel(f"{name} is a SentencePiece model of a kind that this build does not run")
    texts, scores, types = (list(column) for column in zip(*pieces, strict=True))
    return {
        "tokenizer.ggml.model": kind,
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": texts,
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.add_space_prefix": bool(_last(normalizer, _ADD_PREFIX, 1)),
        "tokenizer.ggml.remove_extra_whitespaces": bool(_last(normalizer, _REMOVE_SPACES, 1)),
        **_charsmap(normalizer),
        **_roles(trainer, len(texts)),
    }


def _charsmap(normalizer: Fields) -> dict[str, Any]:
    raw = _as_bytes(_last(normalizer, _CHARSMAP, b""))
    return {"tokenizer.ggml.precompiled_charsmap": (ValueType.UINT8, list(raw))} if raw else {}


def _roles(trainer: Fields, size: int) -> dict[str, int]:
    ids = {name: _signed(_as_int(_last(trainer, field, default))) for field, (name, default) in _ROLES.items()}
    return {f"tokenizer.ggml.{name}_token_id": token_id for name, token_id in ids.items() if 0 <= token_id < size}


def _piece(fields: Fields) -> tuple[str, float, int]:
    kind = _as_int(_last(fields, _TYPE, int(TokenType.NORMAL)))
    if kind not in _TYPES:
        raise ValueError(f"a piece has type {kind}")
    score: float = struct.unpack("<f", _as_bytes(_last(fields, _SCORE, bytes(4))))[0]
    return _as_bytes(_last(fields, _TEXT, b"")).decode("utf-8"), score, kind


# --- the wire format


def _fields(raw: bytes) -> Fields:
    fields: Fields = {}
    for number, value in _entries(raw):
        fields.setdefault(number, []).append(value)
    return fields


def _entries(raw: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Field numbers and values: an int for a varint, bytes for all else."""
    position = 0
    while position < len(raw):
        key, position = _varint(raw, position)
        number, wire = key >> 3, key & 7
        if wire == _VARINT:
            value, position = _varint(raw, position)
            yield number, value
            continue
        if wire == _BYTES:
            length, position = _varint(raw, position)
        elif wire in (_FIXED64, _FIXED32):
            length = 8 if wire == _FIXED64 else 4
        else:
            raise ValueError(f"field {number} has wire type {wire}")
        if length > len(raw) - position:
            raise ValueError(f"field {number} goes past the end")
        yield number, raw[position : position + length]
        position += length


def _varint(raw: bytes, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(raw):
            raise ValueError("a number goes past the end")
        byte = raw[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise ValueError("a number is too long")


def _last(fields: Fields, number: int, default: int | bytes) -> int | bytes:
    return fields[number][-1] if number in fields else default


def _as_bytes(value: int | bytes) -> bytes:
    if not isinstance(value, bytes):
        raise ValueError("a number stands where bytes should")
    return value


def _as_int(value: int | bytes) -> int:
    if not isinstance(value, int):
        raise ValueError("bytes stand where a number should")
    return value


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value
