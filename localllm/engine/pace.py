"""What a step costs with drafts in it, measured as it goes. Decides about speed only, never about an answer."""

from __future__ import annotations

_SIZES = (1, 2, 3, 5, 9, 17, 33)
_PRIOR = 0.15
"""The part of a step without drafts that one more token adds, before it was measured: usual where weights are read
from memory once for all tokens."""
_LEARNING = 0.15
_FORGIVING = 0.002
_OUTLIER = 3.0


class Pace:
    """Seconds of steps that only generate, by their number of rows, and what each drafted token adds to them."""

    def __init__(self) -> None:
        self._plain_s: dict[int, float] = {}  # by rows
        self._added: dict[tuple[int, int], float] = {}  # by rows and class of drafted tokens: part of plain_s a token

    def ratio(self, num_rows: int, num_drafted: int) -> float:
        """How much longer a step takes with so many drafted tokens than with none."""
        if not num_drafted:
            return 1.0
        kind = _class_of(num_drafted)
        added = self._added.get((num_rows, kind))
        if added is None:
            known = [self._added[num_rows, near] for near in (kind - 1, kind + 1) if (num_rows, near) in self._added]
            added = sum(known) / len(known) if known else _PRIOR
        return 1.0 + added * num_drafted

    def note(self, num_rows: int, num_drafted: int, seconds: float) -> None:
        """A step took so long. One that was disturbed counts as a multiple of what was expected at most."""
        if seconds <= 0.0:
            return
        plain_s = self._plain_s.get(num_rows)
        if not num_drafted:
            self._plain_s[num_rows] = seconds if plain_s is None else _moved(plain_s, seconds)
            self._forgive(num_rows)
        elif plain_s is not None:
            key = num_rows, _class_of(num_drafted)
            ratio = min(seconds / plain_s, _OUTLIER * self.ratio(num_rows, num_drafted))
            added = max(0.0, ratio - 1.0) / num_drafted
            before = self._added.get(key, added)
            self._added[key] = before + _LEARNING * (added - before)

    def _forgive(self, num_rows: int) -> None:
        """What looked dear is slowly believed to be cheaper again: else one disturbed moment would end drafts."""
        for key, added in self._added.items():
            if key[0] == num_rows and added > _PRIOR:
                self._added[key] = added + _FORGIVING * (_PRIOR - added)


def _moved(before: float, seconds: float) -> float:
    return before + _LEARNING * (min(seconds, _OUTLIER * before) - before)


def _class_of(num_drafted: int) -> int:
    return sum(num_drafted >= size for size in _SIZES)
