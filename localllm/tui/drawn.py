"""Widgets that paint lines: a whole picture, or a list of which only the visible rows are made."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from typing import TYPE_CHECKING, ClassVar, cast

from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.binding import Binding, BindingType
from textual.filter import ANSIToTruecolor
from textual.geometry import Region, Size
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.strip import Strip
from textual.widget import Widget

from localllm.tui.palette import Ink

MAX_STYLES = 8192

if TYPE_CHECKING:
    from localllm.tui.app import LocalApp


def ink_of(widget: Widget) -> Ink:
    return cast("LocalApp", widget.app).ink


class Drawn(Widget):
    """A picture of lines. A subclass says what to `draw`; `redraw` paints the cells that differ, of each row from the
    first to the last of them."""

    DEFAULT_CSS = """
    Drawn { width: 1fr; height: 1fr; }
    """
    is_old = False
    """Whether what it shows is old: it is painted nearer to the ground."""

    def draw(self, ink: Ink, width: int, height: int) -> list[Strip]:
        """Lines from the top; missing ones are blank."""
        raise NotImplementedError

    def redraw(self) -> None:
        """Something changed: rows that look different are painted anew."""
        if not self.is_mounted or not self.size:
            return
        old, new = self._strips, self._drawn()
        self._strips = new
        width = self.size.width
        for row in range(max(len(old), len(new))):
            if row >= len(old) or row >= len(new):
                self.refresh(Region(0, row, width, 1))
            elif old[row] is not new[row] and old[row] != new[row]:
                start, end = _changed(old[row], new[row], width)
                self.refresh(Region(start, row, end - start, 1))

    def render_line(self, y: int) -> Strip:
        look = self._current()
        return self._strips[y] if y < len(self._strips) else Strip.blank(look.size.width, look.ground)

    def render_lines(self, crop: Region) -> list[Strip]:
        """Rows that fill the widget go to the screen as they are. Textual would send all of them through its grounds
        and filters at every change of one."""
        look = self._current()
        if not look.is_bare:
            return super().render_lines(crop)
        blank = Strip.blank(look.size.width, look.ground)
        rows = [look.filtered(self._strips[y] if y < len(self._strips) else blank) for y in crop.line_range]
        is_whole = crop.x == 0 and crop.width == look.size.width
        return rows if is_whole else [row.crop(crop.x, crop.right) for row in rows]

    def notify_style_update(self) -> None:
        self._look = None
        super().notify_style_update()

    # ---- inside

    _raw: Sequence[Strip] = ()
    _strips: list[Strip] = []  # noqa: RUF012  # replaced, never changed
    _look: _Look | None = None

    def _current(self) -> _Look:
        """How it looks, after drawing it anew where that is another way than before."""
        look = self._look
        if look is None or look.key != (self.size, ink_of(self), self.is_old):
            self._strips = self._drawn()
        assert self._look is not None
        return self._look

    def _drawn(self) -> list[Strip]:
        """All rows. Those that are drawn as before stay the same objects."""
        look, key = self._look, (self.size, ink_of(self), self.is_old)
        if look is None or look.key != key:
            look = self._look = _Look(self, *key)
            self._raw = ()
        width, height = look.size
        old, raw = self._raw, self.draw(look.ink, width, height)[:height]
        strips = [
            self._strips[row] if row < len(old) and (old[row] is strip or old[row] == strip) else look.grounded(strip)
            for row, strip in enumerate(raw)
        ]
        self._raw = raw
        return strips + [Strip.blank(width, look.ground)] * (height - len(strips))


class _Look:
    """What all rows of a widget have in common, as long as neither its size nor its colours change."""

    def __init__(self, widget: Widget, size: Size, ink: Ink, is_old: bool) -> None:
        self.key = (size, ink, is_old)
        self.size = size
        self.ink = ink.faded() if is_old else ink
        self.ground = widget.rich_style
        self.is_bare = widget.gutter.totals == (0, 0) and widget.opacity == 1 and not widget.styles.has_rule("tint")
        # our styles have no colours by number: there is nothing to turn into true ones
        self._filters = [each for each in widget.app.get_line_filters() if not isinstance(each, ANSIToTruecolor)]
        self._background = widget.background_colors[1]
        self._styles: dict[Style | None, Style] = {}

    def grounded(self, strip: Strip) -> Strip:
        """On the ground, as wide as the widget."""
        width, styles, segments = self.size.width, self._styles, []
        for text, style, control in strip.adjust_cell_length(width):
            known = styles.get(style)
            segments.append(Segment(text, self._on_ground(style) if known is None else known, control))
        return Strip(segments, width)

    def _on_ground(self, style: Style | None) -> Style:
        if len(self._styles) >= MAX_STYLES:
            self._styles.clear()
        made = self._styles[style] = self.ground if style is None else self.ground + style
        return made

    def filtered(self, strip: Strip) -> Strip:
        for each in self._filters:
            strip = strip.apply_filter(each, self._background)
        return strip


def _changed(old: Strip, new: Strip, width: int) -> tuple[int, int]:
    """The columns from the first to the last cell that differs."""
    one, two = list(old), list(new)
    same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, two, strict=False)))
    start = sum(segment.cell_length for segment in one[:same])
    before, after = _cells(one[same:]), _cells(two[same:])
    if len(before) != width - start or len(after) != width - start:  # characters that are two columns wide
        return 0, width
    differing = [at for at, (one, two) in enumerate(zip(before, after, strict=True)) if one != two]
    return (start + differing[0], start + differing[-1] + 1) if differing else (0, width)


def _cells(segments: Sequence[Segment]) -> list[tuple[str, Style | None]]:
    return [(character, style) for text, style, _ in segments for character in text]


class DrawnList(ScrollView, can_focus=True):
    """Rows of one cell's height with a cursor. A subclass says how many there are and how one is drawn.

    Rows that `can_choose` refuses (titles, rules) are passed over by the cursor.
    """

    DEFAULT_CSS = """
    DrawnList { width: 1fr; height: 1fr; scrollbar-size-vertical: 1; scrollbar-size-horizontal: 0; overflow-x: hidden; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,k", "move(-1)", "up", show=False, id="list.up", tooltip="The row above"),
        Binding("down,j", "move(1)", "down", show=False, id="list.down", tooltip="The row below"),
        Binding("pageup", "page(-1)", "page up", show=False, id="list.page_up", tooltip="A page up"),
        Binding("pagedown", "page(1)", "page down", show=False, id="list.page_down", tooltip="A page down"),
        Binding("home", "move(-10000000)", "first", show=False, id="list.first", tooltip="The first row"),
        Binding("end", "move(10000000)", "last", show=False, id="list.last", tooltip="The last row"),
        Binding("enter", "choose", "choose", show=False, id="list.choose", tooltip="Choose this row"),
    ]

    class Moved(Message):
        """The cursor stands on another row."""

        def __init__(self, sender: DrawnList, row: int) -> None:
            super().__init__()
            self.sender, self.row = sender, row

        @property
        def control(self) -> DrawnList:
            return self.sender

    class Chosen(Moved):
        """Enter, or a click on the row where the cursor stood."""

    cursor = 0

    def row_count(self) -> int:
        raise NotImplementedError

    def draw_row(self, row: int, ink: Ink, width: int) -> Strip:
        """`row == self.cursor` and `self.has_focus` say how it looks."""
        raise NotImplementedError

    def can_choose(self, row: int) -> bool:
        return True

    def refill(self) -> None:
        """The rows changed. The cursor stays on its number, or on the last row."""
        count = self.row_count()
        self.virtual_size = Size(self.scrollable_content_region.width or self.size.width, count)
        self.cursor = self._allowed(min(self.cursor, max(0, count - 1)), 1)
        self.refresh()

    def move_to(self, row: int) -> None:
        """Puts the cursor there and brings it into view."""
        count = self.row_count()
        if not count:
            return
        row = max(0, min(count - 1, row))
        row = self._allowed(row, 1 if row >= self.cursor else -1)
        if row != self.cursor:
            self.cursor = row
            self.refresh()
            self.post_message(self.Moved(self, row))
        self.scroll_to_region(Region(0, row, 1, 1), animate=False, force=True)

    def render_line(self, y: int) -> Strip:
        row = y + self.scroll_offset.y
        width = self.scrollable_content_region.width or self.size.width
        if row >= self.row_count():
            return Strip.blank(width, self.rich_style)
        return self.draw_row(row, ink_of(self), width).adjust_cell_length(width).apply_style(self.rich_style)

    def on_mount(self) -> None:
        self.refill()

    def on_resize(self) -> None:
        self.refill()

    def on_focus(self) -> None:
        self.refresh()

    def on_blur(self) -> None:
        self.refresh()

    def on_click(self, event: events.Click) -> None:
        row = event.y + self.scroll_offset.y
        if row >= self.row_count() or not self.can_choose(row):
            return
        was_there = row == self.cursor
        self.move_to(row)
        if was_there:
            self.action_choose()

    def action_move(self, by: int) -> None:
        self.move_to(self.cursor + by)

    def action_page(self, by: int) -> None:
        self.move_to(self.cursor + by * max(1, self.size.height - 1))

    def action_choose(self) -> None:
        if self.row_count() and self.can_choose(self.cursor):
            self.post_message(self.Chosen(self, self.cursor))

    def _allowed(self, row: int, direction: int) -> int:
        """The row itself, else the next one this way that can be chosen, else the next one the other way."""
        count = self.row_count()
        for step in (direction, -direction):
            at = row
            while 0 <= at < count:
                if self.can_choose(at):
                    return at
                at += step
        return row
