"""The dashboard, driven as a person would: against frames of a feed that nobody sends, and against a real daemon."""

import asyncio
import random
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.style import Style
from textual.drivers.headless_driver import HeadlessDriver
from textual.geometry import Region
from textual.pilot import Pilot
from textual.strip import Strip
from textual.widget import Widget

from localllm.client import Client
from localllm.client.looking import ChainLink, HappenedEvent, PageDetails, PageToken, RequestDetails
from localllm.errors import LocalLLMError
from localllm.tui.app import LocalApp
from localllm.tui.dashboard.asking import page_text
from localllm.tui.dashboard.columns import columns_for
from localllm.tui.dashboard.prompt import Prompt
from localllm.tui.dashboard.request_page import RequestPage
from localllm.tui.dashboard.screen import DashboardScreen
from localllm.tui.dashboard.waterfall import axis_of
from localllm.tui.drawn import Drawn
from localllm.tui.live.pages import LOOK_PREEMPTED
from localllm.tui.picture import Picture
from tests.tui.fakes import FakeClient, app_with
from tests.tui.live_frames import FakeEngine, FakeSequence, busy_day
from tests.tui.pictures import screen_text
from tests.tui.real_daemon import real_daemon
from tests.tui.small_terminal import SmallTerminal
from tests.tui.snapshots import held_against
from tests.tui.test_live_state import frames


class FakeLooking:
    """Every page holds the same text; of requests there is a beginning."""

    def __init__(self) -> None:
        self.asked: list[Any] = []

    def page(self, model: str, page: int) -> PageDetails:
        self.asked.append(page)
        tokens = tuple(PageToken(number, text) for number, text in enumerate((" which", " request", "\x1b[31m", "é")))
        chain = (ChainLink(page, "9f3c51aa", 1, ("r1",)), ChainLink(1, "a07e12bb", 2, ("r1", "r2")))
        return PageDetails(model=model, page=page, start=32, end=36, tokens=tokens, chain=chain, chain_length=9)

    def request(self, request_id: str) -> RequestDetails:
        self.asked.append(request_id)
        events = (HappenedEvent("queued", 90.0, 0.0), HappenedEvent("admitted", 91.0, 0.0, {"cached": 0, "prompt": 64}))
        return RequestDetails(id=request_id, events=events)


class Daemon(FakeClient):
    """Answers what the dashboard asks beside the feed."""

    def __init__(self) -> None:
        super().__init__()
        self.looking = FakeLooking()
        self.cancelled: list[str] = []
        self.running: list[Any] = []

    def cancel(self, request_id: str) -> bool:
        self.cancelled.append(request_id)
        return True

    def requests(self) -> list[Any]:
        return self.running


class World:
    """The application on a dashboard, a fake daemon behind it, and an engine to move."""

    def __init__(self, app: LocalApp, pilot: Pilot[Any], client: Daemon, engine: FakeEngine) -> None:
        self.app, self.pilot, self.client, self.engine = app, pilot, client, engine

    @property
    def screen(self) -> DashboardScreen:
        assert isinstance(self.app.screen, DashboardScreen)
        return self.app.screen

    @property
    def text(self) -> str:
        return screen_text(self.app)

    @property
    def raw(self) -> str:
        """Everything that would go to the terminal as text, also what has no width there."""
        return "".join(segment.text for strip in self.app.screen._compositor.render_strips() for segment in strip)

    async def tell(self, after_s: float = 0.1, *others: FakeEngine, **options: Any) -> None:
        """The next frame arrives and is painted."""
        expected = self.app.live.num_frames + 1
        self.client.frames.put(self.engine.frame(after_s, *others, **options))
        await self.until(lambda: self.app.live.num_frames >= expected)
        self.paint()
        await self.pilot.pause()

    def paint(self) -> None:
        self.screen._paint_all()

    async def until_slowly(self, is_so: Callable[[], bool]) -> None:
        await self.until(is_so, 120)

    async def until(self, is_so: Callable[[], bool], timeout_s: float = 20) -> None:
        async with asyncio.timeout(timeout_s):
            while not is_so():
                await self.pilot.pause(0.01)

    async def press(self, *keys: str) -> None:
        await self.pilot.press(*keys)
        await self.pilot.pause()


def dashboard(
    home: Path, drive: Callable[[World], Any], *, size: tuple[int, int] = (120, 40), num_pages: int = 2048,
    theme: str = "dark",
) -> None:  # fmt: skip
    """Opens the application on its dashboard and lets `drive` at it."""

    async def run() -> None:
        client = Daemon()
        app = app_with(client, home, first="dashboard", theme=theme)
        async with app.run_test(size=size) as pilot:
            world = World(app, pilot, client, FakeEngine(num_pages=num_pages))
            await world.until(lambda: app.live.num_frames > 0 and isinstance(app.screen, DashboardScreen))
            await pilot.pause()
            await drive(world)
        client.frames.put(None)

    asyncio.run(run())


def busy(engine: FakeEngine, count: int = 3) -> None:
    """So many requests that write, of 64 tokens each."""
    for number in range(1, count + 1):
        engine.admit(number, 64)
        engine.write(number, 1)


# ---- how it looks


def still(world: World) -> None:
    """Time stands: what is shown depends on the frames alone."""
    world.app.live.tick = lambda local: None  # type: ignore[method-assign]  # the application's own beat, once a second
    world.screen._timer.pause()  # type: ignore[union-attr]  # it is there


async def busy_picture(world: World) -> None:
    """The day of the pictures, with a request selected and a page of it under the cursor."""
    engine, told_frames = busy_day(world.engine.num_pages)
    still(world)
    for frame in told_frames:
        world.client.frames.put(frame)
    await world.until(lambda: world.app.live.num_frames > len(told_frames))
    page = engine.sequences["r4127"].pages[-3]
    world.screen.table.choose("r4127")
    world.screen._point()
    world.screen.pages.look_at(page)
    words = (" which", " request", " held", " the", " lock", " while", " the", " other", " one", " was", " still")
    chain = tuple(
        ChainLink(1, name, 1 if name == "9f3c51" else 8, ("r4119", "r4121")) for name in ("9f3c51", "a07e12", "b2d0")
    )
    told = PageDetails(
        model=engine.name, page=page, start=2896, end=2912, chain=chain, chain_length=181,
        tokens=tuple(PageToken(number, word) for number, word in enumerate(words)),
    )  # fmt: skip
    world.screen.pages.told = page_text(told, engine.name)
    world.app._refresh_frames()
    world.paint()
    await world.pilot.pause()


@pytest.fixture
def in_utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize(
    ("name", "size", "num_pages", "theme"),
    [
        ("80x24", (80, 24), 2048, "dark"),
        ("120x40", (120, 40), 2048, "dark"),
        ("200x60", (200, 60), 2048, "dark"),
        ("mono-120x40", (120, 40), 2048, "mono"),
        ("10k-80x24", (80, 24), 10_240, "dark"),
        ("10k-120x40", (120, 40), 10_240, "dark"),
    ],
)
def test_a_busy_day_looks_as_it_did(
    tmp_path: Path, in_utc: None, name: str, size: tuple[int, int], num_pages: int, theme: str
) -> None:
    async def drive(world: World) -> None:
        await busy_picture(world)
        held_against(world.app, f"dashboard-{name}")

    dashboard(tmp_path, drive, size=size, num_pages=num_pages, theme=theme)


def test_without_a_model_it_looks_as_it_did(tmp_path: Path) -> None:
    async def drive(world: World) -> None:
        still(world)
        held_against(world.app, "dashboard-empty-120x40")

    dashboard(tmp_path, drive)


def test_an_opened_request_looks_as_it_did(tmp_path: Path) -> None:
    async def drive(world: World) -> None:
        await busy_picture(world)
        await world.press("tab", "enter")
        held_against(world.app, "dashboard-request-120x40")

    dashboard(tmp_path, drive)


SIZES = [(80, 24), (120, 40), (200, 60), (60, 16), (100, 30), (160, 45), (120, 28)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("theme", ["dark", "mono"])
def test_everything_has_its_place_at_every_size(tmp_path: Path, size: tuple[int, int], theme: str) -> None:
    async def drive(world: World) -> None:
        busy(world.engine, 12)
        await world.tell()
        lines = world.text.splitlines()
        assert all(len(line) <= size[0] for line in lines)
        assert any(line.strip().startswith("Pages") for line in lines)
        assert any("Requests ─" in line and "12 running" in line for line in lines)
        assert any("▸ page 0" in line for line in lines)
        assert any("▶ decode" in line for line in lines)
        assert ("Throughput" in world.text and "Events" in world.text) == (size == (200, 60))
        regions = [widget.region for widget in world.screen.query("#body Drawn") if widget.display and widget.size]
        assert all(region.right <= size[0] and region.bottom <= size[1] - 1 for region in regions)
        assert all(not first.overlaps(second) for first in regions for second in regions if first is not second)

    dashboard(tmp_path, drive, size=size, theme=theme)


def test_without_a_model_it_says_what_to_do(tmp_path: Path) -> None:
    async def drive(world: World) -> None:
        assert "Load a model to fill these pages" in world.text and "f5 models" in world.text
        assert "Requests appear here" in world.text
        await world.press("c")
        await world.press("up", "z", "v", "w", "enter", "tab", "down", "escape")

    dashboard(tmp_path, drive)


def test_a_model_that_loads_says_how_far_it_is(tmp_path: Path) -> None:
    async def drive(world: World) -> None:
        from localllm.daemon.feed import Frame, ModelRow, Progress

        row = ModelRow(name="qwen3-4b", state="loading", progress=Progress("reading weights", 61, 100))
        world.client.frames.put(Frame(at=1.0, time=1.0, models=[row]))
        await world.until(lambda: "qwen3-4b" in world.app.live.models)
        world.paint()
        await world.pilot.pause()
        assert "reading weights 61 %" in world.text

    dashboard(tmp_path, drive)


def test_a_model_with_recurrent_state_shows_its_slots_like_its_pages(tmp_path: Path) -> None:
    async def drive(world: World) -> None:
        busy(world.engine)
        await world.tell()
        assert "states" not in world.text
        world.engine.num_slots = 24
        await world.tell()
        assert re.search(r"states .* 3 of 24", world.text)

    dashboard(tmp_path, drive, size=(200, 60))


def test_the_page_under_the_cursor_is_explained_with_its_text(tmp_path: Path) -> None:
    async def drive(world: World) -> None:
        busy(world.engine)
        await world.tell()
        await world.press("right", "right")
        assert "▸ page 2" in world.text and "tokens 32–" in world.text and "refs 1" in world.text
        await world.until(lambda: "“which requesté”" in world.text)
        await world.press("g", "2", "0", "0", "0", "enter")
        assert "▸ page 2,000   free" in world.text

    dashboard(tmp_path, drive)


def test_with_room_the_tokens_and_the_chain_are_shown(tmp_path: Path) -> None:
    async def drive(world: World) -> None:
        busy(world.engine)
        await world.tell()
        await world.until(lambda: "·which·request" in world.text)
        assert "9f3c51 ← a07e12 ← 7 more, the first 8 shared by a b" in world.text

    dashboard(tmp_path, drive, size=(200, 60))


def test_the_mouse_explains_and_chooses_pages(tmp_path: Path) -> None:
    async def drive(world: World) -> None:
        busy(world.engine)
        await world.tell()
        panel = world.screen.pages
        await world.pilot.hover(panel, offset=(8 + 5, 2))
        assert panel.hovered == 5 and panel.cursor == 0 and "▸ page 5" in world.text
        await world.pilot.click(panel, offset=(8 + 3, 3))
        await world.pilot.hover(world.screen.table, offset=(1, 1))
        assert panel.cursor == panel.page == 219

    dashboard(tmp_path, drive)


def test_preempted_pages_are_seen_as_it_happens(tmp_path: Path) -> None:
    async def drive(world: World) -> None:
        busy(world.engine, 2)
        await world.tell()
        world.engine.preempt(1)
        await world.tell()
        assert "preempted 5" in world.text and "▪ preempted" in world.text and "1 preempted" in world.text
        assert LOOK_PREEMPTED in world.screen.model.board.looks  # type: ignore[union-attr]  # there is one

    dashboard(tmp_path, drive)


def test_what_a_person_ended_is_cancelled_on_its_page_too(tmp_path: Path) -> None:
    async def drive(world: World) -> None:
        busy(world.engine)
        await world.tell()
        world.engine.tell(3, "failed", code="request_cancelled", prompt=64)
        world.engine.sequences.pop("r3")
        await world.tell()
        request = next(row for row in world.app.live.requests.rows.values() if row.id == "r3")
        world.app.push_screen(RequestPage(world.app.live, request))
        await world.until(lambda: isinstance(world.app.screen, RequestPage) and "what happened" in world.text)
        assert "× cancelled" in world.text and "failed" not in world.text

    dashboard(tmp_path, drive)


def test_a_request_is_cancelled_when_c_is_pressed_twice(tmp_path: Path) -> None:
    async def drive(world: World) -> None:
        busy(world.engine)
        await world.tell()
        await world.press("tab", "down", "down", "c")
        assert "press c again to cancel 2" in world.text and not world.client.cancelled
        await world.press("down", "c")
        assert "press c again to cancel 3" in world.text and not world.client.cancelled
        await world.press("c")
        await world.until(lambda: world.client.cancelled == ["r3"])
        assert "press c again" not in world.text

    dashboard(tmp_path, drive)


def test_a_cancel_that_fails_is_said(tmp_path: Path) -> None:
    async def drive(world: World) -> None:
        def refuse(request_id: str) -> bool:
            raise LocalLLMError("the request is somebody else's", hint="use its key")

        world.client.cancel = refuse  # type: ignore[method-assign]
        busy(world.engine)
        await world.tell()
        said: list[LocalLLMError] = []
        world.app.complain = said.append  # type: ignore[method-assign]
        await world.press("c", "c")
        await world.until(lambda: [error.message for error in said] == ["the request is somebody else's"])

    dashboard(tmp_path, drive)


def test_the_selection_stays_with_its_request_when_rows_move(tmp_path: Path) -> None:
    async def drive(world: World) -> None:
        busy(world.engine)
        await world.tell()
        await world.press("tab", "down", "down", "down")
        assert world.screen.table.chosen == "r3" and "Time of 3" in world.text
        world.engine.finish(1)
        await world.tell()
        await world.tell(1.2)
        assert [row.name for row in world.screen.table.rows()] == ["2", "3"] and world.screen.table.chosen == "r3"
        assert world.screen.pages.chosen == 2
        await world.press("escape")
        assert world.screen.table.chosen is None and world.screen.pages.chosen is None

    dashboard(tmp_path, drive)


def test_rows_are_chosen_and_opened_with_the_mouse(tmp_path: Path) -> None:
    async def drive(world: World) -> None:
        busy(world.engine)
        await world.tell()
        table = world.screen.table
        await world.pilot.click(table, offset=(5, 3))
        assert table.chosen == "r2"
        await world.pilot.click(table, offset=(5, 3))
        await world.until(lambda: isinstance(world.app.screen, RequestPage))
        assert "Request 2" in world.text and "submitted" in world.text and "first token" in world.text
        await world.press("escape")
        assert isinstance(world.app.screen, DashboardScreen)

    dashboard(tmp_path, drive)


def test_a_small_window_shows_the_waterfall_in_place_of_the_table(tmp_path: Path) -> None:
    async def drive(world: World) -> None:
        busy(world.engine)
        await world.tell()
        assert "Requests" in world.text and "Time of" not in world.text
        await world.press("w")
        assert "Requests ─" not in world.text and "Time of 1" in world.text and "prefill" in world.text
        await world.press("w")
        assert "Requests ─" in world.text

    dashboard(tmp_path, drive, size=(80, 24))


def test_the_filter_leaves_the_requests_with_a_word_in_them(tmp_path: Path) -> None:
    async def drive(world: World) -> None:
        world.engine.sources = {1: "curl", 2: "open-webui", 3: "batch eval"}
        busy(world.engine)
        await world.tell()
        await world.press("slash", *"webui")
        assert [row.name for row in world.screen.table.rows()] == ["2"]
        await world.press("enter")
        assert "/ webui" in world.text and not world.screen.query_one(Prompt).has_class("-shown")
        await world.press("slash", "escape")
        assert len(world.screen.table.rows()) == 3

    dashboard(tmp_path, drive)


def test_freezing_stops_painting_but_not_collecting(tmp_path: Path) -> None:
    async def drive(world: World) -> None:
        busy(world.engine)
        await world.tell()
        await world.press("space")
        assert "frozen" in world.text
        shown = world.text
        world.engine.admit(9, 64)
        expected = world.app.live.num_frames + 1
        world.client.frames.put(world.engine.frame())
        await world.until(lambda: world.app.live.num_frames >= expected)
        await world.pilot.pause(0.5)
        assert world.text == shown and "r9" in world.app.live.requests.rows
        await world.press("space")
        assert "4 running" in world.text

    dashboard(tmp_path, drive)


def test_zoom_letters_and_order_can_be_changed(tmp_path: Path) -> None:
    async def drive(world: World) -> None:
        busy(world.engine)
        await world.tell()
        assert "10,240 × 16, 2,160 in view" in world.text, "what nobody ever used need not be shown"
        world.engine.cached.add(10_000)
        await world.tell()
        assert "10,240 × 16, cell = 8" in world.text
        await world.press("plus")
        assert "10,240 × 16, 2,160 in view" in world.text
        await world.press("end")
        assert "▸ page 10,239" in world.text and "10,152▸" in world.text
        await world.press("minus", "z")
        assert "10,240 × 16, 1,080 in view" in world.text  # behind the coarsest comes the finest
        await world.press("minus", "v")
        assert "by owner" in world.text
        await world.press("v", "l", "home")
        assert "aaa" in world.text.replace("ab", "aaa") and "a held" in world.text
        await world.press("x")

    dashboard(tmp_path, drive, num_pages=10_240)


def test_with_several_models_there_is_a_choice(tmp_path: Path) -> None:
    async def drive(world: World) -> None:
        other = FakeEngine("other-model", num_pages=512)
        busy(world.engine)
        await world.tell(0.1, other)
        assert "‹ qwen3-4b  1 of 2 ›" in world.text and "2,048 × 16" in world.text
        await world.press("m")
        assert "‹ other-model  2 of 2 ›" in world.text and "512 × 16" in world.text
        await world.pilot.click(world.screen.pages, offset=(9, 0))
        assert "‹ qwen3-4b  1 of 2 ›" in world.text
        await world.press("m")
        await world.tell()
        assert "2,048 × 16" in world.text and "›" not in world.text.split("Requests")[0].split("Pages")[1]

    dashboard(tmp_path, drive)


def test_sixteen_owners_have_letters_and_the_rest_a_plus(tmp_path: Path) -> None:
    async def drive(world: World) -> None:
        busy(world.engine, 18)
        await world.tell()
        lines = [line for line in world.text.splitlines() if "▶ decode" in line]
        assert [line.strip()[1] for line in lines] == [*"abcdefghijklmnop", "+", "+"]

    dashboard(tmp_path, drive, size=(120, 50))


def test_when_the_daemon_goes_what_was_known_fades_and_comes_back(tmp_path: Path) -> None:
    async def drive(world: World) -> None:
        busy(world.engine)
        await world.tell()
        world.client.go()
        await world.until(lambda: world.app.is_down and "stopped answering" in world.text)
        assert world.screen.pages.is_old and "old" in world.text
        assert "3 running" in world.text
        await world.press("right", "tab", "down", "c", "c")
        world.client.is_up = True
        world.engine.sequences.pop("r1")
        world.client.frames.put(world.engine.frame(5.0))
        await world.press("f7")
        await world.until(lambda: not world.app.is_down)
        world.paint()
        assert not world.screen.pages.is_old
        assert {row.name: row.is_over for row in world.screen.table.rows()} == {"1": True, "2": False, "3": False}

    dashboard(tmp_path, drive)


def test_lost_events_are_made_up_for_by_asking(tmp_path: Path) -> None:
    async def drive(world: World) -> None:
        world.engine.tell(1, "queued")
        await world.tell()
        await world.tell(0.1, dropped=7)
        await world.until(lambda: all(row.is_over for row in world.app.live.requests.rows.values()))

    dashboard(tmp_path, drive)


def test_of_a_request_that_began_before_the_beginning_is_asked_for(tmp_path: Path) -> None:
    async def drive(world: World) -> None:
        world.engine.admit(1, 64)
        world.engine.events.clear()
        await world.tell()
        row = world.app.live.requests.rows["r1"]
        await world.until(lambda: row.is_known)
        assert row.began == 90.0 and row.queued_s == 1.0 and row.state == "prefill"
        assert world.client.looking.asked.count("r1") == 1

    dashboard(tmp_path, drive)


def test_only_spans_that_changed_are_painted(tmp_path: Path) -> None:
    async def drive(world: World) -> None:
        busy(world.engine)
        await world.tell()
        world.screen._timer.pause()  # type: ignore[union-attr]  # it is there
        panel, painted = world.screen.pages, list[Region]()
        panel.refresh = lambda *regions, **_: painted.extend(regions)  # type: ignore[assignment, method-assign]
        panel.redraw()
        assert painted == []
        world.app.live.models[world.engine.name].board.looks[700] = LOOK_PREEMPTED
        panel.redraw()
        assert [(region.height, region.width <= 2) for region in painted] == [(1, True)]

    dashboard(tmp_path, drive)


@pytest.mark.parametrize("size", [(80, 24), (120, 40), (200, 60)])
def test_the_short_way_to_the_screen_shows_what_the_toolkits_own_way_shows(
    tmp_path: Path, size: tuple[int, int]
) -> None:
    def cells(strips: list[Strip]) -> list[list[tuple[str, Style | None]]]:
        return [[(letter, style) for text, style, _ in strip for letter in text] for strip in strips]

    async def drive(world: World) -> None:
        busy(world.engine, 5)
        for _ in range(3):
            await world.tell(2.0)
            still(world)
            for widget in world.screen.query("TopLine, BottomLine, #body Drawn").results(Drawn):
                if widget.display and widget.size:
                    whole = widget.size.region
                    for part in (whole, Region(3, 0, whole.width - 5, 1)):
                        widget._styles_cache.clear()
                        assert cells(widget.render_lines(part)) == cells(Widget.render_lines(widget, part))
            world.engine.write(1, 40)

    dashboard(tmp_path, drive, size=size)


@pytest.mark.parametrize(("size", "theme"), [((80, 24), "dark"), ((120, 40), "mono"), ((200, 60), "light")])
def test_what_is_written_past_the_compositor_is_what_it_would_show(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int], theme: str
) -> None:
    terminal, put, num_put = SmallTerminal(), Picture.put, 0

    def counted(picture: Picture, x: int, y: int, written: str) -> None:
        nonlocal num_put
        num_put += 1
        put(picture, x, y, written)

    async def tell(world: World) -> None:
        expected = world.app.live.num_frames + 1
        world.client.frames.put(world.engine.frame(0.7))
        await world.until(lambda: world.app.live.num_frames >= expected)
        await world.pilot.pause(0.12)

    async def drive(world: World) -> None:
        busy(world.engine, 5)
        await tell(world)
        for number in range(10):
            for name in world.engine.sequences:
                world.engine.write(int(name[1:]), 15)
            if number in (2, 4):
                world.engine.finish(number, stays_cached=True)
            await tell(world)
        still(world)
        await world.pilot.pause(0.1)
        whole = SmallTerminal()
        for row, strip in enumerate(world.screen._compositor.render_strips()):
            whole.write(f"\x1b[{row + 1};1H{strip.render(world.app.console)}")
        assert {at: cell for at, cell in whole.cells.items() if terminal.cells.get(at) != cell} == {}
        assert num_put > 20

    monkeypatch.setattr(Picture, "put", counted)
    monkeypatch.setattr(HeadlessDriver, "is_headless", False)
    monkeypatch.setattr(HeadlessDriver, "write", lambda driver, data: terminal.write(data))
    dashboard(tmp_path, drive, size=size, theme=theme)


def test_rows_that_look_as_before_are_not_made_again(tmp_path: Path) -> None:
    async def drive(world: World) -> None:
        busy(world.engine)
        await world.tell()
        still(world)
        panel = world.screen.pages
        panel.redraw()
        before = list(panel._raw_rows)
        panel.redraw()
        assert all(one is two for one, two in zip(before, panel._raw_rows, strict=True))
        world.app.live.models[world.engine.name].board.looks[700] = LOOK_PREEMPTED
        panel.redraw()
        assert sum(one is not two for one, two in zip(before, panel._raw_rows, strict=True)) == 1

    dashboard(tmp_path, drive)


def test_a_screen_that_is_not_seen_is_not_painted(tmp_path: Path) -> None:
    async def drive(world: World) -> None:
        busy(world.engine)
        await world.tell()
        behind, drawn = world.screen, []
        behind._paint_parts = lambda: drawn.append(1)  # type: ignore[method-assign]
        await world.press("enter")
        assert isinstance(world.app.screen, RequestPage)
        drawn.clear()
        expected = world.app.live.num_frames + 3
        for _ in range(3):
            world.client.frames.put(world.engine.frame())
        await world.until(lambda: world.app.live.num_frames >= expected)
        await world.pilot.pause(0.3)
        assert drawn == []
        await world.press("escape")
        await world.until(lambda: bool(drawn))

    dashboard(tmp_path, drive)


PAYLOADS = (
    "\x1b[2J\x1b[H", "\x1b]0;title\x07", "\x1b]8;;http://x\x1b\\link", "\x9b31m", "\x90q\x9c", "\u202eevil\u202c",
    "\u2066x\u2069", "a\u200db\u200c\u200e\u200f", "[bold red]x[/]", "[/]", "\r\n\t\x08\x00", "日本語" * 9,
    "e\u0301" * 30, "\ud800", "👩\u200d👩\u200d👧", "\x7f",
)  # fmt: skip
FORBIDDEN = set(map(chr, [*range(0x20), *range(0x7F, 0xA0), 0x61C, 0x200E, 0x200F, *range(0x202A, 0x202F),
                          *range(0x2066, 0x206A)])) - {"\n"}  # fmt: skip


def test_nothing_but_plain_text_is_drawn_whatever_a_feed_says(tmp_path: Path) -> None:
    from localllm.daemon.feed import Frame, Machine, ModelRow, RequestEvent

    chance = random.Random(7)

    def word() -> str:
        parts = [chance.choice(PAYLOADS), "".join(chr(chance.randrange(1, 0x3000)) for _ in range(8))]
        return "".join(chance.sample(parts, 2))[: chance.randrange(2, 40)]

    def hostile(at: float, engine: FakeEngine) -> Frame:
        names = ["queued", "loading", "submitted", "admitted", "first_token", "preempted", "finished", "failed"]
        events = [
            RequestEvent(
                id=word(), model=word(), route=word(), name=chance.choice(names), at=at, time=at, source=word(),
                data={"reason": word(), "code": word(), "cached": 1, "prompt": 2, word(): word()},
            )
            for _ in range(40)
        ]  # fmt: skip
        row = ModelRow(
            name=word(), state=chance.choice(["ready", "failed", "loading"]), device=word(), notes=(word(),),
            error=word(), page_size=16,
        )  # fmt: skip
        engine.sequences = {
            str(number): FakeSequence(f"{word()}/{number}-0", 9, [number], computed=9) for number in range(6)
        }
        return Frame(
            at=at, time=at, models=[row], events=events, snapshots={row.name: engine.snapshot()},
            machine=Machine(1, 2, 3),
        )  # fmt: skip

    async def drive(world: World) -> None:
        still(world)
        screen = world.screen
        for number in range(25):
            world.app.live.apply(hostile(10.0 + number * 0.01, FakeEngine(num_pages=64)), 0.0)
            name = next(iter(world.app.live.models))
            told = PageDetails(
                page=0, tokens=(PageToken(1, word()), PageToken(2, word())), chain=(ChainLink(0, word()),)
            )
            screen.pages.told = page_text(told, name)
            screen.table.choose(next(iter(world.app.live.requests.rows)))
            screen.table.filter = word() if number % 5 == 0 else ""
            screen.table.ask = ""
            world.paint()
            await world.pilot.pause()
            bad = [strip.text for strip in world.app.screen._compositor.render_strips() if FORBIDDEN & set(strip.text)]
            assert bad == []
        screen.action_open()
        await world.pilot.pause(0.1)
        assert not FORBIDDEN & set(world.raw)

    dashboard(tmp_path, drive, size=(200, 60))


KEYS = (
    "up", "down", "left", "right", "shift+right", "end", "home", "tab", "v", "z", "plus", "minus", "l", "x", "w", "m",
    "space", "c", "enter", "escape", "slash", "g", "7", "k",
)  # fmt: skip
MOVES = st.one_of(frames(), st.sampled_from(KEYS), st.tuples(st.integers(0, 79), st.integers(0, 23)), st.none())


@settings(max_examples=8, deadline=None)
@given(st.lists(MOVES, min_size=10, max_size=60), st.sampled_from([(80, 24), (120, 40), (200, 60)]))
def test_whatever_is_told_and_pressed_it_goes_on(moves: list[Any], size: tuple[int, int]) -> None:
    async def drive(world: World) -> None:
        clock = 0.0
        for move in moves:
            if isinstance(move, str):
                await world.press(move)
            elif isinstance(move, tuple):
                await world.pilot.hover(offset=move)
            elif move is None and isinstance(world.app.screen, DashboardScreen):
                world.paint()
            elif move is not None:
                clock += 0.2
                world.app.live.apply(move, clock)
        await world.pilot.pause(0.1)

    with TemporaryDirectory() as home:
        dashboard(Path(home), drive, size=size)


@settings(max_examples=40, deadline=None)
@given(st.integers(42, 200))
def test_columns_fill_the_table(width: int) -> None:
    columns, gap = columns_for(width)
    assert sum(column.width for column in columns) + gap * (len(columns) - 2) == width


@given(st.floats(0, 1e5), st.integers(10, 200))
def test_an_axis_reaches_over_the_whole_time(total_s: float, width: int) -> None:
    end, ticks = axis_of(total_s, width)
    assert end >= total_s - 1e-6 and ticks[0] == 0 and ticks[-1] <= end and len(ticks) <= width


def test_hostile_names_never_reach_the_screen(tmp_path: Path) -> None:
    async def drive(world: World) -> None:
        world.engine.name = "mo\x1b[2Jdel\u202e[bold]"
        world.engine.sources = {1: "\x1b]0;x\x07evil[red]\u200f"}
        busy(world.engine, 1)
        world.engine.sequences["\x1b[31mid/x"] = FakeSequence("\x1b[31mid/x", 16, world.engine.take(1))
        await world.tell()
        assert "evil[red]" in world.text
        assert not any(character in world.raw for character in "\x1b\x07\u202e\u200f")

    dashboard(tmp_path, drive)


# ---- the real thing


def test_streams_of_a_real_daemon_are_seen_and_one_is_cancelled(
    small_model_home: Path, small_model_file: Path, tmp_path: Path
) -> None:
    pytest.importorskip("localllm.backends.cpu._native", reason="the native kernels have not been built")
    ended: list[str] = []

    def talk(url: str, number: int) -> None:
        body = {
            "model": str(small_model_file), "max_tokens": 100_000, "ignore_eos": True,
            "messages": [{"role": "user", "content": "Tell me of pages, long and well. " * (8 + number)}],
        }  # fmt: skip
        with suppress(LocalLLMError):
            for _ in Client(url).chat(body):
                pass
        ended.append(str(number))

    async def drive(url: str) -> None:
        app = app_with(Client(url), tmp_path, first="dashboard")
        async with app.run_test(size=(120, 40)) as pilot:
            world = World(app, pilot, Daemon(), FakeEngine())
            await world.until_slowly(lambda: sum(row.out > 2 for row in app.live.requests.rows.values()) == 4)
            rows = world.screen.table.rows()
            assert [row.state for row in rows] == ["decode"] * 4 and {row.source for row in rows} == {"localllm"}
            assert world.screen.model is not None and world.screen.model.board.counts().held > 4
            world.screen.pages.look_at(next(iter(world.screen.model.board._holders)))
            await world.until_slowly(lambda: world.screen.pages.told is not None)
            await world.press("tab", "down", "c", "c")
            await world.until_slowly(lambda: len(ended) == 1)
            await world.until_slowly(lambda: len(app.live.requests.rows) == 3)
            assert "cancel" in [each.word for each in app.live.happenings]
            for row in world.screen.table.rows():
                Client(url).cancel(row.id)
            await world.until_slowly(lambda: not app.live.requests.rows)

    with real_daemon(tmp_path) as url:
        threads = [threading.Thread(target=talk, args=(url, number)) for number in range(4)]
        for thread in threads:
            thread.start()
        asyncio.run(drive(url))
        for thread in threads:
            thread.join(30)
