"""Rows of turns as strips of the window: with the cursor's mark beside them, code where it was moved to."""

from __future__ import annotations

from rich.segment import Segment
from rich.style import Style
from textual.strip import Strip

from localllm.tui.lines import Line
from localllm.tui.markdown.rows import Look, Row
from localllm.tui.words import plural

MAX_MADE = 2000
"""Strips that are kept. They remember what Textual did with them, so the same row costs less the second time."""


class RowPainter:
    """For one look. `gutter` is the room at both sides of the text, `width` that of the window, in cells;
    `ground` is under everything."""

    def __init__(self, look: Look, gutter: int, width: int, has_focus: bool, ground: Style) -> None:
        self.look, self.gutter = look, gutter
        self._width, self._ground = width, ground
        mark = Line(("▌", look.ink("accent" if has_focus else "muted"))).pad_to(gutter)
        self._marks = (Line((" " * gutter, look.ink())).segments, mark.segments)
        self._made: dict[tuple[int, ...], tuple[Strip, Row]] = {}
        self.blank = Strip.blank(width, ground)

    def row(self, row: Row, *, is_marked: bool, at: int = 0, is_numbered: bool = False) -> Strip:
        """`at`: columns that the code was moved; `is_numbered`: whether its block can be copied by its number."""
        key = (id(row.segments), is_marked, at, row.is_head and row.code, is_numbered)
        made = self._made.get(key)
        if made is None:
            if len(self._made) > MAX_MADE:
                self._made.clear()
            strip = self._row(row, is_marked, at, is_numbered).adjust_cell_length(self._width)
            made = self._made[key] = (strip.apply_style(self._ground), row)
        return made[0]

    def hint(self, code: int, is_numbered: bool) -> Line:
        """`alt+1 copy`, at the right of the row above code."""
        ink, line = self.look.ink, Line()
        if is_numbered:
            line.put(f"alt+{code} ", ink("text", bold=True, on="panel"))
        return line.put("copy  ", ink("muted", on="panel"))

    def notice(self, num_tokens: int) -> Strip:
        """`▾ 48 new tokens`: something is written below the view."""
        ink = self.look.ink
        line = Line((" " * self.gutter, ink())).put("▾ ", ink("accent"))
        line.put(plural(num_tokens, "new token"), ink("bright"))
        return (
            line.put("   end", ink("text", bold=True))
            .put(" to follow", ink("muted"))
            .strip(self._width)
            .apply_style(self._ground)
        )

    def _row(self, row: Row, is_marked: bool, at: int, is_numbered: bool) -> Strip:
        mark = self._marks[is_marked]
        if row.is_head:
            segments = list(self._head(row, self.hint(row.code, is_numbered)))
        elif row.code and (row.width > self.look.width or at):
            segments = list(self._cropped(row, at))
        else:
            return Strip([*mark, *row.segments], self.gutter + row.width)
        return Strip([*mark, *segments], self.gutter + self.look.width)

    def _head(self, row: Row, hint: Line) -> Strip:
        kept = row.strip.crop(0, max(0, self.look.width - hint.width))
        return Strip([*kept, *hint.segments], self.look.width)

    def _cropped(self, row: Row, at: int) -> Strip:
        ground, width = self.look.ink("muted", on="panel"), self.look.width
        more = "›" if row.width > at + width else " "
        part = row.strip.crop_extend(at, at + width - 2, ground)
        return Strip([*part, Segment(f"{more} ", ground)], width)


def marked(strip: Strip, start: int, end: int, style: Style) -> Strip:
    """`style` over the characters from `start` to `end`; -1 is the end of the row."""
    made, at = [], 0
    stop = len(strip.text) if end == -1 else end
    for text, ground, _ in strip:
        a, b = max(0, min(len(text), start - at)), max(0, min(len(text), stop - at))
        ground = ground or Style()
        made += [Segment(text[:a], ground), Segment(text[a:b], ground + style), Segment(text[b:], ground)]
        at += len(text)
    return Strip([segment for segment in made if segment.text], strip.cell_length)
