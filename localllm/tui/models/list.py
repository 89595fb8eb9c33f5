"""The list of models: three titled sections, and of each model what a person needs to choose."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from textual.binding import Binding, BindingType
from textual.strip import Strip

from localllm.safe_text import one_line
from localllm.tui import words
from localllm.tui.drawn import Drawn, DrawnList
from localllm.tui.lines import Align, Line, cell, heading, shortened
from localllm.tui.models.state import TITLES, Model, ModelsState, Row, Sort, Title, Words
from localllm.tui.palette import Ink

SIZE, FIT, USED = 5, 15, 11
LEAST_NAME = 18
"""Columns that leave less to the name are left out: the model beside the list, or its page, has what they say."""
_QUANT = re.compile(r"^[A-Z]+\d+")
FIXED = 2 + SIZE + FIT + USED


def fit_words(model: Model) -> tuple[str, str, str, str]:
    """Sign, words, and the roles of both."""
    row = model.loaded
    if row is not None and row.state == "loading":
        progress = row.progress
        share = progress.done_bytes / progress.total_bytes if progress and progress.total_bytes else None
        return "◐", f"at {words.percent(share)}" if share is not None else "loading", "accent", "text"
    if row is not None and row.state == "stopping":
        return "◐", "unloading", "muted", "muted"
    if row is not None and row.state == "failed":
        return "▪", "failed", "err", "err"
    if model.refusal:
        return "○", "cannot run", "faint", "faint"
    verdict = model.fit.verdict if model.fit else "unknown"
    if verdict == "fits":
        return "●", "fits", "accent", "text"
    if verdict == "tight":
        return "◐", "tight", "warn", "warn"
    return ("○", "too large", "faint", "faint") if verdict == "too large" else (words.UNKNOWN, "", "faint", "faint")


def quant_text(tag: str) -> str:
    """`q4_K_M`, `f16`: the letters before the number whisper."""
    return _QUANT.sub(lambda found: found[0].lower(), one_line(tag)) if tag else words.UNKNOWN


def gigabytes(size_bytes: int) -> str:
    """`2.4`, `<0.1` for what is small, a dash for what is not known."""
    return "<0.1" if 0 < size_bytes < 0.05e9 else words.gigabytes(size_bytes or None)


def speed_text(speed: float, is_guess: bool) -> str:
    """`62`, `~39`, or a dash."""
    if not speed:
        return words.UNKNOWN
    return f"{'~' if is_guess else ''}{speed:,.0f}" if speed >= 9.95 else f"{'~' if is_guess else ''}{speed:.1f}"


def used_text(model: Model, pull: str, now: float) -> str:
    """The last column: streams of what runs, when the rest was used, what to do with what is not here."""
    if model.is_loaded and model.loaded is not None:
        count = model.loaded.running
        if model.loaded.state != "ready":
            return ""
        return words.plural(count, "stream") if count else "idle"
    if pull:
        return pull
    if model.is_here:
        return words.day(model.used, now) if model.used else words.UNKNOWN
    return "" if model.is_hopeless else "pull"


def selected(line: Line, ink: Ink) -> Line:
    """A row under the cursor; reversed as a whole where colours say nothing, for a patchwork says less."""
    if ink.selected.reverse:
        line = Line((line.text.replace("▌", "▸", 1), ink("bright", bold=True)))
    return line.on(ink.selected)


@dataclass(frozen=True, slots=True)
class Columns:
    """How wide the columns are that not every width has room for; 0 where one is left out."""

    name: int
    quant: int
    speed: int
    extra: tuple[tuple[str, int, Align], ...]


def columns_for(width: int) -> Columns:
    """The quantization goes first, then the speed; a wide list shows more of each model."""
    extra: tuple[tuple[str, int, Align], ...] = ()
    if width >= 110:
        extra = (("parameters", 12, "right"), ("context", 10, "right"), ("  licence", 18, "left"))
    room = width - FIXED - sum(column for _, column, _ in extra)
    speed = 7 if room - 7 >= LEAST_NAME else 0
    quant = 9 if room - speed - 9 >= LEAST_NAME else 0
    return Columns(room - speed - quant, quant, speed, extra)


def extra_values(model: Model) -> tuple[str, str, str]:
    """In the order of the columns of a wide list."""
    context = (model.installed.context_length if model.installed else 0) or (
        model.offer.context_length if model.offer else 0
    )
    parameters = (model.installed.parameters if model.installed else "") or (
        model.offer.parameters if model.offer else ""
    )
    return (
        one_line(parameters) or words.UNKNOWN,
        words.short_count(context or None),
        f"  {one_line(model.license) or words.UNKNOWN}",
    )


class ListHead(Drawn):
    """Names of the columns; that by which the list is sorted speaks louder."""

    DEFAULT_CSS = "ListHead { height: 1; }"
    sort: Sort = "name"

    def draw(self, ink: Ink, width: int, height: int) -> list[Strip]:
        line, shown = Line(("  ", ink())), columns_for(width)
        columns: tuple[tuple[str, int, Align, Sort | None], ...] = (
            ("name", shown.name, "left", "name"),
            ("quant", shown.quant, "left", None),
            ("GB", SIZE, "right", "size"),
            *((name, column, align, None) for name, column, align in shown.extra),
            ("  this machine", FIT, "left", None),
            ("tok/s", shown.speed, "right", "speed"),
            ("used", USED, "right", "used"),
        )
        for name, column, align, sort in columns:
            line.put(cell(name, column, align), ink("text" if sort == self.sort and sort != "name" else "faint"))
        return [line.strip(width)]


class ModelList(DrawnList):
    """The models of a state. The cursor stays on its model while others come and go."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding(
            "enter",
            "choose",
            "load",
            id="models.load",
            tooltip="Load the model, or pull it; in a small window: open its page",
        ),
    ]

    is_old = False
    """Whether nobody knows any more what runs: those rows are painted nearer to the ground."""

    def __init__(self, state: ModelsState) -> None:
        super().__init__(id="models-list")
        self._name = ""  # until somebody chose another one the cursor is on the first
        self.styles.scrollbar_size_vertical = 0  # the columns end on the margin; titles say how many there are
        self._state = state
        self._rows: list[Row] = []

    @property
    def model(self) -> Model | None:
        """The model under the cursor."""
        row = self._rows[self.cursor] if self.cursor < len(self._rows) else None
        return row if isinstance(row, Model) else None

    def fill(self) -> None:
        """The state has changed."""
        self._rows = self._state.rows()
        names = [row.name if isinstance(row, Model) else "" for row in self._rows]
        self.cursor = names.index(self._name) if self._name in names else self.cursor if self._name else 0
        self.refill()

    def beside(self) -> str:
        """The name of the next model of the same section, else of the one before; "" where there is none."""
        here = self.model
        names = [row.name for row in self._rows if isinstance(row, Model) and here and row.section == here.section]
        at = names.index(here.name) if here else 0
        return next(iter([*names[at + 1 : at + 2], *names[max(0, at - 1) : at]]), "")

    def select(self, name: str) -> None:
        """Puts the cursor on a model."""
        self._name = name
        self.fill()
        self.move_to(self.cursor)

    def move_to(self, row: int) -> None:
        super().move_to(row)
        self._note()
        if self.cursor <= 1:  # the first title goes with the first row
            self.scroll_to(y=0, animate=False)

    def _note(self) -> None:
        model = self.model
        self._name = model.name if model else self._name

    def row_count(self) -> int:
        return len(self._rows)

    def can_choose(self, row: int) -> bool:
        return isinstance(self._rows[row], Model)

    def draw_row(self, row: int, ink: Ink, width: int) -> Strip:
        shown = self._rows[row]
        if isinstance(shown, Title):
            title = TITLES[shown.section]
            return heading(ink, width, title, note=shown.note, is_focused=self._has_focus_in(row)).strip(width)
        if isinstance(shown, Words):
            text = shortened(shown.text, width - 2)
            return Line(("  ", ink())).put(text, ink("warn" if shown.is_warning else "muted")).strip(width)
        if shown is None:
            return Line().strip(width)
        is_at = row == self.cursor
        line = self._line(shown, ink.faded() if self.is_old and shown.is_loaded else ink, width, is_at)
        return selected(line, ink).strip(width) if is_at else line.strip(width)

    def _has_focus_in(self, row: int) -> bool:
        """Whether the cursor is in the section whose title this is: exactly one rule is accent."""
        if not self.has_focus or self.model is None:
            return False
        title = self._rows[row]
        return isinstance(title, Title) and title.section == self.model.section

    def _line(self, model: Model, ink: Ink, width: int, is_at: bool) -> Line:
        return (self._repository if model.section == "hub" else self._whole)(model, ink, width, is_at)

    def _repository(self, model: Model, ink: Ink, width: int, is_at: bool) -> Line:
        """Of the hub only names are known."""
        name = shortened(one_line(model.name).removeprefix("hf.co/"), width - USED - 4, "middle")
        line = self._mark(model, ink, is_at).put(name, ink("bright", bold=True) if is_at else ink())
        return line.pad_to(width - USED).add(self._last(model, ink))

    def _last(self, model: Model, ink: Ink) -> Line:
        pull = self._state.pull_of(model.name)
        used = used_text(model, pull_word(pull.state) if pull else "", time.time())
        return Line((cell(used, USED, "right"), ink("faint" if used in ("pull", words.UNKNOWN) else "muted")))

    def _whole(self, model: Model, ink: Ink, width: int, is_at: bool) -> Line:
        is_dim = model.is_hopeless
        text = "muted" if is_dim else "text"
        strong = model.is_loaded or is_at
        sign, said, sign_role, said_role = fit_words(model)
        speed = speed_text(model.speed, model.is_guess)
        size = gigabytes(model.size_bytes)
        shown = columns_for(width)
        line = self._mark(model, ink, is_at)
        name = cell(shortened(one_line(model.name), shown.name - 1, "middle"), shown.name)
        line.put(name, ink("bright", bold=True) if strong else ink(text))
        line.put(cell(quant_text(model.quant), shown.quant), ink("muted"))
        line.put(cell(size, SIZE, "right"), ink(text if model.size_bytes else "faint"))
        for (_, column, align), value in zip(shown.extra, extra_values(model), strict=False):
            line.put(cell(shortened(value, column), column, align), ink("muted"))
        line.put(f"  {sign} ", ink(sign_role)).put(cell(said, FIT - 4), ink(said_role))
        line.put(cell(speed, shown.speed, "right"), ink(text if model.speed else "faint"))
        return line.add(self._last(model, ink))

    def _mark(self, model: Model, ink: Ink, is_at: bool) -> Line:
        if is_at:
            return Line(("▌ ", ink("accent" if self.has_focus else "muted")))
        is_ready = model.is_loaded and model.loaded is not None and model.loaded.state == "ready"
        return Line(("▶ " if is_ready else "  ", ink("accent")))


def pull_word(state: str) -> str:
    """What the list says of a model that is on its way."""
    return {"running": "pulling", "queued": "waiting"}.get(state, state)


def titles(rows: Sequence[Row]) -> list[str]:
    """Names of the sections in a list of rows."""
    return [TITLES[row.section] for row in rows if isinstance(row, Title)]
