"""What stands where the conversation will be: one sentence, and three things to do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from textual import events
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.strip import Strip

from localllm.tui.drawn import Drawn
from localllm.tui.lines import Line, cell
from localllm.tui.palette import Ink

HIGHEST = 9
"""Rows of the picture when nothing is left out."""


@dataclass(frozen=True, slots=True)
class Offer:
    """Something to do, the key or fact beside it, and the action of the screen."""

    title: str
    note: str
    action: str


class Welcome(Drawn, can_focus=True):
    """`sentence` says which model answers, and where."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("1", "offer(0)", "first", show=False, id="welcome.first", tooltip="The first thing to do"),
        Binding("2", "offer(1)", "second", show=False, id="welcome.second", tooltip="The second thing to do"),
        Binding("3", "offer(2)", "third", show=False, id="welcome.third", tooltip="The third thing to do"),
    ]

    class Taken(Message):
        def __init__(self, action: str) -> None:
            super().__init__()
            self.action = action

    def __init__(self) -> None:
        super().__init__()
        self._sentence = ""
        self._offers: tuple[Offer, ...] = ()
        self._rows: dict[int, int] = {}

    def show(self, sentence: str, offers: tuple[Offer, ...]) -> None:
        if (sentence, offers) != (self._sentence, self._offers):
            self._sentence, self._offers = sentence, offers
            self.redraw()

    def draw(self, ink: Ink, width: int, height: int) -> list[Strip]:
        lines = [
            Line(("◆", ink("accent"))),
            Line(),
            Line(("What would you like to ask?", ink("bright", bold=True))),
            Line((self._sentence, ink("muted"))),
            Line(),
            Line(),
        ]
        if height < HIGHEST + 2:
            lines = lines[2:5]
        first = len(lines)
        title_w = max((len(offer.title) for offer in self._offers), default=0)
        note_w = max((len(offer.note) for offer in self._offers), default=0)
        title_w = max(10, min(title_w, width - note_w - 10))
        for number, offer in enumerate(self._offers, 1):
            line = Line((f"{number}   ", ink("text", bold=True))).put(cell(offer.title, title_w), ink())
            lines.append(line.put("   ").put(cell(offer.note, min(note_w, max(0, width - title_w - 7))), ink("muted")))
        above = max(0, (height - len(lines)) * 2 // 5)
        self._rows = {above + first + place: place for place in range(len(self._offers))}
        blank = Strip.blank(width)
        return [blank] * above + [centred(line, width).strip(width) for line in lines]

    def action_offer(self, place: int) -> None:
        if place < len(self._offers):
            self.post_message(self.Taken(self._offers[place].action))

    def on_click(self, event: events.Click) -> None:
        if (place := self._rows.get(event.y)) is not None:
            self.action_offer(place)


def centred(line: Line, width: int) -> Line:
    line = line.fit(width) if line.width > width else line
    return Line().pad_to((width - line.width) // 2).add(line)
