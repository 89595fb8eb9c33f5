"""The frame of the application: tabs, keys, the link to the daemon, and what happens when there is none."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from textual._xterm_parser import XTermParser
from textual.pilot import Pilot

from localllm.daemon.feed import Frame, ModelRow
from localllm.errors import DaemonUnreachable, LocalLLMError
from localllm.tui.app import LocalApp
from localllm.tui.frame import FrameScreen, key_text, shown_keys, size_class
from localllm.tui.help import HelpScreen, Rows, bindings_of
from localllm.tui.terminal import PLAIN_SIGNS, _column
from tests.tui.fakes import FakeClient, app_with
from tests.tui.live_frames import FakeEngine
from tests.tui.pictures import screen_text, svg


@asynccontextmanager
async def running(
    client: FakeClient, home: Path, size: tuple[int, int] = (120, 40), **options: Any
) -> AsyncIterator[tuple[LocalApp, Pilot[None]]]:
    app = app_with(client, home, **{"first": "models", **options})
    async with app.run_test(size=size, notifications=True) as pilot:
        await until(pilot, lambda: app.link.state == ("up" if client.is_up else "down"))
        yield app, pilot


async def until(pilot: Pilot[None], is_so: Callable[[], bool]) -> None:
    for _ in range(200):
        if is_so():
            return
        await pilot.pause(0.02)
    raise AssertionError("it did not come to that")


def ready(name: str, rate: float = 412.0) -> ModelRow:
    return ModelRow(name=name, state="ready", pages_total=100, pages_used=55, tokens_per_s=rate, running=2)


@pytest.mark.parametrize(
    ("size", "expected"),
    [((59, 30), "tiny"), ((80, 24), "compact"), ((120, 29), "compact"), ((120, 40), "normal"), ((179, 60), "normal"),
     ((200, 60), "wide"), ((200, 49), "normal")],
)  # fmt: skip
def test_there_are_three_sizes_and_one_that_is_too_small(size: tuple[int, int], expected: str) -> None:
    assert size_class(*size) == expected


@pytest.mark.parametrize(
    ("key", "expected"),
    [("ctrl+p", "ctrl+p"), ("escape", "esc"), ("up,k", "↑"), ("slash", "/"), ("N", "N"), ("alt+left", "alt+←")],
)
def test_keys_are_named_as_they_are_pressed(key: str, expected: str) -> None:
    assert key_text(key) == expected


async def test_the_header_tells_what_the_daemon_does(tmp_path: Path) -> None:
    client = FakeClient()
    async with running(client, tmp_path) as (app, pilot):
        client.frames.put(Frame(at=1, time=1, models=[ready("qwen3:4b"), ready("other:1b", 3.0)]))
        await until(pilot, lambda: "qwen3:4b" in screen_text(app))
        first = screen_text(app).splitlines()[0]
        assert first.startswith("  ◆ localllm    Chat   Tokens   Dashboard   Models")
        assert first.endswith("qwen3:4b   415 tok/s   pages ━━━━╺━━━ 55 %   ● local")


@pytest.mark.parametrize("size", [(60, 16), (80, 24), (100, 30), (120, 40), (200, 60)])
async def test_the_header_fits_at_every_size(tmp_path: Path, size: tuple[int, int]) -> None:
    client = FakeClient()
    async with running(client, tmp_path, size) as (app, pilot):
        client.frames.put(Frame(at=1, time=1, models=[ready("a-model-with-a-name-that-is-very-long:70b-instruct")]))
        await until(pilot, lambda: app.glance.model != "")
        await pilot.pause()
        first, *_, last = screen_text(app).splitlines()
        assert all(title in first for title in ("Chat", "Tokens", "Dashboard", "Models")) and "●" in first
        assert last.rstrip().endswith("f1 help   ctrl+q leave" if size[0] >= 100 else "f1 help  ctrl+q leave")


async def test_keys_and_clicks_lead_to_the_screens(tmp_path: Path) -> None:
    async with running(FakeClient(), tmp_path) as (app, pilot):
        for key, mode in (("f2", "chat"), ("f3", "tokens"), ("f4", "dashboard"), ("f5", "models")):
            await pilot.press(key)
            assert app.current_mode == mode
        await pilot.click("TopLine", offset=(32, 0))
        assert app.current_mode == "dashboard"


@pytest.mark.parametrize("mode", ["chat", "tokens", "dashboard", "models"])
async def test_every_key_at_the_bottom_can_be_clicked(tmp_path: Path, mode: str) -> None:
    async with running(FakeClient(), tmp_path, first=mode) as (app, pilot):
        done: list[str] = []

        async def note(action: str, default_namespace: Any = None, namespaces: Any = None) -> bool:
            space, _, name = action.partition("(")[0].rpartition(".")
            node = {"app": app, "screen": app.screen}.get(space, default_namespace or app)
            assert hasattr(node, f"action_{name}"), (action, node)
            done.append(action)
            return True

        await until(pilot, lambda: isinstance(app.screen, FrameScreen) and app.screen.focused is not None)
        await pilot.pause()
        app.run_action = note  # type: ignore[method-assign]  # only to see what is asked for
        last = screen_text(app).splitlines()[-1]
        expected = []
        for key, _, action, _ in shown_keys(app.screen):
            if f" {key} " in last:
                await pilot.click("BottomLine", offset=(last.index(f" {key} ") + 1, 0))
                expected.append(action)
        for key, action in (("ctrl+p", "command_palette"), ("f1", "help"), ("ctrl+q", "quit")):
            await pilot.click("BottomLine", offset=(last.index(key), 0))
            expected.append(action)
        assert done == expected


@pytest.mark.parametrize("mode", ["chat", "tokens", "dashboard", "models"])
async def test_the_focus_outlives_a_window_that_was_too_small(tmp_path: Path, mode: str) -> None:
    async with running(FakeClient(), tmp_path, first=mode) as (app, pilot):
        await until(pilot, lambda: isinstance(app.screen, FrameScreen) and app.screen.focused is not None)
        focused = app.screen.focused
        for size in ((40, 12), (30, 10), (120, 40)):
            await pilot.resize_terminal(*size)
            await pilot.pause()
        await until(pilot, lambda: app.screen.focused is focused)


async def test_a_rate_of_which_no_more_is_heard_falls_to_zero(tmp_path: Path) -> None:
    client, engine = FakeClient(), FakeEngine()
    async with running(client, tmp_path) as (app, pilot):
        engine.admit(1, 32)
        for _ in range(12):
            engine.write(1, 5)
            client.frames.put(engine.frame(0.1))
        await until(pilot, lambda: bool(app.glance.tokens_per_s))
        engine.finish(1)
        client.frames.put(engine.frame(0.1))
        await until(pilot, lambda: not app.live.models["qwen3-4b"].snapshot.num_running)  # type: ignore[union-attr]
        app.live._heard_local -= 60  # a minute of silence
        app._glanced_at = 0.0
        app._tick()
        await pilot.pause()
        assert app.glance.tokens_per_s == 0 and "   0 tok/s" in screen_text(app)


async def test_ctrl_c_says_how_to_leave(tmp_path: Path) -> None:
    async with running(FakeClient(), tmp_path) as (app, pilot):
        await pilot.press("ctrl+c")
        await until(pilot, lambda: "ctrl+q leaves; the daemon goes on" in screen_text(app))


async def test_without_a_daemon_a_banner_counts_down_and_it_comes_back(tmp_path: Path) -> None:
    client = FakeClient(is_up=False)
    async with running(client, tmp_path, start=lambda: client) as (app, pilot):
        await until(pilot, lambda: "does not answer.  Next try in" in screen_text(app))
        assert "f7 now  f8 start it  f9 log" in screen_text(app) and "○ no daemon" in screen_text(app)
        client.come_back()
        await pilot.press("f7")
        await until(pilot, lambda: "● back after" in screen_text(app))
        assert app.link.state == "up" and "● local" in screen_text(app)


async def test_a_daemon_that_ends_is_told_and_one_that_returns_is_found(tmp_path: Path) -> None:
    client = FakeClient()
    async with running(client, tmp_path) as (app, pilot):
        client.frames.put(Frame(at=1, time=1, models=[ready("qwen3:4b")]))
        await until(pilot, lambda: app.glance.model == "qwen3:4b")
        client.go()
        await until(pilot, lambda: "stopped answering" in screen_text(app))
        client.come_back()
        app.link.try_now()
        await until(pilot, lambda: app.link.state == "up")


async def test_f8_starts_a_daemon_and_says_why_when_it_cannot(tmp_path: Path) -> None:
    client, started = FakeClient(is_up=False), []

    def start() -> Any:
        started.append(True)
        if len(started) == 1:
            raise DaemonUnreachable("the daemon did not come up", hint="see `localllm daemon logs`")
        client.come_back()
        return client

    async with running(client, tmp_path, start=start) as (app, pilot):
        await pilot.press("f8")
        await until(pilot, lambda: "the daemon did not come up" in screen_text(app))
        assert "see `localllm daemon logs`" in screen_text(app)
        await pilot.press("f8")
        await until(pilot, lambda: app.link.state == "up")
        assert len(started) == 2


async def test_a_call_that_finds_no_daemon_takes_the_link_down(tmp_path: Path) -> None:
    client = FakeClient()
    async with running(client, tmp_path) as (app, _):
        client.is_up = False
        with pytest.raises(DaemonUnreachable):
            await app.link.ask(lambda client: client.ps())
        assert app.is_down


async def test_help_lists_every_key_of_the_screen_once(tmp_path: Path) -> None:
    async with running(FakeClient(), tmp_path, (120, 60)) as (app, pilot):
        bindings = [binding for _, binding in bindings_of(app.screen)]
        assert len({binding.id for binding in bindings}) == len(bindings) >= 9
        await pilot.press("f1")
        await until(pilot, lambda: isinstance(app.screen, HelpScreen))
        await pilot.pause()
        text = screen_text(app)
        for binding in bindings[-9:]:
            assert key_text(binding.key) in text
        assert "two pages, one above the other" in text
        await pilot.press("escape")
        assert isinstance(app.screen, FrameScreen)


async def test_help_cuts_no_sentence(tmp_path: Path) -> None:
    for size in ((80, 60), (120, 60)):
        async with running(FakeClient(), tmp_path, size, first="chat") as (app, pilot):
            await pilot.press("f1")
            await until(pilot, lambda app=app: isinstance(app.screen, HelpScreen))  # type: ignore[misc]
            await pilot.pause()
            rows = app.screen.query_one(Rows)
            assert rows.row_count() > 30
            assert not [line for line in rows._lines if "…" in line.text]


async def test_the_palette_names_what_can_be_done_now_once_and_with_its_key(tmp_path: Path) -> None:
    async with running(FakeClient(), tmp_path, first="chat") as (app, pilot):
        await until(pilot, lambda: app.screen.focused is not None)
        commands = list(app.get_system_commands(app.screen))
        titles = [command.title for command in commands]
        assert len(set(titles)) == len(titles), titles
        assert "Attach" in titles and "Before" in titles and not [each for each in titles if each.startswith("Copy")]
        assert next(each.help for each in commands if each.title == "Attach") == "Attach a text file   alt+a"


@pytest.mark.parametrize("mode", ["chat", "tokens", "dashboard", "models"])
@pytest.mark.parametrize("is_up", [True, False])
async def test_no_key_fails_where_there_is_nothing_yet(tmp_path: Path, mode: str, is_up: bool) -> None:
    async with running(FakeClient(is_up=is_up), tmp_path, (80, 24), first=mode) as (app, pilot):
        await until(pilot, lambda: isinstance(app.screen, FrameScreen) and app.screen.focused is not None)
        start = app.screen.focused
        assert start is not None
        for widget in [each for each in app.screen.query("*") if each.focusable]:
            keys = {key for active in app.screen.active_bindings.values() for key in [active.binding.key]}
            for key in sorted(keys - {"ctrl+q", "ctrl+p", "ctrl+c", "f2", "f3", "f4", "f5", "1", "2", "3", "4"}):
                app.screen.set_focus(widget)
                await pilot.press(key)
                while not isinstance(app.screen, FrameScreen):
                    app.pop_screen()
                    await pilot.pause()
            assert app.current_mode == mode and app.is_running


async def test_alt_keys_are_heard_as_plain_terminals_send_them(tmp_path: Path) -> None:
    async with running(FakeClient(), tmp_path, first="chat") as (app, pilot):
        await until(pilot, lambda: app.screen.focused is not None)
        keys = [key for _, each in bindings_of(app.screen) for key in each.key.split(",") if key.startswith("alt+")]
        for key in keys:
            sent = {"alt+left": "[1;3D", "alt+right": "[1;3C"}.get(key, key[-1])
            parser = XTermParser()
            heard = [*parser.feed(f"\x1b{sent}"), *parser.feed("")]
            assert [getattr(each, "key", "") for each in heard] == [key]
        assert {"alt+1", "alt+9", "alt+f"} <= set(keys)


async def test_every_binding_has_an_id_and_a_sentence(tmp_path: Path) -> None:
    async with running(FakeClient(), tmp_path) as (app, pilot):
        for key in ("f2", "f3", "f4", "f5"):
            await pilot.press(key)
            await pilot.pause()
            for node in (app.screen, *app.screen.walk_children(), app):
                if not type(node).__module__.startswith("localllm"):
                    continue
                own = vars(type(node)).get("BINDINGS", ())
                assert all(binding.id and binding.tooltip for binding in own), type(node)


async def test_other_keys_can_be_given(tmp_path: Path) -> None:
    async with running(FakeClient(), tmp_path, keys={"app.chat": "f10"}) as (app, pilot):
        await pilot.press("f2")
        assert app.current_mode == "models"
        await pilot.press("f10")
        assert app.current_mode == "chat"


async def test_the_log_is_shown_without_its_escapes(tmp_path: Path) -> None:
    log = tmp_path / "daemon.log"
    log.write_text("one\n\x1b]0;owned\x07two\x1b[31m red\u202eback\n")
    async with running(FakeClient(), tmp_path, log_path=log) as (app, pilot):
        await pilot.press("f9")
        await until(pilot, lambda: "two red" in screen_text(app))
        assert not {"\x1b", "\x07", "\u202e"} & set(screen_text(app))


async def test_a_theme_is_used_and_kept(tmp_path: Path) -> None:
    kept: list[tuple[str, str]] = []
    async with running(FakeClient(), tmp_path, remember=lambda *pair: kept.append(pair)) as (app, pilot):
        dark = svg(app)
        app.action_theme("light")
        await pilot.pause()
        assert app.ink.roles.name == "light" and kept == [("theme", "light")]
        assert app.ink.roles.bg in svg(app) and app.ink.roles.bg not in dark


async def test_no_color_leaves_no_colours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    async with running(FakeClient(), tmp_path) as (app, _):
        assert app.ink.is_mono and all(len({*rgb}) == 1 for rgb in _colours(svg(app)))


def _colours(text: str) -> list[tuple[str, str, str]]:
    found = {part[1:7] for part in text.split('fill="')[1:]}
    return [(colour[:2], colour[2:4], colour[4:]) for colour in found]


async def test_plain_signs_are_ascii(tmp_path: Path) -> None:
    async with running(FakeClient(), tmp_path, is_ascii=True) as (app, _):
        assert any(type(each).__name__ == "PlainSigns" for each in app._filters)
    assert all(ord(value) < 128 if isinstance(value, str) else value < 128 for value in PLAIN_SIGNS.values())


@pytest.mark.parametrize(("answer", "column"), [(b"\x1b[12;3R", 3), (b"\x1b[1;2R", 2), (b"", None), (b"x", None)])
def test_the_terminal_tells_how_wide_it_draws(answer: bytes, column: int | None) -> None:
    assert _column(lambda: answer) == column


async def test_a_window_that_is_too_small_says_so(tmp_path: Path) -> None:
    async with running(FakeClient(), tmp_path, (50, 12)) as (app, _):
        assert screen_text(app).strip() == "Make the window at least 60x16"


async def test_errors_of_calls_are_shown_as_sentences_and_never_as_markup(tmp_path: Path) -> None:
    async with running(FakeClient(), tmp_path) as (app, pilot):
        app.complain(LocalLLMError("the model [bold]x[/bold] is gone", hint="[link=http://x]try another[/link]"))
        await until(pilot, lambda: "[bold]x[/bold]" in screen_text(app))
        assert "[link=http://x]" in screen_text(app)
