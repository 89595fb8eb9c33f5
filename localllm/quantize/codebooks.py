"""IQ4_NL, IQ4_XS and MXFP4: four bits that point into a table of sixteen values.

Source: ggml-common.h for the layouts, OCP MX specification 1.0 for MXFP4. Values must be finite: encode.py sees to it.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from localllm.formats.blocks import IQ4_VALUES, MXFP4_VALUES_DOUBLED
from localllm.quantize.pack import halves, pack_bits
from localllm.quantize.search import (
    Bytes,
    Floats,
    extremes,
    in_blocks,
    in_columns,
    inverse,
    quantized,
    scale_fit,
    size_weights,
    total,
)

GROUP = 32
# scaled values are looked up in steps of a half, as the middles between two whole numbers are multiples of a half
_LOWEST, _HIGHEST = 2 * IQ4_VALUES[0], 2 * IQ4_VALUES[-1]
# doubled magnitudes of FP4 (E2M1) meet halfway; a tie goes to the code with an even mantissa
_MXFP4_MIDDLES = ((0.5, "down"), (1.5, "up"), (2.5, "down"), (3.5, "up"), (5, "down"), (7, "up"), (10, "down"))
_LARGEST_EXPONENT = 252  # 6 * 2**125 is the largest MXFP4 number that float32 holds


def encode_iq4_nl(blocks: Floats, importance: Floats | None = None) -> Bytes:
    groups = in_columns(blocks, GROUP)
    super_scale, scale = halves(_iq4_scale(groups, importance))
    codes = _iq4_tables()[0][_slots(groups * inverse(scale))]
    return np.concatenate([super_scale, pack_bits(in_blocks(codes, GROUP), 16, 4)], axis=1)


def encode_iq4_xs(blocks: Floats, importance: Floats | None = None) -> Bytes:
    groups = in_columns(blocks, GROUP)
    scale = _iq4_scale(groups, importance).reshape(len(blocks), -1)
    super_scale, unit = halves(extremes(np.ascontiguousarray(scale.T)) / np.float32(-32))
    steps = quantized(scale * inverse(unit)[:, None], -32, 31)
    codes = _iq4_tables()[0][_slots(groups * inverse((steps * unit[:, None]).reshape(-1)))]
    lifted = (steps + np.float32(32)).astype(np.uint8)
    fields = [pack_bits(lifted >> 4, 1, 2), pack_bits(lifted & 0x0F, 1, 4)]
    return np.concatenate([super_scale, *fields, pack_bits(in_blocks(codes, 256), 16, 4)], axis=1)


def _iq4_scale(groups: Floats, importance: Floats | None) -> Floats:
    points, weights = _iq4_tables()[1], size_weights(groups, importance)
    return scale_fit(groups, weights, _iq4_candidates(groups), lambda scaled: points[_slots(scaled)])


def _iq4_candidates(groups: Floats) -> Iterator[Floats]:
    """The largest value lands on either end of the table, or up to seven beside it."""
    per_unit = inverse(extremes(groups))
    for end in (IQ4_VALUES[0], -IQ4_VALUES[0]):
        for beside in range(-7, 8):
            yield per_unit * np.float32(end + beside)


def _iq4_tables() -> tuple[Bytes, Floats]:
    """For each step of a half between the ends: the nearest code, and its value."""
    values = np.array(IQ4_VALUES, np.float32)
    centres = (np.arange(_LOWEST, _HIGHEST + 1) + 0.5) / 2
    codes = np.abs(centres[:, None] - values).argmin(axis=1).astype(np.uint8)
    return codes, values[codes]


def _slots(scaled: Floats) -> NDArray[np.intp]:
    steps: Floats = np.clip(np.floor(scaled + scaled), _LOWEST, _HIGHEST) - np.float32(_LOWEST)
    return steps.astype(np.intp)


def encode_mxfp4(blocks: Floats, importance: Floats | None = None) -> Bytes:
    """The exponent that the specification proposes, or the next one where that clips less than it coarsens."""
    groups = in_columns(blocks, GROUP)
    proposed = _mxfp4_exponent(np.abs(groups).max(axis=0))
    upper = np.minimum(proposed + 1, _LARGEST_EXPONENT)
    columns = None if importance is None else in_columns(importance, GROUP)
    codes, error = _mxfp4_codes(groups, proposed, columns)
    upper_codes, upper_error = _mxfp4_codes(groups, upper, columns)
    is_upper = np.float32(4) * upper_error < error  # errors are in squares of half the scale
    exponent = np.where(is_upper, upper, proposed).astype(np.uint8)
    chosen = np.where(is_upper, upper_codes, codes)
    return np.concatenate([exponent[:, None], pack_bits(in_blocks(chosen, GROUP), 16, 4)], axis=1)


def _mxfp4_exponent(largest: Floats) -> NDArray[np.int32]:
    """floor(log2(largest)) less the 2 of FP4's own exponent, biased; at least 1, so that its inverse is a float32."""
    _, exponent = np.frexp(largest)  # largest = fraction * 2**exponent with 0.5 <= fraction < 1
    biased = np.clip(exponent - 1 - 2 + 127, 1, _LARGEST_EXPONENT)
    exponents: NDArray[np.int32] = np.where(largest > 0, biased, 0).astype(np.int32)
    return exponents


def _mxfp4_codes(groups: Floats, exponent: NDArray[np.int32], importance: Floats | None) -> tuple[Bytes, Floats]:
    """Codes under a shared exponent (groups,), and the squared error (groups,) in squares of half the scale."""
    doubled = groups * np.ldexp(np.float32(1), 128 - np.maximum(exponent, 1))
    size = np.abs(doubled)
    codes = np.zeros(groups.shape, np.uint8)
    for middle, tie_goes in _MXFP4_MIDDLES:
        codes += size >= np.float32(middle) if tie_goes == "up" else size > np.float32(middle)
    missed = np.array(MXFP4_VALUES_DOUBLED, np.float32)[codes] - size
    errors = missed * missed if importance is None else missed * missed * importance
    return codes | ((doubled < 0).astype(np.uint8) << np.uint8(3)), total(errors)
