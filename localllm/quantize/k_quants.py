"""Q2_K to Q6_K: blocks of 256 values, in groups with small scales (and floors) of their own under float16 ones.

Source of the layouts: ggml-common.h. Values must be finite and within float16; encode.py sees to that.
"""

from itertools import product
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from localllm.quantize.pack import halves, pack_bits, pack_scale_pairs
from localllm.quantize.search import (
    Bytes,
    Floats,
    affine_fit,
    extremes,
    in_blocks,
    in_columns,
    inverse,
    least_of,
    quantized,
    scale_fit,
    size_weights,
    squared_error,
    symmetric_candidates,
    total,
)

VALUES = 256


class _Affine(NamedTuple):
    """Blocks of scale * quant - floor, before they are packed; scales and floors are (n, groups)."""

    quants: Bytes
    scales: Bytes
    floors: Bytes
    super_scale: Bytes
    super_floor: Bytes


class _Symmetric(NamedTuple):
    """Blocks of scale * (quant - middle), before they are packed; scales (n, groups) are whole numbers, signed."""

    quants: Bytes
    scales: NDArray[np.int8]
    super_scale: Bytes


def encode_q2_k(blocks: Floats, importance: Floats | None = None) -> Bytes:
    parts = _affine(blocks, importance, 16, levels=3, steps=15, stretches=np.arange(-0.5, 1.05, 0.1))
    scales = parts.scales | (parts.floors << np.uint8(4))
    return np.concatenate([scales, pack_bits(parts.quants, 32, 2), parts.super_scale, parts.super_floor], axis=1)


def encode_q3_k(blocks: Floats, importance: Floats | None = None) -> Bytes:
    quants, scales, super_scale = _symmetric(blocks, importance, reach=4, steps=32)
    lifted = (scales + np.int8(32)).view(np.uint8)
    packed = [pack_bits(lifted & 0x0F, 8, 4), pack_bits(lifted >> 4, 4, 2)]
    return np.concatenate([pack_bits(quants >> 2, 32, 1), pack_bits(quants & 3, 32, 2), *packed, super_scale], axis=1)


def encode_q4_k(blocks: Floats, importance: Floats | None = None) -> Bytes:
    parts = _affine(blocks, importance, 32, levels=15, steps=63, stretches=np.arange(-1, 1.05, 0.1))
    return np.concatenate([*_head(parts), pack_bits(parts.quants, 32, 4)], axis=1)


def encode_q5_k(blocks: Floats, importance: Floats | None = None) -> Bytes:
    parts = _affine(blocks, importance, 32, levels=31, steps=63, stretches=np.arange(-0.5, 1.05, 0.1))
    fields = [pack_bits(parts.quants >> 4, 32, 1), pack_bits(parts.quants & 0x0F, 32, 4)]
    return np.concatenate([*_head(parts), *fields], axis=1)


def encode_q6_k(blocks: Floats, importance: Floats | None = None) -> Bytes:
    quants, scales, super_scale = _symmetric(blocks, importance, reach=32, steps=128)
    fields = [pack_bits(quants & 0x0F, 64, 4), pack_bits(quants >> 4, 32, 2)]
    return np.concatenate([*fields, scales.view(np.uint8), super_scale], axis=1)


def _head(parts: _Affine) -> tuple[Bytes, Bytes, Bytes]:
    return parts.super_scale, parts.super_floor, pack_scale_pairs(parts.scales, parts.floors)


def _affine(
    blocks: Floats, importance: Floats | None, group: int, levels: int, steps: int, stretches: NDArray[np.float64]
) -> _Affine:
    groups, per_block = in_columns(blocks, group), VALUES // group
    weights = size_weights(groups, importance)
    scale, floor = affine_fit(groups, weights, levels, stretches.tolist())
    super_scale, scale_unit = _unit(scale.reshape(-1, per_block).max(axis=1), per_block, steps)
    super_floor, floor_unit = _unit(floor.reshape(-1, per_block).max(axis=1), per_block, steps)

    def rounded(scales: Floats, floors: Floats) -> Floats:
        return quantized((groups + floors * floor_unit) * inverse(scales * scale_unit), 0, levels)

    def error(scales: Floats, floors: Floats) -> Floats:
        points = rounded(scales, floors) * (scales * scale_unit) - floors * floor_unit
        return squared_error(groups, weights, points)

    around_scale = _neighbours(scale * inverse(scale_unit), 0, steps)
    around_floor = _neighbours(floor * inverse(floor_unit), 0, steps)
    scales, floors = least_of(product(around_scale, around_floor), error)
    quants = in_blocks(rounded(scales, floors).astype(np.uint8), VALUES)
    small_scales, small_floors = (numbers.astype(np.uint8).reshape(-1, per_block) for numbers in (scales, floors))
    return _Affine(quants, small_scales, small_floors, super_scale, super_floor)


def _unit(largest: Floats, per_block: int, steps: int) -> tuple[Bytes, Floats]:
    """The float16 (n, 2) under the small scales of each block, and its value for each group (n * per_block,)."""
    return _halves_for(largest / np.float32(steps), per_block)


def _halves_for(unit: Floats, per_block: int) -> tuple[Bytes, Floats]:
    packed, rounded = halves(unit)
    return packed, np.repeat(rounded, per_block)


def _super_fit(scale: Floats, weights: Floats, steps: int) -> Floats:
    """What the scales of each block (blocks * groups,) are counted in, so that the heavy ones among them fit best."""
    scales, heavy = in_columns(scale, VALUES // 16), in_columns(weights, VALUES // 16)
    per_unit = inverse(extremes(scales))
    candidates = (per_unit * end for end in symmetric_candidates(steps))
    return scale_fit(scales, heavy, candidates, lambda scaled: quantized(scaled, -steps, steps - 1))


def _neighbours(numbers: Floats, low: int, high: int) -> list[Floats]:
    """The nearest whole number and those beside it: what is lost in rounding a scale, its quants may make good."""
    nearest = quantized(numbers, low, high)
    return [nearest, *(np.clip(nearest + np.float32(step), low, high) for step in (-1, 1))]


def _symmetric(blocks: Floats, importance: Floats | None, reach: int, steps: int) -> _Symmetric:
    """Quants of -reach..reach-1 (stored from 0), scales of -steps..steps-1, groups of 16."""
    groups, per_block = in_columns(blocks, 16), VALUES // 16
    weights = size_weights(groups, importance)
    per_unit = inverse(extremes(groups))
    candidates = (per_unit * end for end in symmetric_candidates(reach))
    scale = scale_fit(groups, weights, candidates, lambda scaled: quantized(scaled, -reach, reach - 1))
    super_scale, unit = _halves_for(_super_fit(scale, total(weights), steps), per_block)

    def rounded(scales: Floats) -> Floats:
        return quantized(groups * inverse(scales * unit), -reach, reach - 1)

    def error(scales: Floats) -> Floats:
        return squared_error(groups, weights, rounded(scales) * (scales * unit))

    (scales,) = least_of(zip(_neighbours(scale * inverse(unit), -steps, steps - 1)), error)
    quants = (rounded(scales) + np.float32(reach)).astype(np.uint8)
    return _Symmetric(in_blocks(quants, VALUES), scales.astype(np.int8).reshape(-1, per_block), super_scale)
