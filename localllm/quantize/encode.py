"""Float values to blocks of any type that the decoder knows: natively where that is built, else in numpy, which is the
law for both.

Refuses by name: values that are not finite, and values that the scales of a block type cannot hold.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from localllm.errors import BadModelFile, UnsupportedModel
from localllm.formats import blocks as plain
from localllm.formats.blocks import BLOCK_LAYOUTS, PLAINLY_ENCODABLE, BlockType, row_bytes
from localllm.quantize.codebooks import encode_iq4_nl, encode_iq4_xs, encode_mxfp4
from localllm.quantize.k_quants import encode_q2_k, encode_q3_k, encode_q4_k, encode_q5_k, encode_q6_k
from localllm.quantize.native import NATIVE, is_built, native_blocks
from localllm.quantize.weighted import encode_q4_0, encode_q4_1, encode_q5_0, encode_q5_1

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]

CHUNK_VALUES = 1 << 15  # what a search works on at a time: its arrays stay in the cache of one core

_SEARCHING: Mapping[BlockType, Callable[[Floats, Floats | None], Bytes]] = MappingProxyType(
    {
        BlockType.Q2_K: encode_q2_k,
        BlockType.Q3_K: encode_q3_k,
        BlockType.Q4_K: encode_q4_k,
        BlockType.Q5_K: encode_q5_k,
        BlockType.Q6_K: encode_q6_k,
        BlockType.IQ4_NL: encode_iq4_nl,
        BlockType.IQ4_XS: encode_iq4_xs,
        BlockType.MXFP4: encode_mxfp4,
    }
)
_SEARCHING_IF_WEIGHTED: Mapping[BlockType, Callable[[Floats, Floats], Bytes]] = MappingProxyType(
    {
        BlockType.Q4_0: encode_q4_0,
        BlockType.Q4_1: encode_q4_1,
        BlockType.Q5_0: encode_q5_0,
        BlockType.Q5_1: encode_q5_1,
    }
)
ENCODABLE: frozenset[BlockType] = PLAINLY_ENCODABLE | frozenset(_SEARCHING)

_LARGEST_HALF = 65504.0
# where no scale is a float16, the largest float32 that is not rounded to infinity
_LARGEST: Mapping[BlockType, float] = MappingProxyType(
    {BlockType.F32: 3.4028235e38, BlockType.BF16: 3.3961775e38, BlockType.MXFP4: 3.4028235e38}
)
_SMALLEST_HALF = 2.0**-24
_LEAST_WEIGHT = 1e-6  # of the average


def encode(
    block_type: BlockType,
    values: NDArray[Any],
    weights: NDArray[Any] | None = None,
    *,
    first_row: int = 0,
    threads: int = 1,
) -> Bytes:
    """Pack float values (..., columns) of any float dtype; returns uint8 (..., row_bytes).

    weights: the importance of each column, (columns,), or (experts, columns) for values (experts, rows, columns): how
    much a squared error there counts, as importance matrices have it; only the proportions matter, and a type without
    a choice (floats, Q8_0) takes no notice. The same values give the same bytes, whatever is encoded beside them.
    first_row: what errors call the first row. Raises UnsupportedModel for a type without an encoder and for values too
    large for it, BadModelFile for values that are not finite, for rows that are not whole blocks, and for weights that
    are negative, not finite or too few.
    """
    if block_type not in NATIVE or not values.size or not is_built():
        return numpy_encode(block_type, values, weights, first_row=first_row)
    source = BlockType.F16 if values.dtype == np.float16 else BlockType.F32
    with np.errstate(over="ignore"):  # float64 beyond float32 becomes infinite, and is refused as that
        exact = np.ascontiguousarray(values, np.float16 if source is BlockType.F16 else np.float32)
    raw = exact.view(np.uint8).reshape(-1)
    return encode_raw(block_type, source, raw, values.shape, weights, first_row=first_row, threads=threads)


def encode_raw(
    block_type: BlockType,
    source: BlockType,
    raw: Bytes,
    shape: tuple[int, ...],
    weights: NDArray[Any] | None = None,
    *,
    first_row: int = 0,
    threads: int = 1,
) -> Bytes:
    """The same, natively, for values that lie as F32, F16 or BF16 in a file: uint8 (bytes,). Only where it is built."""
    columns = shape[-1] if shape else 1
    size = row_bytes(block_type, columns)
    importance = None if weights is None else checked_weights(weights, shape)
    lines = [importance] if importance is None or importance.ndim == 1 else list(importance)
    pieces = raw.reshape(len(lines), -1)
    limit = _LARGEST.get(block_type, _LARGEST_HALF)
    packed = []
    for index, (piece, line) in enumerate(zip(pieces, lines, strict=True)):
        blocks, refused = native_blocks(block_type, source, piece, columns, line, limit, threads)
        if refused >= 0:
            per_row, before = columns // BLOCK_LAYOUTS[block_type].values_per_block, index * len(blocks) // size
            value = _largest_of(source, piece, refused, block_type)
            raise _refusal(block_type, value, first_row + before + refused // per_row)
        packed.append(blocks)
    whole = packed[0] if len(packed) == 1 else np.concatenate(packed)
    return whole.reshape(*shape[:-1], size)


def _largest_of(source: BlockType, raw: Bytes, block: int, block_type: BlockType) -> float:
    """The size of the largest value in a block; NaN where there is one."""
    size = BLOCK_LAYOUTS[block_type].values_per_block * BLOCK_LAYOUTS[source].bytes_per_block
    piece = raw[block * size : (block + 1) * size]
    return float(np.abs(plain.decode(source, piece, (BLOCK_LAYOUTS[block_type].values_per_block,))).max())


def numpy_encode(
    block_type: BlockType, values: NDArray[Any], weights: NDArray[Any] | None = None, *, first_row: int = 0
) -> Bytes:
    """What `encode` gives, in numpy alone."""
    if block_type not in ENCODABLE:
        raise UnsupportedModel(
            f"values cannot be encoded as {block_type.name} by this build", hint="choose q8_0 or q4_k"
        )
    columns = values.shape[-1] if values.ndim else 1
    shape = (*values.shape[:-1], row_bytes(block_type, columns))
    importance = None if weights is None else checked_weights(weights, values.shape)
    if importance is None or importance.ndim == 1:
        return _encode_rows(block_type, values, importance, first_row).reshape(shape)
    packed = [
        _encode_rows(block_type, rows, line, first_row + index * values.shape[-2])
        for index, (rows, line) in enumerate(zip(values, importance, strict=True))
    ]
    return np.concatenate(packed).reshape(shape)


def checked_weights(weights: NDArray[Any], shape: tuple[int, ...]) -> Floats | None:
    """Float32, 1 on the average, and nowhere so small that a column counts for nothing; None if all are zero.

    A column that no text has reached says nothing about other texts.
    """
    if weights.shape not in {shape[-1:], (*shape[:-2], *shape[-1:])} or weights.ndim not in (1, 2):
        raise BadModelFile(f"an importance of shape {weights.shape} does not belong to values of shape {shape}")
    if not np.isfinite(weights).all() or (weights.size and weights.min() < 0):
        raise BadModelFile("the importance of columns must be finite and not negative")
    largest = weights.max(initial=0)
    if largest == 0:
        return None
    scaled = weights.astype(np.float64) / largest
    mean = scaled.mean(axis=-1, keepdims=True)
    even = np.divide(scaled, mean, out=np.ones_like(scaled), where=mean > 0)
    importance: Floats = np.maximum(even, _LEAST_WEIGHT).astype(np.float32)
    return importance


def _encode_rows(block_type: BlockType, values: NDArray[Any], importance: Floats | None, first_row: int) -> Bytes:
    per_block, block_bytes = BLOCK_LAYOUTS[block_type]
    blocks = values.reshape(-1, per_block)
    packed = np.empty((len(blocks), block_bytes), np.uint8)
    step = CHUNK_VALUES // per_block
    of_row = None if importance is None else importance.reshape(-1, per_block)
    for start in range(0, len(blocks), step):
        chunk = blocks[start : start + step]
        beside = None if of_row is None else of_row[np.arange(start, start + len(chunk)) % len(of_row)]
        try:
            packed[start : start + step] = _encode_chunk(block_type, chunk, beside)
        except _Unheld as refusal:
            columns = values.shape[-1] if values.ndim else 1
            row = first_row + (start + refusal.block) * per_block // columns
            raise _refusal(block_type, refusal.value, row) from None
    return packed


def _encode_chunk(block_type: BlockType, blocks: NDArray[Any], importance: Floats | None) -> Bytes:
    with np.errstate(over="ignore"):  # float64 beyond float32 becomes infinite, and is refused as that
        chunk = np.ascontiguousarray(blocks, dtype=np.float32)
    largest = np.abs(chunk).max(axis=1)
    held = largest <= np.float32(_LARGEST.get(block_type, _LARGEST_HALF))
    if not held.all():
        block = int(held.argmin())
        raise _Unheld(block, float(largest[block]))
    if block_type in _SEARCHING_IF_WEIGHTED and importance is not None:
        return _SEARCHING_IF_WEIGHTED[block_type](_without_traces(chunk, largest), importance)
    if block_type in _SEARCHING:
        exact = chunk if block_type in _LARGEST else _without_traces(chunk, largest)
        return _SEARCHING[block_type](exact, importance)
    return plain.encode(block_type, chunk)


def _without_traces(chunk: Floats, largest: Floats) -> Floats:
    """Blocks whose scale is zero in float16 are zero (1 / scale would overflow on the way); no zero has a sign."""
    return np.where(largest[:, None] < np.float32(_SMALLEST_HALF / 2), np.float32(0), chunk) + np.float32(0)


class _Unheld(Exception):
    """A block with a value that is not finite, or too large for its type."""

    def __init__(self, block: int, value: float) -> None:
        super().__init__(block, value)
        self.block = block
        self.value = value


def _refusal(block_type: BlockType, value: float, row: int) -> BadModelFile | UnsupportedModel:
    if not np.isfinite(value):
        return BadModelFile(f"values to be encoded as {block_type.name} are not all finite numbers, first in row {row}")
    limit = _LARGEST.get(block_type, _LARGEST_HALF)
    return UnsupportedModel(
        f"{block_type.name} holds values up to {limit:g}, but one of {value:g} is to be encoded, in row {row}",
        hint="keep this tensor as F32 or BF16",
    )
