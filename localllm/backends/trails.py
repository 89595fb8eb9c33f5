"""What layers with recurrent state saw while a row checked draft tokens, so that rejected ones can be undone.

Knows no array library: what a state is made of is for the backend to know.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from localllm.engine.step import NO_SLOT, SeqId, SlotId, StepPlan

X = TypeVar("X")
Back = Callable[[int], X]
"""The state as it was after so many of the row's tokens: the same bits as if there had been no others."""


@dataclass(frozen=True, slots=True)
class Trail(Generic[X]):
    """A row that checks drafts: its slot, its tokens, and the way back for each part of the state, by (layer, part)."""

    slot: SlotId
    num_tokens: int
    parts: dict[tuple[int, int], Back[X]] = field(default_factory=dict)


class Trails(Generic[X]):
    def __init__(self) -> None:
        self._trails: dict[SeqId, Trail[X]] = {}

    def follow(self, plan: StepPlan) -> None:
        """A trail lasts until the next row of its sequence; it starts where a row checks draft tokens."""
        for row in plan.rows:
            self._trails.pop(row.seq, None)
            if row.slot != NO_SLOT and row.want.sample is not None and row.want.sample.num_positions > 1:
                self._trails[row.seq] = Trail(row.slot, len(row.token_ids))

    def wants(self, seq: SeqId) -> bool:
        return seq in self._trails

    def keep(self, seq: SeqId, layer: int, back: Back[X], part: int = 0) -> None:
        self._trails[seq].parts[layer, part] = back

    def take(self, seq: SeqId, num_refused: int) -> tuple[SlotId, dict[tuple[int, int], X]]:
        """The slot, and each part's state from before the row's last `num_refused` tokens; no parts where the sequence
        has no trail. It is forgotten."""
        trail = self._trails.pop(seq, None)
        if trail is None:
            return NO_SLOT, {}
        kept = trail.num_tokens - num_refused
        return trail.slot, {place: back(kept) for place, back in trail.parts.items()}

    def clear(self) -> None:
        self._trails.clear()
