"""Sheets above the footer: one question at a time, with suggestions. Never a box in the middle."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.strip import Strip
from textual.widgets import Input, TextArea

from localllm.safe_text import one_line
from localllm.tui.drawn import Drawn, DrawnList
from localllm.tui.lines import Line, heading, joined, left_right, shortened
from localllm.tui.palette import Ink

MOST_OPTIONS = 8


@dataclass(frozen=True, slots=True)
class Option:
    """A suggestion: `value` is what it means, `note` stands at the right, `mark` before it."""

    value: str
    note: str = ""
    mark: str = ""
    title: str = ""

    @property
    def label(self) -> str:
        return one_line(self.title or self.value)


class SheetTitle(Drawn):
    DEFAULT_CSS = """
    SheetTitle { height: 1; }
    """

    def __init__(self, title: str, keys: tuple[tuple[str, str], ...]) -> None:
        super().__init__()
        self._title, self._keys = title, keys
        self.trouble = ""

    def draw(self, ink: Ink, width: int, height: int) -> list[Strip]:
        hints = [Line((key, ink("text", bold=True))).put(f" {label}", ink("muted")) for key, label in self._keys]
        if self.trouble:
            return [heading(ink, width, self._title, Line((self.trouble, ink("warn"))), is_focused=True).strip(width)]
        return [heading(ink, width, self._title, joined(hints, 3), is_focused=True).strip(width)]


class Options(DrawnList):
    """Suggestions; the one under the cursor is taken with enter."""

    DEFAULT_CSS = """
    Options { height: auto; max-height: 8; background: $role-panel; }
    """
    can_focus = False

    def __init__(self) -> None:
        super().__init__()
        self.options: list[Option] = []
        self.is_aimed = False
        """Whether the person has moved to a suggestion: then enter means it."""

    def fill(self, options: list[Option]) -> None:
        self.options, self.cursor, self.is_aimed = options, 0, False
        self.styles.height = max(1, min(MOST_OPTIONS, len(options))) if options else 0
        self.refill()
        self.scroll_to(y=0, animate=False, force=True)

    def row_count(self) -> int:
        return len(self.options)

    @property
    def chosen(self) -> Option | None:
        return self.options[self.cursor] if self.cursor < len(self.options) else None

    def draw_row(self, row: int, ink: Ink, width: int) -> Strip:
        option = self.options[row]
        is_chosen = row == self.cursor
        note = Line((one_line(option.note), ink("muted"))).put(" ")
        left = Line(("▌ " if is_chosen else "  ", ink("accent"))).put(
            f"{option.mark} " if option.mark else "", ink("accent")
        )
        title = shortened(option.label, max(4, width - left.width - note.width - 2))
        left.put(title, ink("bright", bold=True) if is_chosen else ink())
        line = left_right(left, note, width)
        return (line.over(ink.selected) if is_chosen else line).strip(width)


class Sheet(ModalScreen[str | None]):
    """What all sheets look like."""

    CSS_PATH = "chat.tcss"


class AskSheet(Sheet):
    """Asks for a text. `suggest` gives options for what was typed; `check` says what is wrong with an answer.

    `goes_on`: such an answer is only a part (a folder): it is put in the field, and more is asked.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "close", "close", id="sheet.close", tooltip="Close; nothing changes"),
        Binding("enter", "take", "take", id="sheet.take", tooltip="Take this"),
        Binding("tab", "complete", "complete", id="sheet.complete", tooltip="Take the suggestion over"),
        Binding("up", "aim(-1)", "up", id="sheet.up", tooltip="The suggestion above"),
        Binding("down", "aim(1)", "down", id="sheet.down", tooltip="The suggestion below"),
    ]  # fmt: skip

    def __init__(
        self,
        title: str,
        *,
        value: str = "",
        placeholder: str = "",
        suggest: Callable[[str], list[Option]] | None = None,
        check: Callable[[str], str] | None = None,
        goes_on: Callable[[str], bool] | None = None,
        is_listed: bool = False,
        action: str = "take",
    ) -> None:
        super().__init__()
        keys = (("enter", action), *([("tab", "complete")] if suggest and not is_listed else []), ("esc", "close"))
        self._title = SheetTitle(title, keys)
        self._input = Input(value, placeholder=placeholder)
        self._options = Options()
        self._suggest, self._check, self._goes_on = suggest, check, goes_on
        self._is_listed = is_listed

    def compose(self) -> ComposeResult:
        with Vertical():
            yield self._title
            yield self._input
            yield self._options

    def on_mount(self) -> None:
        self._input.focus()
        self._input.cursor_position = len(self._input.value)
        self._fill()

    def on_input_changed(self, event: Input.Changed) -> None:
        self._say("")
        self._fill()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        self.action_take()

    def on_drawn_list_chosen(self, event: DrawnList.Chosen) -> None:
        self._options.is_aimed = True
        self.action_take()

    def action_close(self) -> None:
        self.dismiss(None)

    def action_aim(self, by: int) -> None:
        if self._options.options:
            if self._options.is_aimed or self._is_listed:
                self._options.action_move(by)
            self._options.is_aimed = True

    def action_complete(self) -> None:
        if chosen := self._options.chosen:
            self._put(chosen.value)

    def action_take(self) -> None:
        chosen = self._options.chosen
        uses_option = chosen is not None and (self._is_listed or self._options.is_aimed)
        value = chosen.value if chosen is not None and uses_option else self._input.value
        if self._goes_on and self._goes_on(value):
            self._put(value)
        elif self._check and (wrong := self._check(value)):
            self._say(wrong)
        else:
            self.dismiss(value)

    def _put(self, value: str) -> None:
        self._input.value = value
        self._input.cursor_position = len(value)

    def _say(self, trouble: str) -> None:
        self._title.trouble = one_line(trouble)
        self._title.redraw()

    def _fill(self) -> None:
        self._options.fill(self._suggest(self._input.value) if self._suggest else [])


class ConfirmSheet(Sheet):
    """Asks once; the key that led here confirms."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,n", "answer('')", "keep", id="sheet.keep", tooltip="Nothing changes"),
        Binding("x,y,enter", "answer('yes')", "do it", id="sheet.confirm", tooltip="Do it"),
    ]

    def __init__(self, title: str, sentence: str, action: str) -> None:
        super().__init__()
        self._title = SheetTitle(title, (("x", action), ("esc", "keep")))
        self._sentence = sentence

    def compose(self) -> ComposeResult:
        with Vertical():
            yield self._title
            yield Sentence(self._sentence)

    def action_answer(self, answer: str) -> None:
        self.dismiss(answer or None)


class Sentence(Drawn):
    DEFAULT_CSS = """
    Sentence { height: 1; }
    """

    def __init__(self, text: str) -> None:
        super().__init__()
        self._text = one_line(text)

    def draw(self, ink: Ink, width: int, height: int) -> list[Strip]:
        return [Line((shortened(self._text, width), ink())).strip(width)]


class TextSheet(Sheet):
    """A text of several lines; leaving keeps it."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,ctrl+s", "done", "done", id="sheet.done", tooltip="Keep the text"),
    ]

    def __init__(self, title: str, text: str, placeholder: str = "") -> None:
        super().__init__()
        self._title = SheetTitle(title, (("esc", "done"),))
        self._area = TextArea(text, soft_wrap=True, compact=True, placeholder=placeholder)

    def compose(self) -> ComposeResult:
        with Vertical():
            yield self._title
            yield self._area

    def on_mount(self) -> None:
        self._area.focus()
        self._area.move_cursor(self._area.document.end)

    def action_done(self) -> None:
        self.dismiss(self._area.text)
