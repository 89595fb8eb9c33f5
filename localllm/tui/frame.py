"""What every screen has: tabs above, keys below, a banner when the daemon is gone, and three size classes."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar, cast

from textual import events
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container
from textual.dom import DOMNode
from textual.screen import Screen
from textual.strip import Strip
from textual.widget import Widget

from localllm.safe_text import one_line
from localllm.tui import words
from localllm.tui.drawn import Drawn
from localllm.tui.lines import Line, gauge, joined, left_right
from localllm.tui.palette import Ink
from localllm.tui.picture import Picture

if TYPE_CHECKING:
    from localllm.daemon.feed import Frame
    from localllm.tui.app import LocalApp

TABS: tuple[tuple[str, str], ...] = (
    ("chat", "Chat"), ("tokens", "Tokens"), ("dashboard", "Dashboard"), ("models", "Models"),
)  # fmt: skip
SMALLEST = (60, 16)
BACK_FOR_S = 2.0
NAMES_OF_KEYS = {
    "up": "↑", "down": "↓", "left": "←", "right": "→", "escape": "esc", "slash": "/", "question_mark": "?",
    "left_square_bracket": "[", "right_square_bracket": "]", "plus": "+", "minus": "-", "upper_n": "N",
    "pagedown": "pgdn", "pageup": "pgup", "delete": "del", "full_stop": ".", "comma": ",",
}  # fmt: skip


def size_class(width: int, height: int) -> str:
    """`tiny`, `compact`, `normal` or `wide`."""
    if width < SMALLEST[0] or height < SMALLEST[1]:
        return "tiny"
    if width < 100 or height < 30:
        return "compact"
    return "wide" if width >= 180 and height >= 50 else "normal"


def key_text(key: str) -> str:
    """The first of a binding's keys, as it is written on a screen: `ctrl+p`, `esc`, `↑`."""
    *held, last = key.split(",")[0].strip().split("+")
    if len(last) == 1 and last.isupper():
        return "+".join([*held, last])
    return "+".join([*held, NAMES_OF_KEYS.get(last, last)])


class TopLine(Drawn):
    """The tabs, and what the daemon does right now. One row in a compact window, else two."""

    DEFAULT_CSS = """
    TopLine { height: 2; dock: top; }
    """

    def __init__(self, active: str) -> None:
        super().__init__()
        self._active = active
        self._spans: list[tuple[int, int, str]] = []

    def draw(self, ink: Ink, width: int, height: int) -> list[Strip]:
        margin = 1 if width < 100 else 2
        left = self._left(ink, width, height, margin)
        right = self._right(ink, width, left.width).put(" " * margin)
        lines = [left_right(left, right, width)]
        if height > 1:
            start, end = next((a, b) for a, b, name in self._spans if name == self._active)
            rule = Line(("─" * start, ink("line"))).put("━" * (end - start), ink("accent"))
            lines.append(rule.put("─" * (width - end), ink("line")))
        return [line.strip(width) for line in lines]

    def on_click(self, event: events.Click) -> None:
        for start, end, name in self._spans:
            if start - 1 <= event.x <= end:
                cast("LocalApp", self.app).switch_mode(name)

    def _left(self, ink: Ink, width: int, height: int, margin: int) -> Line:
        line = Line((" " * margin, ink())).put("◆ ", ink("accent"))
        if width >= 110:
            line.put("localllm", ink("bright", bold=True)).put("    ")
        self._spans = []
        for name, title in TABS:
            is_active = name == self._active
            start = line.width
            if is_active and height == 1:
                line.put(f" {title} ", ink("accent", bold=True, on="accent_bg"))
            else:
                line.put(title, ink("accent", bold=True, underline=ink.is_mono) if is_active else ink("muted"))
            self._spans.append((start, line.width, name))
            num_spaces = 3 if width >= 110 else 2 if width >= 78 else 1
            line.put(" " * (num_spaces - (is_active and height == 1 and num_spaces > 1)))
        return line

    def _right(self, ink: Ink, width: int, taken: int) -> Line:
        app = cast("LocalApp", self.app)
        glance, state = app.glance, app.link.state
        room = width - taken - 3
        mark, role = {"up": ("●", "accent"), "trying": ("◐", "muted"), "down": ("○", "warn")}[state]
        where = {"up": app.place, "trying": "connecting", "down": "no daemon"}[state]
        long = Line((mark, ink(role))).put(f" {where}", ink("muted" if state == "up" else role))
        short = long if state == "down" else Line((mark, ink(role)))
        if state != "up" or not glance.model:
            return long if long.width <= room else short
        name = one_line(words.model_name(glance.model))
        use = Line((words.percent(glance.pages_share), ink()))
        rate = Line((_whole_rate(glance.tokens_per_s), ink())).put(" tok/s", ink("faint"))
        bar = Line(("pages ", ink("faint"))).add(gauge(ink, glance.pages_share, 8)).put(" ").add(use)
        forms = (
            joined([Line((name, ink())), rate, bar, long], 3),
            joined([Line((name, ink())), rate, use, short], 2),
            joined([rate, use, short], 2),
            short,
        )
        return next((form for form in forms if form.width <= room), short)


def _whole_rate(per_s: float | None) -> str:
    """Without its tenths: nobody could read them so often."""
    return words.UNKNOWN if per_s is None else words.count(round(per_s))


class BottomLine(Drawn):
    """The keys of the screen at the left, those of the application at the right. Keys that do not fit are dropped."""

    DEFAULT_CSS = """
    BottomLine { height: 1; dock: bottom; }
    """
    GLOBAL = (("command_palette", "ctrl+p", "commands"), ("help", "f1", "help"), ("quit", "ctrl+q", "leave"))

    def __init__(self) -> None:
        super().__init__()
        self._spans: list[tuple[int, int, str, DOMNode]] = []

    def draw(self, ink: Ink, width: int, height: int) -> list[Strip]:
        margin, gap = (1, 2) if width < 100 else (2, 3)
        right = joined([_hint(ink, key, label) for _, key, label in self.GLOBAL], gap).put(" " * margin)
        left, self._spans = Line((" " * margin, ink())), []
        for key, label, action, node in shown_keys(self.screen):
            hint = _hint(ink, key, label)
            start = left.width + (gap if self._spans else 0)
            if start + hint.width + gap + right.width > width:
                break
            left.pad_to(start).add(hint)
            self._spans.append((start, left.width, action, node))
        at = width - right.width
        for action, key, label in self.GLOBAL:
            length = len(key) + len(label) + 1
            self._spans.append((at, at + length, action, self.app))
            at += length + gap
        return [left_right(left, right, width).strip(width)]

    async def on_click(self, event: events.Click) -> None:
        for start, end, action, node in self._spans:
            if start <= event.x < end:
                await self.app.run_action(action, default_namespace=node)


def shown_keys(screen: Screen[object]) -> Iterator[tuple[str, str, str, DOMNode]]:
    """Key, label and action of the bindings that the footer shows now, and whose action it is: those of the focused
    widget and of the screen."""
    seen = set()
    for active in screen.active_bindings.values():
        binding = active.binding
        if not binding.show or not active.enabled or active.node is screen.app or binding.action in seen:
            continue
        if isinstance(screen, FrameScreen) and not screen.is_offered(binding.action):
            continue
        seen.add(binding.action)
        key = screen.app.get_key_display(binding)
        yield key, name_of(screen, binding), binding.action, active.node


def name_of(screen: Screen[object], binding: Binding) -> str:
    """What a key does, as this screen says it in this window."""
    return screen.name_here(binding) if isinstance(screen, FrameScreen) else binding.description


def _hint(ink: Ink, key: str, label: str) -> Line:
    return Line((key, ink("text", bold=True))).put(f" {label}", ink("muted"))


class Banner(Drawn):
    """One row that says that the daemon is gone and what can be done, or that it is back."""

    DEFAULT_CSS = """
    Banner { height: 1; background: $role-warn-bg; display: none; }
    Banner.-shown { display: block; }
    """

    def draw(self, ink: Ink, width: int, height: int) -> list[Strip]:
        app = cast("LocalApp", self.app)
        margin = 1 if width < 100 else 2
        if app.link.state == "up":
            back = Line((" " * margin, ink())).put("● ", ink("accent"))
            return [back.put(f"back after {words.age(app.gone_s)}", ink("bright")).strip(width)]
        left = Line((" " * margin, ink())).put("▲ ", ink("warn"))
        left.put(f"The daemon at {app.place_text} {app.trouble}.", ink("bright", bold=True))
        waits_s = app.link.waits_s
        said = "  Trying." if waits_s is None else f"  Next try in {waits_s} s."
        old = f"  Data is {words.age(app.data_age_s)} old." if app.data_age_s is not None else ""
        keys = [("f7", "now"), *([("f8", "start it")] if app.link.can_start else []), ("f9", "log")]
        right = joined([_hint(ink, key, label) for key, label in keys], 2).put(" " * margin)
        for told in (old + said, said, ""):
            if left.width + len(told) + right.width < width:
                left.put(told, ink())
                break
        return [left_right(left, right, width).strip(width)]


class TooSmall(Drawn):
    """What is shown where no screen fits."""

    DEFAULT_CSS = """
    TooSmall { display: none; }
    """

    def draw(self, ink: Ink, width: int, height: int) -> list[Strip]:
        return [Line((f"Make the window at least {SMALLEST[0]}x{SMALLEST[1]}", ink())).strip(width)]


class FrameScreen(Screen[None]):
    """A screen of the application. Subclasses say which `TAB` they are (also screens above one, such as the token
    inspector above the chat) and what stands between header and footer."""

    TAB: ClassVar[str] = "chat"
    BINDINGS: ClassVar[list[BindingType]] = []
    DEFAULT_CSS = """
    FrameScreen { background: $role-bg; color: $role-text; }
    FrameScreen > #body { height: 1fr; padding: 0 2; }
    """

    @property
    def local(self) -> LocalApp:
        return cast("LocalApp", self.app)

    @cached_property
    def picture(self) -> Picture:
        """For widgets that are redrawn together."""
        return Picture(self)

    def compose(self) -> ComposeResult:
        self._top_line, self._banner = TopLine(self.TAB), Banner()
        yield self._top_line
        yield self._banner
        yield TooSmall()
        with Container(id="body"):
            yield from self.compose_body()
        yield BottomLine()

    def compose_body(self) -> Iterable[Container] | ComposeResult:
        """The widgets between header and footer."""
        raise NotImplementedError

    @property
    def size_class(self) -> str:
        return size_class(*self.app.size)

    _focused_before: Widget | None = None
    """What had the focus when the window became too small to show it."""

    def on_resize(self, event: events.Resize) -> None:
        wanted = size_class(*event.size)
        self._focused_before = self.focused or self._focused_before
        for name in ("tiny", "compact", "normal", "wide"):
            self.set_class(name == wanted, name)
        self.resized(wanted)
        self.call_after_refresh(self._focus_again)

    def resized(self, size_class: str) -> None:
        """The window has another size: for what no style sheet can say."""

    def is_offered(self, action: str) -> bool:
        """Whether it would do something now: else neither the footer nor the palette names it. Its key is heard all
        the same, and may say why nothing happens."""
        return True

    def name_here(self, binding: Binding) -> str:
        """What a key does, where that depends on the window."""
        return binding.description

    def frame_arrived(self, frame: Frame) -> None:
        """A frame of the live feed, while this screen is shown."""

    def link_changed(self) -> None:
        """The connection came, went, or counts down; also called when the screen comes into view."""

    def on_screen_resume(self) -> None:
        self.refresh_frame()
        self.link_changed()

    def _focus_again(self) -> None:
        """A window that was too small took the focus away."""
        before = self._focused_before
        if self.focused is None and before is not None and before.is_attached and before.focusable:
            self.set_focus(before, scroll_visible=False)

    def bindings_changed(self) -> None:
        for line in self.query(BottomLine):
            line.redraw()

    def refresh_frame(self) -> None:
        """Header and banner again."""
        if not self.is_mounted:
            return
        app = self.local
        is_back = app.link.state == "up" and app.gone_s is not None
        is_back = is_back and time.monotonic() - app.link.changed_at < BACK_FOR_S
        self._banner.set_class(app.is_down or is_back, "-shown")
        picture = self.picture.begin()
        if self._banner.display:
            self._banner.redraw(picture)
        self._top_line.redraw(picture)
        picture.show()
