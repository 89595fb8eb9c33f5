"""What layers with recurrent state saw while a row checked draft tokens, so that rejected ones can be undone.

Knows no array library: a line is whatever the backend keeps.
"""

from __future__ import annotations

from typing import Generic, TypeVar

from localllm.engine.step import NO_SLOT, SeqId, SlotId, StepPlan

X = TypeVar("X")


class Trails(Generic[X]):
    """A line per layer, of the state before the row and then of the row's own inputs: (kernel - 1 + n, channels)."""

    def __init__(self) -> None:
        self._trails: dict[SeqId, tuple[SlotId, dict[int, X]]] = {}

    def follow(self, plan: StepPlan) -> None:
        """A trail lasts until the next row of its sequence; it starts where a row checks draft tokens."""
        for row in plan.rows:
            self._trails.pop(row.seq, None)
            if row.slot != NO_SLOT and row.want.sample is not None and row.want.sample.num_positions > 1:
                self._trails[row.seq] = (row.slot, {})

    def wants(self, seq: SeqId) -> bool:
        return seq in self._trails

    def keep(self, seq: SeqId, layer: int, line: X) -> None:
        self._trails[seq][1][layer] = line

    def take(self, seq: SeqId) -> tuple[SlotId, dict[int, X]]:
        """The slot and the line of each layer; no layers where the sequence has no trail. It is forgotten."""
        return self._trails.pop(seq, (NO_SLOT, {}))

    def clear(self) -> None:
        self._trails.clear()
