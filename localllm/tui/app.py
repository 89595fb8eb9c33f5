"""The application: four screens over one link to a daemon. Everything it knows comes through that link."""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from textual import events
from textual.app import App, ScreenStackError, SystemCommand
from textual.binding import Binding, BindingType
from textual.screen import Screen

from localllm.errors import LocalLLMError
from localllm.safe_text import one_line
from localllm.tui import cells
from localllm.tui.frame import TABS, FrameScreen, key_text, name_of
from localllm.tui.help import HelpScreen, PagedText
from localllm.tui.link import Link
from localllm.tui.live.state import LiveState
from localllm.tui.palette import CONTRAST, DARK, LIGHT, MONO, THEMES, Ink, Roles
from localllm.tui.terminal import OnlyText, PlainSigns, hear_alt

if TYPE_CHECKING:
    from localllm.client import Client
    from localllm.daemon.feed import Frame

SLOW_INTERVAL_S = 0.25
GLANCE_S = 0.4
"""Figures of the header that change faster cannot be read."""


def _screen(module: str, name: str) -> Screen[object]:
    """Made when it is first shown: a screen that nobody opens costs nothing."""
    made: Screen[object] = getattr(import_module(f"localllm.tui.{module}"), name)()
    return made


def _key(keys: str, action: str, name: str, tooltip: str, *, is_first: bool = False) -> Binding:
    """A key that works on every screen; `is_first`: before the widget that has the focus."""
    return Binding(keys, action, name, show=False, priority=is_first, tooltip=tooltip, id=f"app.{name}")


@dataclass(frozen=True, slots=True)
class Glance:
    """What the header says of the daemon: of its busiest model, and of all together."""

    model: str = ""
    tokens_per_s: float | None = None
    pages_share: float = 0.0


class LocalApp(App[None]):
    """`start` starts a daemon and connects to it; None where that is not ours to do. `remember` keeps a setting.
    `keys` are other keys for bindings, by their ids."""

    TITLE = "localllm"
    ENABLE_COMMAND_PALETTE = True
    MODES: ClassVar[dict[str, str | Callable[[], Screen[object]]]] = {
        name: partial(_screen, f"{name}.screen", f"{title}Screen") for name, title in TABS
    }
    CSS_PATH = "app.tcss"
    BINDINGS: ClassVar[list[BindingType]] = [
        _key("f1", "help", "help", "Every key of this screen, and what the signs mean"),
        _key("f2,1", "switch_mode('chat')", "chat", "Go to Chat"),
        _key("f3,2", "switch_mode('tokens')", "tokens", "Go to Tokens"),
        _key("f4,3", "switch_mode('dashboard')", "dashboard", "Go to Dashboard"),
        _key("f5,4", "switch_mode('models')", "models", "Go to Models"),
        _key("f7", "try_now", "try_now", "Look for the daemon now"),
        _key("f8", "start_daemon", "start_daemon", "Start the daemon"),
        _key("f9", "show_log", "log", "Show the end of the daemon's log"),
        _key("ctrl+q", "quit", "leave", "Leave; the daemon goes on", is_first=True),
    ]

    def __init__(
        self,
        client: Client,
        *,
        home: Path,
        theme: str = "dark",
        default_model: str = "",
        start: Callable[[], Client] | None = None,
        log_path: Path | None = None,
        remember: Callable[[str, str], None] | None = None,
        keys: Mapping[str, str] | None = None,
        is_ascii: bool = False,
        first: str = "chat",
    ) -> None:
        self.link = Link(client, start)
        self.home = home
        self.default_model = default_model
        self.glance = Glance()
        self.live = LiveState()
        self.gone_s: float | None = None
        """How long the daemon was gone when it came back last."""
        self._log_path = log_path
        self._remember = remember
        self._first = first
        self._roles: Roles = DARK
        self._ink = Ink(DARK)
        cells.mend()
        hear_alt()
        super().__init__()
        for roles in THEMES:
            self.register_theme(roles.theme())
        self.theme = f"localllm-{theme}"
        self.set_keymap(dict(keys or {}))
        self.is_ascii = is_ascii
        self._filters.append(OnlyText())
        if is_ascii:
            self._filters.append(PlainSigns())

    # ---- life

    def on_mount(self) -> None:
        self.theme_changed_signal.subscribe(self, lambda theme: self._repaint())
        self._make_ink()
        if os.environ.get("SSH_TTY"):
            self.link.interval_s = SLOW_INTERVAL_S
        self.link.listen(self._frame_arrived)
        self.link.on_change(self._link_changed)
        self.link.open()
        self.set_interval(1.0, self._tick)
        self.switch_mode(self._first)

    def on_unmount(self) -> None:
        self.link.close()

    def get_default_screen(self) -> Screen[object]:
        return Screen(id="_default")

    # ---- what screens ask

    @property
    def ink(self) -> Ink:
        """The colours of the theme that is on."""
        return self._ink

    @property
    def is_down(self) -> bool:
        return self.link.state == "down"

    @property
    def place(self) -> str:
        """`local`, or the host of a daemon elsewhere."""
        host = self.place_text.rsplit(":", 1)[0]
        return "local" if host in ("127.0.0.1", "localhost", "[::1]") else host

    @property
    def place_text(self) -> str:
        """Host and port."""
        return one_line(self.link.client.url.split("://")[-1])

    @property
    def trouble(self) -> str:
        """What is wrong with the link, as the end of a sentence."""
        if self.link.error is not None and self.link.error.code not in ("daemon_unreachable",):
            return f"refuses: {one_line(self.link.error.message)}"
        return "does not answer" if self.glance.model == "" else "stopped answering"

    @property
    def data_age_s(self) -> float | None:
        """How old the live data is; None before any came."""
        return time.monotonic() - self.link.heard_at if self._has_data else None

    def say(self, text: str) -> None:
        """Confirms what was done, for two seconds."""
        self.notify(one_line(text), timeout=2.0, markup=False)

    def complain(self, error: LocalLLMError) -> None:
        """For what has no place of its own: the sentence and the next step."""
        hint = f"\n{one_line(error.hint)}" if error.hint else ""
        self.notify(one_line(error.message) + hint, severity="error", timeout=8.0, markup=False)

    # ---- actions

    def action_help(self) -> None:
        if not isinstance(self.screen, HelpScreen):
            self.push_screen(HelpScreen(self.screen))

    def action_try_now(self) -> None:
        self.link.try_now()

    async def action_start_daemon(self) -> None:
        if not (self.is_down and self.link.can_start):
            return
        try:
            await self.link.start_daemon()
        except LocalLLMError as error:
            self.complain(error)

    def action_show_log(self) -> None:
        text = _end_of(self._log_path) if self._log_path else ""
        title = f"The daemon's log   {self._log_path}" if self._log_path else "The daemon's log"
        self.push_screen(PagedText(title, text or "There is no log here.", at_end=True))

    def action_help_quit(self) -> None:
        """ctrl+c where nothing is selected: it ends no answer and no chat."""
        self.say("ctrl+q leaves; the daemon goes on")

    def action_theme(self, name: str) -> None:
        self.theme = f"localllm-{name}"
        if self._remember:
            self._remember("theme", name)

    def get_system_commands(self, screen: Screen[object]) -> Iterable[SystemCommand]:
        for mode, title in TABS:
            yield SystemCommand(f"Go to {title}", f"Show the screen {title}", lambda mode=mode: self.switch_mode(mode))
        for active in screen.active_bindings.values():
            binding = active.binding
            is_move = not binding.show and active.node is not screen
            if active.node is self or is_move or not binding.tooltip or not active.enabled:
                continue
            if isinstance(screen, FrameScreen) and not screen.is_offered(binding.action):
                continue
            name = name_of(screen, binding)
            title = name[:1].upper() + name[1:]
            help_text = f"{binding.tooltip}   {self.get_key_display(binding)}"
            yield SystemCommand(title, help_text, self._runner(binding.action, active.node))
        for roles in (DARK, LIGHT, CONTRAST, MONO):
            yield SystemCommand(
                f"Theme: {roles.name}", f"Use the {roles.name} theme", lambda name=roles.name: self.action_theme(name)
            )
        yield SystemCommand("Help", "Every key of this screen", self.action_help)
        yield SystemCommand("Daemon log", "Show the end of the daemon's log", self.action_show_log)
        yield SystemCommand("Leave", "Leave; the daemon goes on", self.action_quit)

    async def on_event(self, event: events.Event) -> None:
        if isinstance(event, events.Key) and event.key.startswith("alt+"):
            event.character = None  # else fields would take alt+p for a letter that is typed
        await super().on_event(event)

    def get_key_display(self, binding: Binding) -> str:
        return binding.key_display or key_text(binding.key)

    # ---- inside

    def _handle_exception(self, error: Exception) -> None:
        """A fault of ours: the terminal is given back whole, and a sentence says where the details are."""
        if self.is_headless:  # tests are to see it
            super()._handle_exception(error)
            return
        path = _written(self.home, error)
        self.exit(return_code=1, message=f"The application failed ({type(error).__name__}); chats are kept. {path}")

    _has_data = False
    _glanced_at = 0.0
    _is_glance_new = False

    def _shown(self) -> FrameScreen | None:
        """None under an overlay, before a screen is composed, and while the application begins or ends."""
        try:
            return self.screen if isinstance(self.screen, FrameScreen) and self.screen.is_mounted else None
        except ScreenStackError:
            return None

    def _runner(self, action: str, node: object) -> Callable[[], object]:
        async def run() -> None:
            await self.run_action(action, default_namespace=node)  # type: ignore[arg-type]  # a node of the DOM

        return run

    def _frame_arrived(self, frame: Frame) -> None:
        self._has_data = True
        self.live.apply(frame, time.monotonic())
        self._take_glance()
        if self._is_glance_new and time.monotonic() - self._glanced_at > GLANCE_S:
            self._glanced_at = time.monotonic()
            self._refresh_frames()
        if (shown := self._shown()) is not None:
            shown.frame_arrived(frame)

    def _take_glance(self) -> None:
        ready = [model.row for model in self.live.models.values() if model.row.state == "ready"]
        busiest = max(ready, key=lambda model: (model.tokens_per_s, model.running, model.pages_used), default=None)
        glance = Glance()
        if busiest is not None:
            rate = round(sum(self.live.tokens_per_s(model) for model in ready))
            share = busiest.pages_used / busiest.pages_total if busiest.pages_total else 0.0
            glance = Glance(busiest.name, float(rate), round(share, 2))
        self._is_glance_new |= glance != self.glance
        self.glance = glance

    def _link_changed(self) -> None:
        if self.link.state == "up" and self._down_since is not None:
            self.gone_s, self._down_since = time.monotonic() - self._down_since, None
        elif self.is_down and self._down_since is None:
            self._down_since = time.monotonic()
            self.live.disconnected()
        self._refresh_frames()
        if (shown := self._shown()) is not None:
            shown.link_changed()

    _down_since: float | None = None

    def _tick(self) -> None:
        """The countdown of the banner, and its end; and rates that fall because nothing more is heard."""
        if not self.is_down and self.glance.tokens_per_s:
            self.live.tick(time.monotonic())
            self._take_glance()
        if self.is_down or self._is_glance_new or time.monotonic() - self.link.changed_at < 4.0:
            self._refresh_frames()
            if self.is_down and (shown := self._shown()) is not None:
                shown.link_changed()

    def _refresh_frames(self) -> None:
        self._is_glance_new = False
        if (shown := self._shown()) is not None:
            shown.refresh_frame()

    def _make_ink(self) -> None:
        name = self.theme.removeprefix("localllm-")
        self._roles = next((roles for roles in THEMES if roles.name == name), DARK)
        has_few = not self.is_headless and self.console.color_system in (None, "standard")
        is_mono = self.no_color or has_few
        self._ink = Ink(MONO if is_mono and self._roles.is_dark else self._roles, is_mono)

    def _repaint(self) -> None:
        self._make_ink()
        self.screen.refresh(layout=True)
        for widget in self.screen.walk_children():
            widget.refresh()


def _written(home: Path, error: Exception) -> str:
    """Keeps a traceback; a sentence that says where."""
    path = home / "logs" / "tui.log"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(time.strftime("%Y-%m-%d %H:%M:%S\n") + "".join(traceback.format_exception(error)))
    except OSError:
        return "The details could not be written."
    return f"Details are in {path}."


def _end_of(path: Path, size_bytes: int = 64_000) -> str:
    """The last lines of a file; empty when it cannot be read."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - size_bytes))
            return file.read().decode("utf-8", "replace")
    except OSError:
        return ""
