"""Quantized blocks of a file as MLX keeps them, value for value the same. Knows numpy only.

MLX's affine layout: groups of 32 values along a row, each `quant * scale + bias`, quants of `bits` bits one after the
other from the lowest bit of 32-bit words. What GGML stores with a scale for every 32 values fits it; types with one
for every 16 do not. The 4-bit codebooks are whole numbers of 8 bits, so they go as those.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from localllm.formats.blocks import BLOCK_LAYOUTS, IQ4_VALUES, BlockType, row_bytes

Bytes = NDArray[np.uint8]
Words = NDArray[np.uint32]
Floats = NDArray[np.float32]

GROUP = 32
VALUES_AT_ONCE = 1 << 23
"""Blocks are unpacked in slices of rows of about so many values, as each takes several bytes on the way."""


class Quants(NamedTuple):
    """Of n blocks: quants (n, values), and scale and bias (n, values / 32) so that value = quant * scale + bias."""

    quants: Bytes
    scale: Floats
    bias: Floats


@dataclass(frozen=True, slots=True)
class Affine:
    """A matrix in MLX's affine layout: `words` (rows, columns * bits / 32), `scales`, `biases` (rows, columns / 32)."""

    words: Words
    scales: Floats
    biases: Floats
    bits: int


@dataclass(frozen=True, slots=True)
class Micro:
    """A matrix in MLX's mxfp4 layout: `words` (rows, columns / 8), `exponents` (rows, columns / 32)."""

    words: Words
    exponents: Bytes


def affine(kind: BlockType, raw: Bytes, shape: tuple[int, ...]) -> Affine:
    """The rows of a matrix (..., columns) of one of AFFINE_BITS; leading axes stay."""
    bits, unpack = AFFINE_BITS[kind], _UNPACKERS[kind]
    columns, size = shape[-1], BLOCK_LAYOUTS[kind].bytes_per_block
    words, scales, biases = [], [], []
    for rows in _slices(kind, raw, columns):
        part = unpack(rows.reshape(-1, size))
        words.append(pack(part.quants.reshape(len(rows), columns), bits))
        scales.append(part.scale.reshape(len(rows), -1))
        biases.append(part.bias.reshape(len(rows), -1))
    return Affine(_joined(words, shape), _joined(scales, shape), _joined(biases, shape), bits)


def micro(raw: Bytes, shape: tuple[int, ...]) -> Micro:
    """The rows of an MXFP4 matrix (..., columns)."""
    words, exponents = [], []
    for rows in _slices(BlockType.MXFP4, raw, shape[-1]):
        blocks = rows.reshape(-1, 17)
        words.append(pack(_halves(blocks[:, 1:]).reshape(len(rows), -1), 4))
        exponents.append(blocks[:, 0].reshape(len(rows), -1))
    return Micro(_joined(words, shape), _joined(exponents, shape))


def pack(quants: Bytes, bits: int) -> Words:
    """Quants (rows, columns) to words: eight of them are `bits` bytes, lowest first."""
    eights = quants.reshape(len(quants), -1, 8).astype(np.uint64)
    lanes = np.zeros(eights.shape[:2], "<u8")
    for place in range(8):
        lanes |= eights[:, :, place] << np.uint64(bits * place)
    packed = lanes[..., None].view(np.uint8)[..., :bits]
    return np.ascontiguousarray(packed).reshape(len(quants), -1).view("<u4")


def _slices(kind: BlockType, raw: Bytes, columns: int) -> list[Bytes]:
    """Some rows after the other, uint8 (rows, bytes of a row)."""
    rows = np.ascontiguousarray(raw).reshape(-1, row_bytes(kind, columns))
    step = max(1, VALUES_AT_ONCE // columns)
    return [rows[first : first + step] for first in range(0, len(rows), step)]


def _joined(parts: list[NDArray[Any]], shape: tuple[int, ...]) -> NDArray[Any]:
    whole = parts[0] if len(parts) == 1 else np.concatenate(parts)
    return whole.reshape(*shape[:-1], whole.size // math.prod(shape[:-1]))


def _half(field: Bytes) -> Floats:
    return np.ascontiguousarray(field).view("<f2").astype(np.float32)


def _halves(packed: Bytes) -> Bytes:
    """Low nibbles of all bytes, then the high ones."""
    return np.concatenate([packed & 0x0F, packed >> 4], axis=1)


def _nibbles(packed: Bytes, run: int) -> Bytes:
    """As `_halves`, for each run of bytes on its own."""
    return _halves(packed.reshape(-1, run)).reshape(len(packed), -1)


def _fifth_bits(field: Bytes) -> Bytes:
    """Each bit, lowest first, as a byte: 16 or 0."""
    return np.unpackbits(np.ascontiguousarray(field), axis=1, bitorder="little") * np.uint8(16)


def _centred(quants: Bytes, scale: Floats, zero: int) -> Quants:
    """Values are (quant - zero) * scale."""
    return Quants(quants, scale, scale * np.float32(-zero))


def _q4_0(blocks: Bytes) -> Quants:
    return _centred(_halves(blocks[:, 2:]), _half(blocks[:, :2]), 8)


def _q4_1(blocks: Bytes) -> Quants:
    return Quants(_halves(blocks[:, 4:]), _half(blocks[:, :2]), _half(blocks[:, 2:4]))


def _q5_0(blocks: Bytes) -> Quants:
    return _centred(_halves(blocks[:, 6:]) | _fifth_bits(blocks[:, 2:6]), _half(blocks[:, :2]), 16)


def _q5_1(blocks: Bytes) -> Quants:
    return Quants(_halves(blocks[:, 8:]) | _fifth_bits(blocks[:, 4:8]), _half(blocks[:, :2]), _half(blocks[:, 2:4]))


def _q8_0(blocks: Bytes) -> Quants:
    return _centred(blocks[:, 2:] ^ np.uint8(0x80), _half(blocks[:, :2]), 128)  # int8 + 128


def _q4_k(blocks: Bytes) -> Quants:
    return Quants(_nibbles(blocks[:, 16:], 32), *_k_scales(blocks))


def _q5_k(blocks: Bytes) -> Quants:
    fifths = _fifth_bits(blocks[:, 16:48]).reshape(len(blocks), 32, 8).swapaxes(1, 2).reshape(len(blocks), -1)
    return Quants(_nibbles(blocks[:, 48:], 32) | fifths, *_k_scales(blocks))


def _k_scales(blocks: Bytes) -> tuple[Floats, Floats]:
    """Scale and bias (n, 8): two float16 times eight pairs of 6-bit numbers; the high bits are with the later ones."""
    low, middle, high = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    scales = np.concatenate([low & 0x3F, (high & 0x0F) | ((low >> 2) & 0x30)], axis=1)
    floors = np.concatenate([middle & 0x3F, (high >> 4) | ((middle >> 2) & 0x30)], axis=1)
    return _half(blocks[:, :2]) * scales.astype(np.float32), _half(blocks[:, 2:4]) * -floors.astype(np.float32)


def _iq4_nl(blocks: Bytes) -> Quants:
    return _centred(_codebook(_halves(blocks[:, 2:])), _half(blocks[:, :2]), 128)


def _iq4_xs(blocks: Bytes) -> Quants:
    places = np.arange(0, 16, 2, dtype=np.uint16)
    high = np.ascontiguousarray(blocks[:, 2:4]).view("<u2") >> places & 3  # (n, 8)
    low = _halves(blocks[:, 4:8]).reshape(-1, 2, 4).swapaxes(1, 2).reshape(-1, 8)
    scale = _half(blocks[:, :2]) * ((low | high << 4).astype(np.float32) - np.float32(32))
    return _centred(_codebook(_nibbles(blocks[:, 8:], 16)), scale, 128)


def _codebook(nibbles: Bytes) -> Bytes:
    return (np.array(IQ4_VALUES, np.int16) + 128).astype(np.uint8)[nibbles]


_UNPACKERS: Mapping[BlockType, Callable[[Bytes], Quants]] = MappingProxyType(
    {
        BlockType.Q4_0: _q4_0,
        BlockType.Q4_1: _q4_1,
        BlockType.Q5_0: _q5_0,
        BlockType.Q5_1: _q5_1,
        BlockType.Q8_0: _q8_0,
        BlockType.Q4_K: _q4_k,
        BlockType.Q5_K: _q5_k,
        BlockType.IQ4_NL: _iq4_nl,
        BlockType.IQ4_XS: _iq4_xs,
    }
)
AFFINE_BITS: Mapping[BlockType, int] = MappingProxyType(
    {
        BlockType.Q4_0: 4,
        BlockType.Q4_1: 4,
        BlockType.Q5_0: 5,
        BlockType.Q5_1: 5,
        BlockType.Q8_0: 8,
        BlockType.Q4_K: 4,
        BlockType.Q5_K: 5,
        BlockType.IQ4_NL: 8,
        BlockType.IQ4_XS: 8,
    }
)
"""Bits of a value in MLX's layout, for each type that fits it."""
