"""Widgets that paint lines: a whole picture, or a list of which only the visible rows are made."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, cast

from textual import events
from textual.binding import Binding, BindingType
from textual.geometry import Region, Size
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.strip import Strip
from textual.widget import Widget

from localllm.tui.palette import Ink

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
        if self._drawn_for != (self.size, ink_of(self), self.is_old):
            self._strips = self._drawn()
        return self._strips[y] if y < len(self._strips) else Strip.blank(self.size.width, self.rich_style)

    _strips: list[Strip] = []  # noqa: RUF012  # replaced, never changed
    _drawn_for: tuple[Size, Ink, bool] | None = None

    def _drawn(self) -> list[Strip]:
        self._drawn_for = (self.size, ink_of(self), self.is_old)
        ink = ink_of(self).faded() if self.is_old else ink_of(self)
        width, height = self.size
        ground = self.rich_style
        strips = [
            strip.adjust_cell_length(width).apply_style(ground) for strip in self.draw(ink, width, height)[:height]
        ]
        return strips + [Strip.blank(width, ground)] * (height - len(strips))

    def notify_style_update(self) -> None:
        self._drawn_for = None
        super().notify_style_update()


def _changed(old: Strip, new: Strip, width: int) -> tuple[int, int]:
    """The columns from the first to the last cell that differs."""
    before, after = _cells(old), _cells(new)
    if len(before) != width or len(after) != width:  # characters that are two columns wide
        return 0, width
    differing = [at for at, (one, two) in enumerate(zip(before, after, strict=True)) if one != two]
    return (differing[0], differing[-1] + 1) if differing else (0, width)


def _cells(strip: Strip) -> list[tuple[str, object]]:
    return [(character, segment.style) for segment in strip for character in segment.text]


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
