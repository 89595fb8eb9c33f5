"""GGML block layouts, and the numpy decode that every kernel is judged against.

Slow on purpose: plain arithmetic in the order of ggml's reference, so that results are equal bit for bit.
Source: ggml-common.h and ggml-quants.c (block structs and dequantize_row_*), OCP MX specification 1.0 for MXFP4.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from enum import IntEnum
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from localllm.errors import BadModelFile, UnsupportedModel
from localllm.formats.grid_blocks import GRID_DECODERS

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]


class BlockType(IntEnum):
    """The numbers GGUF files use for tensor types; gaps are types that GGML has withdrawn."""

    F32 = 0
    F16 = 1
    Q4_0 = 2
    Q4_1 = 3
    Q5_0 = 6
    Q5_1 = 7
    Q8_0 = 8
    Q8_1 = 9
    Q2_K = 10
    Q3_K = 11
    Q4_K = 12
    Q5_K = 13
    Q6_K = 14
    Q8_K = 15
    IQ2_XXS = 16
    IQ2_XS = 17
    IQ3_XXS = 18
    IQ1_S = 19
    IQ4_NL = 20
    IQ3_S = 21
    IQ2_S = 22
    IQ4_XS = 23
    I8 = 24
    I16 = 25
    I32 = 26
    I64 = 27
    F64 = 28
    IQ1_M = 29
    BF16 = 30
    TQ1_0 = 34
    TQ2_0 = 35
    MXFP4 = 39
    NVFP4 = 40
    Q1_0 = 41


class BlockLayout(NamedTuple):
    """How many values one block holds, and in how many bytes."""

    values_per_block: int
    bytes_per_block: int


BLOCK_LAYOUTS: Mapping[BlockType, BlockLayout] = MappingProxyType(
    {
        BlockType.F32: BlockLayout(1, 4),
        BlockType.F16: BlockLayout(1, 2),
        BlockType.Q4_0: BlockLayout(32, 18),
        BlockType.Q4_1: BlockLayout(32, 20),
        BlockType.Q5_0: BlockLayout(32, 22),
        BlockType.Q5_1: BlockLayout(32, 24),
        BlockType.Q8_0: BlockLayout(32, 34),
        BlockType.Q8_1: BlockLayout(32, 36),
        BlockType.Q2_K: BlockLayout(256, 84),
        BlockType.Q3_K: BlockLayout(256, 110),
        BlockType.Q4_K: BlockLayout(256, 144),
        BlockType.Q5_K: BlockLayout(256, 176),
        BlockType.Q6_K: BlockLayout(256, 210),
        BlockType.Q8_K: BlockLayout(256, 292),
        BlockType.IQ2_XXS: BlockLayout(256, 66),
        BlockType.IQ2_XS: BlockLayout(256, 74),
        BlockType.IQ3_XXS: BlockLayout(256, 98),
        BlockType.IQ1_S: BlockLayout(256, 50),
        BlockType.IQ4_NL: BlockLayout(32, 18),
        BlockType.IQ3_S: BlockLayout(256, 110),
        BlockType.IQ2_S: BlockLayout(256, 82),
        BlockType.IQ4_XS: BlockLayout(256, 136),
        BlockType.I8: BlockLayout(1, 1),
        BlockType.I16: BlockLayout(1, 2),
        BlockType.I32: BlockLayout(1, 4),
        BlockType.I64: BlockLayout(1, 8),
        BlockType.F64: BlockLayout(1, 8),
        BlockType.IQ1_M: BlockLayout(256, 56),
        BlockType.BF16: BlockLayout(1, 2),
        BlockType.TQ1_0: BlockLayout(256, 54),
        BlockType.TQ2_0: BlockLayout(256, 66),
        BlockType.MXFP4: BlockLayout(32, 17),
        BlockType.NVFP4: BlockLayout(64, 36),
        BlockType.Q1_0: BlockLayout(128, 18),
    }
)

# the codebooks of the non-linear 4-bit types, indexed by the nibble
IQ4_VALUES = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
MXFP4_VALUES_DOUBLED = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)


def row_bytes(block_type: BlockType, columns: int) -> int:
    """Bytes of one row of `columns` values; BadModelFile if the row is not a whole number of blocks."""
    values, size = BLOCK_LAYOUTS[block_type]
    if columns < 0 or columns % values:
        raise BadModelFile(f"a row of {columns} values is not a whole number of {block_type.name} blocks of {values}")
    return columns // values * size


def decode(block_type: BlockType, raw: Bytes, shape: Sequence[int]) -> Floats:
    """Expand packed blocks to float32.

    raw: uint8, any shape, the rows one after another; shape: of the result, its last dimension is the row.
    Raises UnsupportedModel for a type without a decoder here, BadModelFile if bytes and shape do not agree.
    """
    expand = _DECODERS.get(block_type)
    if expand is None:
        raise UnsupportedModel(
            f"block type {block_type.name} cannot be decoded by this build",
            hint="choose another quantization of the model, for example Q4_K_M or Q8_0",
        )
    _check_size(block_type, raw.size, shape)
    flat = np.ascontiguousarray(raw).reshape(-1)
    return expand(flat.reshape(-1, BLOCK_LAYOUTS[block_type].bytes_per_block)).reshape(tuple(shape))


def encode(block_type: BlockType, values: NDArray[Any]) -> Bytes:
    """Pack float values, plain rounding as in ggml's reference.

    values: (..., columns); returns uint8 (..., row_bytes). Raises UnsupportedModel for types without an encoder here.
    """
    pack = _ENCODERS.get(block_type)
    if pack is None:
        raise UnsupportedModel(f"values cannot be encoded as {block_type.name} by the plain encoder")
    columns = values.shape[-1] if values.ndim else 1
    size = row_bytes(block_type, columns)
    blocks = np.ascontiguousarray(values, dtype=np.float32).reshape(-1, BLOCK_LAYOUTS[block_type].values_per_block)
    with np.errstate(over="ignore", invalid="ignore"):  # 1 / scale of denormal values is infinite: see _whole
        return pack(blocks).reshape(*values.shape[:-1], size)


def _check_size(block_type: BlockType, size: int, shape: Sequence[int]) -> None:
    expected = math.prod(map(int, shape[:-1])) * row_bytes(block_type, int(shape[-1]) if shape else 1)
    if size != expected:
        raise BadModelFile(f"{block_type.name} values of shape {tuple(shape)} take {expected} bytes, not {size}")


# Decoders: blocks uint8 (n, bytes_per_block) -> float32 (n, values_per_block).


def _half(field: Bytes) -> Floats:
    """Little-endian float16 bytes (n, 2k) to float32 (n, k)."""
    return np.ascontiguousarray(field).view("<f2").astype(np.float32)


def _halves_in_order(packed: Bytes) -> Bytes:
    """Nibbles (n, b) to (n, 2b): first all low nibbles, then all high ones."""
    return np.concatenate([packed & 0x0F, packed >> 4], axis=1)


def _nibbles(packed: Bytes, group: int) -> Bytes:
    """Nibbles to bytes (n, 2b), each `group` bytes giving their low nibbles, then their high ones."""
    grouped = packed.reshape(len(packed), -1, group)
    return np.stack([grouped & 0x0F, grouped >> 4], axis=2).reshape(len(packed), -1)


def _bits(packed: Bytes, group: int, width: int) -> Bytes:
    """Fields of `width` bits to bytes, each `group` bytes giving their lowest fields first."""
    shifts = np.arange(0, 8, width, dtype=np.uint8).reshape(1, 1, -1, 1)
    fields: Bytes = packed.reshape(len(packed), -1, 1, group) >> shifts
    masked: Bytes = fields & np.uint8((1 << width) - 1)
    return masked.reshape(len(packed), -1)


def _fifth_bits(field: Bytes) -> Bytes:
    """Four bytes (n, 4) to their 32 bits (n, 32), lowest first."""
    return np.unpackbits(np.ascontiguousarray(field), axis=1, bitorder="little")


def _decode_f32(blocks: Bytes) -> Floats:
    return blocks.view("<f4").astype(np.float32)


def _decode_f16(blocks: Bytes) -> Floats:
    return _half(blocks)


def _decode_bf16(blocks: Bytes) -> Floats:
    return (blocks.view("<u2").astype(np.uint32) << 16).view(np.float32)


def _decode_q4_0(blocks: Bytes) -> Floats:
    quants = _halves_in_order(blocks[:, 2:]).astype(np.float32) - np.float32(8)
    return _half(blocks[:, :2]) * quants


def _decode_q4_1(blocks: Bytes) -> Floats:
    quants = _halves_in_order(blocks[:, 4:]).astype(np.float32)
    return _half(blocks[:, :2]) * quants + _half(blocks[:, 2:4])


def _decode_q5_0(blocks: Bytes) -> Floats:
    quants = _halves_in_order(blocks[:, 6:]) | (_fifth_bits(blocks[:, 2:6]) << np.uint8(4))
    return _half(blocks[:, :2]) * (quants.astype(np.float32) - np.float32(16))


def _decode_q5_1(blocks: Bytes) -> Floats:
    quants = _halves_in_order(blocks[:, 8:]) | (_fifth_bits(blocks[:, 4:8]) << np.uint8(4))
    return _half(blocks[:, :2]) * quants.astype(np.float32) + _half(blocks[:, 2:4])


def _decode_q8_0(blocks: Bytes) -> Floats:
    return _half(blocks[:, :2]) * blocks[:, 2:].view(np.int8).astype(np.float32)


def _decode_q2_k(blocks: Bytes) -> Floats:
    scales, quants = blocks[:, :16], _bits(blocks[:, 16:80], 32, 2)
    scale = _half(blocks[:, 80:82]) * (scales & 0x0F).astype(np.float32)  # (n, 16), one for each 16 values
    floor = _half(blocks[:, 82:84]) * (scales >> 4).astype(np.float32)
    return _scaled(quants.astype(np.float32), scale, floor)


def _decode_q3_k(blocks: Bytes) -> Floats:
    high = _bits(blocks[:, :32], 32, 1)  # a set bit means that 4 is not subtracted
    quants = _bits(blocks[:, 32:96], 32, 2).astype(np.float32) - np.float32(4) * (high ^ 1).astype(np.float32)
    scale = _half(blocks[:, 108:110]) * (_q3_k_scales(blocks[:, 96:108]).astype(np.float32) - np.float32(32))
    return _scaled(quants, scale, None)


def _q3_k_scales(packed: Bytes) -> Bytes:
    """Twelve bytes (n, 12) to sixteen 6-bit scales: low nibbles from eight bytes, high pairs from four."""
    return _halves_in_order(packed[:, :8]) | (_bits(packed[:, 8:], 4, 2) << np.uint8(4))


def _decode_q4_k(blocks: Bytes) -> Floats:
    scale, floor = _k_scales(blocks)
    return _scaled(_nibbles(blocks[:, 16:], 32).astype(np.float32), scale, floor)


def _decode_q5_k(blocks: Bytes) -> Floats:
    scale, floor = _k_scales(blocks)
    quants = _nibbles(blocks[:, 48:], 32) | (_bits(blocks[:, 16:48], 32, 1) << np.uint8(4))
    return _scaled(quants.astype(np.float32), scale, floor)


def _k_scales(blocks: Bytes) -> tuple[Floats, Floats]:
    """Scale and floor (n, 8) of Q4_K and Q5_K: two float16, then eight pairs of 6-bit numbers in twelve bytes."""
    low, middle, high = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    scales = np.concatenate([low & 0x3F, (high & 0x0F) | ((low >> 2) & 0x30)], axis=1)
    floors = np.concatenate([middle & 0x3F, (high >> 4) | ((middle >> 2) & 0x30)], axis=1)
    return _half(blocks[:, :2]) * scales.astype(np.float32), _half(blocks[:, 2:4]) * floors.astype(np.float32)


def _decode_q6_k(blocks: Bytes) -> Floats:
    quants = _nibbles(blocks[:, :128], 64) | (_bits(blocks[:, 128:192], 32, 2) << np.uint8(4))
    scale = _half(blocks[:, 208:210]) * blocks[:, 192:208].view(np.int8).astype(np.float32)
    return _scaled(quants.astype(np.float32) - np.float32(32), scale, None)


def _scaled(quants: Floats, scale: Floats, floor: Floats | None) -> Floats:
    """quants (n, values) times the scale of its group (n, groups), minus the floor of its group."""
    grouped = scale[:, :, None] * quants.reshape(*scale.shape, -1)
    return (grouped if floor is None else grouped - floor[:, :, None]).reshape(quants.shape)


def _decode_iq4_nl(blocks: Bytes) -> Floats:
    return _half(blocks[:, :2]) * np.array(IQ4_VALUES, np.float32)[_halves_in_order(blocks[:, 2:])]


def _decode_iq4_xs(blocks: Bytes) -> Floats:
    high = _bits(blocks[:, 2:4], 1, 2)  # (n, 8)
    low = _bits(blocks[:, 4:8], 1, 4)
    scale = _half(blocks[:, :2]) * ((low | (high << 4)).astype(np.float32) - np.float32(32))
    return _scaled(np.array(IQ4_VALUES, np.float32)[_nibbles(blocks[:, 8:], 16)], scale, None)


def _decode_mxfp4(blocks: Bytes) -> Floats:
    exponent = blocks[:, :1].astype(np.uint32)
    # half of 2**(e - 127), because the codebook holds doubled values; the two smallest are denormal
    bits = np.where(exponent < 2, np.uint32(0x00200000) << exponent, (exponent - np.uint32(1)) << np.uint32(23))
    return bits.view(np.float32) * np.array(MXFP4_VALUES_DOUBLED, np.float32)[_halves_in_order(blocks[:, 1:])]


def _decode_q1_0(blocks: Bytes) -> Floats:
    """A bit says which sign the scale has."""
    bits = np.unpackbits(np.ascontiguousarray(blocks[:, 2:]), axis=1, bitorder="little")
    return _half(blocks[:, :2]) * (np.float32(2) * bits.astype(np.float32) - np.float32(1))


_DECODERS: Mapping[BlockType, Callable[[Bytes], Floats]] = MappingProxyType(
    {
        BlockType.F32: _decode_f32,
        BlockType.F16: _decode_f16,
        BlockType.BF16: _decode_bf16,
        BlockType.Q4_0: _decode_q4_0,
        BlockType.Q4_1: _decode_q4_1,
        BlockType.Q5_0: _decode_q5_0,
        BlockType.Q5_1: _decode_q5_1,
        BlockType.Q8_0: _decode_q8_0,
        BlockType.Q2_K: _decode_q2_k,
        BlockType.Q3_K: _decode_q3_k,
        BlockType.Q4_K: _decode_q4_k,
        BlockType.Q5_K: _decode_q5_k,
        BlockType.Q6_K: _decode_q6_k,
        BlockType.IQ4_NL: _decode_iq4_nl,
        BlockType.IQ4_XS: _decode_iq4_xs,
        BlockType.MXFP4: _decode_mxfp4,
        BlockType.Q1_0: _decode_q1_0,
        **{BlockType[name]: expand for name, expand in GRID_DECODERS.items()},
    }
)
DECODABLE: frozenset[BlockType] = frozenset(_DECODERS)


# Encoders: blocks float32 (n, values_per_block) -> uint8 (n, bytes_per_block).


def _encode_f32(blocks: Floats) -> Bytes:
    return blocks.astype("<f4").view(np.uint8)


def _encode_f16(blocks: Floats) -> Bytes:
    return blocks.astype("<f2").view(np.uint8)


def _encode_bf16(blocks: Floats) -> Bytes:
    bits = blocks.view(np.uint32)
    quiet_nan = (bits & np.uint32(0xFFFF0000)) | np.uint32(0x00400000)
    # to nearest, ties to even; a NaN must not be rounded into an infinity
    rounded = bits.astype(np.uint64) + 0x7FFF + ((bits >> 16) & 1)
    kept = np.where((bits & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000), quiet_nan, rounded)
    return (kept >> 16).astype("<u2").view(np.uint8)


def _inverse(scale: Floats) -> Floats:
    return np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=scale != 0)


def _whole(numbers: Floats) -> Floats:
    """Without the fraction, as a cast to int8 does in ggml on x86: what no int32 holds, and NaN, becomes 0."""
    whole: Floats = np.where(np.abs(numbers) < np.float32(2.0**31), np.trunc(numbers), np.float32(0))
    return whole


def _pack_nibbles(quants: NDArray[Any]) -> Bytes:
    """Values 0..15 (n, 32) to 16 bytes: the first half in the low nibbles, the second in the high ones."""
    small: Bytes = np.clip(quants, 0, 15).astype(np.uint8)
    return small[:, :16] | (small[:, 16:] << np.uint8(4))


def _signed_scale(blocks: Floats, reach: int) -> Floats:
    """The scale (n, 1) under which the first value of largest size becomes -reach exactly."""
    where = np.abs(blocks).argmax(axis=1)[:, None]
    largest: Floats = np.take_along_axis(blocks, where, axis=1)
    largest[largest == 0] = 0  # the scale of nothing but zeros, of either sign, is -0.0 in ggml
    return largest / np.float32(-reach)


def _floor_and_scale(blocks: Floats, levels: int) -> tuple[Floats, Floats]:
    """The first of the smallest values (n, 1), as zeros may have either sign, and the step up to the largest."""
    smallest = blocks == blocks.min(axis=1, keepdims=True)
    floor = np.take_along_axis(blocks, smallest.argmax(axis=1)[:, None], axis=1)
    # the largest of zeros of both signs may have either: no scale is -0.0
    return floor, (blocks.max(axis=1, keepdims=True) - floor + np.float32(0)) / np.float32(levels)


def _encode_q4_0(blocks: Floats) -> Bytes:
    scale = _signed_scale(blocks, 8)
    quants = _whole(blocks * _inverse(scale) + np.float32(8.5))
    return np.concatenate([_encode_f16(scale), _pack_nibbles(quants)], axis=1)


def _encode_q4_1(blocks: Floats) -> Bytes:
    floor, scale = _floor_and_scale(blocks, 15)
    quants = _whole((blocks - floor) * _inverse(scale) + np.float32(0.5))
    return np.concatenate([_encode_f16(scale), _encode_f16(floor), _pack_nibbles(quants)], axis=1)


def _pack_fifth_bits(quants: NDArray[Any]) -> tuple[Bytes, Bytes]:
    """Values 0..31 (n, 32) to four bytes of their highest bits, and sixteen bytes of the other four."""
    small: Bytes = np.clip(quants, 0, 31).astype(np.uint8)
    return np.packbits(small >> np.uint8(4), axis=1, bitorder="little"), _pack_nibbles(small & np.uint8(15))


def _encode_q5_0(blocks: Floats) -> Bytes:
    scale = _signed_scale(blocks, 16)
    quants = _whole(blocks * _inverse(scale) + np.float32(16.5))
    return np.concatenate([_encode_f16(scale), *_pack_fifth_bits(quants)], axis=1)


def _encode_q5_1(blocks: Floats) -> Bytes:
    floor, scale = _floor_and_scale(blocks, 31)
    quants = _whole((blocks - floor) * _inverse(scale) + np.float32(0.5))
    return np.concatenate([_encode_f16(scale), _encode_f16(floor), *_pack_fifth_bits(quants)], axis=1)


def _encode_q8_0(blocks: Floats) -> Bytes:
    scale = np.abs(blocks).max(axis=1, keepdims=True) / np.float32(127)
    scaled = blocks * _inverse(scale)
    size = np.abs(scaled)
    whole = np.floor(size)
    # C's roundf: halves away from zero (adding 0.5 first would round 0.49999997 up)
    quants = _whole(np.copysign(whole + np.floor(2 * (size - whole)), scaled))
    return np.concatenate([_encode_f16(scale), quants.astype(np.int8).view(np.uint8)], axis=1)


_ENCODERS: Mapping[BlockType, Callable[[Floats], Bytes]] = MappingProxyType(
    {
        BlockType.F32: _encode_f32,
        BlockType.F16: _encode_f16,
        BlockType.BF16: _encode_bf16,
        BlockType.Q8_0: _encode_q8_0,
        BlockType.Q4_0: _encode_q4_0,
        BlockType.Q4_1: _encode_q4_1,
        BlockType.Q5_0: _encode_q5_0,
        BlockType.Q5_1: _encode_q5_1,
    }
)
PLAINLY_ENCODABLE: frozenset[BlockType] = frozenset(_ENCODERS)
