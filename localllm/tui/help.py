"""Overlays above a screen: the help, made from the bindings, and a long text to look at."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from rich.cells import chop_cells
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container
from textual.screen import ModalScreen, Screen
from textual.strip import Strip

from localllm.safe_text import sanitize
from localllm.tui.drawn import Drawn, DrawnList
from localllm.tui.frame import key_text
from localllm.tui.lines import Line, heading, joined, wrapped
from localllm.tui.palette import Ink

SIGNS = (
    ("●", "connected, loaded, fits"), ("◐", "trying, tight, reading the prompt"), ("○", "no daemon, too large"),
    ("▶", "running, writing"), ("·", "waiting, a free page"), ("▪", "preempted, pinned, an error"),
    ("✓", "done, taken"),
    ("▌a", "owner a: a request and its pages"), ("━", "how much"), ("▀", "two pages, one above the other"),
    ("–", "nothing yet"),
)  # fmt: skip


class Overlay(ModalScreen[None]):
    """Above everything until a key closes it."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q,f1", "dismiss", "close", id="overlay.close", tooltip="Back to the screen"),
    ]
    DEFAULT_CSS = """
    Overlay { background: $role-bg; color: $role-text; align: left top; }
    Overlay > Container { padding: 1 2; height: 1fr; }
    """


class Rows(DrawnList):
    """Lines to scroll through; no cursor is drawn."""

    def __init__(self) -> None:
        super().__init__()
        self._lines: list[Line] = []

    def fill(self, lines: list[Line]) -> None:
        self._lines = lines
        self.refill()

    def row_count(self) -> int:
        return len(self._lines)

    def draw_row(self, row: int, ink: Ink, width: int) -> Strip:
        return self._lines[row].strip(width)

    def action_move(self, by: int) -> None:
        self.scroll_relative(y=by, animate=False)

    def action_page(self, by: int) -> None:
        self.scroll_relative(y=by * max(1, self.size.height - 1), animate=False)


class Title(Drawn):
    DEFAULT_CSS = """
    Title { height: 2; }
    """

    def __init__(self, title: str) -> None:
        super().__init__()
        self._title = title

    def draw(self, ink: Ink, width: int, height: int) -> list[Strip]:
        hint = joined([Line(("esc", ink("text", bold=True))).put(" close", ink("muted"))], 0)
        return [heading(ink, width, self._title, hint, is_focused=True).strip(width)]


class HelpScreen(Overlay):
    """Every key of the screen below, of its parts and of the application; then what the signs mean."""

    def __init__(self, below: Screen[object]) -> None:
        super().__init__()
        self._below = below

    def compose(self) -> ComposeResult:
        with Container():
            yield Title("Help")
            yield Rows()

    def on_mount(self) -> None:
        self._fill()
        self.query_one(Rows).focus()

    def on_resize(self) -> None:
        self._fill()

    def _fill(self) -> None:
        ink, width = self.app.ink, max(20, self.app.size.width - 4)  # type: ignore[attr-defined]  # LocalApp
        num_columns = 2 if width >= 90 else 1
        column = (width - 3 * (num_columns - 1)) // num_columns
        blocks = [_block(ink, title, rows, column) for title, rows in self._sections()]
        lines: list[Line] = []
        for start in range(0, len(blocks), num_columns):
            beside = blocks[start : start + num_columns]
            for number in range(max(map(len, beside))):
                cells = [block[number] if number < len(block) else Line() for block in beside]
                lines.append(joined([cell.fit(column) for cell in cells], 3))
            lines.append(Line())
        self.query_one(Rows).fill(lines)

    def _sections(self) -> Iterator[tuple[str, list[tuple[str, str]]]]:
        groups: dict[str, list[tuple[str, str]]] = {}
        for owner, binding in bindings_of(self._below):
            groups.setdefault(owner, []).append((key_text(binding.key), binding.tooltip or binding.description))
        yield from groups.items()
        yield "Signs", list(SIGNS)


def bindings_of(screen: Screen[object]) -> Iterator[tuple[str, Binding]]:
    """The bindings with an id of a screen, of its widgets and of the application, each once, by the area of the id."""
    seen = set()
    for node in (screen, *screen.walk_children(), screen.app):
        for bindings in node._bindings.key_to_bindings.values():
            for binding in bindings:
                if binding.id and binding.id not in seen:
                    seen.add(binding.id)
                    yield binding.id.split(".")[0].capitalize(), binding


def _block(ink: Ink, title: str, rows: list[tuple[str, str]], width: int) -> list[Line]:
    lines = [heading(ink, width, title)]
    for key, text in rows:
        for part in wrapped(text, width - 13):
            lines.append(Line((f"{key:<12}", ink("text", bold=True))).put(f" {part}", ink("muted")).fit(width))
            key = ""
    return lines


class PagedText(Overlay):
    """A long text from elsewhere: a log, a template. Lines that are too long are wrapped."""

    def __init__(self, title: str, text: str, *, at_end: bool = False) -> None:
        super().__init__()
        self._title, self._text, self._at_end = title, sanitize(text).expandtabs(4), at_end

    def compose(self) -> ComposeResult:
        with Container():
            yield Title(self._title)
            yield Rows()

    def on_mount(self) -> None:
        self._fill()
        rows = self.query_one(Rows)
        rows.focus()
        if self._at_end:
            self.call_after_refresh(rows.scroll_end, animate=False)

    def on_resize(self) -> None:
        self._fill()

    def _fill(self) -> None:
        ink: Ink = self.app.ink  # type: ignore[attr-defined]  # LocalApp
        self.query_one(Rows).fill(text_lines(ink, self._text, max(20, self.app.size.width - 5)))


def text_lines(ink: Ink, text: str, width: int) -> list[Line]:
    """Sanitized text as it stands, broken where a row ends."""
    return [Line((part, ink())) for row in text.splitlines() for part in (chop_cells(row, width) if row else [""])]
