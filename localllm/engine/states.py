"""Recurrent states: a slot for each running sequence, and kept ones that others with the same beginning start from."""

from __future__ import annotations

from collections.abc import Sequence

from localllm.engine.checkpoints import Checkpoints
from localllm.engine.pages import ChainHash
from localllm.engine.step import NO_SLOT, CheckpointId, MemoryOp, RestoreState, SaveState, SlotId, ZeroSlot


class StatePool:
    """`num_slots` slots, none for models without state; at most `num_kept` kept states."""

    def __init__(self, num_slots: int, num_kept: int) -> None:
        self.num_slots = num_slots
        self.kept = Checkpoints(num_kept)
        self._free = [SlotId(slot) for slot in reversed(range(num_slots))]

    @property
    def num_used(self) -> int:
        return self.num_slots - len(self._free)

    def take(self, checkpoint: CheckpointId | None) -> tuple[SlotId, MemoryOp]:
        """A slot, and what has to be done before its first row: it begins at nothing, or where the checkpoint is."""
        slot = self._free.pop()
        return slot, ZeroSlot(slot) if checkpoint is None else RestoreState(checkpoint, slot)

    def give_back(self, slot: SlotId) -> None:
        if slot != NO_SLOT:
            self._free.append(slot)

    def save(self, slot: SlotId, chain: ChainHash) -> MemoryOp | None:
        """Keep what the slot holds as the state after `chain`; None where it is kept already, or nothing can be."""
        number = self.kept.keep(chain)
        return None if number is None else SaveState(slot, number)

    def check(self, held: Sequence[SlotId]) -> None:
        """For tests: exactly these slots are taken, each by one sequence."""
        taken = sorted(slot for slot in held if slot != NO_SLOT)
        assert sorted([*taken, *self._free]) == list(range(self.num_slots)), "a slot is lost, or has two owners"
