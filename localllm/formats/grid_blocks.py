"""Blocks of the IQ1 to IQ3 types, where a number stands for four or eight values at once, and of the ternary ones.

Each number is an entry of a fixed table of its type, its "grid". The `gguf` package holds these tables and is asked for
them when the first such block is decoded. Source of the layouts: ggml-common.h, ggml-quants.c.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]
Ints = NDArray[Any]

IQ1_STEPS, IQ1_SHIFT = 8, 1
"""Values of IQ1 types are -1, 0, 1, all of them an eighth higher or lower: eighths are whole numbers."""


@cache
def grid(name: str) -> NDArray[np.int8]:
    """The table of the block type of this name: int8 (entries, values of one entry), read-only."""
    from gguf import quants  # takes a while, and only files of these types need it

    kind = getattr(quants, name)
    kind.init_grid()
    table: NDArray[np.int8] = kind.grid.reshape(kind.grid.shape[-2:]).astype(np.int8)
    table.flags.writeable = False
    return table


# Helpers: n blocks, fields of them as little-endian numbers.


def _half(field: Bytes) -> Floats:
    return np.ascontiguousarray(field).view("<f2").astype(np.float32)


def _words(field: Bytes) -> NDArray[np.uint32]:
    return np.ascontiguousarray(field).view("<u4").astype(np.uint32)


def _pairs(field: Bytes) -> NDArray[np.uint16]:
    return np.ascontiguousarray(field).view("<u2").astype(np.uint16)


def _fields(numbers: Ints, width: int, count: int) -> NDArray[np.uint16]:
    """`count` fields of `width` bits of each number (n, k), lowest first: (n, k * count)."""
    shifts = np.arange(0, width * count, width, dtype=numbers.dtype)
    fields = numbers[..., None] >> shifts & numbers.dtype.type((1 << width) - 1)
    return np.asarray(fields, np.uint16).reshape(len(numbers), -1)


def _signs(masks: Ints) -> NDArray[np.int8]:
    """Eight signs for each byte (n, k), lowest bit first, set for minus: (n, 8k)."""
    bits = np.unpackbits(np.ascontiguousarray(masks, dtype=np.uint8), axis=1, bitorder="little")
    return np.int8(1) - np.int8(2) * bits.astype(np.int8)


def _even(codes: Ints) -> Bytes:
    """Seven signs (n, k) to eight: an even number of them is minus."""
    codes = codes.astype(np.uint8)
    folded = codes ^ (codes >> 4)
    folded ^= folded >> 2
    folded ^= folded >> 1
    return np.asarray(codes | (folded & 1) << 7, np.uint8)


def _times(values: Ints, scale: Floats) -> Floats:
    """Values (n, values) times the scale of their group (n, groups)."""
    grouped = scale[:, :, None] * values.reshape(*scale.shape, -1).astype(np.float32)
    return np.asarray(grouped.reshape(len(values), -1), np.float32)


def _picked(name: str, indices: Ints) -> NDArray[np.int8]:
    return grid(name)[indices].reshape(len(indices), -1)


def _with_half(scales: Ints, by: float, whole: Floats) -> Floats:
    """whole (n, 1) * (scales + 1/2) * by"""
    return np.asarray(whole * (np.float32(0.5) + scales.astype(np.float32)) * np.float32(by), np.float32)


def decode_iq2_xxs(blocks: Bytes) -> Floats:
    words = _words(blocks[:, 2:]).reshape(len(blocks), 8, 2)
    indices = _fields(words[:, :, 0], 8, 4)
    signs = _signs(_even(_fields(words[:, :, 1], 7, 4)))
    return _times(_picked("IQ2_XXS", indices) * signs, _with_half(words[:, :, 1] >> 28, 0.25, _half(blocks[:, :2])))


def decode_iq2_xs(blocks: Bytes) -> Floats:
    pairs = _pairs(blocks[:, 2:66])
    values = _picked("IQ2_XS", pairs & 511) * _signs(_even(pairs >> 9))
    return _times(values, _with_half(_fields(blocks[:, 66:], 4, 2), 0.25, _half(blocks[:, :2])))


def decode_iq2_s(blocks: Bytes) -> Floats:
    indices = blocks[:, 2:34] | _fields(blocks[:, 66:74], 2, 4) << 8
    values = _picked("IQ2_S", indices) * _signs(blocks[:, 34:66])
    return _times(values, _with_half(_fields(blocks[:, 74:], 4, 2), 0.25, _half(blocks[:, :2])))


def decode_iq3_xxs(blocks: Bytes) -> Floats:
    words = _words(blocks[:, 66:])
    values = _picked("IQ3_XXS", blocks[:, 2:66]) * _signs(_even(_fields(words, 7, 4)))
    return _times(values, _with_half(words >> 28, 0.5, _half(blocks[:, :2])))


def decode_iq3_s(blocks: Bytes) -> Floats:
    indices = blocks[:, 2:66] | _fields(blocks[:, 66:74], 1, 8) << 8
    values = _picked("IQ3_S", indices) * _signs(blocks[:, 74:106])
    return _times(values, _half(blocks[:, :2]) * (1 + 2 * _fields(blocks[:, 106:], 4, 2)).astype(np.float32))


def decode_iq1_s(blocks: Bytes) -> Floats:
    pairs = _pairs(blocks[:, 34:])
    eighths = _eighths(blocks[:, 2:34] | _fields(pairs, 3, 4) << 8, np.repeat(pairs >> 15, 4, axis=1))
    return _times(eighths, _half(blocks[:, :2]) * _odd(pairs >> 12 & 7))


def decode_iq1_m(blocks: Bytes) -> Floats:
    nibbles, pairs = _fields(blocks[:, 32:48], 4, 2), _pairs(blocks[:, 48:])
    eighths = _eighths(blocks[:, :32] | (nibbles & 7) << 8, nibbles >> 3)
    parts = pairs >> 12  # of the float16 that scales the block, four bits in each number
    whole = (parts << np.arange(0, 16, 4, dtype=np.uint16)).sum(axis=1, keepdims=True, dtype=np.uint16)
    return _times(eighths, whole.view("<f2").astype(np.float32) * _odd(_fields(pairs, 3, 4)))


def _eighths(indices: Ints, down: Ints) -> NDArray[np.int8]:
    """Values (n, 8k) in eighths; `down` (n, k) is 1 where eight of them are shifted down, else 0."""
    shift = np.int8(IQ1_SHIFT) - np.int8(2 * IQ1_SHIFT) * down.astype(np.int8)
    return np.int8(IQ1_STEPS) * _picked("IQ1_S", indices) + np.repeat(shift, 8, axis=1)


def _odd(scales: Ints) -> Floats:
    """2s + 1, for values in eighths."""
    return np.asarray((2 * scales + 1).astype(np.float32) * np.float32(1 / IQ1_STEPS), np.float32)


def decode_tq1_0(blocks: Bytes) -> Floats:
    """Five digits to base 3 in a byte: a fraction of 256 whose next digit is the whole part of three times it."""
    parts = [_digits(blocks[:, :32], 5), _digits(blocks[:, 32:48], 5), _digits(blocks[:, 48:52], 4)]
    return _half(blocks[:, 52:]) * (np.concatenate(parts, axis=1).astype(np.float32) - np.float32(1))


def _digits(packed: Bytes, count: int) -> NDArray[np.uint16]:
    """The first digit of all bytes (n, k), then the second of all, ...: (n, k * count)."""
    powers = (3 ** np.arange(count)).astype(np.uint8)
    fractions: Bytes = packed[:, None] * powers[:, None]
    return np.asarray(fractions.astype(np.uint16) * 3 >> 8, np.uint16).reshape(len(packed), -1)


def decode_tq2_0(blocks: Bytes) -> Floats:
    packed = blocks[:, :64].reshape(len(blocks), 2, 1, 32)
    quants = packed >> np.array([0, 2, 4, 6], np.uint8)[:, None] & np.uint8(3)
    return _half(blocks[:, 64:]) * (quants.reshape(len(blocks), -1).astype(np.float32) - np.float32(1))


GRID_DECODERS: Mapping[str, Callable[[Bytes], Floats]] = MappingProxyType(
    {
        "IQ1_S": decode_iq1_s,
        "IQ1_M": decode_iq1_m,
        "IQ2_XXS": decode_iq2_xxs,
        "IQ2_XS": decode_iq2_xs,
        "IQ2_S": decode_iq2_s,
        "IQ3_XXS": decode_iq3_xxs,
        "IQ3_S": decode_iq3_s,
        "TQ1_0": decode_tq1_0,
        "TQ2_0": decode_tq2_0,
    }
)
"""By the name of the block type: blocks uint8 (n, bytes of a block) to float32 (n, 256)."""
