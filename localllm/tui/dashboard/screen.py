"""Dashboard: what the engine does, page by page and request by request.

The state is told by the feed and kept by the application; here it is painted, ten times a second at most, and only
where it looks different.
"""

from __future__ import annotations

import time
from collections.abc import Coroutine
from typing import Any, ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container
from textual.timer import Timer
from textual.widgets import Input

from localllm.daemon.feed import Frame
from localllm.errors import LocalLLMError
from localllm.tui.beat import Beat
from localllm.tui.dashboard.figures import KeyFigures, Latency, Plot, Throughput
from localllm.tui.dashboard.lookups import Lookups
from localllm.tui.dashboard.page_line import PageText
from localllm.tui.dashboard.pages import NARROW, PagesPanel
from localllm.tui.dashboard.prompt import Prompt
from localllm.tui.dashboard.request_page import RequestPage
from localllm.tui.dashboard.requests import RequestTable
from localllm.tui.dashboard.side import DevicePanel, EventsPanel
from localllm.tui.dashboard.waterfall import WaterfallPanel
from localllm.tui.drawn import Drawn
from localllm.tui.frame import FrameScreen
from localllm.tui.live.requests import Request, record_of
from localllm.tui.live.state import LiveState, ModelState

PAINT_S = 0.1
SLOW_FRAME_S = 0.03
"""A frame that took longer makes the next ones rarer."""
TABLE_EVERY, FIGURES_EVERY = 3, 5
"""Paints of the map between two of the table and the words around the map, and of the figures: digits that change
faster cannot be read."""
IDLE_EVERY = 10
CANCEL_S = 3.0
"""That a question stands."""
FILTER, GO_TO = "filter requests", "page number"
BESIDE = 113
"""From this width on the waterfall stands beside the table."""


class DashboardScreen(FrameScreen):
    """Dashboard."""

    TAB = "dashboard"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("tab", "app.focus_next", "next panel", id="dashboard.next_panel", tooltip="Go to the next panel"),
        Binding("c", "cancel", "cancel", id="dashboard.cancel", tooltip="Cancel the request; asks once, then c again"),
        Binding("w", "why", "why slow", id="dashboard.why", tooltip="Why the request is slow"),
        Binding("v", "by_owner", "by owner", id="dashboard.by_owner", tooltip="Pages in the order of their owners"),
        Binding("z", "zoom", "zoom", id="dashboard.zoom", tooltip="More or fewer pages in a cell"),
        Binding("space", "freeze", "freeze", id="dashboard.freeze", tooltip="Stop painting, not collecting"),
        Binding("slash", "filter", "filter", id="dashboard.filter", tooltip="Show the requests with a word in them"),
        Binding("enter", "open", "open", id="dashboard.open", tooltip="Open the request"),
        Binding("m", "next_model", "next model", id="dashboard.next_model", tooltip="The pages of the next model"),
        Binding("g", "go_to", "go to", show=False, id="dashboard.go_to", tooltip="Go to a page by its number"),
        Binding("l", "letters", "letters", show=False, id="dashboard.letters", tooltip="Letters instead of colours"),
        Binding("plus", "zoom_in", "single", show=False, id="dashboard.zoom_in", tooltip="Single pages, scrolling"),
        Binding("minus", "zoom_out", "all pages", show=False, id="dashboard.zoom_out", tooltip="All pages at once"),
        Binding("x", "chequer", "chequer", show=False, id="dashboard.chequer", tooltip="Chequer on or off: slow links"),
    ]  # fmt: skip
    DEFAULT_CSS = """
    DashboardScreen {
        #top, #bottom { layout: horizontal; }
        #top { height: auto; }
        #bottom { height: 1fr; margin: 1 0; }
        #left { width: 1fr; }
        #plots, #side { width: 56; margin-left: 3; display: none; }
        KeyFigures { margin: 1 0; }
        WaterfallPanel { display: none; }
    }
    DashboardScreen.compact {
        KeyFigures { height: 1; margin: 0 0 1 0; }
        #bottom { margin: 1 0 0 0; }
    }
    DashboardScreen.-why { RequestTable { display: none; } WaterfallPanel { display: block; } }
    DashboardScreen.-beside {
        #left { layout: horizontal; }
        RequestTable { width: 76fr; min-width: 76; }
        WaterfallPanel { display: block; width: 37fr; margin-left: 3; }
    }
    DashboardScreen.wide {
        KeyFigures { height: 5; }
        #left { layout: vertical; }
        RequestTable { height: 15; width: 1fr; }
        WaterfallPanel { display: block; width: 1fr; height: 1fr; margin: 1 0 0 0; }
        #plots, #side { display: block; }
        #plots { height: 23; }
        Throughput { height: 11; margin-bottom: 1; }
        Latency { height: 11; }
        DevicePanel { height: 7; margin-bottom: 1; }
    }
    """

    def __init__(self) -> None:
        super().__init__()
        self._model_name = ""
        self._shown_id = ""
        self._paints = 0
        self._has_news = True
        self._painted_s = 0.0
        self._drawn_pages = -1
        self._num_models = 0
        self._slow_parts: list[Drawn] = []
        self._is_frozen = False
        self._pending: tuple[str, Timer] | None = None
        self._timer: Beat | None = None

    @property
    def live(self) -> LiveState:
        return self.local.live

    def compose_body(self) -> ComposeResult:
        state = self.live
        yield KeyFigures(state)
        with Container(id="top"):
            yield PagesPanel(state)
            with Container(id="plots"):
                yield Throughput(state)
                yield Latency(state)
        with Container(id="bottom"):
            with Container(id="left"):
                yield RequestTable(state)
                yield WaterfallPanel(state)
            with Container(id="side"):
                yield DevicePanel(state)
                yield EventsPanel(state)
        yield Prompt()

    def on_mount(self) -> None:
        self.pages, self.table = self.query_one(PagesPanel), self.query_one(RequestTable)
        self.fall = self.query_one(WaterfallPanel)
        self._lookups = Lookups(self.local.link, self.live, self._work, self._page_told)
        self._slow_parts = [*self.query("KeyFigures, WaterfallPanel, #plots Drawn, #side Drawn").results(Drawn)]
        shortest_s = max(PAINT_S, self.local.link.interval_s)
        self._timer = Beat(self._paint, self.app._handle_exception, shortest_s, 1.5 * shortest_s)
        self.pages.focus()

    def on_unmount(self) -> None:
        if self._timer is not None:
            self._timer.pause()

    def on_screen_suspend(self) -> None:
        if self._timer is not None:
            self._timer.pause()

    def on_screen_resume(self) -> None:
        super().on_screen_resume()
        if self._timer is not None:
            self._timer.resume()
        self._paint_all()

    # ---- layout

    def resized(self, size_class: str) -> None:
        self.set_class(size_class == "normal" and self.app.size.width - 4 >= BESIDE, "-beside")
        if size_class in ("normal", "wide") and self._has_beside:
            self.remove_class("-why")
        self._fit_pages()
        self._paint_all()

    @property
    def _has_beside(self) -> bool:
        return self.has_class("-beside") or self.has_class("wide")

    def _fit_pages(self) -> None:
        """The panel of pages is as high as its map needs, or as the window allows."""
        pages = self.query_one(PagesPanel)
        width, height = self.app.size
        if self.size_class == "compact":
            most = max(2, min(8, height - 14))
            inner = width - 2 * (1 if width < 100 else 2)
            rows = pages.rows_needed(inner, most) + 2 + (inner >= NARROW)
        else:
            rows = 23 if self.size_class == "wide" else max(7, min(13, height - 27))
        pages.styles.height = rows
        self._drawn_pages = pages.num_pages

    # ---- what is shown

    @property
    def model(self) -> ModelState | None:
        """The chosen one, else the first that is ready, else any."""
        models = self.live.models
        if self._model_name not in models:
            ready = [name for name, model in models.items() if model.row.state == "ready"]
            self._model_name = next(iter(ready or models), "")
        return models.get(self._model_name)

    def _explained(self) -> Request | None:
        """The selected request; else the one under way that began first, until it is over and gone."""
        chosen = self.table.selected()
        if chosen is not None:
            return chosen
        rows = self.live.requests.rows
        if self._shown_id not in rows:
            under_way = [row for row in rows.values() if not row.is_over]
            first = min(under_way, key=lambda row: row.began, default=None)
            if first is not None:
                self._shown_id = first.id
        return self.live.requests.find(self._shown_id)

    def _work(self, work: Coroutine[Any, Any, None], name: str) -> None:
        self.run_worker(work, group=name, exclusive=True)

    # ---- painting

    def frame_arrived(self, frame: Frame) -> None:
        self._has_news = True
        if self._timer is not None:
            self._timer.news()

    def link_changed(self) -> None:
        is_old = self.local.is_down
        for drawn in self.query("#body Drawn").results(Drawn):
            if drawn.is_old != is_old:
                drawn.is_old = is_old
                drawn.redraw()

    def _paint(self) -> None:
        """What is due. Where little happens, little is painted."""
        if self.local.is_down:
            return
        began = time.monotonic()
        self.live.tick(began)
        self._lookups.ask(began, self.pages.model, self.pages.page, self._explained())
        self._paints += 1
        is_busy = self._has_news or any(self.live.requests.rows)
        if self._is_frozen or not (is_busy or self._paints % IDLE_EVERY == 0):
            return
        if self._painted_s > SLOW_FRAME_S and self._paints % 3:
            return
        self._has_news = False
        self._paint_parts()
        self._painted_s = time.monotonic() - began

    def _paint_parts(self) -> None:
        self._point()
        picture = self.picture.begin()
        self.pages.keeps_words = self._paints % TABLE_EVERY != 0
        self.pages.redraw(picture)
        self.pages.keeps_words = False
        if self._paints % TABLE_EVERY == 0:
            self.table.redraw(picture)
        if self._paints % FIGURES_EVERY == 0:
            for drawn in self._slow_parts:
                if drawn.display and drawn.size:
                    drawn.redraw(picture)
        picture.show()

    def _paint_all(self) -> None:
        if not self.is_mounted or self._timer is None:
            return
        self._point()
        for drawn in self.query("#body Drawn").results(Drawn):
            drawn.redraw()

    def _point(self) -> None:
        """Every part looks at the same model and the same request."""
        model, chosen = self.model, self.table.selected()
        for part in self._slow_parts:
            if isinstance(part, (KeyFigures, Plot, DevicePanel)):
                part.model = model
        self.pages.model, self.fall.request = model, self._explained()
        self.pages.is_frozen = self._is_frozen
        is_dimming = chosen is not None and self.table.has_focus
        self.pages.chosen = self.live.slot(chosen) if chosen is not None and is_dimming else None
        if self.pages.num_pages != self._drawn_pages:
            self._fit_pages()
        if len(self.live.models) != self._num_models:
            self._num_models = len(self.live.models)
            self.refresh_bindings()
            self.bindings_changed()

    # ---- actions

    @on(PagesPanel.Looked)
    def _page_looked_at(self) -> None:
        self._lookups.hurry(time.monotonic())

    def _page_told(self, told: PageText) -> None:
        self.pages.told = told
        if not self._is_frozen:
            self.pages.redraw()

    @on(RequestTable.Selected)
    def _selected(self) -> None:
        self._paint_all()

    @on(RequestTable.Opened)
    def action_open(self) -> None:
        request = self._meant()
        if request is not None:
            self.app.push_screen(RequestPage(self.live, request))

    @on(PagesPanel.NextModel)
    def action_next_model(self) -> None:
        names, shown = list(self.live.models), self.model
        if shown is not None and len(names) > 1:
            self._model_name = names[(names.index(shown.row.name) + 1) % len(names)]
            self.pages.wanted = None
            self._paint_all()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        if action == "next_model":
            return len(self.live.models) > 1
        return True

    def _meant(self) -> Request | None:
        """The request of the page under the cursor, when one looks at pages; else the selected one."""
        if self.pages.has_focus and self.model is not None and self.pages.page < len(self.model.board):
            holders = self.model.board.holders(self.pages.page, 0)
            if len(holders) == 1:
                return self.live.requests.find(record_of(holders[0].sequence_id)[0])
        return self._explained()

    async def action_cancel(self) -> None:
        request = self._meant()
        if request is None or request.is_over:
            self.local.say("No request is under way here")
            return
        if self._pending is None or self._pending[0] != request.id:
            self._ask_to_cancel(request)
            return
        self._forget_pending()
        try:
            done = await self.local.link.ask(lambda client: client.cancel(request.id))
        except LocalLLMError as error:
            self.local.complain(error)
            return
        self.local.say(f"cancelled {request.name}" if done else f"{request.name} was over already")

    def _ask_to_cancel(self, request: Request) -> None:
        self._forget_pending()
        self._pending = request.id, self.set_timer(CANCEL_S, self._forget_pending)
        self.table.ask = f"press c again to cancel {request.name} {request.source}".rstrip()
        self.table.redraw()

    def _forget_pending(self) -> None:
        if self._pending is not None:
            self._pending[1].stop()
        self._pending, self.table.ask = None, ""
        self.table.redraw()

    def action_why(self) -> None:
        """In a small window in place of the table; else of the request that is looked at."""
        request = self._meant()
        if request is not None:
            self.table.choose(request.id)
        if not self._has_beside:
            self.toggle_class("-why")
        self._paint_all()

    def action_by_owner(self) -> None:
        self.pages.is_by_owner = not self.pages.is_by_owner
        self.pages.redraw()

    def action_zoom(self) -> None:
        self.pages.turn_zoom()

    def action_zoom_in(self) -> None:
        self.pages.zoom_in()

    def action_zoom_out(self) -> None:
        self.pages.zoom_out()

    def action_letters(self) -> None:
        self.pages.has_letters, self.pages.wanted = not self.pages.has_letters, None
        self._fit_pages()
        self.pages.redraw()

    def action_chequer(self) -> None:
        self.pages.has_chequer = not self.pages.has_chequer
        self.pages.redraw()

    def action_freeze(self) -> None:
        self._is_frozen = not self._is_frozen
        self._paint_all()

    # ---- the line to type in

    def action_filter(self) -> None:
        self.query_one(Prompt).open(FILTER, self.table.filter)

    def action_go_to(self) -> None:
        self.query_one(Prompt).open(GO_TO)

    @on(Input.Changed, "Prompt")
    def _typed(self, event: Input.Changed) -> None:
        if event.input.placeholder == FILTER:
            self.table.filter = event.value.strip()
            self.table.redraw()

    @on(Prompt.Closed)
    def _prompt_closed(self, event: Prompt.Closed) -> None:
        text = (event.text or "").replace(",", "").strip()
        if event.purpose == FILTER:
            self.table.filter = text
            self.table.focus()
        else:
            self.pages.focus()
            if text.isascii() and text.isdecimal():
                self.pages.look_at(int(text[:12]))
        self._paint_all()
