"""Lines of styled text: how everything that is drawn is put together. Widths are in terminal cells."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Literal

from rich.cells import cell_len, chop_cells, set_cell_size
from rich.segment import Segment
from rich.style import Style
from textual.strip import Strip

from localllm.safe_text import one_line
from localllm.tui.colour import mix
from localllm.tui.palette import Ink

Align = Literal["left", "right"]
PLAIN = Style()
ELLIPSIS = "…"


MAX_KEPT = 256
_PICTURE = "\u2190-\u2bff\u3030\u303d\u3297\u3299\U0001f000-\U0001faff"
_LOOSE = re.compile(
    f"(?<![{_PICTURE}0-9#*\u00a9\u00ae\u203c\u2049\u2122\u2139])[\ufe00-\ufe0f]+"
    f"|(?<![{_PICTURE}\ufe0f])\u200d|\u200d(?![{_PICTURE}])"
)


def without_loose(text: str) -> str:
    """Without what would change the width of a neighbour: selectors of a glyph without one, and joiners that join no
    two pictures (terminals draw letters one by one)."""
    return text if text.isascii() else _LOOSE.sub("", text)


def plain_text(text: str) -> tuple[str, int]:
    """`text` as it may stand in a line, and its width."""
    return _kept_plain_text(text) if len(text) < MAX_KEPT else _plain_text(text)


def _plain_text(text: str) -> tuple[str, int]:
    text = without_loose(one_line(text))
    return text, cell_len(text)


_kept_plain_text = lru_cache(8192)(_plain_text)


class Line:
    """A line while it is built. Only text comes into it: whatever could do something else is taken out by `put`, also
    where nobody thought of it before."""

    __slots__ = ("segments", "width")

    def __init__(self, *parts: tuple[str, Style]) -> None:
        self.segments: list[Segment] = []
        self.width = 0
        for text, style in parts:
            self.put(text, style)

    def put(self, text: str, style: Style = PLAIN) -> Line:
        """At the end of it; returns the line, so that calls can be chained."""
        if not text:
            return self
        if text.isascii() and text.isprintable():
            width = len(text)
        else:
            text, width = plain_text(text)
        if text:
            self.segments.append(Segment(text, style))
            self.width += width
        return self

    def add(self, other: Line) -> Line:
        self.segments += other.segments
        self.width += other.width
        return self

    def pad_to(self, width: int, style: Style = PLAIN) -> Line:
        return self.put(" " * (width - self.width), style)

    def on(self, ground: Style) -> Line:
        """The same over a ground: a style that stands below those of the parts."""
        made = Line()
        made.segments = [Segment(text, ground + (style or PLAIN)) for text, style, _ in self.segments]
        made.width = self.width
        return made

    def over(self, above: Style) -> Line:
        """The same under a style that wins over those of the parts."""
        made = Line()
        made.segments = [Segment(text, (style or PLAIN) + above) for text, style, _ in self.segments]
        made.width = self.width
        return made

    def fit(self, width: int, align: Align = "left") -> Line:
        """Exactly `width` cells: cut with an ellipsis, or filled with blanks."""
        if self.width > width:
            return self._cut(width)
        blank = Line((" " * (width - self.width), PLAIN))
        return Line().add(self).add(blank) if align == "left" else blank.add(self)

    def strip(self, width: int) -> Strip:
        """Cropped or filled to `width`."""
        return Strip(self.segments, self.width).adjust_cell_length(max(0, width))

    @property
    def text(self) -> str:
        return "".join(segment.text for segment in self.segments)

    def _cut(self, width: int) -> Line:
        made, room = Line(), width - 1
        for text, style, _ in self.segments:
            cells = cell_len(text)
            if cells > room:
                made.put(clip(text, room), style or PLAIN)
                if width > 0:
                    made.put(ELLIPSIS, style or PLAIN)
                break
            made.put(text, style or PLAIN)
            room -= cells
        return made.pad_to(width)


def clip(text: str, width: int) -> str:
    """The beginning of `text` that fits."""
    if width <= 0:
        return ""
    if text.isascii():
        return text[:width]
    text, cells = plain_text(text)
    return chop_cells(text, width)[0] if cells > width else text


def shortened(text: str, width: int, where: Literal["end", "middle"] = "end") -> str:
    """`text` with an ellipsis where it does not fit; names of files lose their middle."""
    text, cells = plain_text(text)
    if cells <= width:
        return text
    if width <= 1:
        return ELLIPSIS[:width]
    if where == "end":
        return clip(text, width - 1) + ELLIPSIS
    tail = width // 2
    end = text[-tail:]
    while cell_len(end) > tail:
        end = end[1:]
    return clip(text, width - 1 - cell_len(end)) + ELLIPSIS + end


def cell(text: str, width: int, align: Align = "left") -> str:
    """A cell of a table: exactly `width` cells wide."""
    text = shortened(text, width)
    return set_cell_size(text, width) if align == "left" else " " * (width - cell_len(text)) + text


def joined(parts: Iterable[Line], gap: int) -> Line:
    """With blanks between them."""
    made = Line()
    for number, part in enumerate(parts):
        made.put(" " * gap if number else "").add(part)
    return made


def left_right(left: Line, right: Line, width: int) -> Line:
    """`right` ends on the right margin; `left` is cut where both do not fit."""
    room = width - right.width
    if left.width >= room:
        left = left.fit(max(0, room - 1))
    return Line().add(left).pad_to(room).add(right)


def heading(
    ink: Ink, width: int, title: str, info: Line | None = None, *, note: str = "", is_focused: bool = False
) -> Line:
    """A titled rule. `note` follows the title, `info` ends on the right margin; what does not fit is dropped, the
    note first."""
    title_style = ink("accent" if is_focused else "bright", bold=True)
    right = Line((" ", PLAIN)).add(info) if info and info.segments else Line()
    for told in (note, ""):
        left = Line((title, title_style)).put(f"  {told}" if told else "", ink("muted")).put(" ")
        if left.width + right.width + 2 <= width:
            break
    if left.width + right.width + 1 > width:
        right = Line()
    rule = max(0, width - left.width - right.width)
    return left.put("─" * rule, ink("accent" if is_focused else "line")).add(right).fit(width)


def labelled(ink: Ink, label: str, value: str, unit: str = "", role: str = "text") -> Line:
    """`label value unit`: the number speaks, the rest whispers."""
    line = Line((f"{label} ", ink("muted"))) if label else Line()
    return line.put(value, ink(role)).put(f" {unit}" if unit else "", ink("muted"))


def gauge(ink: Ink, share: float, width: int, role: str = "accent", track: str | None = "line") -> Line:
    """How much, as one thin line with a gap of half a cell at the seam; without a track the rest is blank."""
    share = min(1.0, max(0.0, share))
    filled = int(share * width)
    has_half = share * width - filled >= 0.5 and filled < width
    line = Line(("━" * filled, ink(role)))
    if track is None:
        return line.put("╸" if has_half else "", ink(role)).pad_to(width)
    if filled < width:
        line.put("╸" if has_half else "╺", ink(role if has_half else track))
    return line.put("━" * (width - filled - 1), ink(track))


def area(
    ink: Ink, samples: Sequence[float | None], width: int, height: int, high: float, role: str = "accent"
) -> list[Line]:
    """An area plot of eighth blocks, a sample a column, the newest at the right; brighter towards the top."""
    last = list(samples)[-width:]
    shown = [*[None] * (width - len(last)), *last]
    lines, colour, ground = [], ink.colour(role), ink.colour("bg")
    for row in range(height):
        base = (height - 1 - row) * 8
        lowest = 1 if row == height - 1 else 0
        text = "".join(
            " " if value is None else " ▁▂▃▄▅▆▇█"[_eighths(value, high, height, base, lowest)] for value in shown
        )
        share = 0.28 + 0.44 * row / (height - 1) if height > 1 else 0.3
        lines.append(Line((text, ink(mix(colour, ground, share)))))
    return lines


def _eighths(value: float, high: float, height: int, base: int, lowest: int) -> int:
    filled = round(value / high * height * 8) if high > 0 else 0
    return min(8, max(0, max(lowest, filled - base) if not base else filled - base))


_DOTS = ((0, 1, 2, 6), (3, 4, 5, 7))
"""Bits of the braille cell: its left and its right column, from the top."""


def plot(
    ink: Ink, series: Sequence[tuple[Sequence[float | None], str]], width: int, height: int, high: float
) -> list[Line]:
    """Lines of braille dots, two samples a column, the newest at the right; later series lie above earlier ones."""
    bits = [[0] * width for _ in range(height)]
    roles = [["text"] * width for _ in range(height)]
    for samples, role in series:
        shown = list(samples)[-2 * width :]
        start, before = 2 * width - len(shown), None
        for place, value in enumerate(shown, start):
            if value is None:
                before = None
                continue
            top = 4 * height - 1
            y = min(top, max(0, round((1 - (value / high if high else 0)) * top)))
            for dot in _between(before, y):
                bits[dot // 4][place // 2] |= 1 << _DOTS[place % 2][dot % 4]
                roles[dot // 4][place // 2] = role
            before = y
    return [_braille_line(ink, cells, of) for cells, of in zip(bits, roles, strict=True)]


def _between(before: int | None, now: int) -> Iterable[int]:
    """Dots of a stroke from the sample before, without that one's own."""
    if before is None or before == now:
        return (now,)
    return range(before + 1, now + 1) if before < now else range(now, before)


def _braille_line(ink: Ink, cells: Sequence[int], roles: Sequence[str]) -> Line:
    line = Line()
    for dots, role in zip(cells, roles, strict=True):
        line.put(chr(0x2800 + dots) if dots else " ", ink(role))
    return line


def wrapped(text: str, width: int) -> list[str]:
    """Words in lines of at most `width` cells; a word that is longer is cut."""
    lines, line = [], ""
    for word in text.split():
        tried = f"{line} {word}" if line else word
        if cell_len(tried) <= width:
            line = tried
            continue
        if line:
            lines.append(line)
        line = shortened(word, width)
    return [*lines, line] if line else lines
