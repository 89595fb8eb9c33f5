"""Output layers of checkpoints that say the embedding is theirs, too; what the file has counts more than what it says.

As transformers 5 does it: two tensors that differ are two, and one alone is both. Before that a second one was ignored.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from localllm.models.hf_source import TensorFolder
from localllm.models.pieces import Piece

EMBEDDING, OUTPUT = "token_embd.weight", "output.weight"
_AT_ONCE = 1 << 22  # bytes; what differs mostly does so at once
_FLOATS = ("F16", "BF16", "F32", "F64")


def tie(folder: TensorFolder, pieces: dict[str, list[Piece]]) -> None:
    """Leaves out an output layer that is a copy of the embedding; one without an embedding becomes it."""
    if OUTPUT not in pieces:
        return
    if EMBEDDING not in pieces:
        pieces[EMBEDDING] = pieces.pop(OUTPUT)
    elif _are_equal(folder, pieces[EMBEDDING][0].tensor, pieces[OUTPUT][0].tensor):
        del pieces[OUTPUT]


def _are_equal(folder: TensorFolder, *names: str) -> bool:
    first, second = (folder.tensors[name] for name in names)
    if first.shape != second.shape:
        return False
    if first.dtype == second.dtype:
        equal = _same_bytes(*map(folder.array, names))
    elif first.dtype in _FLOATS and second.dtype in _FLOATS:
        equal = _same_bytes(*map(folder.as_float32, names))
    else:
        return False  # rounded apart from each other
    for name in names:
        folder.release(name)
    return equal


def _same_bytes(first: NDArray[Any], second: NDArray[Any]) -> bool:
    one, other = (np.ascontiguousarray(values).reshape(-1).view(np.uint8) for values in (first, second))
    starts = range(0, one.size, _AT_ONCE)
    return all(np.array_equal(one[start : start + _AT_ONCE], other[start : start + _AT_ONCE]) for start in starts)
