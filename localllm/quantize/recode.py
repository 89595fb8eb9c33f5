"""Raw tensors of one type to raw tensors of another, rows in pieces so that no tensor is ever whole in float32."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from localllm.errors import BadModelFile
from localllm.formats.blocks import BlockType, decode, row_bytes
from localllm.quantize.encode import checked_weights, encode, encode_raw
from localllm.quantize.native import NATIVE, READABLE, is_built

Bytes = NDArray[np.uint8]

_CHUNK_VALUES = 1 << 22


def recode(
    source_type: BlockType,
    target_type: BlockType,
    raw: Bytes,
    shape: Sequence[int],
    *,
    weights: NDArray[Any] | None = None,
    threads: int = 1,
) -> Bytes:
    """Blocks of `target_type`, uint8 (rows, row bytes), from those of `source_type`.

    `weights` and errors as for `encode`; the row of a value that cannot be encoded is counted over all experts.
    """
    columns = int(shape[-1])
    if source_type in READABLE and target_type in NATIVE and raw.size and is_built():
        dims = tuple(map(int, shape))
        return encode_raw(target_type, source_type, raw.reshape(-1), dims, weights, threads=threads)
    before = raw.reshape(-1, row_bytes(source_type, columns))
    packed = np.empty((len(before), row_bytes(target_type, columns)), np.uint8)
    importance = None if weights is None else checked_weights(weights, tuple(shape))
    for first, last, line in _pieces(shape, importance):
        values = decode(source_type, before[first:last], (last - first, columns))
        packed[first:last] = encode(target_type, values, line, first_row=first, threads=threads)
    return packed


def _pieces(
    shape: Sequence[int], importance: NDArray[np.float32] | None
) -> Iterator[tuple[int, int, NDArray[np.float32] | None]]:
    """(first row, row after the last, importance of its columns): a piece lies within one expert."""
    rows = math.prod(shape[:-1])
    per_expert = rows if importance is None or importance.ndim == 1 else int(shape[-2])
    step = max(1, _CHUNK_VALUES // int(shape[-1]))
    for expert, start in enumerate(range(0, rows, per_expert or 1)):
        line = importance[expert] if importance is not None and importance.ndim > 1 else importance
        for first in range(start, start + per_expert, step):
            yield first, min(first + step, start + per_expert), line


def check_finite(kind: BlockType, raw: Bytes, shape: Sequence[int]) -> None:
    """BadModelFile, with the row, for floats that are not finite; blocks are taken as they are."""
    if kind not in READABLE or not raw.size:
        return
    columns = int(shape[-1]) if shape else 1
    rows, step = raw.reshape(-1, row_bytes(kind, columns)), max(1, _CHUNK_VALUES // columns)
    for first in range(0, len(rows), step):
        bad = _is_no_number(kind, rows[first : first + step])
        if bad.any():
            row, column = divmod(int(bad.argmax()), columns)
            raise BadModelFile(f"row {first + row} has a value that is no finite number, in column {column}")


def _is_no_number(kind: BlockType, rows: Bytes) -> NDArray[np.bool_]:
    if kind is BlockType.BF16:
        wrong: NDArray[np.bool_] = (rows.view("<u2") & np.uint16(0x7F80)) == 0x7F80
        return wrong
    wrong = ~np.isfinite(rows.view("<f4" if kind is BlockType.F32 else "<f2"))
    return wrong
