"""The side bar: all chats by day, and the search over everything that was said in them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar

from textual import events
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.message import Message
from textual.strip import Strip
from textual.widgets import Input

from localllm.history import Chat, Hit
from localllm.safe_text import one_line
from localllm.tui import words
from localllm.tui.drawn import Drawn, DrawnList
from localllm.tui.lines import Line, left_right, shortened
from localllm.tui.palette import Ink

DAY_S = 86400.0
AGE_COLUMNS = 5
SEARCH_DELAY_S = 0.12


@dataclass(frozen=True, slots=True)
class Entry:
    """A row: a chat, or with `chat_id` None the name of the days below it."""

    title: str
    chat_id: int | None = None
    updated: float = 0.0
    message_id: int | None = None
    """Of a message that was searched for."""


def by_day(chats: Iterable[Chat], now_s: float) -> Iterator[Entry]:
    """Rows for chats that are sorted by time, the latest first, under Today, Yesterday, This month and Earlier."""
    current = ""
    for chat in chats:
        name = day_name(chat.updated, now_s)
        if name != current:
            if current:
                yield Entry("")
            yield Entry(name)
            current = name
        yield Entry(chat.title or "New chat", chat.id, chat.updated)


def day_name(then_s: float, now_s: float) -> str:
    today = time.localtime(now_s)
    midnight = time.mktime((*today[:3], 0, 0, 0, 0, 0, -1))
    if then_s >= midnight:
        return "Today"
    if then_s >= midnight - DAY_S:
        return "Yesterday"
    return "This month" if then_s >= midnight - 30 * DAY_S else "Earlier"


class ChatList(DrawnList):
    """`current` is the chat that is open, `writing` those in which an answer is being written."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("slash", "search", "search", id="chats.search", tooltip="Search everything that was said"),
        Binding("enter", "choose", "open", id="chats.open", tooltip="Open this chat"),
        Binding("f", "rename", "rename", id="chats.rename", tooltip="Give this chat another title"),
        Binding("x,delete", "remove", "remove", id="chats.remove", tooltip="Remove this chat; asks first"),
        Binding("escape", "leave", "back", id="chats.leave", tooltip="Back to the message"),
    ]

    class Wanted(Message):
        """Something is to be done: `open`, `rename`, `remove`, `search` or `leave`."""

        def __init__(self, what: str, chat_id: int | None = None, message_id: int | None = None) -> None:
            super().__init__()
            self.what, self.chat_id, self.message_id = what, chat_id, message_id

    def __init__(self, clock: Callable[[], float]) -> None:
        super().__init__()
        self._clock = clock
        self.entries: list[Entry] = []
        self.current = 0
        self.writing: frozenset[int] = frozenset()

    def fill(self, entries: list[Entry], *, keeps_place: bool = True) -> None:
        if entries != self.entries:
            chosen = self.chosen
            self.entries = entries
            rows = (row for row, entry in enumerate(entries) if entry.chat_id == chosen and chosen)
            self.cursor = next(rows, 0) if keeps_place else 0
            self.refill()

    @property
    def chosen(self) -> int | None:
        """The chat under the cursor."""
        return self.entries[self.cursor].chat_id if self.cursor < len(self.entries) else None

    def mark(self, current: int, writing: frozenset[int]) -> None:
        """Which chat is open, and in which ones something is written."""
        if (current, writing) != (self.current, self.writing):
            if current != self.current:
                rows = (row for row, entry in enumerate(self.entries) if entry.chat_id == current and current)
                self.cursor = next(rows, self.cursor)
            self.current, self.writing = current, writing
            self.refresh()

    def row_count(self) -> int:
        return len(self.entries)

    def can_choose(self, row: int) -> bool:
        return self.entries[row].chat_id is not None

    def draw_row(self, row: int, ink: Ink, width: int) -> Strip:
        entry = self.entries[row]
        if entry.chat_id is None:
            return Line(("  ", ink())).put(shortened(entry.title, width - 4), ink("faint")).strip(width)
        is_open = entry.chat_id == self.current
        is_chosen = row == self.cursor and self.has_focus
        is_marked = is_chosen or (is_open and not self.has_focus)
        title = shortened(one_line(entry.title), max(4, width - AGE_COLUMNS - 4))
        left = Line(("▌ " if is_marked else "  ", ink("accent")))
        left.put(title, ink("bright", bold=True) if is_marked or is_open else ink())
        line = left_right(left, self._sign(entry, ink, is_open).put("  "), width)
        return (line.over(ink.selected) if is_marked else line).strip(width)

    def _sign(self, entry: Entry, ink: Ink, is_open: bool) -> Line:
        if entry.chat_id in self.writing:
            return Line(("▶", ink("accent")))
        if is_open:
            return Line(("●", ink("accent")))
        return Line((words.day(entry.updated, self._clock()), ink("faint")))

    def action_choose(self) -> None:
        if self.cursor >= len(self.entries):
            return  # no chats yet
        entry = self.entries[self.cursor]
        self.post_message(self.Wanted("open", entry.chat_id, entry.message_id))

    def on_click(self, event: events.Click) -> None:
        """One click opens: there is nothing else to do with a chat by mouse."""
        row = event.y + self.scroll_offset.y
        if row < self.row_count() and self.can_choose(row):
            event.prevent_default()
            self.move_to(row)
            self.action_choose()

    def action_rename(self) -> None:
        self.post_message(self.Wanted("rename", self.chosen))

    def action_remove(self) -> None:
        self.post_message(self.Wanted("remove", self.chosen))

    def action_search(self) -> None:
        self.post_message(self.Wanted("search"))

    def action_leave(self) -> None:
        self.post_message(self.Wanted("leave"))


class Slash(Drawn):
    """The sign before the search."""

    DEFAULT_CSS = """
    Slash { width: 4; height: 1; }
    """

    def draw(self, ink: Ink, width: int, height: int) -> list[Strip]:
        is_on = self.screen.focused is not None and self.screen.focused.id == "chat-search"
        sign = ink("accent" if is_on else "text", bold=True)
        return [Line(("▌ " if is_on else "  ", ink("accent"))).put("/ ", sign).strip(width)]


class Search(Input):
    """What is looked for."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "leave", "back", id="chats.stop_search", tooltip="All chats again"),
        Binding("down,enter", "results", "results", id="chats.results", tooltip="To the chats found"),
    ]
    DEFAULT_CSS = """
    Search { width: 1fr; }
    """

    def action_leave(self) -> None:
        if self.value:
            self.value = ""
        else:
            self.post_message(ChatList.Wanted("leave"))

    def action_results(self) -> None:
        self.screen.query_one(ChatList).focus()

    def on_focus(self) -> None:
        self.screen.query_one(Slash).redraw()

    def on_blur(self) -> None:
        self.screen.query_one(Slash).redraw()


class ChatSide(Vertical):
    """Search and chats. Posts `Searched` when the person has typed, a moment later."""

    DEFAULT_CSS = """
    ChatSide { width: 30; height: 1fr; background: $role-panel; padding: 1 0; }
    ChatSide > Horizontal { height: 1; margin-bottom: 1; }
    """

    class Searched(Message):
        def __init__(self, text: str) -> None:
            super().__init__()
            self.text = text

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        super().__init__()
        self._clock = clock
        self._is_waiting = False
        self.chats, self.search = ChatList(clock), Search(placeholder="search chats", id="chat-search")

    def compose(self) -> ComposeResult:
        with Horizontal():
            yield Slash()
            yield self.search
        yield self.chats

    def show_chats(self, chats: list[Chat]) -> None:
        self.search.placeholder = f"search {words.plural(len(chats), 'chat')}" if chats else "no chats yet"
        self.chats.fill(list(by_day(chats, self._clock())))

    def show_hits(self, hits: list[Hit]) -> None:
        head = Entry(f"{words.plural(len(hits), 'chat')} found") if hits else Entry("nothing found")
        self.chats.fill(
            [head, *(Entry(hit.title, hit.chat_id, hit.updated, hit.message_id) for hit in hits)], keeps_place=False
        )

    def on_input_changed(self, event: Input.Changed) -> None:
        event.stop()
        if not self._is_waiting:
            self._is_waiting = True
            self.set_timer(SEARCH_DELAY_S, self._tell)

    def _tell(self) -> None:
        self._is_waiting = False
        self.post_message(self.Searched(self.search.value))
