"""What a step costs with drafts in it, measured as it goes. Decides about speed only, never about an answer."""

from __future__ import annotations

_PRIOR = 0.15
"""The part of a step without drafts that one more token adds, before it was measured: usual where weights are read
from memory once for all tokens. Sizes that were never tried are trusted to be no dearer, so that they are tried."""
_LEARNING = 0.15
_FORGIVING = 0.002
_OUTLIER = 3.0
_EXACT, _COARSE = 8, 4


class Pace:
    """Seconds of steps that only generate, by their number of rows, and what each drafted token adds to them.

    Costs are kept by the number of drafted tokens: kernels compute tokens in tiles, so that the first of a tile is
    dear and the others cost little.
    """

    def __init__(self) -> None:
        self._plain_s: dict[int, float] = {}  # by rows
        self._added: dict[int, dict[int, float]] = {}  # by rows and size of drafts: part of plain_s a drafted token
        self._learning: dict[tuple[int, int], float] = {}  # how much the next observation weighs

    def ratio(self, num_rows: int, num_drafted: int) -> float:
        """How much longer a step takes with so many drafted tokens than with none."""
        return 1.0 + num_drafted * self._added.get(num_rows, {}).get(_size(num_drafted), _PRIOR)

    def note(self, num_rows: int, num_drafted: int, seconds: float) -> None:
        """A step took so long. One that was disturbed counts as a multiple of what was expected at most."""
        if seconds <= 0.0:
            return
        plain_s = self._plain_s.get(num_rows)
        if not num_drafted:
            known_s = seconds if plain_s is None else plain_s
            self._plain_s[num_rows] = _moved(known_s, seconds, self._weight(num_rows, 0))
            self._forgive(num_rows)
        elif plain_s is not None:
            weight = self._weight(num_rows, _size(num_drafted))
            ratio = _moved(self.ratio(num_rows, num_drafted), seconds / plain_s, weight)
            self._added.setdefault(num_rows, {})[_size(num_drafted)] = max(0.0, ratio - 1.0) / num_drafted

    def _weight(self, num_rows: int, size: int) -> float:
        """The first observations weigh most: as much as all before them together."""
        weight = self._learning.get((num_rows, size), 0.5)
        self._learning[num_rows, size] = max(_LEARNING, weight / (1.0 + weight))
        return weight

    def _forgive(self, num_rows: int) -> None:
        """What looked dear is slowly believed to be cheaper again: else one disturbed moment would end drafts."""
        costs = self._added.get(num_rows, {})
        for size, added in costs.items():
            if added > _PRIOR:
                costs[size] = added + _FORGIVING * (_PRIOR - added)


def _moved(before: float, seen: float, weight: float) -> float:
    return before + weight * (min(seen, _OUTLIER * before) - before)


def _size(num_drafted: int) -> int:
    """Large drafts are told apart less finely."""
    return num_drafted if num_drafted <= _EXACT else -(-num_drafted // _COARSE) * _COARSE
