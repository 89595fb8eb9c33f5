"""The messages of a chat: a list of which only the visible turns exist as rows, whatever its length.

It draws and says what its reader wants (`Conversation.Edit`, `.Again`, ...); it asks nobody for anything.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import ClassVar

from textual import events
from textual.binding import Binding, BindingType
from textual.message import Message

from localllm.tui import words
from localllm.tui.conversation.turns import Live, Turn
from localllm.tui.conversation.view import Spot, TurnsView

FRAME_S = 1 / 30
"""Text that arrives is drawn at most this often."""
SHARE = 3
"""When drawing takes long, so many times as long passes before the next one."""


class Conversation(TurnsView, can_focus=True, inherit_bindings=False):
    """Shows turns. `show` opens a chat, `append` adds a turn, `stream` lets the last one grow, `finish` ends it.

    It is one column (two, unless the screen is compact) wider on both sides than the text: the left one holds the
    cursor, the right one the scrollbar; so give it the margin of its neighbours less that.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("j", "move(1)", "next", id="messages.next", tooltip="The next message"),
        Binding("k", "move(-1)", "previous", id="messages.previous", tooltip="The message before"),
        Binding("e", "edit", "edit", id="messages.edit", tooltip="Edit this message; the answer branches"),
        Binding("y", "copy", "copy", id="messages.copy", tooltip="Copy this message as it was written"),
        Binding("r", "again", "again", id="messages.again", tooltip="Write this answer again, beside it"),
        Binding("t", "inspect", "tokens", id="messages.tokens", tooltip="Look at the tokens of this answer"),
        Binding(
            "enter",
            "fold",
            "thought",
            id="messages.fold",
            tooltip="Show or hide thoughts, or the rest of a message",
        ),
        Binding("up", "scroll(-1)", "up", show=False, id="messages.up", tooltip="A row up"),
        Binding("down", "scroll(1)", "down", show=False, id="messages.down", tooltip="A row down"),
        Binding("pageup", "page(-1)", "page up", show=False, id="messages.page_up", tooltip="A page up"),
        Binding("pagedown,space", "page(1)", "page down", show=False, id="messages.page_down", tooltip="A page down"),
        Binding("home,g", "first", "first", show=False, id="messages.first", tooltip="The first message"),
        Binding("end,G", "last", "last", show=False, id="messages.last", tooltip="The end; follow what is written"),
        Binding("left", "sideways(-1)", "left", show=False, id="messages.left", tooltip="Move wide code to the right"),
        Binding("right", "sideways(1)", "right", show=False, id="messages.right", tooltip="See more of wide code"),
    ]

    class Wish(Message):
        """What the reader wants done with a turn."""

        def __init__(self, sender: Conversation, turn: Turn) -> None:
            super().__init__()
            self.sender, self.turn = sender, turn

        @property
        def control(self) -> Conversation:
            return self.sender

    class Edit(Wish):
        """Edit this turn."""

    class Again(Wish):
        """Write this answer again."""

    class Inspect(Wish):
        """Look at its tokens."""

    class Sibling(Wish):
        """Show the version before (`step` -1) or after (1) this one."""

        def __init__(self, sender: Conversation, turn: Turn, step: int) -> None:
            super().__init__(sender, turn)
            self.step = step

    class Copied(Wish):
        """It is in the clipboard. `what`: `copied 8 lines`."""

        def __init__(self, sender: Conversation, turn: Turn, what: str) -> None:
            super().__init__(sender, turn)
            self.what = what

    class Moved(Wish):
        """The cursor stands on another turn."""

    def __init__(
        self, turns: Sequence[Turn] = (), *, id: str | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        super().__init__(turns, id=id, clock=clock)
        self._text, self._thought = "", ""
        self._live: Live | None = None
        self._is_waiting = False
        self._took_s = 0.0

    # ---- what a screen does with it

    def show(self, turns: Sequence[Turn], at: int | None = None) -> None:
        """Another chat, or another branch: from its end, or from the turn `at`. `turns` may read them lazily."""
        self._drop_pending()
        self.put(turns)
        if at is None:
            self.refit()
        else:
            self.go_to(at)

    def append(self, turn: Turn) -> None:
        """A turn at the end; the view follows."""
        self._flush()
        self.add(turn)
        self.action_last()

    def replace(self, index: int, turn: Turn) -> None:
        """A turn changed: other siblings, an error, figures."""
        self._flush()
        self.change(index, turn)

    def truncate(self, count: int) -> None:
        """Keeps the first `count` turns."""
        self._drop_pending()
        self.cut(count)

    def stream(self, text: str = "", reasoning: str = "") -> None:
        """The last turn, which is being written, grows. Drawn with what else arrives in the same thirtieth of a
        second."""
        self._text += text
        self._thought += reasoning
        self._draw_soon()

    def tell(self, live: Live) -> None:
        """Figures for the line under the turn that is being written."""
        self._live = live
        self._draw_soon()

    def finish(self, turn: Turn) -> None:
        """The last turn as it is kept: done, interrupted or failed."""
        self._drop_pending()
        self.change(len(self) - 1, turn)

    def num_blocks(self) -> int:
        """Code blocks that can be copied by their numbers."""
        index = self.numbered()
        return 0 if index is None else len(self.view(index).codes())

    def copy_block(self, number: int) -> bool:
        """Copies a code block, counted from 1, of the answer whose blocks carry numbers; False when it has none."""
        index = self.numbered()
        codes = [] if index is None else self.view(index).codes()
        if index is None or not 0 < number <= len(codes):
            return False
        self._copy(index, codes[number - 1])
        return True

    @property
    def turns(self) -> Sequence[Turn]:
        """With what has been streamed so far."""
        self._flush()
        return self.held

    @property
    def current(self) -> Turn | None:
        """The turn under the cursor, else the last one."""
        self._flush()
        return self.held[self._aim()] if len(self) else None

    # ---- keys and mouse

    def action_move(self, by: int) -> None:
        if not len(self):
            return
        if self.cursor is None:
            self.cursor = len(self) - 1 if by < 0 else self.first_visible()
        else:
            self.cursor = max(0, min(len(self) - 1, self.cursor + by))
        self.bring(self.cursor)
        self.post_message(self.Moved(self, self.held[self.cursor]))

    def action_edit(self) -> None:
        self._wish(self.Edit)

    def action_again(self) -> None:
        self._wish(self.Again)

    def action_inspect(self) -> None:
        self._wish(self.Inspect)

    def action_copy(self) -> None:
        if turn := self.current:
            self._copy(self._aim(), turn.text)

    def action_fold(self) -> None:
        if len(self):
            self.fold(self._aim())

    def action_scroll(self, by: int) -> None:
        self.move_rows(by)

    def action_page(self, by: int) -> None:
        self.move_rows(by * max(1, self.size.height - 2))

    def action_first(self) -> None:
        self.go_to(0)

    def action_last(self) -> None:
        """To the end, and with it while it grows."""
        self.cursor, self.is_following = None, True
        self.refit()

    def action_sideways(self, by: int) -> None:
        if (index := self.numbered()) is not None:
            for number in range(1, len(self.view(index).codes()) + 1):
                self.shift(index, number, by)

    def on_click(self, event: events.Click) -> None:
        spot = self.spot(event.x, event.y)
        if spot == "notice":
            self.action_last()
        elif spot is not None:
            self._clicked(spot)

    def on_mouse_scroll_right(self, event: events.MouseScrollRight) -> None:
        self._wheel(event, 1)

    def on_mouse_scroll_left(self, event: events.MouseScrollLeft) -> None:
        self._wheel(event, -1)

    def _wheel(self, event: events.MouseEvent, by: int) -> None:
        spot = self.spot(event.x, event.y)
        if isinstance(spot, Spot) and spot.row.code:
            self.shift(spot.index, spot.row.code, by)
            event.stop()

    def _clicked(self, spot: Spot) -> None:
        if spot.is_copy:
            self._copy(spot.index, self.view(spot.index).codes()[spot.row.code - 1])
            return
        self.cursor = spot.index
        self.repaint()
        if spot.action == "fold":
            self.fold(spot.index)
        elif spot.action:
            self.post_message(self.Sibling(self, self.held[spot.index], -1 if spot.action == "previous" else 1))

    def _aim(self) -> int:
        """Which turn a key means."""
        return len(self) - 1 if self.cursor is None else self.cursor

    def _wish(self, wish: type[Wish]) -> None:
        if turn := self.current:
            self.post_message(wish(self, turn))

    def _copy(self, index: int, text: str) -> None:
        self.app.copy_to_clipboard(text)
        lines = text.rstrip("\n").count("\n") + 1
        self.post_message(self.Copied(self, self.held[index], f"copied {words.plural(lines, 'line')}"))

    # ---- what is being written

    def _draw_soon(self) -> None:
        if not self._is_waiting and self.is_mounted:
            self._is_waiting = True
            self.set_timer(max(FRAME_S, self._took_s * SHARE), self._due)

    def _due(self) -> None:
        self._is_waiting = False
        self._flush()

    def _flush(self) -> None:
        """Draws what has arrived."""
        if not (self._text or self._thought or self._live) or not len(self):
            return
        started = time.perf_counter()
        view = self.view(len(self) - 1)
        if self._text or self._thought:
            view.write(self._text, self._thought)
            self.held[len(self) - 1] = view.turn
        if self._live:
            view.tell(self._live)
        self._text, self._thought, self._live = "", "", None
        self.grown()
        self._took_s = time.perf_counter() - started

    def _drop_pending(self) -> None:
        self._text, self._thought, self._live = "", "", None
