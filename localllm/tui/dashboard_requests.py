"""The table of requests: who asks, what the engine does for them, and how fast."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from rich.style import Style
from textual import events
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.strip import Strip

from localllm.safe_text import one_line
from localllm.tui import words
from localllm.tui.dashboard_page_line import swatch
from localllm.tui.drawn import Drawn
from localllm.tui.lines import PLAIN, Align, Line, gauge, heading, joined, shortened
from localllm.tui.live_events import ENDED_BY_PEOPLE
from localllm.tui.live_requests import Request, State
from localllm.tui.live_state import LiveState
from localllm.tui.palette import Ink

FULL = 110
"""From this width on there are more columns, and more room between them."""
SLOW_QUEUE_S = 1.0
SIGNS: dict[State, tuple[str, str, str]] = {
    "queued": ("·", "muted", "queued"),
    "loading": ("◔", "warn", "loading"),
    "waiting": ("·", "muted", "waiting"),
    "prefill": ("◐", "accent", "prefill"),
    "decode": ("▶", "accent", "decode"),
    "preempted": ("▪", "err", "preempted"),
    "done": ("✓", "muted", "done"),
    "failed": ("×", "err", "failed"),
}
BOLD = Style(bold=True)


@dataclass(frozen=True, slots=True)
class Column:
    """`rank`: those of the highest go first where there is no room; 0 stays."""

    name: str
    width: int
    align: Align = "right"
    rank: int = 0


NORMAL = (
    Column("", 3, "left"), Column("id", 5, "left"), Column("source", 12, "left", 4), Column("state", 15, "left"),
    Column("prompt", 6, rank=1), Column("cached", 6, rank=3), Column("out", 4), Column("pages", 5, rank=2),
    Column("tok/s", 5), Column("age", 6),
)  # fmt: skip
WIDE = (
    Column("", 3, "left"), Column("id", 5, "left"), Column("model", 11, "left"), Column("source", 14, "left"),
    Column("state", 18, "left"), Column("prompt", 6), Column("cached", 6), Column("out", 5), Column("pages", 5),
    Column("tok/s", 5), Column("age", 6), Column("first token", 11), Column("queued", 7), Column("lane", 11, "left"),
)  # fmt: skip


def columns_for(width: int) -> tuple[tuple[Column, ...], int]:
    """Columns that fill the width exactly, and the gap between them."""
    columns, gap = (list(WIDE), 2) if width >= _width_of(WIDE, 2) else (list(NORMAL), 1)
    while _width_of(columns, gap) > width and any(column.rank for column in columns):
        columns.remove(max(columns, key=lambda column: column.rank))
    stretched = next((at for at, column in enumerate(columns) if column.name == "source"), 3)
    extra = max(0, width - _width_of(columns, gap))
    wider = columns[stretched]
    columns[stretched] = Column(wider.name, wider.width + extra, wider.align, wider.rank)
    return tuple(columns), gap


def _width_of(columns: Sequence[Column], gap: int) -> int:
    return sum(column.width for column in columns) + gap * (len(columns) - 2)


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
        lines = [self._title(ink, width), _head(ink, columns, gap)]
        for row in rows[self._first_row : self._first_row + room]:
            line = _row_line(ink, self.state, row, columns, gap).fit(width)
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


def _head(ink: Ink, columns: Sequence[Column], gap: int) -> Line:
    return _joined(columns, gap, [Line((column.name, ink("faint"))) for column in columns])


def _row_line(ink: Ink, state: LiveState, row: Request, columns: Sequence[Column], gap: int) -> Line:
    return _joined(columns, gap, [_CELLS[column.name](ink, state, row, column.width) for column in columns])


def _joined(columns: Sequence[Column], gap: int, cells: Sequence[Line]) -> Line:
    """No gap behind the swatch."""
    line = Line()
    for number, (column, cell) in enumerate(zip(columns, cells, strict=True)):
        line.put(" " * gap if number > 1 else "").add(cell.fit(column.width, column.align))
    return line


# ---- cells


def _role(row: Request) -> Literal["text", "muted"]:
    return "muted" if row.state in ("waiting", "queued", "loading", "done") else "text"


def _text(ink: Ink, text: str, role: str) -> Line:
    return Line((text, ink("faint" if text == words.UNKNOWN else role)))


def _swatch(ink: Ink, state: LiveState, row: Request, width: int) -> Line:
    return swatch(ink, state.slot(row))


def _id(ink: Ink, state: LiveState, row: Request, width: int) -> Line:
    return _text(ink, row.name, _role(row))


def _source(ink: Ink, state: LiveState, row: Request, width: int) -> Line:
    return _text(ink, shortened(row.source or words.UNKNOWN, width), _role(row))


def _model(ink: Ink, state: LiveState, row: Request, width: int) -> Line:
    return _text(ink, shortened(row.model, width), "muted")


def _state(ink: Ink, state: LiveState, row: Request, width: int) -> Line:
    sign, role, word = SIGNS[row.state]
    if row.state == "failed" and row.reason in ENDED_BY_PEOPLE:
        role, word = "muted", "cancelled"
    elif row.state in ("waiting", "preempted") and row.place and row.state == "waiting":
        word = f"waiting {row.place}"
    line = Line((f"{sign} ", ink(role))).put(word, ink("err" if role == "err" else _role(row)))
    if row.state == "prefill" and row.prompt:
        line.put(" ").add(gauge(ink, row.fraction(), max(3, min(8, width - line.width - 1))))
    return line


def _prompt(ink: Ink, state: LiveState, row: Request, width: int) -> Line:
    return _text(ink, words.short_count(row.prompt), _role(row))


def _cached(ink: Ink, state: LiveState, row: Request, width: int) -> Line:
    return _text(ink, words.short_count(row.cached), "muted")


def _out(ink: Ink, state: LiveState, row: Request, width: int) -> Line:
    text = words.short_count(row.out) if row.out < 10_000 else f"{row.out / 1000:.0f}k"
    return _text(ink, text if row.out else words.UNKNOWN, _role(row))


def _pages(ink: Ink, state: LiveState, row: Request, width: int) -> Line:
    return _text(ink, words.short_count(row.pages or None), _role(row))


def _speed(ink: Ink, state: LiveState, row: Request, width: int) -> Line:
    return _text(ink, words.rate(row.tokens_per_s()), _role(row))


def _age(ink: Ink, state: LiveState, row: Request, width: int) -> Line:
    return _text(ink, words.age(row.age_s(state.now)) if row.is_known else words.UNKNOWN, "muted")


def _first_token(ink: Ink, state: LiveState, row: Request, width: int) -> Line:
    return _text(ink, words.seconds(row.first_token_s), "text")


def _queued(ink: Ink, state: LiveState, row: Request, width: int) -> Line:
    if row.queued_s is None:
        return _text(ink, words.UNKNOWN, "faint")
    return _text(ink, words.seconds(row.queued_s), "warn" if row.queued_s > SLOW_QUEUE_S else "muted")


def _lane(ink: Ink, state: LiveState, row: Request, width: int) -> Line:
    return _text(ink, row.lane, "muted")


Cell = Callable[[Ink, LiveState, Request, int], Line]
_CELLS: dict[str, Cell] = {
    "": _swatch, "id": _id, "source": _source, "model": _model, "state": _state, "prompt": _prompt, "cached": _cached,
    "out": _out, "pages": _pages, "tok/s": _speed, "age": _age, "first token": _first_token, "queued": _queued,
    "lane": _lane,
}  # fmt: skip
