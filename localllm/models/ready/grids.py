"""Codes with scales for groups of them, as blocks of ours: exactly where a block type holds the grid, else as floats.

    codes less zeros                  groups of whole blocks of 32, scales that float16 holds
    -8 ... 7                          Q4_0
    -16 ... 15                        Q5_0
    -128 ... 127                      Q8_0
    codes to 15, or to 31, and mins   Q4_1, or Q5_1

Scales that float16 has to round are rounded, which is said; in all other cases the values become float16, or float32
where float16 is too narrow.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from localllm.errors import BadModelFile
from localllm.formats.blocks import BlockType

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]
Ints = NDArray[np.int16]

BLOCK = 32
_CHUNK_VALUES = 1 << 20
_ROUNDED = 2.0**-11
"""What rounding to float16 may change a number by, next to it."""
_LEAST, _MOST = 2.0**-8, 65504.0
"""Largest values of a matrix that float16 holds well: the smallest of it are then subnormal at worst."""
_BY_RANGE = ((BlockType.Q4_0, 8), (BlockType.Q5_0, 16), (BlockType.Q8_0, 128))
INTEGER_TYPES = tuple(kind for kind, _ in _BY_RANGE)


@dataclass(frozen=True, slots=True)
class Plan:
    """What a matrix becomes; `reason` says why not exactly, and is empty where it is exact."""

    type: BlockType
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Grid:
    """A value is (code - zero) * scale + min, all of its group.

    `scales`, `zeros` and `mins` are (rows, groups); `groups`: the group of each column; `top`: the largest code may
    be; `bottom`: the least.
    """

    scales: Floats
    groups: NDArray[np.intp]
    zeros: Ints
    mins: Floats | None
    bottom: int
    top: int

    def plan(self) -> Plan:
        if not _whole_blocks(self.groups):
            return self._floats("its groups are no whole blocks of 32 columns")
        rounding = max(_rounding(self.scales), 0.0 if self.mins is None else _rounding(self.mins))
        if rounding > _ROUNDED:
            return self._floats("its scales are too fine for float16")
        kind = self._block_type()
        if kind is None:
            return self._floats("no block type holds its steps")
        return Plan(kind, "its scales are rounded to float16" if rounding else "")

    def _block_type(self) -> BlockType | None:
        if self.mins is not None:
            return BlockType.Q4_1 if self.top <= 15 else BlockType.Q5_1 if self.top <= 31 else None
        low, high = self.bottom - int(self.zeros.max(initial=0)), self.top - int(self.zeros.min(initial=self.top))
        return next((kind for kind, span in _BY_RANGE if low >= -span and high < span), None)

    def _floats(self, reason: str) -> Plan:
        widest = np.maximum(np.abs(self.top - self.zeros), np.abs(self.bottom - self.zeros)).astype(np.float32)
        with np.errstate(over="ignore"):
            largest = np.abs(self.scales) * widest + (0 if self.mins is None else np.abs(self.mins))
        return floats_plan(float(largest.max(initial=0)), reason)

    def values(self, codes: NDArray[Any]) -> Iterator[tuple[slice, Floats]]:
        """Rows of `codes` (rows, columns) as float32, some at a time."""
        for rows in chunks(*codes.shape):
            values = self._steps(codes, rows).astype(np.float32) * self.scales[rows][:, self.groups]
            if self.mins is not None:
                values += self.mins[rows][:, self.groups]
            yield rows, values

    def blocks(self, codes: NDArray[Any], kind: BlockType) -> Bytes:
        """(rows, bytes of a row)."""
        parts = [self._packed(codes[rows], rows, kind) for rows in chunks(*codes.shape)]
        return np.concatenate(parts) if parts else np.empty((0, 0), np.uint8)

    def _steps(self, codes: NDArray[Any], rows: slice) -> Ints:
        return codes[rows].astype(np.int16) - self.zeros[rows][:, self.groups]

    def _packed(self, codes: NDArray[Any], rows: slice, kind: BlockType) -> Bytes:
        """Whole blocks have one zero, so bytes suffice: they wrap around, and the result fits."""
        first = self.groups[::BLOCK]
        fields = [_halves(self.scales[rows][:, first])]
        if self.mins is not None:
            fields.append(_halves(self.mins[rows][:, first]))
        offset = np.int16({BlockType.Q4_0: 8, BlockType.Q5_0: 16}.get(kind, 0))
        shift = (offset - self.zeros[rows][:, first]).astype(np.uint8)
        quants = np.ascontiguousarray(codes).view(np.uint8).reshape(len(codes), -1, BLOCK) + shift[..., None]
        if kind is BlockType.Q8_0:
            return _rows([*fields, quants])
        if kind in (BlockType.Q5_0, BlockType.Q5_1):
            fields.append(np.packbits(quants >> 4, axis=-1, bitorder="little"))
        low, high = quants[..., : BLOCK // 2] & np.uint8(15), quants[..., BLOCK // 2 :] << np.uint8(4)
        return _rows([*fields, low | high])


def floats_plan(largest: float, reason: str) -> Plan:
    """For a matrix whose largest value this may be. BadModelFile where that is infinite."""
    if not math.isfinite(largest):
        raise BadModelFile("a quantized matrix has scales so large that its values are infinite")
    if largest == 0 or _LEAST <= largest <= _MOST:
        return Plan(BlockType.F16, reason)
    return Plan(BlockType.F32, reason)


def joined_plan(plans: list[Plan]) -> Plan:
    """One type for matrices that are stacked: the widest of them, floats where none holds all."""
    types = {plan.type for plan in plans}
    reason = next((plan.reason for plan in plans if plan.reason), "")
    if len(types) == 1:
        return Plan(types.pop(), reason)
    if types <= set(INTEGER_TYPES):
        return Plan(max(types, key=INTEGER_TYPES.index), reason)
    return Plan(BlockType.F32, reason or "the experts beside it need other types")


def chunks(num_rows: int, columns: int) -> Iterator[slice]:
    step = max(1, _CHUNK_VALUES // max(columns, 1))
    return (slice(start, min(start + step, num_rows)) for start in range(0, num_rows, step))


def _whole_blocks(groups: NDArray[np.intp]) -> bool:
    if len(groups) % BLOCK:
        return False
    blocks = groups.reshape(-1, BLOCK)
    return bool((blocks == blocks[:, :1]).all())


def _rounding(numbers: Floats) -> float:
    """How far float16 is from the numbers, next to them, at most; infinite where it cannot hold them."""
    with np.errstate(over="ignore"):
        halves = numbers.astype(np.float16).astype(np.float32)
    if not np.isfinite(halves).all():
        return float("inf")
    away = np.abs(halves - numbers)
    size = np.maximum(np.abs(numbers), np.float32(2.0**-126))
    return float((away / size).max(initial=0))


def _halves(numbers: Floats) -> Bytes:
    return np.ascontiguousarray(numbers.astype("<f2")).view(np.uint8).reshape(*numbers.shape, 2)


def _rows(fields: list[Bytes]) -> Bytes:
    blocks = np.concatenate(fields, axis=-1)
    return blocks.reshape(len(blocks), -1)
