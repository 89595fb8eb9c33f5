"""Figures over time: the strip of key figures, throughput, and latency."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from textual.strip import Strip

from localllm.tui import words
from localllm.tui.drawn import Drawn
from localllm.tui.lines import Line, area, heading, joined, plot
from localllm.tui.live.rings import SAMPLE_S, Ring
from localllm.tui.live.state import LiveState, ModelState
from localllm.tui.palette import Ink

GAP = 3
SECOND = 10
"""Samples in a column of the strip."""
SPAN_S = 60.0
AXIS = 8
TICKS = 5
NOTHING = Ring()


@dataclass(frozen=True, slots=True)
class Figure:
    """`short` is its value and what it counts, for one line. `high` is the least that the plot's height stands for."""

    label: str
    value: str
    unit: str
    short: tuple[str, str]
    ring: Ring
    high: float
    is_fixed: bool = False


def figures_of(state: LiveState, model: ModelState | None) -> list[Figure]:
    """In their order. Without a model there are dashes."""
    rings = model.rings if model is not None else {}

    def ring(name: str) -> Ring:
        return rings.get(name, NOTHING)

    most = model.row.max_sequences if model is not None else 0
    hits, first = ring("hits").newest, ring("first_p50").newest
    total = float(state.machine.total_bytes)
    first_value, first_unit = _split(words.seconds(first))
    decode, prefill, batch, queue = (
        words.rate(ring("decode").newest), *(_whole(ring(name).newest) for name in ("prefill", "batch", "queue"))
    )  # fmt: skip
    of_most = f"of {most}" if most else ""
    return [
        Figure("Decode", decode, "tok/s", (decode, "tok/s"), ring("decode"), 20.0),
        Figure("Prefill", prefill, "tok/s", (prefill, "prefill"), ring("prefill"), 100.0),
        Figure("Batch", batch, of_most, (batch, of_most or "batch"), ring("batch"), 4.0),
        Figure("Queue", queue, "waiting", (queue, "waiting"), ring("queue"), 4.0),
        Figure("Prefix hits", _split(words.percent(hits))[0], "%", (words.percent(hits), "hits"), ring("hits"), 1.0,
               is_fixed=True),
        Figure("First token", first_value, f"{first_unit} p50".strip(), (words.seconds(first), "first"),
               ring("first_p50"), 0.1),
        Figure("Memory", words.gigabytes(state.memory.newest), f"of {words.gigabytes(total or None)} GB", ("", ""),
               state.memory, total or 1.0, is_fixed=True),
    ]  # fmt: skip


def _whole(value: float | None) -> str:
    return words.UNKNOWN if value is None else f"{value:,.0f}"


def _split(text: str) -> tuple[str, str]:
    number, _, unit = text.partition(" ")
    return number, unit


def _high(figure: Figure) -> float:
    return figure.high if figure.is_fixed else nice(max(figure.high, figure.ring.highest()))


def nice(value: float) -> float:
    """The next of 1, 1.5, 2, 3, 5 and 8 times a power of ten: an axis that seldom changes."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next((step * power for step in (1, 1.5, 2, 3, 5, 8) if step * power >= value * 0.9999), 10 * power)


class KeyFigures(Drawn):
    """One line in a compact window, else a label, a value and a plot for each."""

    DEFAULT_CSS = """
    KeyFigures { height: 4; }
    """

    def __init__(self, state: LiveState) -> None:
        super().__init__()
        self.state = state
        self.model: ModelState | None = None

    def draw(self, ink: Ink, width: int, height: int) -> list[Strip]:
        figures = figures_of(self.state, self.model)
        if height < 3:
            return [_one_line(ink, figures, width).strip(width)]
        column = (width - GAP * (len(figures) - 1)) // len(figures)
        extra = width - GAP * (len(figures) - 1) - column * len(figures)
        blocks = [_block(ink, figure, column + (number < extra), height - 2) for number, figure in enumerate(figures)]
        return [joined([block[row] for block in blocks], GAP).strip(width) for row in range(height)]


def _one_line(ink: Ink, figures: list[Figure], width: int) -> Line:
    line = Line()
    for value, name in (figure.short for figure in figures[:-1]):
        part = Line((value, ink("bright", bold=True))).put(f" {name}", ink("muted"))
        if line.width + bool(line.width) * GAP + part.width <= width:
            line.put(" " * GAP if line.width else "").add(part)
    return line


def _block(ink: Ink, figure: Figure, width: int, height: int) -> list[Line]:
    unit = figure.unit
    while unit and len(figure.value) + 1 + len(unit) > width:  # never clipped in a word
        unit = unit.rpartition(" ")[0]
    value = Line((figure.value, ink("bright", bold=True))).put(f" {unit}", ink("muted"))
    samples = figure.ring.columns(width, SECOND)
    return [
        Line((figure.label, ink("muted"))).fit(width),
        value.fit(width),
        *area(ink, samples, width, height, _high(figure)),
    ]


class Plot(Drawn):
    """A figure of the last minute with axes. Subclasses say what is plotted."""

    def __init__(self, state: LiveState) -> None:
        super().__init__()
        self.state = state
        self.model: ModelState | None = None

    def ring(self, name: str) -> Ring:
        return self.model.rings[name] if self.model is not None else NOTHING


class Throughput(Plot):
    def draw(self, ink: Ink, width: int, height: int) -> list[Strip]:
        ring = self.ring("decode")
        info = Line(("decode ", ink("muted"))).put(f"{words.rate(ring.newest)} tok/s", ink("accent", bold=True))
        columns = max(1, width - AXIS)
        samples = ring.columns(columns, _size(columns))
        high = nice(max(20.0, max((value for value in samples if value is not None), default=0.0)))
        rows = area(ink, samples, columns, height - 2, high)
        return _framed(ink, width, heading(ink, width, "Throughput", info), rows, high, lambda value: f"{value:,.0f}")


class Latency(Plot):
    """From the arrival of a request to its first token: the middle, and the slow end."""

    def draw(self, ink: Ink, width: int, height: int) -> list[Strip]:
        middle, slow = self.ring("first_p50"), self.ring("first_p95")
        info = Line(("p50 ", ink("muted"))).put(words.seconds(middle.newest), ink("accent", bold=True))
        info.put("   p95 ", ink("muted")).put(words.seconds(slow.newest), ink(bold=True))
        columns = max(1, 2 * (width - AXIS))
        size = _size(columns)
        series = [(slow.columns(columns, size), "muted"), (middle.columns(columns, size), "accent")]
        high = nice(max([0.1, *[value for values, _ in series for value in values if value is not None]]))
        rows = plot(ink, series, width - AXIS, height - 2, high)
        return _framed(ink, width, heading(ink, width, "First token", info), rows, high, words.seconds)


def _size(columns: int) -> int:
    """Samples in a column, so that a minute fills the width nearly."""
    return max(1, math.ceil(SPAN_S / SAMPLE_S / columns))


def _framed(
    ink: Ink, width: int, title: Line, rows: list[Line], high: float, write: Callable[[float], str]
) -> list[Strip]:
    """Numbers at the left, times below."""
    last = len(rows) - 1
    labels = {round(last * (1 - tick / (TICKS - 1))): high * tick / (TICKS - 1) for tick in range(TICKS)}
    lines = [title]
    for number, row in enumerate(rows):
        text = write(labels[number]) if number in labels and len(rows) >= TICKS else ""
        lines.append(Line((f"{text[: AXIS - 1]:>{AXIS - 1}} ", ink("faint"))).add(row))
    room = width - AXIS
    times = [" "] * room
    for text, ago_s in (("60 s", SPAN_S), ("30", SPAN_S / 2)):
        at = max(0, room - round(ago_s / SAMPLE_S / _size(room)))
        times[at : at + len(text)] = text
    times[-3:] = "now"
    lines.append(Line((" " * AXIS + "".join(times), ink("faint"))))
    return [line.strip(width) for line in lines]
