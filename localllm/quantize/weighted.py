"""Q4_0, Q4_1, Q5_0 and Q5_1 where the importance of each column is known: the scale of the least weighted error.

Without it these types are rounded as everybody rounds them, see formats/blocks.py. Values must be finite and within
float16; encode.py sees to that.
"""

import numpy as np

from localllm.quantize.pack import halves, pack_bits
from localllm.quantize.search import (
    Bytes,
    Floats,
    affine_fit,
    extremes,
    in_blocks,
    in_columns,
    inverse,
    quantized,
    scale_fit,
    size_weights,
    symmetric_candidates,
)

GROUP = 32
STRETCHES = np.arange(-0.9, 0.95, 0.05)


def encode_q4_0(blocks: Floats, importance: Floats) -> Bytes:
    scale, quants = _symmetric(blocks, importance, 8)
    return np.concatenate([scale, pack_bits(quants, 16, 4)], axis=1)


def encode_q5_0(blocks: Floats, importance: Floats) -> Bytes:
    scale, quants = _symmetric(blocks, importance, 16)
    return np.concatenate([scale, *_fifth_bits(quants)], axis=1)


def encode_q4_1(blocks: Floats, importance: Floats) -> Bytes:
    scale, floor, quants = _affine(blocks, importance, 15)
    return np.concatenate([scale, floor, pack_bits(quants, 16, 4)], axis=1)


def encode_q5_1(blocks: Floats, importance: Floats) -> Bytes:
    scale, floor, quants = _affine(blocks, importance, 31)
    return np.concatenate([scale, floor, *_fifth_bits(quants)], axis=1)


def _fifth_bits(quants: Bytes) -> tuple[Bytes, Bytes]:
    return np.packbits(quants >> np.uint8(4), axis=1, bitorder="little"), pack_bits(quants & np.uint8(15), 16, 4)


def _symmetric(blocks: Floats, importance: Floats, reach: int) -> tuple[Bytes, Bytes]:
    groups = in_columns(blocks, GROUP)
    per_unit = inverse(extremes(groups))
    candidates = (per_unit * end for end in symmetric_candidates(reach))
    fit = scale_fit(
        groups, size_weights(groups, importance), candidates, lambda scaled: quantized(scaled, -reach, reach - 1)
    )
    packed, scale = halves(fit)
    quants = quantized(groups * inverse(scale), -reach, reach - 1) + np.float32(reach)
    return packed, in_blocks(quants.astype(np.uint8), GROUP)


def _affine(blocks: Floats, importance: Floats, levels: int) -> tuple[Bytes, Bytes, Bytes]:
    groups = in_columns(blocks, GROUP)
    fit, lift = affine_fit(groups, size_weights(groups, importance), levels, STRETCHES.tolist())
    packed, scale = halves(fit)
    packed_floor, floor = halves(np.float32(0) - lift)
    quants = quantized((groups - floor) * inverse(scale), 0, levels)
    return packed, packed_floor, in_blocks(quants.astype(np.uint8), GROUP)
