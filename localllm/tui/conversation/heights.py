"""Where each turn of a conversation begins: guessed until it is seen, then measured."""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate

GUESS = 9
"""Rows of a turn that nobody has seen yet."""


class Heights:
    """Rows of every turn and where they start. A change costs what stands behind it, and only when somebody asks."""

    def __init__(self, count: int = 0) -> None:
        self._rows = [GUESS] * count
        self._measured = bytearray(count)
        self._starts = [0]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> int:
        return self._rows[index]

    @property
    def total(self) -> int:
        return self.start(len(self._rows))

    def is_measured(self, index: int) -> bool:
        return bool(self._measured[index])

    def measure(self, index: int, rows: int) -> bool:
        """Whether that changed anything."""
        self._measured[index] = True
        if self._rows[index] == rows:
            return False
        self._rows[index] = rows
        del self._starts[index + 1 :]
        return True

    def append(self) -> None:
        self._rows.append(GUESS)
        self._measured.append(False)

    def truncate(self, count: int) -> None:
        """Keeps the first `count` turns."""
        del self._rows[count:], self._measured[count:], self._starts[count + 1 :]

    def forget(self) -> None:
        """Another width: what was measured is a guess now, and mostly a good one."""
        self._measured = bytearray(len(self._rows))

    def start(self, index: int) -> int:
        """The first row of a turn; of the one after the last: all rows."""
        known = len(self._starts) - 1
        if known < index:
            self._starts += list(accumulate(self._rows[known:], initial=self._starts[-1]))[1:]
        return self._starts[index]

    def at(self, row: int) -> int:
        """The turn that a row belongs to; of rows beyond the end the last one."""
        self.start(len(self._rows))
        return max(0, min(len(self._rows), bisect_right(self._starts, row)) - 1)
