"""Recurrent state beyond the step: checkpoints of slots, and the way back from draft tokens that were refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from localllm.backends.batch import Batch
from localllm.backends.cpu._native import Program
from localllm.engine.step import (
    NO_SLOT,
    CheckpointId,
    CommitDraft,
    CopySlot,
    DropCheckpoint,
    MemoryOp,
    RestoreState,
    SaveState,
    SeqId,
    SlotId,
    StepPlan,
    ZeroSlot,
)
from localllm.errors import InvalidRequest

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Trail:
    """A row that checks drafts: its slot, the state before it, and what each recurrent instruction took in of it."""

    slot: SlotId
    before: Floats
    inputs: tuple[Floats, ...]  # (tokens, width)


class Slots:
    """The slots of one program. `kept`: for each recurrent instruction, in their order, the buffer of its inputs."""

    def __init__(self, program: Program, kept: Sequence[int]) -> None:
        self._program = program
        self._kept = kept
        self._checkpoints: dict[CheckpointId, Floats] = {}
        self._trails: dict[SeqId, Trail] = {}

    def apply(self, op: MemoryOp) -> None:
        """One memory operation on slots. InvalidRequest for a checkpoint that was never saved."""
        if isinstance(op, CopySlot):
            self._slot(op.target)[:] = self._slot(op.source)
        elif isinstance(op, ZeroSlot):
            self._slot(op.slot)[:] = 0
        elif isinstance(op, SaveState):
            self._checkpoints[op.checkpoint] = self._slot(op.slot).copy()
        elif isinstance(op, RestoreState):
            if op.checkpoint not in self._checkpoints:
                raise InvalidRequest(f"there is no state checkpoint {op.checkpoint}")
            self._slot(op.slot)[:] = self._checkpoints[op.checkpoint]
        elif isinstance(op, DropCheckpoint):
            self._checkpoints.pop(op.checkpoint, None)

    def before(self, plan: StepPlan) -> dict[SeqId, Floats]:
        """The states that rows with drafts start from; older trails of all rows end."""
        for row in plan.rows:
            self._trails.pop(row.seq, None)
        return {
            row.seq: self._slot(row.slot).copy()
            for row in plan.rows
            if row.slot != NO_SLOT and row.want.sample is not None and row.want.sample.num_positions > 1
        }

    def after(self, plan: StepPlan, batch: Batch, before: dict[SeqId, Floats]) -> None:
        """Keep what the step's rows with drafts took in."""
        if not before:
            return
        starts = batch.row_starts.tolist()
        for row, first, end in zip(plan.rows, starts, starts[1:], strict=False):
            if row.seq in before:
                inputs = tuple(self._program.values(buffer, end)[first:].copy() for buffer in self._kept)
                self._trails[row.seq] = Trail(row.slot, before[row.seq], inputs)

    def roll_back(self, op: CommitDraft) -> None:
        """The state of before the refused tokens of the row that was checked last."""
        trail = self._trails.pop(op.seq, None)
        if trail is None:
            return
        self._slot(trail.slot)[:] = trail.before
        for index, inputs in enumerate(trail.inputs):
            kept = inputs[: len(inputs) - (op.num_drafted - op.num_accepted)]
            self._program.replay(index, trail.slot, kept)

    def _slot(self, slot: SlotId) -> Floats:
        try:
            return self._program.slot(slot)
        except ValueError as error:
            raise InvalidRequest(str(error)) from None
