"""Widgets that paint lines: a whole picture, or a list of which only the visible rows are made."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, ClassVar, cast

from rich.cells import cell_len
from rich.color import ColorSystem
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
from localllm.tui.terminal import TextFilter

MAX_STYLES = 8192
EVEN = "▀─━"
"""Letters that long runs are made of; each takes one column."""

if TYPE_CHECKING:
    from localllm.tui.app import LocalApp
    from localllm.tui.picture import Picture


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

    def redraw(self, picture: Picture | None = None) -> None:
        """Something changed: rows that look different are painted anew, as part of a `picture` where one is being
        made and the widget lies open."""
        if not self.is_mounted or not self.size:
            return
        look, old = self._look, self._raw_rows
        if look is None or look is not self._current():
            self.refresh()
            return
        self._draw_rows(look)
        place = picture.place_of(self) if picture is not None and look.is_bare else None
        for number, row in enumerate(self._raw_rows):
            before = old[number] if number < len(old) else None
            if row is before:
                continue
            start, width, changed = _changed(before, row, look.size.width)
            if place is None or picture is None:
                self.refresh(Region(start, number, width, 1))
            else:
                picture.put(place.x + start, place.y + number, look.written(changed))

    def render_line(self, y: int) -> Strip:
        return self._ready_row(self._current(), y)

    def render_lines(self, crop: Region) -> list[Strip]:
        """Rows that fill the widget go to the screen as they are. Textual would send all of them through its grounds
        and filters at every change of one."""
        look = self._current()
        if not look.is_bare:
            return super().render_lines(crop)
        rows = [look.filtered(self._ready_row(look, y)) for y in crop.line_range]
        is_whole = crop.x == 0 and crop.width == look.size.width
        return rows if is_whole else [row.crop(crop.x, crop.right) for row in rows]

    def notify_style_update(self) -> None:
        self._look = None
        super().notify_style_update()

    # ---- inside

    _raw_rows: list[Strip] = []  # noqa: RUF012  # replaced, never changed
    """As they were drawn, without a ground. Those that look as before stay the same objects."""
    _ready: dict[int, tuple[Strip, Strip]] = {}  # noqa: RUF012  # replaced with the look
    """Rows on their ground, made when they are asked for, each with the one it was made from."""
    _look: _Look | None = None

    def _current(self) -> _Look:
        """How it looks, after drawing it anew where that is another way than before."""
        look, key = self._look, (self.size, ink_of(self), self.is_old)
        if look is None or look.key != key:
            look = self._look = _Look(self, *key)
            self._raw_rows, self._ready = [], {}
            self._draw_rows(look)
        return look

    def _draw_rows(self, look: _Look) -> None:
        width, height = look.size
        old, rows = self._raw_rows, self.draw(look.ink, width, height)[:height]
        rows = [row.adjust_cell_length(width) for row in rows] + [look.blank] * (height - len(rows))
        self._raw_rows = [was if was is row or was == row else row for was, row in zip(old, rows, strict=False)]
        self._raw_rows += rows[len(old) :]

    def _ready_row(self, look: _Look, y: int) -> Strip:
        if y >= len(self._raw_rows):
            return look.grounded(look.blank, look.size.width)
        row, made = self._raw_rows[y], self._ready.get(y)
        if made is None or made[0] is not row:
            made = self._ready[y] = row, look.grounded(row, look.size.width)
        return made[1]


class _Look:
    """What all rows of a widget have in common, as long as neither its size nor its colours change."""

    def __init__(self, widget: Widget, size: Size, ink: Ink, is_old: bool) -> None:
        self.key = (size, ink, is_old)
        self.size = size
        self.ink = ink.faded() if is_old else ink
        self.blank = Strip.blank(size.width)
        self.is_bare = widget.gutter.totals == (0, 0) and widget.opacity == 1 and not widget.styles.has_rule("tint")
        # our styles have no colours by number: there is nothing to turn into true ones
        self._filters = [each for each in widget.app.get_line_filters() if not isinstance(each, ANSIToTruecolor)]
        self._text_filters = [each for each in self._filters if isinstance(each, TextFilter)]
        self._colours = widget.app.console._color_system or ColorSystem.TRUECOLOR
        self._background = widget.background_colors[1]
        self._ground = widget.rich_style
        self._styles: dict[int, tuple[Style | None, Style]] = {}
        self._codes: dict[int, tuple[Style | None, str, str]] = {}

    def grounded(self, segments: Iterable[Segment], width: int) -> Strip:
        """So wide a part of a row, on the ground."""
        known, made = self._styles, []
        for text, style, control in segments:
            on_ground = known.get(id(style))
            made.append(Segment(text, self._on_ground(style) if on_ground is None else on_ground[1], control))
        return Strip(made, width)

    def _on_ground(self, style: Style | None) -> Style:
        if len(self._styles) >= MAX_STYLES:
            self._styles.clear()
        made = self._ground if style is None else self._ground + style
        self._styles[id(style)] = style, made  # kept: no other style can have its id
        return made

    def filtered(self, strip: Strip) -> Strip:
        for each in self._filters:
            strip = strip.apply_filter(each, self._background)
        return strip

    def written(self, segments: Iterable[Segment]) -> str:
        """A part of a row on the ground, filtered, as the terminal is told it."""
        known, filters, written = self._codes, self._text_filters, []
        for text, style, _ in segments:
            for each in filters:
                text = each.text(text)
            code = known.get(id(style)) or self._code(style)
            written.append(f"{code[1]}{text}{code[2]}")
        return "".join(written)

    def _code(self, style: Style | None) -> tuple[Style | None, str, str]:
        """What the terminal is told before a text, and behind it."""
        if len(self._codes) >= MAX_STYLES:
            self._codes.clear()
        strip = self.filtered(self.grounded([Segment("|", style)], 1))
        told = Strip.render_style(next(iter(strip)).style or self._ground, "|", self._colours)
        before, _, after = told.partition("|")
        made = self._codes[id(style)] = style, before, after
        return made


def _changed(old: Strip | None, new: Strip, width: int) -> tuple[int, int, list[Segment]]:
    """From the first to the last cell that differs: its column, how many there are, and what is there now. Letters
    that are not sure to take one column are not torn apart."""
    if old is None:
        return 0, width, list(new)
    before, after = list(old), list(new)
    first = _same(before, after)
    start, before, after = cell_len(_text(after[:first])), before[first:], after[first:]
    last = len(after) - _same(before[::-1], after[::-1])
    if _clings(after) or _clings(after[last:]):
        return 0, width, list(new)
    before, after = before[: last - len(after) or None], after[:last]
    start += _trim(before, after, at_end=False)
    _trim(before, after, at_end=True)
    return start, cell_len(_text(after)), after


def _same(one: Sequence[object], two: Sequence[object]) -> int:
    """How many they begin with are equal."""
    for number, (before, after) in enumerate(zip(one, two, strict=False)):
        if before != after:
            return number
    return min(len(one), len(two))


def _trim(before: list[Segment], after: list[Segment], *, at_end: bool) -> int:
    """Takes away the letters that both begin or end with; answers how many."""
    at = -1 if at_end else 0
    if not before or not after or before[at].style is not after[at].style:
        return 0
    (old, style, _), (new, _, _) = before[at], after[at]
    if not (_is_even(old) and _is_even(new)):
        return 0
    count = _same(old[::-1], new[::-1]) if at_end else _same(old, new)
    keep = slice(None, -count or None) if at_end else slice(count, None)
    before[at], after[at] = Segment(old[keep], style), Segment(new[keep], style)
    return count


def _is_even(text: str) -> bool:
    """Whether surely every letter takes one column."""
    return text.isascii() or (text[0] in EVEN and text.count(text[0]) == len(text))


def _text(segments: Sequence[Segment]) -> str:
    return "".join(text for text, _, _ in segments)


def _clings(segments: Sequence[Segment]) -> bool:
    """Whether they begin with what takes no column of its own: it goes with what stands before it."""
    text = segments[0].text if segments else ""
    return not text.isascii() and cell_len(text[0]) == 0


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
