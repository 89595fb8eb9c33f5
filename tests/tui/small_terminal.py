"""A terminal that knows just enough: where the cursor is put, and what is written there in which look."""

from __future__ import annotations

import re

from rich.cells import cell_len

_TOLD = re.compile(r"\x1b\[(\d*);?(\d*)H|\x1b\[([\d;]*)m|\x1b\[[?>=]?[\d;]*[a-zA-Z]|(\r?\n)|([^\x1b\r\n])")


class SmallTerminal:
    """`cells` are letters with the codes of their look, by row and column."""

    def __init__(self) -> None:
        self.cells: dict[tuple[int, int], tuple[str, str]] = {}
        self._row = self._column = 0
        self._look = ""

    def write(self, data: str) -> None:
        for told in _TOLD.finditer(data):
            row, column, look, line_end, letter = told.groups()
            if letter is not None:
                self.cells[self._row, self._column] = letter, self._look
                self._column += cell_len(letter)
            elif line_end is not None:
                self._row, self._column = self._row + 1, 0
            elif look is not None:
                self._look = "" if look in ("", "0") else look
            elif row is not None:
                self._row, self._column = int(row or 1) - 1, int(column or 1) - 1
