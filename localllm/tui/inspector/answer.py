"""The answer in the inspector: running text with heat where the model doubted, and the surprise along it."""

from __future__ import annotations

from collections.abc import Sequence

from rich.style import Style
from textual import events
from textual.message import Message
from textual.strip import Strip

from localllm.safe_text import one_line
from localllm.tui import words
from localllm.tui.drawn import Drawn
from localllm.tui.inspector.flow import Flow, Piece
from localllm.tui.inspector.inspected import InspectedAnswer, InspectedToken
from localllm.tui.inspector.measure import (
    DOUBT,
    HIGHEST_BITS,
    LABELS,
    MEASURES,
    Measure,
    Surprise,
    column_of,
    columns_of,
    step_of,
)
from localllm.tui.lines import Line, area, heading, joined, left_right
from localllm.tui.palette import Ink

WHEEL = 3
"""Rows that one notch goes."""
NEAR = 2
"""Rows around the cursor that stay in view."""


class Pointed(Message):
    """A token was clicked."""

    def __init__(self, token: int) -> None:
        super().__init__()
        self.token = token


class AnswerPanel(Drawn):
    """`cursor` is the token in question; `measure` says what the heat shows."""

    class Measured(Message):
        """Another measure was clicked."""

        def __init__(self, measure: Measure) -> None:
            super().__init__()
            self.measure = measure

    def __init__(self, answer: InspectedAnswer) -> None:
        super().__init__()
        self.answer = answer
        self.cursor = 0
        self.measure: Measure = "probability"
        self._flow = Flow(1)
        self._top = 0
        self._measures: list[tuple[int, int, Measure]] = []

    def draw(self, ink: Ink, width: int, height: int) -> list[Strip]:
        flow, air = self._flowing(width), int(height > 14)
        room = max(1, height - 2 - 2 * air)
        rows = flow.rows()
        self._scroll(flow, len(rows), room)
        blank = [Line()] * air
        shown = [self._row(ink, row) for row in rows[self._top : self._top + room]]
        text = shown + [Line()] * (room - len(shown))
        lines = [self._title(ink, width), *blank, *text, *blank, self._legend(ink, width)]
        return [line.strip(width) for line in lines]

    def on_click(self, event: events.Click) -> None:
        measure = next((name for start, end, name in self._measures if start <= event.x < end), None)
        if event.y == 0 and measure is not None:
            self.post_message(self.Measured(measure))
            return
        air = int(self.size.height > 14)
        token = self._flow.token_at(self._top + event.y - 1 - air, event.x)
        if event.y > air and event.y < self.size.height - 1 and token is not None:
            self.post_message(Pointed(token))

    def on_mouse_scroll_down(self, event: events.MouseScrollDown) -> None:
        self._wheel(event, WHEEL)

    def on_mouse_scroll_up(self, event: events.MouseScrollUp) -> None:
        self._wheel(event, -WHEEL)

    def _wheel(self, event: events.MouseEvent, rows: int) -> None:
        """The cursor goes with the text."""
        event.stop()
        last = len(self._flow.rows()) - 1
        at = max(0, min(last, self._flow.row_of(self.cursor) + rows))
        token = self._flow.token_at(at, 0)
        if token is None:  # an empty row: the next one that way has some
            token = self._flow.token_at(max(0, min(last, at + (1 if rows > 0 else -1))), 0)
        if token is not None:
            self.post_message(Pointed(token))

    # ---- its parts

    def _flowing(self, width: int) -> Flow:
        tokens = self.answer.tokens
        if self._flow.width != max(4, width) or self._flow.num_tokens > len(tokens):
            self._flow = Flow(width)
        for token in tokens[self._flow.num_tokens :]:
            self._flow.feed(token.raw)
        return self._flow

    def _scroll(self, flow: Flow, num_rows: int, room: int) -> None:
        at = flow.row_of(self.cursor) if flow.num_tokens else 0
        near = min(NEAR, (room - 1) // 2)
        self._top = min(self._top, at - near)
        self._top = max(self._top, at + near + 1 - room)
        self._top = max(0, min(self._top, num_rows - room))

    def _title(self, ink: Ink, width: int) -> Line:
        names = [Line((name, self._name_style(ink, name))) for name in MEASURES]
        info = joined(names, 3)
        at = width - info.width
        self._measures = []
        for name, line in zip(MEASURES, names, strict=True):
            self._measures.append((at, at + line.width, name))
            at += line.width + 3
        count = words.plural(len(self.answer.tokens), "token")
        note = f"{count}   ▶ writing" if self.answer.is_live else count
        return heading(ink, width, one_line(self.answer.title), info, note=note, is_focused=True)

    def _name_style(self, ink: Ink, name: Measure) -> Style:
        return ink("accent", bold=True, underline=ink.is_mono) if name == self.measure else ink("muted")

    def _row(self, ink: Ink, row: Sequence[Piece]) -> Line:
        line, tokens = Line(), self.answer.tokens
        for piece in row:
            is_current = piece.token == self.cursor
            if piece.kind == "break" and not is_current and step_of(tokens[piece.token], self.measure) < DOUBT:
                continue
            line.put(piece.text, self._style(ink, tokens[piece.token], piece, is_current))
        return line

    def _style(self, ink: Ink, token: InspectedToken, piece: Piece, is_current: bool) -> Style:
        if is_current:
            return Style(reverse=True, bold=True) if ink.is_mono else ink("on_accent", on="accent", bold=True)
        if piece.kind == "blank":
            return ink("faint")
        return heat_style(ink, step_of(token, self.measure), "muted" if token.is_reasoning else "text")

    def _legend(self, ink: Ink, width: int) -> Line:
        left = Line((f"{self.measure:<11}  ", ink("faint")))
        for step, label in enumerate(LABELS[self.measure]):
            left.put(f" {label} ", heat_style(ink, step, "text")).put(" ")
        right = Line(("n", ink("text", bold=True))).put(" next doubt", ink("muted"))
        return left_right(left, right, width) if left.width + right.width < width else left


def heat_style(ink: Ink, step: int, plain: str) -> Style:
    """Sure text stays quiet, doubt glows; without colours it is underlined, and bold in the end."""
    if ink.is_mono:
        return ink("bright" if step >= DOUBT else plain, underline=step >= DOUBT - 1, bold=step >= DOUBT)
    if step == 0:
        return ink(plain)
    return ink(ink.roles.heat_text[step], on=ink.roles.heat[step], underline=step >= DOUBT)


class SurprisePanel(Drawn):
    """How surprising each token was, in bits, over the whole answer: a map of where it hesitated."""

    DEFAULT_CSS = """
    SurprisePanel { height: 6; }
    """
    PLOT = 3

    def __init__(self, answer: InspectedAnswer) -> None:
        super().__init__()
        self.answer = answer
        self.cursor = 0
        self._surprise = Surprise()

    def draw(self, ink: Ink, width: int, height: int) -> list[Strip]:
        tokens = self.answer.tokens
        self._surprise.follow(tokens)
        lines = [Line(), self._title(ink, width)]
        at, end = columns_of(self.cursor, len(tokens), width) if tokens else (0, 1)
        lines.append(Line((" " * at, ink())).put("▾", ink("accent")))
        samples = self._surprise.columns(width)
        plot = area(ink, samples, width, self.PLOT, HIGHEST_BITS, ink.roles.heat[DOUBT]) if samples else []
        lines += [_lit(ink, line, at, end) for line in plot]
        return [line.strip(width) for line in lines]

    def on_click(self, event: events.Click) -> None:
        if event.y > 1 and self.answer.tokens:
            self.post_message(Pointed(column_of(event.x, self.size.width, len(self.answer.tokens))))

    def _title(self, ink: Ink, width: int) -> Line:
        mean = self._surprise.mean_bits
        info = Line(("mean ", ink("muted"))).put(words.UNKNOWN if mean is None else f"{mean:.2f} bits", ink())
        info.put("   doubts ", ink("muted")).put(words.count(self._surprise.num_doubts), ink())
        return heading(ink, width, "Surprise along the answer", info)


def _lit(ink: Ink, line: Line, start: int, end: int) -> Line:
    """The columns of the token in question."""
    text, style = line.text, line.segments[0].style or Style()
    return Line((text[:start], style)).put(text[start:end], ink("accent")).put(text[end:], style)
