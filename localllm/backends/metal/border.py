"""What a plan may ask: checked before anything is computed, as MLX reads beyond an array without a word."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from localllm.backends.batch import Batch
from localllm.engine.step import CopyPage, CopySlot, MemoryOp, ResizePool, RestoreState, SaveState, StepPlan, ZeroSlot
from localllm.errors import InvalidRequest


def check_rows(plan: StepPlan, batch: Batch, vocab_size: int, context_length: int, num_slots: int | None) -> None:
    """InvalidRequest for numbers out of bounds. `num_slots` None: no layer has state.

    Pages are checked where tables are read.
    """
    if any(not row.token_ids for row in plan.rows):
        raise InvalidRequest("a row has no tokens")
    inside("a token id", batch.token_ids, vocab_size)
    inside("a position", batch.positions, context_length)
    if num_slots is not None:
        inside("a row's state slot", batch.slots, num_slots)


def check_memory(ops: Iterable[MemoryOp], num_pages: int, num_slots: int | None, checkpoints: Iterable[int]) -> None:
    """InvalidRequest for a page, slot or checkpoint that is not there when its turn comes. `num_slots`: as above."""
    known = set(checkpoints)
    for op in ops:
        if isinstance(op, ResizePool):
            num_pages = op.num_pages
        elif isinstance(op, CopyPage):
            inside("a page", np.array([op.source, op.target]), num_pages)
        elif isinstance(op, RestoreState) and op.checkpoint not in known:
            raise InvalidRequest(f"there is no checkpoint {op.checkpoint}")
        elif isinstance(op, SaveState):
            known.add(op.checkpoint)
        if num_slots is not None:
            inside("a state slot", np.array([*_slots(op)], np.int64), num_slots)


def inside(what: str, indices: NDArray[np.integer], limit: int) -> None:
    """InvalidRequest names the first index that is not below the limit."""
    wrong = indices[(indices < 0) | (indices >= limit)]
    if len(wrong):
        raise InvalidRequest(f"{what} is {int(wrong[0])}, there are {limit}")


def _slots(op: MemoryOp) -> Iterator[int]:
    if isinstance(op, ZeroSlot | SaveState | RestoreState):
        yield op.slot
    elif isinstance(op, CopySlot):
        yield from (op.source, op.target)
