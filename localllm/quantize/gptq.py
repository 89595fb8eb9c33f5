"""GPTQ onto the grids that GGUF has: columns are rounded one after another, and those still to come make good what the
rounding of one has lost, as the inputs of the weight say.

Scales are chosen where a group begins, from values that are compensated already, and stay. Source: Frantar et al. 2022,
"GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers", algorithm 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from localllm.errors import BadModelFile, UnsupportedModel
from localllm.formats.blocks import BLOCK_LAYOUTS, BlockType, decode, row_bytes
from localllm.quantize.encode import encode
from localllm.quantize.pack import pack_bits
from localllm.quantize.search import inverse

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]

COLUMNS = 128
"""How many columns are rounded before those behind them hear of it: one product of matrices instead of many small."""
DAMPING = 0.01
"""Of the mean of the Hessian's diagonal, what is added to it: few inputs say little about many columns."""
MAX_DAMPING = 10.0
ROWS = 4096


class _Grid(NamedTuple):
    """A type whose blocks are a head (its scales) and whole numbers `low..high`: value = slope * number + offset."""

    read: Callable[[Bytes], tuple[Floats, Floats]]
    """Blocks (n, bytes) to slope and offset, (n, values of a block / values of a group) each."""
    pack: Callable[[NDArray[Any]], Bytes]
    """Numbers (n, values) to what follows the head."""
    head_bytes: int
    low: int
    high: int


def gptq_encode(
    block_type: BlockType, values: Floats, hessian: Floats, damping: float = DAMPING, factor: Floats | None = None
) -> Bytes:
    """Pack a matrix (out, in) for the least error of its products; uint8 (out, row_bytes).

    `hessian` (in, in) is X^T X of its inputs X (n, in), to any factor; `factor` its `inverse_factor`, where that is
    known: weights with the same input share it. UnsupportedModel for a type that is not in
    GPTQ_TYPES; BadModelFile for values or a Hessian that are not finite or do not fit together.
    """
    grid = _GRIDS.get(block_type)
    if grid is None:
        names = ", ".join(kind.name for kind in _GRIDS)
        raise UnsupportedModel(f"GPTQ does not round to {block_type.name}", hint=f"types with GPTQ: {names}")
    if hessian.shape != (values.shape[-1],) * 2 or not np.isfinite(hessian).all():
        raise BadModelFile(f"a Hessian of shape {hessian.shape} does not belong to rows of {values.shape[-1]} values")
    row_bytes(block_type, values.shape[-1])  # raises where rows are not whole blocks
    factor = inverse_factor(hessian, damping) if factor is None else factor
    # not what compensation leaves of an error (1 / R_ii^2): a short text overrates how well columns foretell each other
    diagonal = hessian.diagonal()
    weights = diagonal + np.float32(damping * diagonal.mean())
    parts = [_rows(block_type, grid, values[at : at + ROWS], factor, weights) for at in range(0, len(values), ROWS)]
    return np.concatenate(parts)


def inverse_factor(hessian: Floats, damping: float = DAMPING) -> Floats:
    """R, upper triangular, with R^T R the inverse of the damped Hessian. More damping where that has none."""
    size = len(hessian)
    diagonal = hessian.diagonal().copy()
    mean = float(diagonal.mean()) or 1.0
    share = damping
    while share <= MAX_DAMPING:
        damped = hessian.astype(np.float32, copy=True)
        # a column without inputs may be anything: it is rounded by itself
        damped[np.arange(size), np.arange(size)] = np.where(diagonal > 0, diagonal, mean) + np.float32(share * mean)
        try:
            lower = np.linalg.cholesky(damped[::-1, ::-1])
        except np.linalg.LinAlgError:
            share = max(share, 1e-4) * 10
            continue
        return _upper_inverse(np.ascontiguousarray(lower[::-1, ::-1]))
    raise BadModelFile("the inputs of a weight make no Hessian that could be inverted", hint="use a longer text")


def _upper_inverse(upper: Floats) -> Floats:
    """By halves: nearly all of it is products of matrices."""
    if len(upper) <= COLUMNS:
        small: Floats = np.triu(np.linalg.inv(upper))
        return small
    half = len(upper) // 2
    whole = np.zeros_like(upper)
    first, second = _upper_inverse(upper[:half, :half]), _upper_inverse(upper[half:, half:])
    whole[:half, :half], whole[half:, half:] = first, second
    whole[:half, half:] = -(first @ upper[:half, half:]) @ second
    return whole


def _rows(block_type: BlockType, grid: _Grid, values: Floats, factor: Floats, weights: Floats) -> Bytes:
    columns = np.ascontiguousarray(values.T, dtype=np.float32).copy()  # (in, out): a column lies along memory
    per_block = BLOCK_LAYOUTS[block_type].values_per_block
    numbers = np.empty(columns.shape, np.int8 if grid.low < 0 else np.uint8)
    heads: list[Bytes] = []
    scales: _Scales | None = None
    for start in range(0, len(columns), COLUMNS):
        end = min(start + COLUMNS, len(columns))
        errors = np.empty((end - start, columns.shape[1]), np.float32)
        for at in range(start, end):
            if at % per_block == 0:
                block = slice(at, at + per_block)
                _catch_up(columns, errors, factor, start, at, min(at + per_block, end))
                head = encode(block_type, np.ascontiguousarray(columns[block].T), weights[block])
                slopes, offsets = (np.ascontiguousarray(part.T) for part in grid.read(head))
                scales = _Scales(slopes, offsets, per_block)
                heads.append(head[:, : grid.head_bytes])
            elif at % _STRIDE == 0:
                _catch_up(columns, errors, factor, start, at, min(at + _STRIDE, end))
            assert scales is not None
            slope, offset = scales.of(at)
            number = np.clip(np.rint((columns[at] - offset) * inverse(slope)), grid.low, grid.high)
            numbers[at] = number
            errors[at - start] = (columns[at] - (number * slope + offset)) / factor[at, at]
            near = slice(at + 1, min((at // _STRIDE + 1) * _STRIDE, end))
            columns[near] -= factor[at, near, None] * errors[at - start]
        columns[end:] -= factor[start:end, end:].T @ errors
    return _joined(grid, heads, numbers, per_block)


_STRIDE = 32
"""Columns that hear of every error at once; those behind them hear of this many together. Divides every block."""


def _catch_up(columns: Floats, errors: Floats, factor: Floats, start: int, at: int, end: int) -> None:
    """Columns at..end hear of the errors since `start` that are at least a stride old."""
    columns[at:end] -= factor[start:at, at:end].T @ errors[: at - start]


class _Scales(NamedTuple):
    """Slopes and offsets of the groups of a block, (groups, out)."""

    slopes: Floats
    offsets: Floats
    per_block: int

    def of(self, column: int) -> tuple[Floats, Floats]:
        group = column % self.per_block // (self.per_block // len(self.slopes))
        return self.slopes[group], self.offsets[group]


def _joined(grid: _Grid, heads: list[Bytes], numbers: NDArray[Any], per_block: int) -> Bytes:
    """Heads and numbers of all blocks to rows of blocks."""
    num_rows = numbers.shape[1]
    rows = np.ascontiguousarray(numbers.T).reshape(-1, per_block)
    fronts = np.stack(heads, axis=1).reshape(len(rows), -1)
    return np.concatenate([fronts, grid.pack(rows)], axis=1).reshape(num_rows, -1)


def _half(field: Bytes) -> Floats:
    return np.ascontiguousarray(field).view("<f2").astype(np.float32)


def _read_q4_0(blocks: Bytes) -> tuple[Floats, Floats]:
    scale = _half(blocks[:, :2])
    return scale, scale * np.float32(-8)


def _read_q4_1(blocks: Bytes) -> tuple[Floats, Floats]:
    return _half(blocks[:, :2]), _half(blocks[:, 2:4])


def _read_q8_0(blocks: Bytes) -> tuple[Floats, Floats]:
    scale = _half(blocks[:, :2])
    return scale, np.zeros_like(scale)


def _read_q4_k(blocks: Bytes) -> tuple[Floats, Floats]:
    """From what the decoder makes of the head with numbers of 0 and of 1."""
    probes = [np.concatenate([blocks[:, :16], np.full((len(blocks), 128), number, np.uint8)], 1) for number in (0, 17)]
    zeros, ones = (
        decode(BlockType.Q4_K, probe.reshape(-1), (len(blocks), 256)).reshape(len(blocks), 8, 32)[:, :, 0]
        for probe in probes
    )
    return ones - zeros, zeros


_GRIDS: Mapping[BlockType, _Grid] = MappingProxyType(
    {
        BlockType.Q4_0: _Grid(_read_q4_0, lambda numbers: pack_bits(numbers, 16, 4), 2, 0, 15),
        BlockType.Q4_1: _Grid(_read_q4_1, lambda numbers: pack_bits(numbers, 16, 4), 4, 0, 15),
        BlockType.Q8_0: _Grid(_read_q8_0, lambda numbers: numbers.view(np.uint8), 2, -127, 127),
        BlockType.Q4_K: _Grid(_read_q4_k, lambda numbers: pack_bits(numbers, 32, 4), 16, 0, 15),
    }
)
GPTQ_TYPES: frozenset[BlockType] = frozenset(_GRIDS)
