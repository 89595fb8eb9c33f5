"""The sheet that adds and removes tokenizers: those of the models here, then those that come alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, cast

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container
from textual.screen import ModalScreen
from textual.strip import Strip

from localllm import told
from localllm.errors import LocalLLMError
from localllm.safe_text import one_line
from localllm.tui import words
from localllm.tui.drawn import Drawn, DrawnList
from localllm.tui.lines import Line, cell, heading, joined
from localllm.tui.palette import Ink
from localllm.tui.tokens.state import MAX_PANELS

if TYPE_CHECKING:
    from localllm.client import PullJob
    from localllm.tui.app import LocalApp

ASK_EVERY_S = 0.5


class SheetTitle(Drawn):
    DEFAULT_CSS = """
    SheetTitle { height: 1; }
    """

    def draw(self, ink: Ink, width: int, height: int) -> list[Strip]:
        keys = (("enter", "add or take away"), ("esc", "done"))
        hints = [Line((key, ink("text", bold=True))).put(f" {label}", ink("muted")) for key, label in keys]
        return [heading(ink, width, "Tokenizers", joined(hints, 3), note="up to four", is_focused=True).strip(width)]


class TokenizerList(DrawnList):
    """A row for each; a mark at those that are shown."""

    def __init__(self, rows: Sequence[told.TokenizerRow], names: list[str]) -> None:
        super().__init__()
        self.rows = list(rows)
        self.names = names
        self.pulls: dict[str, PullJob] = {}

    def row_count(self) -> int:
        return len(self.rows)

    def draw_row(self, row: int, ink: Ink, width: int) -> Strip:
        entry = self.rows[row]
        is_cursor, is_shown = row == self.cursor, entry.name in self.names
        mark = "▌" if is_cursor else " "
        line = Line((mark, ink("accent" if self.has_focus else "muted"))).put("✓ " if is_shown else "  ", ink("accent"))
        role = "bright" if is_cursor else "text" if entry.is_here else "muted"
        line.put(cell(one_line(entry.title), max(12, width - 46)), ink(role)).put("  ")
        line.put(cell(entry.kind or words.UNKNOWN, 11), ink("muted"))
        state, state_role = self._state(entry)
        line.put(cell(state, 30), ink(state_role)).fit(width)
        return (line.fit(width).on(ink.selected) if is_cursor else line).strip(width)

    def _state(self, entry: told.TokenizerRow) -> tuple[str, str]:
        job = self.pulls.get(entry.name)
        if job is not None and job.state == "failed":
            return f"failed: {one_line(job.error.message) if job.error else ''}", "err"
        if job is not None and job.state != "done":
            share = f"  {words.percent(job.done_bytes / job.total_bytes)}" if job.total_bytes else ""
            return f"pulling{share}", "text"
        if entry.note:
            return one_line(entry.note), "warn"
        if entry.is_model:
            return "a model's", "muted"
        return ("here, without a model", "muted") if entry.is_here else ("enter pulls it", "faint")


class TokenizerSheet(ModalScreen[list[str]]):
    """Above the footer; its result are the names that are to be shown."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,a,q", "done", "done", id="tokens.sheet_done", tooltip="Back to the tokens"),
        Binding("space", "choose", "add", id="tokens.sheet_add", tooltip="Add this tokenizer, or take it away"),
    ]
    DEFAULT_CSS = """
    TokenizerSheet { background: $role-bg 0%; align: left bottom; }
    TokenizerSheet > Container {
        height: auto; max-height: 70%; background: $role-panel; padding: 1 2; margin-bottom: 1;
    }
    TokenizerSheet TokenizerList { height: auto; max-height: 14; background: $role-panel; }
    """

    def __init__(self, rows: Sequence[told.TokenizerRow], names: Sequence[str]) -> None:
        super().__init__()
        self._list = TokenizerList(rows, list(names))

    def compose(self) -> ComposeResult:
        with Container():
            yield SheetTitle()
            yield self._list

    def on_mount(self) -> None:
        self._list.styles.height = min(14, max(1, len(self._list.rows)))
        self._list.focus()
        self.set_interval(ASK_EVERY_S, self._watch)

    def action_done(self) -> None:
        self.dismiss(self._list.names)

    def action_choose(self) -> None:
        self._list.action_choose()

    async def on_drawn_list_chosen(self, message: DrawnList.Chosen) -> None:
        entry = self._list.rows[message.row]
        names = self._list.names
        if entry.name in names:
            names.remove(entry.name)
        elif not entry.is_here:
            await self._pull(entry.name)
        elif len(names) >= MAX_PANELS:
            self._app.say("Four stand side by side: take one away first")
        else:
            names.append(entry.name)
        self._list.refresh()

    @property
    def _app(self) -> LocalApp:
        return cast("LocalApp", self.app)

    async def _pull(self, name: str) -> None:
        try:
            self._list.pulls[name] = await self._app.link.ask(lambda client: client.library.pull(name))
        except LocalLLMError as error:
            self._app.complain(error)

    async def _watch(self) -> None:
        """How far the pulls are; one that is done stands among the others at once."""
        if not any(job.state not in ("done", "failed") for job in self._list.pulls.values()):
            return
        try:
            jobs = {job.model: job for job in await self._app.link.ask(lambda client: client.library.pulls())}
            rows = await self._app.link.ask(lambda client: client.tokens.tokenizers())
        except LocalLLMError:
            return  # the banner says that there is no daemon
        was = self._list.pulls
        self._list.pulls = {name: jobs.get(name, job) for name, job in was.items()}
        self._list.rows = rows
        for row in rows:
            if row.is_here and row.name in was:
                del self._list.pulls[row.name]
                if row.name not in self._list.names and len(self._list.names) < MAX_PANELS:
                    self._list.names.append(row.name)
        self._list.refill()
