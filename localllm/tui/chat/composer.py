"""Where messages are typed: two to ten rows, enter sends, the prompts of before come back with the arrow up."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from textual import events
from textual.binding import Binding, BindingType
from textual.content import Content
from textual.message import Message
from textual.strip import Strip
from textual.widgets import TextArea

from localllm.history import Attachment
from localllm.safe_text import one_line, sanitize
from localllm.tui import words
from localllm.tui.drawn import Drawn
from localllm.tui.lines import Line, left_right, shortened
from localllm.tui.palette import Ink

MOST_ROWS = 10
LARGE_PASTE = 20_000
"""Characters from which a paste becomes a file of its own: nobody wants to scroll through it to go on typing."""


class Composer(TextArea):
    """`send` gets what was typed, at once: what is typed next is of the next message. `prompts` gives what was asked
    before, the latest first."""

    BINDINGS: ClassVar[list[BindingType]] = [
        # here, too, because editors have other uses for such keys; shown while there is no daemon
        Binding("f7", "screen.try_now", "try now", id="composer.try_now", tooltip="Look for the daemon now"),
        Binding("f8", "screen.start_daemon", "start the daemon", id="composer.start", tooltip="Start the daemon"),
        Binding("f9", "screen.show_log", "log", id="composer.log", tooltip="Show the end of the daemon's log"),
        Binding("enter", "send", "send", id="composer.send", tooltip="Send the message"),
        Binding("ctrl+j", "new_line", "new line", id="composer.new_line", tooltip="A new line"),
        Binding("up", "up", "before", show=False, id="composer.up", tooltip="A row up; then earlier prompts"),
        Binding("down", "down", "after", show=False, id="composer.down", tooltip="A row down; then later prompts"),
    ]  # fmt: skip

    class Pasted(Message):
        """A text that is too long to be typed on; it is not in the composer."""

        def __init__(self, text: str) -> None:
            super().__init__()
            self.text = text

    def __init__(self, send: Callable[[str], None], prompts: Callable[[], list[str]] = list) -> None:
        super().__init__(soft_wrap=True, compact=True, show_line_numbers=False, tab_behavior="focus")
        self._send, self._prompts = send, prompts
        self._past: list[str] = []
        self._place = -1
        self._own = ""

    def address(self, model: str) -> None:
        """Says who answers, while nothing is typed. Names hold no markup: Textual would read it in a plain string."""
        self.placeholder = Content(f"Message {one_line(words.model_name(model)) or 'a model'}")

    def write(self, text: str) -> None:
        """Another text, with the cursor at its end."""
        self.load_text(drawable(text))
        self.move_cursor(self.document.end)
        self._place = -1

    def action_send(self) -> None:
        self._place = -1
        self._send(self.text)

    def action_new_line(self) -> None:
        self.insert("\n")

    def action_up(self) -> None:
        row = self.wrapped_document.location_to_offset(self.cursor_location).y
        if row == 0 and not self._recall(1):
            self.action_cursor_line_start()
        elif row:
            self.action_cursor_up()

    def action_down(self) -> None:
        row = self.wrapped_document.location_to_offset(self.cursor_location).y
        if row < self.wrapped_document.height - 1 or not self._recall(-1):
            self.action_cursor_down()

    def _recall(self, step: int) -> bool:
        """The prompt so many places further back; before the latest stands what was being typed."""
        if self._place < 0:
            if step < 0:
                return False
            self._past, self._own = self._prompts(), self.text
        place = self._place + step
        if not -1 <= place < len(self._past):
            return False
        self.load_text(drawable(self._own if place < 0 else self._past[place]))
        self.move_cursor(self.document.end if step < 0 else (0, len(self.document.get_line(0))))
        self._place = place
        return True

    async def _on_key(self, event: events.Key) -> None:
        """Sends in the order of typing: a binding would run when all keys that are waiting have been typed."""
        active = None if event.is_printable else self.screen.active_bindings.get(event.key)
        if active is not None and active.node is self and active.binding.action in ("send", "new_line"):
            event.stop()
            event.prevent_default()
            self.action_send() if active.binding.action == "send" else self.action_new_line()
        elif event.key != "enter":
            await super()._on_key(event)

    async def _on_paste(self, event: events.Paste) -> None:
        if len(event.text) > LARGE_PASTE:
            event.stop()
            event.prevent_default()
            self.post_message(self.Pasted(sanitize(event.text.replace("\r\n", "\n").replace("\r", "\n"))))
            return
        clean = drawable(event.text.replace("\r\n", "\n").replace("\r", "\n"))
        if clean != event.text:
            event.stop()
            event.prevent_default()
            self.insert(clean)
            return
        await super()._on_paste(event)


def drawable(text: str) -> str:
    """As the editor may hold it: no escape sequences and no controls."""
    return sanitize(text)


class Chips(Drawn):
    """The files that go with the message, and what is being edited; nothing when there is neither."""

    DEFAULT_CSS = """
    Chips { height: 1; display: none; }
    Chips.-shown { display: block; }
    """

    class Removed(Message):
        def __init__(self, index: int) -> None:
            super().__init__()
            self.index = index

    def __init__(self) -> None:
        super().__init__()
        self.files: tuple[Attachment, ...] = ()
        self.note = ""
        self._ends: list[int] = []

    def show(self, files: tuple[Attachment, ...], note: str = "") -> None:
        self.files, self.note = files, note
        self.set_class(bool(files or note), "-shown")
        self.redraw()

    def draw(self, ink: Ink, width: int, height: int) -> list[Strip]:
        line, self._ends = Line((" ", ink())), []
        for file in self.files:
            chip = chip_of(ink, file)
            if line.width + chip.width + 2 > width:
                line.put("…", ink("muted"))
                break
            line.add(chip).put("  ")
            self._ends.append(line.width)
        hint = Line((self.note, ink("muted"))).put(" ")
        return [(left_right(line, hint, width) if line.width + hint.width <= width else line).strip(width)]

    def on_click(self, event: events.Click) -> None:
        index = next((place for place, end in enumerate(self._ends) if event.x < end), None)
        if index is not None:
            self.post_message(self.Removed(index))


def chip_of(ink: Ink, file: Attachment) -> Line:
    chip = Line((f" {shortened(one_line(file.name), 32, 'middle')} ", ink("text", on="sel")))
    told = words.plural(file.num_tokens, "token") if file.num_tokens else f"{words.count(len(file.text))} characters"
    return chip.put(f" {told} ", ink("muted", on="sel")).put("× ", ink("faint", on="sel"))
