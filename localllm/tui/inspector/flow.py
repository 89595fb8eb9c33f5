"""Tokens as running text: which piece of which token stands in which row. Knows no colours.

Grows token by token; words are not torn, and a token that is only half a character has its place with the other half.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from rich.cells import cell_len, chop_cells

from localllm.visible import visible_text

Kind = Literal["word", "blank", "break"]
_RUNS = re.compile(r"\n|[^\S\n]+|\S+")
TAB = "→   "


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a token's text, `width` cells from column `start` on. A break is drawn only where it matters."""

    token: int
    text: str
    kind: Kind
    start: int
    width: int


Row = list[Piece]


class Flow:
    """Tokens in rows of `width` cells. `feed` them in order; `rows` are all so far."""

    def __init__(self, width: int) -> None:
        self.width = max(4, width)
        self.num_tokens = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._rows: list[Row] = [[]]
        self._row_of: list[int] = []
        self._word: list[tuple[int, str]] = []

    def feed(self, raw: bytes) -> None:
        """The bytes of the next token."""
        token = self.num_tokens
        self.num_tokens += 1
        self._row_of.append(-1)
        for run in _RUNS.findall(self._decoder.decode(raw)):
            if run == "\n":
                self._break(token)
            elif run.isspace():
                self._blank(token, run)
            else:
                self._word.append((token, _seen(run)))

    def rows(self) -> list[Row]:
        """Also the word that may still become longer."""
        if not self._word:
            return self._rows
        before, column = self._rows[-1], self._column
        last = [list(before)]
        _place(self._word, last, column, self.width)
        return [*self._rows[:-1], *last]

    def row_of(self, token: int) -> int:
        """Where a token begins; one that shows nothing stands where the next one does."""
        for row in self._row_of[token:]:
            if row >= 0:
                return row
        return len(self.rows()) - 1

    def token_at(self, row: int, column: int) -> int | None:
        """The token under a place, or the last one of its row."""
        rows = self.rows()
        if not 0 <= row < len(rows) or not rows[row]:
            return None
        under = (piece.token for piece in rows[row] if piece.start <= column < piece.start + piece.width)
        return next(under, rows[row][-1].token)

    # ---- placing

    @property
    def _column(self) -> int:
        row = self._rows[-1]
        return row[-1].start + row[-1].width if row else 0

    def _flush(self) -> None:
        if not self._word:
            return
        first, column = len(self._rows) - 1, self._column
        start = len(self._rows[-1])
        _place(self._word, self._rows, column, self.width)
        self._word = []
        for number in range(first, len(self._rows)):
            for piece in self._rows[number][start if number == first else 0 :]:
                self._note(piece.token, number)

    def _blank(self, token: int, run: str) -> None:
        self._flush()
        text = run.replace("\t", TAB) if "\t" in run else " " * len(run)
        room = self.width - self._column
        self._put(token, text[: max(0, room)], "blank")

    def _break(self, token: int) -> None:
        self._flush()
        self._put(token, "↵", "break")
        self._rows.append([])

    def _put(self, token: int, text: str, kind: Kind) -> None:
        self._rows[-1].append(Piece(token, text, kind, self._column, cell_len(text)))
        self._note(token, len(self._rows) - 1)

    def _note(self, token: int, row: int) -> None:
        """It begins in the first row that has something of it."""
        if self._row_of[token] < 0:
            self._row_of[token] = row


def _place(word: list[tuple[int, str]], rows: list[Row], column: int, width: int) -> None:
    """At the end of the last row, or of a new one where it does not fit."""
    total = sum(cell_len(text) for _, text in word)
    if column and column + total > width:
        rows.append([])
        column = 0
    for token, text in word:
        for part in _torn(text, column, width):
            if column + cell_len(part) > width and column:
                rows.append([])
                column = 0
            rows[-1].append(Piece(token, part, "word", column, cell_len(part)))
            column += cell_len(part)


def _torn(text: str, column: int, width: int) -> Iterator[str]:
    """Whole where it fits into a row, else in parts."""
    if column + cell_len(text) <= width:
        yield text
        return
    yield from chop_cells(text, width)


def _seen(run: str) -> str:
    """Numbers of characters that cannot be seen stand in marks of their own."""
    return run if run.isprintable() else f"‹{visible_text(run)}›" if len(run) == 1 else visible_text(run)
