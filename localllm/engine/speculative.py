"""Drafts: guesses of the next tokens, checked in the step that computes them. They change speed and no answer.

A drafted token stands only where the model samples the very same one, with the same random number as without drafts.
Drafts come from the sequence's own text, and ride along where the step is expected to give more tokens a second to
every running sequence.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol
from weakref import WeakKeyDictionary

from localllm.engine.lookup import Lookup
from localllm.engine.pace import Pace
from localllm.engine.scheduler import NO_DRAFTS, Drafts
from localllm.engine.sequence import Sequence as Running
from localllm.engine.step import BackendInfo, Row, StepPlan

MOST_ROWS = 4
"""With more sequences at a time a step is bound by arithmetic, and drafted tokens are no longer nearly free."""
MOST_DRAFTED = 15
LEAST_GAIN = 1.08
_LENGTHS = (1, 2, 3, 5, 7, 11, 15, 23, 31)


class Drafter(Protocol):
    """Guesses for the engine, which asks before each step. Whatever it answers, no sequence's tokens change."""

    def propose(self, running: Sequence[Running]) -> Drafts:
        """Next tokens of some sequences; those of a sequence that has more to compute than one token are not used."""

    def note(self, plan: StepPlan, seconds: float) -> None:
        """How long the step took on the device."""


class LookupDrafter:
    """Drafts of up to `most` tokens from what each sequence has said or was told before."""

    def __init__(self, most: int = MOST_DRAFTED) -> None:
        self._most = most
        self._lengths = [length for length in _LENGTHS if length < most] + [most]
        self._pace = Pace()
        self._lookups: WeakKeyDictionary[Running, Lookup] = WeakKeyDictionary()

    def propose(self, running: Sequence[Running]) -> Drafts:
        if len(running) > MOST_ROWS or any(sequence.gap != 1 for sequence in running):
            return NO_DRAFTS
        expected = [self._worth(sequence) for sequence in running]
        lengths = self._best_lengths(expected)
        return {
            sequence: self._lookups[sequence].draft(length)
            for sequence, length in zip(running, lengths, strict=True)
            if length
        }

    def note(self, plan: StepPlan, seconds: float) -> None:
        if len(plan.rows) <= MOST_ROWS and all(map(_only_generates, plan.rows)):
            self._pace.note(len(plan.rows), plan.num_tokens - len(plan.rows), seconds)

    def _worth(self, sequence: Running) -> list[float]:
        """Tokens that its row is expected to give with drafts of 0, 1, ... tokens, as many as there is room for."""
        lookup = self._lookups.get(sequence)
        if lookup is None:
            lookup = self._lookups[sequence] = Lookup(sequence.ids)
        is_ready = lookup.follow()
        return lookup.worth(min(self._most, sequence.room_for_draft)) if is_ready else [1.0]

    def _best_lengths(self, expected: Sequence[Sequence[float]]) -> list[int]:
        """A length for each sequence: those with which the one that gains least gains most."""
        none = [0] * len(expected)
        best, best_gain = none, LEAST_GAIN
        if not any(len(worth) > 1 for worth in expected):
            return none
        for most in self._lengths:
            lengths = [min(most, len(worth) - 1) for worth in expected]
            least = min(worth[length] for worth, length in zip(expected, lengths, strict=True))
            gain = least / self._pace.ratio(len(lengths), sum(lengths))
            if gain > best_gain:
                best, best_gain = lengths, gain
        return best


def drafter_for(speculation: str, backend: BackendInfo) -> LookupDrafter | None:
    """What the setting asks for: "off", the most tokens of a draft, or "auto": drafts where they cannot change a token.
    On other backends a near tie between two tokens may go the other way when more is computed beside it."""
    if speculation == "auto":
        return LookupDrafter() if backend.same_in_any_step else None
    return None if speculation == "off" else LookupDrafter(int(speculation))


def num_standing(drafted: Sequence[int], sampled: Sequence[int]) -> int:
    """How many drafted tokens the model has said itself, from the first on."""
    for count, (guess, token) in enumerate(zip(drafted, sampled, strict=False)):
        if guess != token:
            return count
    return min(len(drafted), len(sampled))


def _only_generates(row: Row) -> bool:
    return row.want.sample is not None and row.want.sample.num_positions == len(row.token_ids)
