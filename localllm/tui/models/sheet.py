"""Three lines above the footer that ask before something is done. Never a box in the middle: what it is about stays
visible."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

from textual import events
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.strip import Strip

from localllm.safe_text import one_line
from localllm.tui.drawn import Drawn
from localllm.tui.lines import Line, shortened
from localllm.tui.palette import Ink


@dataclass(frozen=True, slots=True)
class Question:
    """`yes` and `no` are what the keys do; `yes` is empty where there is only something to read."""

    sentence: str
    detail: str
    yes: str = ""
    no: str = "leave it"
    kind: Literal["warn", "err"] = "warn"


class Sheet(Drawn, can_focus=True):
    """Hidden until it asks; then it has the focus, and gives it back."""

    DEFAULT_CSS = """
    Sheet { height: 3; dock: bottom; display: none; }
    Sheet.-shown { display: block; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter,y", "answer(True)", "yes", show=False, id="sheet.yes", tooltip="Do what is asked"),
        Binding("escape,n", "answer(False)", "no", show=False, id="sheet.no", tooltip="Leave it"),
    ]

    class Closed(Message):
        """An answer was given."""

    question: Question | None = None
    _act: Callable[[], Awaitable[None]] | None = None
    _spans: tuple[tuple[int, int, bool], ...] = ()

    def ask(self, question: Question, act: Callable[[], Awaitable[None]]) -> None:
        """`act` is done when the answer is yes."""
        self.question, self._act = question, act
        self.add_class("-shown")
        self.redraw()
        self.focus()

    def draw(self, ink: Ink, width: int, height: int) -> list[Strip]:
        question = self.question
        if question is None:
            return []
        ground = "err_bg" if question.kind == "err" else "warn_bg"
        bar = (("▌ ", ink(question.kind, on=ground)),)
        sentence, detail = (shortened(one_line(text), width - 4) for text in (question.sentence, question.detail))
        lines = [
            Line(*bar).put(sentence, ink("bright", bold=True, on=ground)),
            Line(*bar).put(detail, ink("text", on=ground)),
            self._keys(question, ink, ground),
        ]
        return [line.pad_to(width, ink(on=ground)).strip(width) for line in lines]

    def _keys(self, question: Question, ink: Ink, ground: str) -> Line:
        line, spans = Line(("▌ ", ink(question.kind, on=ground))), []
        for key, label, answer in (("enter", question.yes, True), ("esc", question.no, False)):
            if not label:
                continue
            start = line.width
            line.put(key, ink("text", bold=True, on=ground)).put(f" {label}", ink("muted", on=ground))
            spans.append((start, line.width, answer))
            line.put("   ", ink(on=ground))
        self._spans = tuple(spans)
        return line

    async def action_answer(self, is_yes: bool) -> None:
        question, act = self.question, self._act
        if question is None:
            return
        self.question, self._act = None, None
        self.remove_class("-shown")
        self.post_message(self.Closed())
        if is_yes and question.yes and act is not None:
            await act()

    async def on_click(self, event: events.Click) -> None:
        if event.y != 2:
            return
        for start, end, answer in self._spans:
            if start <= event.x < end:
                await self.action_answer(answer)
                return
