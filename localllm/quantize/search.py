"""Scales for groups of values: a few candidates, each with its weighted least squares, and the best one of each group.

Groups lie in columns, (values of a group, groups), so that every step runs along memory.
"""

from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]

_TINY = np.float32(2.0**-100)


def in_columns(blocks: Floats, group: int) -> Floats:
    """Values in the order of the blocks to (group, groups)."""
    return np.ascontiguousarray(blocks.reshape(-1, group).T)


def in_blocks(groups: Bytes, values_per_block: int) -> Bytes:
    """The way back: (group, groups) to (blocks, values_per_block)."""
    return np.ascontiguousarray(groups.T).reshape(-1, values_per_block)


def total(groups: Floats) -> Floats:
    """Sums (groups,). By halves, so that the bits of a sum do not depend on how many groups are summed at once."""
    while len(groups) > 1:
        half = len(groups) // 2
        groups = groups[:half] + groups[half:]
    sums: Floats = groups[0]
    return sums


def inverse(numbers: Floats) -> Floats:
    """1 / x, and 0 where x is 0 or so small that no scale comes of it."""
    return np.divide(np.float32(1), numbers, out=np.zeros_like(numbers), where=np.abs(numbers) > _TINY)


def quantized(scaled: Floats, low: int, high: int) -> Floats:
    """The nearest whole numbers in [low, high], as float32."""
    whole: Floats = np.clip(np.rint(scaled), np.float32(low), np.float32(high))
    return whole


def extremes(groups: Floats) -> Floats:
    """The value of largest size in each group, with its sign; (groups,)."""
    highest, lowest = groups.max(axis=0), groups.min(axis=0)
    values: Floats = np.where(highest >= -lowest, highest, lowest)
    return values


def size_weights(groups: Floats, importance: Floats | None) -> Floats:
    """Large values weigh more, but not so much that small ones are lost: their size plus the group's RMS.

    `importance` (n, values) in blocks, or None: how much an error in each value's column tells. It is a better guess
    than a value's size, which then counts less: the importance times the hypotenuse of size and RMS.
    """
    square = groups * groups
    mean_square = total(square) / np.float32(len(groups))
    if importance is None:
        weights: Floats = np.sqrt(mean_square) + np.abs(groups)
    else:
        weights = in_columns(importance, len(groups)) * np.sqrt(mean_square + square)
    return weights


def scale_fit(
    groups: Floats, weights: Floats, inverses: Iterable[Floats], nearest: Callable[[Floats], Floats]
) -> Floats:
    """The scale d (groups,) of the least weighted error of d * nearest(x / d); candidates for 1 / d do the rounding."""
    best = np.zeros(groups.shape[1], np.float32)
    best_gain = np.zeros_like(best)
    for candidate in inverses:
        points = nearest(groups * candidate)
        weighted = weights * points
        along = total(weighted * groups)
        scale = along * inverse(total(weighted * points))
        gain = scale * along  # what the least squares take off the sum of squares
        better = gain > best_gain
        best = np.where(better, scale, best)
        best_gain = np.where(better, gain, best_gain)
    return best


def symmetric_candidates(reach: int) -> list[np.float32]:
    """Where the value of largest size may land: on -reach, the side with one more number, or up to 0.9 beside it."""
    return [np.float32(-reach - step / 10) for step in range(-9, 10)]


def affine_fit(groups: Floats, weights: Floats, levels: int, stretches: Iterable[float]) -> tuple[Floats, Floats]:
    """Scale and floor (groups,), both >= 0, of the least weighted error of scale * (0..levels) - floor.

    `stretches` are added to `levels`: how far the candidates' grids reach beyond the values (negative: clip them).
    """
    floor, highest = np.float32(0) - np.minimum(groups.min(axis=0), np.float32(0)), groups.max(axis=0)
    scale = (highest + floor) / np.float32(levels)
    least = np.full_like(scale, np.inf)
    for stretch in stretches:  # each candidate stands on the best floor so far
        per_unit = np.float32(levels + stretch) * inverse(highest + floor)
        quants = quantized((groups + floor) * per_unit, 0, levels)
        slope, offset = _line(groups, weights, quants)
        error = squared_error(groups, weights, quants * slope + offset)
        better = (error < least) & (slope > 0)
        scale, floor = np.where(better, slope, scale), np.where(better, np.float32(0) - offset, floor)
        least = np.where(better, error, least)
    return scale, floor


def _line(groups: Floats, weights: Floats, quants: Floats) -> tuple[Floats, Floats]:
    """Slope and offset (<= 0) of the weighted line through the groups; a slope of 0 where there is no line."""
    weighted = weights * quants
    count, first, second = total(weights), total(weighted), total(weighted * quants)
    along, values = total(weighted * groups), total(weights * groups)
    spread, noise = count * second - first * first, np.float32(1e-5) * count * second
    determinant = inverse(np.where(spread > noise, spread, np.float32(0)))  # equal quants make no line
    slope = (count * along - first * values) * determinant
    offset = (second * values - first * along) * determinant
    above = offset > 0  # floors are never negative: the line goes through zero then
    return np.where(above, along * inverse(second), slope), np.where(above, np.float32(0), offset)


def squared_error(groups: Floats, weights: Floats, points: Floats) -> Floats:
    """Weighted, (groups,)."""
    missed = groups - points
    return total(weights * missed * missed)


def least_of(candidates: Iterable[tuple[Floats, ...]], error: Callable[..., Floats]) -> tuple[Floats, ...]:
    """Of several tuples of numbers (groups,), the one with the least error for each group; the first of equals."""
    best: tuple[Floats, ...] = ()
    least = np.empty(0, np.float32)
    for candidate in candidates:
        found = error(*candidate)
        better = found < least if best else np.ones(found.shape, np.bool_)
        best = tuple(np.where(better, new, old) for new, old in zip(candidate, best or candidate, strict=True))
        least = np.where(better, found, least if len(least) else found)
    return best
