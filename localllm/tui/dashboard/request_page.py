"""One request, opened: where its time goes over the whole width, and everything that happened to it."""

from __future__ import annotations

from textual.app import ComposeResult
from textual.containers import Container
from textual.strip import Strip

from localllm.safe_text import one_line
from localllm.tui import words
from localllm.tui.dashboard.columns import state_words
from localllm.tui.dashboard.waterfall import WaterfallPanel
from localllm.tui.drawn import Drawn, ink_of
from localllm.tui.help import Overlay, Rows
from localllm.tui.lines import Line, heading, joined, labelled
from localllm.tui.live.events import ENDED_BY_PEOPLE
from localllm.tui.live.requests import Request
from localllm.tui.live.state import LiveState
from localllm.tui.palette import Ink

PAINT_S = 0.5


class Facts(Drawn):
    """Two lines of what is known of it."""

    DEFAULT_CSS = """
    Facts { height: 4; }
    """

    def __init__(self, state: LiveState, request: Request) -> None:
        super().__init__()
        self.state, self.request = state, request

    def draw(self, ink: Ink, width: int, height: int) -> list[Strip]:
        row = self.request
        close = Line(("esc", ink("text", bold=True))).put(" close", ink("muted"))
        sign, role, word = state_words(row)
        first = [
            Line((f"{sign} ", ink(role))).put(word, ink()),
            labelled(ink, "model", row.model or words.UNKNOWN),
            labelled(ink, "route", row.route or words.UNKNOWN),
            labelled(ink, "lane", row.lane),
            labelled(ink, "id", one_line(row.id)),
        ]
        second = [
            labelled(ink, "prompt", words.count(row.prompt)),
            labelled(ink, "cached", words.count(row.cached)),
            labelled(ink, "out", words.count(row.out)),
            labelled(ink, "pages", words.count(row.pages or None)),
            labelled(ink, "first token", words.seconds(row.first_token_s)),
            labelled(ink, "", words.rate(row.tokens_per_s()), "tok/s"),
        ]
        title = heading(ink, width, f"Request {row.name}", close, note=row.source, is_focused=True)
        return [line.fit(width).strip(width) for line in (title, joined(first, 3), joined(second, 3))]


class RequestPage(Overlay):
    """Goes on living while the request does."""

    DEFAULT_CSS = """
    RequestPage WaterfallPanel { height: 14; margin-bottom: 1; }
    """

    def __init__(self, state: LiveState, request: Request) -> None:
        super().__init__()
        self._state, self._request = state, request
        self._num_events = -1

    def compose(self) -> ComposeResult:
        with Container():
            yield Facts(self._state, self._request)
            yield WaterfallPanel(self._state)
            yield Rows()

    def on_mount(self) -> None:
        self.query_one(WaterfallPanel).request = self._request
        self.query_one(Rows).focus()
        self._paint()
        self.set_interval(PAINT_S, self._paint)

    def on_resize(self) -> None:
        self._num_events = -1
        self._paint()

    def _paint(self) -> None:
        for drawn in self.query(Drawn):
            drawn.redraw()
        if len(self._request.events) != self._num_events:
            self._num_events = len(self._request.events)
            rows = self.query_one(Rows)
            rows.fill(event_lines(ink_of(rows), self._request))


def event_lines(ink: Ink, request: Request) -> list[Line]:
    """Each event with its time since the request arrived."""
    lines = [Line(("time".rjust(10), ink("faint"))).put("  what happened", ink("faint"))]
    for event in sorted(request.events, key=lambda event: event.at):
        line = Line((words.seconds(max(0.0, event.at - request.began)).rjust(10), ink("muted")))
        is_cancelled = event.name == "failed" and event.data.get("code") in ENDED_BY_PEOPLE
        line.put(f"  {'cancelled' if is_cancelled else one_line(event.name).replace('_', ' '):<12}", ink())
        for name, value in event.data.items():
            if value not in (None, "", [], ()):
                line.put(f"  {one_line(name)} ", ink("muted")).put(one_line(_said(value)), ink())
        lines.append(line)
    return lines


def _said(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(str(each) for each in value)
    return words.count(value) if isinstance(value, int) else str(value)
