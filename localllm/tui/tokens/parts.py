"""What the tokens screen is made of: the text, panels, and panes drawn from its state."""

from __future__ import annotations

from typing import ClassVar

from textual.binding import Binding, BindingType
from textual.containers import Container
from textual.strip import Strip
from textual.widgets import Input, TextArea

from localllm.tui.drawn import Drawn
from localllm.tui.lines import Line, heading
from localllm.tui.palette import Ink
from localllm.tui.tokens.side import (
    NOBODY,
    compare_lines,
    fact_lines,
    template_lines,
    text_info,
    vocabulary_info,
    vocabulary_lines,
)
from localllm.tui.tokens.state import TokensState
from localllm.tui.tokens.steps import trace_lines

TALL = 18
"""Rows in which the same word is shown in a tokenizer of another kind, too."""


def key_of(
    keys: str, action: str, label: str, name: str, tooltip: str, shown_as: str = "", *, show: bool = True
) -> Binding:
    """A key of this screen; its id is `name` behind the screen's."""
    return Binding(keys, action, label, show=show, key_display=shown_as or None, tooltip=tooltip, id=f"tokens.{name}")


class TextHead(Drawn):
    """The title of the text, its size, and where it is cut off."""

    def __init__(self, state: TokensState) -> None:
        super().__init__()
        self._state = state
        self.is_focused = False

    def draw(self, ink: Ink, width: int, height: int) -> list[Strip]:
        note = "type or paste" if width >= 98 else ""
        info = text_info(ink, self._state, width)
        return [heading(ink, width, "Text", info, note=note, is_focused=self.is_focused).strip(width)]


class TextBar(Drawn):
    """The bar at the left of the text: bright where one can type."""

    is_focused = False

    def draw(self, ink: Ink, width: int, height: int) -> list[Strip]:
        return [Line(("▌", ink("accent" if self.is_focused else "line"))).strip(width)] * height


class TextField(TextArea):
    BINDINGS: ClassVar[list[BindingType]] = [
        key_of("escape", "screen.leave", "to the tokens", "leave", "From the text to the tokens"),
    ]


class Query(Input):
    BINDINGS: ClassVar[list[BindingType]] = [
        key_of("escape", "screen.leave", "to the tokens", "leave_query", "From the question to the tokens"),
        key_of("pagedown", "screen.page(1)", "next page", "query_down", "More of what was found"),
        key_of("pageup", "screen.page(-1)", "page before", "query_up", "Back in what was found", show=False),
    ]


class Pane(Drawn):
    """Some of what is known, drawn by a function of the screen."""

    def __init__(self, state: TokensState, **given: str) -> None:
        super().__init__(**given)  # type: ignore[arg-type]  # an id
        self._state = state

    def lines(self, ink: Ink, width: int, height: int) -> list[Line]:
        raise NotImplementedError

    def draw(self, ink: Ink, width: int, height: int) -> list[Strip]:
        return [line.strip(width) for line in self.lines(ink, width, height)[:height]]


class Steps(Pane):
    """How the word under the cursor was made; in a tall window the same word in a tokenizer of another kind below."""

    def lines(self, ink: Ink, width: int, height: int) -> list[Line]:
        state = self._state
        if state.trace is None:
            said = "The word under the cursor, step by step." if state.current else NOBODY if not state.names else ""
            return [heading(ink, width, "Steps"), Line((said, ink("muted")))]
        other = state.other_trace if height >= TALL else None
        if other is None:
            return trace_lines(ink, state.trace, width, height, state.lit_step)
        first = trace_lines(ink, state.trace, width, height - 8, state.lit_step)
        room = height - len(first) - 1
        below = trace_lines(ink, other, width, room, -1, title=state.title_of(other.model))
        return [*first, Line(), *below]


class Facts(Pane):
    """The token under the cursor, and the tokenizers compared."""

    def lines(self, ink: Ink, width: int, height: int) -> list[Line]:
        facts, compared = fact_lines(ink, self._state, width), compare_lines(ink, self._state, width)
        if not compared:
            return facts
        if self.screen.has_class("wide"):
            return [*compared, *[Line()] * max(1, 7 - len(compared)), *facts]
        if not self._state.splits:
            return facts
        room = height - len(compared) - 1
        return [*facts[:room], *[Line()] * max(1, height - len(facts[:room]) - len(compared)), *compared]


class VocabularyHead(Pane):
    def lines(self, ink: Ink, width: int, height: int) -> list[Line]:
        is_focused = self.screen.focused is not None and self.screen.focused.id == "query"
        return [heading(ink, width, "Vocabulary", vocabulary_info(ink, self._state), is_focused=is_focused)]


class VocabularyRows(Pane):
    def lines(self, ink: Ink, width: int, height: int) -> list[Line]:
        return vocabulary_lines(ink, self._state, width)


class Template(Pane):
    """The text as a message; it is laid out once for each answer."""

    _made_for: object = None
    _made: tuple[Line, ...] = ()

    def lines(self, ink: Ink, width: int, height: int) -> list[Line]:
        wanted = (self._state.template, self._state.template_problem, width, ink)
        if wanted != self._made_for:
            self._made, self._made_for = tuple(template_lines(ink, self._state, width)), wanted
        lines = list(self._made)
        if len(lines) <= height:
            return lines
        return [*lines[: height - 1], Line((f"… {len(lines) - height + 1} more lines", ink("faint")))]


class Panels(Container, can_focus=True):
    """The tokenizers side by side. Keys move the cursor in them."""

    BINDINGS: ClassVar[list[BindingType]] = [
        key_of("tab", "screen.turn(1)", "tokenizer", "next", "The next tokenizer, on the same characters"),
        key_of("shift+tab", "screen.turn(-1)", "tokenizer before", "before", "The tokenizer before", show=False),
        key_of("left,h", "screen.move(-1)", "token", "left", "The token before", "←→"),
        key_of("right,l", "screen.move(1)", "token after", "right", "The token after", show=False),
        key_of("up,k", "screen.move_row(-1)", "row above", "up", "The row above", show=False),
        key_of("down,j", "screen.move_row(1)", "row below", "down", "The row below", show=False),
        key_of("home", "screen.move(-10000000)", "first token", "first", "The first token", show=False),
        key_of("end", "screen.move(10000000)", "last token", "last", "The last token that is listed", show=False),
        key_of("left_square_bracket", "screen.step(-1)", "merge step", "step_back", "A step back in the word", "[ ]"),
        key_of("right_square_bracket", "screen.step(1)", "step on", "step_on", "A step on in the word", show=False),
        key_of("a", "screen.add", "add tokenizer", "add", "Add tokenizers, or take them away"),
        key_of("i", "screen.ids", "ids", "ids", "Show the ids, or chips that touch"),
        key_of("t", "screen.view('template')", "template", "template", "The text in the chat template"),
        key_of("v", "screen.view('vocabulary')", "vocabulary", "vocabulary", "The vocabulary around this token"),
        key_of("slash", "screen.look_up", "look up", "look_up", "Look a token up: text, #id or 0x bytes"),
        key_of("enter", "screen.edit", "edit text", "edit", "Back into the text"),
        key_of("pagedown", "screen.page(1)", "next page", "page_down", "More of the vocabulary", show=False),
        key_of("pageup", "screen.page(-1)", "page before", "page_up", "Back in the vocabulary", show=False),
    ]
