"""What a text looks like on the screen: rows of strips, and what they depend on besides the text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from textual.strip import Strip

from localllm.tui.lines import Line
from localllm.tui.palette import Ink


@dataclass(frozen=True, slots=True)
class Look:
    """`width` in cells; `role` is the colour of plain text. A compact look spends no row on air."""

    ink: Ink
    width: int
    is_compact: bool = False
    role: str = "text"


class Row(NamedTuple):
    """One row. `code` is the number of the code block that it belongs to, from 1; `is_head` the row above its first
    line, with room at the right for what can be done with it. Rows of code may be wider than the look."""

    strip: Strip
    code: int = 0
    is_head: bool = False
    used: int = 0

    @property
    def width(self) -> int:
        return self.strip.cell_length


BLANK = Row(Strip([], 0))


def row(line: Line) -> Row:
    return Row(Strip(line.segments, line.width), used=line.width)
