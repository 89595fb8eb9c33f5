"""The table of requests: who asks, what the engine does for them, and how fast."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from rich.style import Style
from textual import events
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.strip import Strip

from localllm.safe_text import one_line
from localllm.tui.dashboard.columns import Column, columns_for, head_line, row_line
from localllm.tui.drawn import Drawn
from localllm.tui.lines import PLAIN, Line, heading, joined
from localllm.tui.live.requests import Request
from localllm.tui.live.state import LiveState
from localllm.tui.palette import Ink

BOLD = Style(bold=True)


class RequestTable(Drawn, can_focus=True):
    """`chosen` is the id of the selected request. `ask` is what is asked of a person in the title; empty: nothing."""

    DEFAULT_CSS = """
    RequestTable { height: 1fr; width: 1fr; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,k", "choose(-1)", "request", id="requests.up", key_display="↑↓", tooltip="The request above"),
        Binding("down,j", "choose(1)", "request", show=False, id="requests.down", tooltip="The request below"),
        Binding("home", "choose(-100000)", "first", show=False, id="requests.first", tooltip="The first request"),
        Binding("end", "choose(100000)", "last", show=False, id="requests.last", tooltip="The last request"),
        Binding(
            "escape", "let_go", "no selection", show=False, id="requests.let_go", tooltip="Select no request any more"
        ),
    ]

    class Selected(Message):
        """Another request is selected, or none."""

    class Opened(Message):
        """The selected request was clicked again."""

    def __init__(self, state: LiveState) -> None:
        super().__init__()
        self.state = state
        self.chosen: str | None = None
        self.filter = ""
        self.ask = ""
        self._first_row = 0
        self._shown: list[Request] = []

    # ---- what it shows

    def rows(self) -> list[Request]:
        """In their order, those that the filter lets through."""
        wanted = self.filter.casefold()
        return [row for row in self.state.ordered() if not wanted or wanted in _searched(row)]

    def selected(self) -> Request | None:
        """Also where it is over and gone from the table."""
        return self.state.requests.find(self.chosen) if self.chosen is not None else None

    def draw(self, ink: Ink, width: int, height: int) -> list[Strip]:
        rows = self._shown = self.rows()
        columns, gap = columns_for(width)
        room = max(0, height - 2)
        self._keep_in_view(room)
        lines = [self._title(ink, width), head_line(ink, columns, gap)]
        for row in rows[self._first_row : self._first_row + room]:
            line = row_line(ink, self.state, row, columns, gap).fit(width)
            lines.append(_selected(ink, line, columns) if row.id == self.chosen else line)
        if not rows and room:
            text = "No request matches." if self.filter else "Requests appear here as programs send them."
            lines.append(Line((f"   {text}", ink("faint"))).fit(width))
        return [line.strip(width) for line in lines]

    def _title(self, ink: Ink, width: int) -> Line:
        rows = self.state.requests.rows.values()
        running = sum(row.state in ("decode", "prefill") for row in rows)
        waiting = sum(row.state in ("waiting", "queued", "loading") for row in rows)
        preempted = sum(row.state == "preempted" for row in rows)
        if self.ask:
            info = Line((self.ask, ink("warn", bold=True)))
        else:
            parts = [("running", running, "text"), ("waiting", waiting, "text")]
            parts += [("preempted", preempted, "err")] if preempted else []
            told = [Line((str(count), ink(role))).put(f" {name}", ink("muted")) for name, count, role in parts]
            info = joined(told, 2)
        note = f"/ {one_line(self.filter)}" if self.filter else ""
        return heading(ink, width, "Requests", info, note=note, is_focused=self.has_focus)

    def _keep_in_view(self, room: int) -> None:
        ids = [row.id for row in self._shown]
        at = ids.index(self.chosen) if self.chosen in ids else None
        if at is not None:
            self._first_row = min(max(self._first_row, at - room + 1), at)
        self._first_row = max(0, min(self._first_row, len(ids) - room))

    # ---- choosing

    def action_choose(self, by: int) -> None:
        rows = self.rows()
        ids = [row.id for row in rows]
        if not ids:
            return
        if self.chosen in ids:
            at = max(0, min(len(ids) - 1, ids.index(self.chosen) + by))
        else:
            at = 0 if by > 0 else len(ids) - 1
        self.choose(ids[at])

    def choose(self, request_id: str | None) -> None:
        if request_id != self.chosen:
            self.chosen = request_id
            self.redraw()
            self.post_message(self.Selected())

    def action_let_go(self) -> None:
        self.choose(None)

    def on_click(self, event: events.Click) -> None:
        at = event.y - 2 + self._first_row
        if event.y < 2 or at >= len(self._shown):
            return
        if self._shown[at].id == self.chosen:
            self.post_message(self.Opened())
        self.choose(self._shown[at].id)

    def on_mouse_scroll_down(self, event: events.MouseScrollDown) -> None:
        self._scroll_rows(1)

    def on_mouse_scroll_up(self, event: events.MouseScrollUp) -> None:
        self._scroll_rows(-1)

    def _scroll_rows(self, by: int) -> None:
        self._first_row = max(0, self._first_row + by)
        self.redraw()

    def on_focus(self) -> None:
        self.redraw()
        self.post_message(self.Selected())

    def on_blur(self) -> None:
        self.redraw()
        self.post_message(self.Selected())


def _selected(ink: Ink, line: Line, columns: Sequence[Column]) -> Line:
    """Without colours the whole row is turned round, not each part of it."""
    if ink.selected.reverse:
        return Line((line.text, ink("bg", on="text")))
    head = sum(column.width for column in columns[:2])
    strip = line.strip(line.width)
    made = Line(*[(text, (style or PLAIN) + BOLD) for text, style, _ in strip.crop(0, head)])
    for text, style, _ in strip.crop(head, line.width):
        made.put(text, style or PLAIN)
    return made.over(ink.selected)


def _searched(row: Request) -> str:
    return " ".join((row.name, row.id, row.source, row.model, row.state, row.lane, row.route)).casefold()
