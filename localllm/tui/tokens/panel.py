"""One tokenizer's panel: chips with their ids below, the cursor, and what lights up with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.style import Style
from textual import events
from textual.message import Message
from textual.strip import Strip

from localllm import told
from localllm.safe_text import one_line
from localllm.tui import words
from localllm.tui.drawn import Drawn
from localllm.tui.lines import Line, heading, shortened
from localllm.tui.palette import Ink
from localllm.tui.tokens.chips import chip_colours, hue_of
from localllm.tui.tokens.state import TokensState, token_text


@dataclass(frozen=True, slots=True)
class Chip:
    """A token in its row: `number` in the list, `x` where it begins, `width` of chip and id, the larger one."""

    number: int
    x: int
    width: int
    shown: str


def laid_out(split: told.SplitText, text: str, width: int, *, has_ids: bool, gap: int) -> list[list[Chip]]:
    """Rows of chips in their order; one that is wider than a row is shortened."""
    rows: list[list[Chip]] = []
    row: list[Chip] = []
    x = 0
    for number, token in enumerate(split.tokens):
        shown = shortened(token_text(token, split.kind, text) or "–", width)
        cells = max(cell_len(shown), len(str(token.id)) if has_ids else 0)
        if row and x + cells > width:
            rows.append(row)
            row, x = [], 0
        row.append(Chip(number, x, cells, shown))
        x += cells + gap
    return [*rows, row] if row else rows


class TokenPanel(Drawn):
    """Panel `number` of the state. It has no focus of its own: the group around it has."""

    class Picked(Message):
        """A click on a token; -1: on the panel only."""

        def __init__(self, panel: int, token: int) -> None:
            super().__init__()
            self.panel, self.token = panel, token

    def __init__(self, state: TokensState, number: int) -> None:
        super().__init__()
        self._state = state
        self.number = number
        self.is_focused = False
        self._top = 0
        self._rows: list[list[Chip]] = []
        self._laid_for: object = None

    def draw(self, ink: Ink, width: int, height: int) -> list[Strip]:
        if self.number >= len(self._state.names):
            return []
        lines = [self._heading(ink, width)]
        split = self._split
        if split is None or split.problem:
            lines.append(self._said(ink, split))
            return [line.fit(width).strip(width) for line in lines]
        self._lay_out(ink, split, width)
        room = max(1, (height - 1) // self._row_height)
        self._follow(room)
        for row in self._rows[self._top : self._top + room]:
            lines += self._row(ink, split, row)
        if more := self._more(ink, split, self._top + room):
            lines = [*lines[: height - 1], more]
        return [line.strip(width) for line in lines]

    # ---- parts

    @property
    def _split(self) -> told.SplitText | None:
        return self._state.splits[self.number] if self.number < len(self._state.splits) else None

    @property
    def _row_height(self) -> int:
        return 2 if self._state.shows_ids else 1

    @property
    def _is_current(self) -> bool:
        return self.number == self._state.panel

    def _said(self, ink: Ink, split: told.SplitText | None) -> Line:
        """Why there are no tokens, where they would stand."""
        problem = split.problem if split else self._state.problem
        if problem:
            return Line(("▪ ", ink("err"))).put(one_line(problem), ink("muted"))
        if self._state.text:
            return Line(("opening the tokenizer", ink("muted")))
        return Line(("Type or paste a text." if self._is_current else "", ink("muted")))

    def _heading(self, ink: Ink, width: int) -> Line:
        split, name = self._split, one_line(self._state.title(self.number))
        info = Line()
        if split is not None and not split.problem:
            info.put(words.count(split.count), ink("bright", bold=True)).put(
                f" {words.noun(split.count, 'token')}", ink("muted")
            )
            if split.count:
                each = self._state.explanation.num_chars / split.count if self._state.explanation else 0.0
                info.put(f"   {each:.1f}", ink()).put(" chars each" if width >= 44 else "", ink("muted"))
        note = split.kind if split else ""
        title = shortened(name, max(8, width - info.width - 4))
        return heading(ink, width, title, info, note=note, is_focused=self._is_current and self.is_focused)

    def _lay_out(self, ink: Ink, split: told.SplitText, width: int) -> None:
        has_ids = self._state.shows_ids
        gap = 1 if has_ids or ink.is_mono else 0
        wanted = (id(split), width, has_ids, gap)
        if wanted != self._laid_for:
            text = self._state.cut_text
            self._rows = laid_out(split, text, width, has_ids=has_ids, gap=gap)
            self._laid_for = wanted
            self._kept = split  # so that its id stays its own

    _kept: told.SplitText | None = None

    def _follow(self, room: int) -> None:
        """The token under the cursor, or what lights up with it, is in view."""
        if self._held:
            self._top = max(0, min(self._top, len(self._rows) - room))
            return
        lit = [self._state.token] if self._is_current else list(self._state.lit(self.number))[:1]
        if lit:
            row = next((n for n, chips in enumerate(self._rows) if chips[-1].number >= lit[0]), 0)
            self._top = min(self._top, row) if row < self._top else max(self._top, row - room + 1)
        self._top = max(0, min(self._top, len(self._rows) - room))

    _held = False
    """Scrolled by hand: the cursor does not pull it back until it moves."""

    def follow(self) -> None:
        """The cursor moved."""
        self._held = False

    def row_step(self, by: int) -> int:
        """How many tokens away the one above or below the cursor is."""
        now = self._state.token
        row = next((n for n, chips in enumerate(self._rows) if chips[-1].number >= now), 0)
        target = row + by
        if not 0 <= target < len(self._rows):
            return 0
        x = next((chip.x for chip in self._rows[row] if chip.number == now), 0)
        nearest = min(self._rows[target], key=lambda chip: abs(chip.x - x))
        return nearest.number - now

    def _row(self, ink: Ink, split: told.SplitText, row: Sequence[Chip]) -> list[Line]:
        lit = self._state.lit(self.number)
        above, below = Line(), Line()
        for chip in row:
            token = split.tokens[chip.number]
            is_cursor = self._is_current and chip.number == self._state.token
            is_lit = chip.number in lit
            above.pad_to(chip.x).put(chip.shown, self._chip_style(ink, chip, token, is_cursor, is_lit))
            role = "accent" if is_cursor else "bright" if is_lit else "faint"
            below.pad_to(chip.x).put(str(token.id), ink(role, bold=is_cursor or (is_lit and ink.is_mono)))
        return [above, below] if self._state.shows_ids else [above]

    def _chip_style(self, ink: Ink, chip: Chip, token: told.TextToken, is_cursor: bool, is_lit: bool) -> Style:
        line = not token.agrees and len(self._state.splits) > 1
        if is_cursor:
            if ink.is_mono:
                return Style(reverse=True, bold=True, underline=line)
            return ink("on_accent", on="accent", bold=True, underline=line)
        if token.is_special:
            return ink("accent", on="accent_bg", underline=line, bold=is_lit)
        if ink.is_mono:
            return ink("bright" if is_lit else "text", on="raised", underline=line, bold=is_lit)
        is_odd = chip.number % 2 == 1 and not self._state.shows_ids
        front, ground = chip_colours(hue_of(token.id), is_dark=ink.roles.is_dark, is_odd=is_odd)
        return ink(front, on=ground, underline=line, bold=is_lit and not self._state.shows_ids)

    def _more(self, ink: Ink, split: told.SplitText, below: int) -> Line | None:
        """At the end of a list that is cut off: where, and why."""
        if below < len(self._rows) or split.count <= len(split.tokens):
            return None
        line = Line(("… ", ink("faint"))).put(words.count(len(split.tokens)), ink())
        return line.put(f" of {words.count(split.count)} tokens are listed; counts are of all", ink("muted"))

    # ---- by mouse

    def on_click(self, event: events.Click) -> None:
        row = self._top + (event.y - 1) // self._row_height
        chips = self._rows[row] if event.y > 0 and row < len(self._rows) else []
        hit = next((chip.number for chip in chips if chip.x <= event.x < chip.x + chip.width), -1)
        self.post_message(self.Picked(self.number, hit))

    def on_mouse_scroll_down(self, event: events.MouseScrollDown) -> None:
        self._scroll(1)
        event.stop()

    def on_mouse_scroll_up(self, event: events.MouseScrollUp) -> None:
        self._scroll(-1)
        event.stop()

    def _scroll(self, by: int) -> None:
        self._held = True
        self._top = max(0, self._top + by)
        self.redraw()
