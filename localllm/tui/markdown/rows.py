"""What a text looks like on the screen: rows, and what they depend on besides the text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from rich.segment import Segment
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
    """One row, `width` cells wide, of which `used` hold something. `code` is the number of the code block that it
    belongs to, from 1; `is_head` the row above its first line, with room at the right for what can be done with it.
    Rows of code may be wider than the look."""

    segments: Sequence[Segment]
    width: int
    used: int
    code: int = 0
    is_head: bool = False

    @property
    def strip(self) -> Strip:
        """Made anew each time: strips are heavy, and most rows are never seen."""
        return Strip(self.segments, self.width)

    @property
    def text(self) -> str:
        return "".join(segment.text for segment in self.segments)

    def behind(self, prefix: Line) -> Row:
        """With something before it."""
        segments, width = [*prefix.segments, *self.segments], prefix.width + self.width
        return self._replace(segments=segments, width=width, used=prefix.width + self.used)


BLANK = Row((), 0, 0)


def row(line: Line) -> Row:
    return Row(line.segments, line.width, line.width)
