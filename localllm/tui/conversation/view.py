"""Turns in a window that scrolls: measures those that come into view, holds its place, paints rows that differ."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from textual.geometry import Region, Size
from textual.scroll_view import ScrollView
from textual.selection import Selection
from textual.strip import Strip
from textual.widget import Widget

from localllm.tui.conversation.heights import Heights
from localllm.tui.conversation.held import Held
from localllm.tui.conversation.paint import RowPainter, marked
from localllm.tui.conversation.turn import Action, TurnView
from localllm.tui.conversation.turns import Turn
from localllm.tui.drawn import ink_of
from localllm.tui.markdown.rows import Look, Row
from localllm.tui.markdown.tree import parser

MAX_VIEWS = 120
"""Turns that are kept as rows; the others are made again when they come into view."""
GAP = Row((), 0, 0)
"""The row between two turns."""
STEP = 8
"""Columns that code moves sideways at once."""


@dataclass(frozen=True, slots=True)
class Spot:
    """What stands at a cell: a row of a turn, and what a click there does."""

    index: int
    row: Row
    action: Action | None = None
    is_copy: bool = False


class TurnsView(ScrollView):
    """Everything of a conversation that only looks. `cursor` is the index of a turn, or None."""

    DEFAULT_CSS = """
    TurnsView {
        width: 1fr; height: 1fr; overflow-x: hidden; overflow-y: auto; scrollbar-gutter: stable;
        scrollbar-size-vertical: 1; scrollbar-size-horizontal: 0;
    }
    """

    def __init__(self, turns: Sequence[Turn], *, id: str | None, clock: Callable[[], float] = time.time) -> None:
        super().__init__(id=id)
        self._clock = clock
        self._reader = parser()
        self.cursor: int | None = None
        self.is_following = True
        """Whether the end is in view and stays there while something is written."""
        self._is_fitting = False
        self._seen_tokens = 0
        self._left_writing = False
        self._is_lost = False
        """Whether the cursor was put on a turn before there was a window to bring it to the top of."""
        self._fitted_width = 0
        self._painted: list[Strip | None] = []
        self._painter: RowPainter | None = None
        self._selection: Selection | None = None
        self.put(turns)

    def __len__(self) -> int:
        return len(self.held)

    def __bool__(self) -> bool:
        return True  # an empty conversation is a widget all the same

    # ---- turns

    def put(self, turns: Sequence[Turn]) -> None:
        """Other turns; the view is at their end."""
        self.held = Held(turns)
        self._heights = Heights(len(turns))
        self._views: dict[int, TurnView] = {}
        self._sideways: dict[tuple[int, int], int] = {}
        self.cursor, self.is_following, self._left_writing, self._is_lost = None, True, False, False

    def add(self, turn: Turn) -> None:
        self.held.append(turn)
        self._heights.append()

    def change(self, index: int, turn: Turn) -> None:
        self.held[index] = turn
        if index in self._views:
            self._views[index].become(turn)
        self.refit()

    def cut(self, count: int) -> None:
        self.held.truncate(count)
        self._heights.truncate(count)
        self._views = {index: view for index, view in self._views.items() if index < count}
        if self.cursor is not None and self.cursor >= count:
            self.cursor = None
        self.refit()

    def view(self, index: int) -> TurnView:
        """The rows of a turn are kept as long as it is among those seen last."""
        view = self._views.pop(index, None) or TurnView(self.held[index], self._reader, self._clock)
        self._views[index] = view
        while len(self._views) > MAX_VIEWS:
            oldest = next(iter(self._views))
            if self._views[oldest].is_writing:
                self._views[oldest] = self._views.pop(oldest)
                continue
            del self._views[oldest]
        return view

    def fold(self, index: int) -> None:
        """Shows or hides what was thought before an answer."""
        self.view(index).fold()
        self.refit()

    def numbered(self) -> int | None:
        """The answer whose code blocks carry numbers: the one under the cursor, else the last visible one with code."""
        if not self.held:
            return None
        if self.cursor is not None:
            return self.cursor if self.view(self.cursor).codes() else None
        for index in range(self.last_visible(), self.first_visible() - 1, -1):
            if self.view(index).codes():
                return index
        return None

    # ---- where the view is

    def first_visible(self) -> int:
        return self._heights.at(self.scroll_offset.y)

    def last_visible(self) -> int:
        return self._heights.at(self.scroll_offset.y + max(0, self.size.height - 1))

    def go_to(self, index: int) -> None:
        """Puts the cursor on a turn, and its first row at the top."""
        if not len(self):
            return
        self.cursor = max(0, min(len(self) - 1, index))
        self._leave_end()
        self._is_lost = not self.is_mounted or not self.size.height
        if self._is_lost:
            return
        self._measure(self.cursor)
        self._place(self._top_of(self.cursor))
        self.refit()

    def bring(self, index: int) -> None:
        """Scrolls as little as possible until the turn is in view, or its beginning when it is long."""
        self._measure(index)
        top, height = self.scroll_offset.y, self.size.height
        start, end = self._top_of(index), self._heights.start(index + 1)
        if start < top or end - start > height:
            self._place(start)
        elif end > top + height:
            self._place(end - height)
        self._note_end()
        self.refit()

    def move_rows(self, by: int) -> None:
        self._place(self.scroll_offset.y + by)
        self._note_end()
        self.refit()

    def shift(self, index: int, code: int, by: int) -> None:
        """Moves a code block sideways, as far as its widest line reaches."""
        look = self._look()
        widest = max((row.width for row in self.view(index).rows(look) if row.code == code), default=0)
        at = self._sideways.get((index, code), 0) + by * STEP
        self._sideways[index, code] = max(0, min(at, widest - look.width))
        self.repaint()

    def num_behind(self) -> int:
        """Tokens that were written since the view left the end."""
        if self.is_following or not self._left_writing or not len(self):
            return 0
        return max(0, self.view(len(self) - 1).num_tokens - self._seen_tokens)

    def refit(self) -> None:
        """Something changed: measures what is in view now and paints it all."""
        self._painter, self._painted = None, []
        self._fit()
        self.refresh()

    def grown(self) -> None:
        """The last turn changed while it is written: paints the rows that differ."""
        top = self.scroll_offset.y
        self._fit()
        if top == self.scroll_offset.y and len(self):
            self.repaint(self._top_of(len(self) - 1) - top)

    def repaint(self, first: int = 0) -> None:
        """Paints the rows that look different, from row `first` of the window on."""
        height = self.size.height
        if len(self._painted) != height:
            self._painted = [None] * height
        changed = []
        for y in range(max(0, min(first, height - 1)), height):  # the last row may tell of new tokens
            strip, old = self._line(y), self._painted[y]
            if strip is not old and strip != old:
                changed.append(y)
            self._painted[y] = strip
        if changed:
            self.refresh(*(Region(0, start, self.size.width, stop - start) for start, stop in _spans(changed)))

    def on_resize(self) -> None:
        if self.size.width != self._fitted_width:
            self._heights.forget()
            self._fitted_width = self.size.width
        if self._is_lost and self.cursor is not None:
            self.go_to(self.cursor)
        self.refit()

    def on_focus(self) -> None:
        self.refit()

    def on_blur(self) -> None:
        self.refit()

    def notify_style_update(self) -> None:
        super().notify_style_update()
        self._painter, self._painted = None, []

    def watch_scroll_y(self, old_value: float, new_value: float) -> None:
        super().watch_scroll_y(old_value, new_value)
        self._painted = []
        if not self._is_fitting and round(old_value) != round(new_value):
            self._note_end()
            self._fit()

    def _note_end(self) -> None:
        if self.scroll_offset.y >= self._heights.total - self.size.height:
            self.is_following, self._left_writing = True, False
        else:
            self._leave_end()

    def _leave_end(self) -> None:
        if self.is_following:
            view = self._views.get(len(self) - 1)
            self._left_writing = view is not None and view.is_writing
            self._seen_tokens = view.num_tokens if view else 0
        self.is_following = False

    def _top_of(self, index: int) -> int:
        """The first row of a turn, below the blank one that parts it from the turn before."""
        return self._heights.start(index) + (1 if index else 0)

    def _measure(self, index: int) -> bool:
        return self._heights.measure(index, len(self.view(index).rows(self._look())) + (1 if index else 0))

    def _fit(self) -> None:
        """Measures what is in view and holds the view: at the end, or on a turn that was measured before."""
        if self._is_fitting or not self.size.height:
            return
        self._is_fitting = True
        try:
            self._place(self._fitted_end() if self.is_following else self._fitted_top())
        finally:
            self._is_fitting = False

    def _fitted_end(self) -> int:
        rows, index = 0, len(self) - 1
        while index >= 0 and rows < self.size.height:
            self._measure(index)
            rows += self._heights[index]
            index -= 1
        return self._heights.total - self.size.height

    def _fitted_top(self) -> int:
        top, bottom = self.scroll_offset.y, self.scroll_offset.y + self.size.height
        index = self._heights.at(top)
        anchor = index
        while (
            anchor + 1 < len(self)
            and not self._heights.is_measured(anchor)
            and self._heights.start(anchor + 1) < bottom
        ):
            anchor += 1
        if not self._heights.is_measured(anchor):
            anchor = index
        offset = self._heights.start(anchor) - top
        while True:
            top = self._heights.start(anchor) - offset
            index = self._heights.at(max(0, top))
            stop = top + self.size.height
            if not any([self._measure(each) for each in self._between(index, stop)]):
                return top

    def _between(self, index: int, stop: int) -> list[int]:
        found = []
        while index < len(self) and self._heights.start(index) < stop:
            found.append(index)
            index += 1
        return found

    def _place(self, top: int) -> None:
        size = Size(self.scrollable_content_region.width or self.size.width, self._heights.total)
        was, self._is_fitting = self._is_fitting, True
        try:
            self._resize_content(size)
            top = max(0, min(top, size.height - self.size.height))
            if top != self.scroll_offset.y:
                self.scroll_to(y=top, animate=False, force=True)
        finally:
            self._is_fitting = was

    def _resize_content(self, size: Size) -> None:
        """Where only the length of the list changes, the screen is not laid out again."""
        old, height = self.virtual_size, self.size.height
        if size == old:
            return
        if size.width != old.width or (size.height > height) != (old.height > height):
            self.virtual_size = size
            return
        self.set_reactive(Widget.virtual_size, size)
        if self.show_vertical_scrollbar:
            self.vertical_scrollbar.window_virtual_size = size.height

    # ---- painting

    @property
    def painter(self) -> RowPainter:
        """The scrollbar stands in the right gutter."""
        if self._painter is None:
            is_compact = self.is_attached and self.screen.has_class("compact")
            gutter = 1 if is_compact else 2
            look = Look(ink_of(self), max(4, self.size.width - 2 * gutter), is_compact)
            self._painter = RowPainter(look, gutter, self.size.width, self.has_focus, self.rich_style)
        return self._painter

    def _look(self) -> Look:
        return self.painter.look

    def render_lines(self, crop: Region) -> list[Strip]:
        """As Textual does it for a widget without border, padding and tint; but its way makes all strips anew, and
        while an answer grows all rows move up with every line of it."""
        strips, background = [self.render_line(y) for y in crop.line_range], self.background_colors[1]
        for line_filter in self.get_line_filters():
            strips = [strip.apply_filter(line_filter, background) for strip in strips]
        start, stop = crop.column_span
        return strips if (start, stop) == (0, self.size.width) else [strip.crop(start, stop) for strip in strips]

    def render_line(self, y: int) -> Strip:
        strip, row = self._painted_line(y), y + self.scroll_offset.y
        if self._selection is not None and (span := self._selection.get_span(row)) is not None:
            strip = marked(strip, *span, self.screen.get_component_rich_style("screen--selection"))
        return strip.apply_offsets(0, row)

    def _painted_line(self, y: int) -> Strip:
        """The same as last time, unless something happened since."""
        if len(self._painted) != self.size.height:
            self._painted = [None] * self.size.height
        if y >= len(self._painted):
            return self.painter.blank
        strip = self._painted[y] = self._painted[y] or self._line(y)
        return strip

    def _line(self, y: int) -> Strip:
        if y == self.size.height - 1 and (behind := self.num_behind()):
            return self.painter.notice(behind)
        found = self._row_at(y + self.scroll_offset.y)
        if found is None or found[1] is GAP:
            return self.painter.blank
        index, row = found
        at = self._sideways.get((index, row.code), 0) if row.code else 0
        is_marked = index == self.cursor
        return self.painter.row(row, is_marked=is_marked, at=at, is_numbered=self._is_numbered(index, row))

    def _is_numbered(self, index: int, row: Row) -> bool:
        return row.is_head and row.code <= 9 and index == self.numbered()

    def _row_at(self, row: int) -> tuple[int, Row] | None:
        if not 0 <= row < self._heights.total:
            return None
        index = self._heights.at(row)
        rows = self.view(index).rows(self._look())
        local = row - self._top_of(index)
        return index, rows[local] if 0 <= local < len(rows) else GAP

    def spot(self, x: int, y: int) -> Spot | Literal["notice"] | None:
        """What stands at a cell of the widget."""
        if y == self.size.height - 1 and self.num_behind():
            return "notice"
        found = self._row_at(y + self.scroll_offset.y)
        if found is None:
            return None
        index, row = found
        column = x - self.painter.gutter
        hint = self.painter.hint(row.code, self._is_numbered(index, row))
        is_copy = row.is_head and column >= self._look().width - hint.width
        is_first = y + self.scroll_offset.y == self._top_of(index)
        hits = self.view(index).hits if is_first else ()
        action = next((hit.action for hit in hits if hit.start <= column < hit.end), None)
        return Spot(index, row, action, is_copy)

    # ---- selecting text with the mouse

    def get_selection(self, selection: Selection) -> tuple[str, str] | None:
        first = 0 if selection.start is None else selection.start.y
        last = self._heights.total - 1 if selection.end is None else selection.end.y
        lines, gutter = [], self.painter.gutter
        for row in range(first, min(last, self._heights.total - 1) + 1):
            found = self._row_at(row)
            text = " " * gutter + (found[1].text if found else "")
            start, end = selection.get_span(row) or (0, -1)
            lines.append(text[max(start, gutter) : None if end == -1 else end].rstrip())
        return "\n".join(lines), "\n"

    def selection_updated(self, selection: Selection | None) -> None:
        self._selection = selection
        self.refresh()


def _spans(rows: list[int]) -> list[tuple[int, int]]:
    """Runs of rows; those that are nearly neighbours are painted together."""
    spans: list[tuple[int, int]] = []
    for row in rows:
        if spans and row - spans[-1][1] <= 1:
            spans[-1] = (spans[-1][0], row + 1)
        else:
            spans.append((row, row + 1))
    return spans
