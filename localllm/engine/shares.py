"""Who has had how much: equal shares of the tokens that are computed, for all owners who want some at the moment.

Virtual token counters (Sheng et al. 2024, "Fairness in Serving Large Language Models") over the clock of weighted fair
queueing (Demers et al. 1989). An owner who comes back starts at the clock: what was not used is not saved up. The clock
rises by every owner's share of what is computed, so that no stream of newcomers holds back who has had more.
"""

from __future__ import annotations

from collections import Counter

KEPT = 256
"""Owners who want nothing now, but have had more than their share."""


class Shares:
    """Tokens that owners were given, in one class of priority."""

    def __init__(self) -> None:
        self._spent: dict[str, float] = {}
        self._wanting: Counter[str] = Counter()
        self._clock = 0.0

    @property
    def num_owners(self) -> int:
        """Owners who want something now."""
        return len(self._wanting)

    def join(self, owner: str) -> None:
        """One more sequence of this owner."""
        if owner not in self._wanting:
            self._spent[owner] = max(self._spent.get(owner, 0.0), self._clock)
        self._wanting[owner] += 1

    def leave(self, owner: str) -> None:
        """One sequence less."""
        self._wanting[owner] -= 1
        if self._wanting[owner]:
            return
        del self._wanting[owner]
        if not self._wanting:  # nobody is left who could be owed anything
            self._spent.clear()
            self._clock = 0.0
        elif len(self._spent) > self.num_owners + KEPT:
            self._spent = {name: spent for name, spent in self._spent.items() if self._is_worth_keeping(name, spent)}

    def _is_worth_keeping(self, owner: str, spent: float) -> bool:
        return owner in self._wanting or spent > self._clock

    def charge(self, owner: str, num_tokens: int) -> None:
        """So many tokens are computed for one of its sequences; negative: they are not, after all."""
        self._spent[owner] += num_tokens
        self._clock += num_tokens / self.num_owners

    def spent(self, owner: str) -> float:
        """In tokens; the least goes first."""
        return self._spent[owner]
