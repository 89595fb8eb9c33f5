"""Codes out of 32-bit words, and 8-bit floats."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]

AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)
"""Where AWQ's gemm packing keeps the eight columns of a word: column i is nibble AWQ_ORDER[i]."""


def unpacked(words: NDArray[Any], bits: int) -> Bytes:
    """Codes of `bits` bits, one after another from the lowest bit of the first word: (..., n) to (..., n * 32 / bits).

    Codes may cross from word to word.
    """
    raw = np.ascontiguousarray(words).astype(words.dtype.newbyteorder("<"), copy=False).view(np.uint8)
    if bits == 8:
        return raw
    if bits in (2, 4):
        per_byte, mask = 8 // bits, np.uint8((1 << bits) - 1)
        codes = np.empty((*raw.shape, per_byte), np.uint8)
        for index in range(per_byte):
            codes[..., index] = (raw >> np.uint8(bits * index)) & mask
        return codes.reshape(*raw.shape[:-1], -1)
    stream = np.unpackbits(raw, axis=-1, bitorder="little")
    whole = stream.shape[-1] // bits * bits
    parts = stream[..., :whole].reshape(*raw.shape[:-1], -1, bits)
    return np.packbits(parts, axis=-1, bitorder="little")[..., 0]


def awq_unpacked(words: NDArray[Any]) -> Bytes:
    """(n, words) to (columns, n): AWQ's order of nibbles undone, and turned."""
    turned = np.ascontiguousarray(words.T).view(np.uint32)
    codes = np.empty((len(turned), 8, turned.shape[1]), np.uint8)
    for column, nibble in enumerate(AWQ_ORDER):
        codes[:, column] = (turned >> np.uint32(4 * nibble)) & np.uint32(15)
    return codes.reshape(-1, turned.shape[1])


def e4m3_table() -> Floats:
    """All 256 floats of 4 exponent and 3 mantissa bits; no infinities, 0x7F and 0xFF are no numbers."""
    code = np.arange(256)
    exponent, mantissa = (code >> 3) & 15, code & 7
    size = np.where(exponent == 0, mantissa * 2.0**-9, (8 + mantissa) * 2.0 ** (exponent - 10.0))
    values = np.where(code & 0x80, -size, size).astype(np.float32)
    values[[0x7F, 0xFF]] = np.nan
    return values
