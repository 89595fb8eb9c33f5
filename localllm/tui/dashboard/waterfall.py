"""Why a request is slow: its phases as solid bars on one axis, a sentence above them, one thing to try below."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.segment import Segment
from textual.strip import Strip

from localllm.tui import words
from localllm.tui.colour import mix
from localllm.tui.dashboard.page_line import swatch
from localllm.tui.drawn import Drawn
from localllm.tui.lines import Line, area, heading, shortened
from localllm.tui.live.requests import Request
from localllm.tui.live.state import LiveState
from localllm.tui.live.waterfall import Band, Span, Verdict, Waterfall, waterfall
from localllm.tui.palette import Ink

LABEL, VALUE = 10, 10
NARROW = 50
"""Below, the sentence takes two lines."""
STEPS_S = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1800, 3600)
ROLES = {"queued": "warn_fill", "load": "muted", "cached": "shared", "preempted": "preempted"}


class WaterfallPanel(Drawn):
    """`request` is the one it is about; None: nobody asks for anything."""

    DEFAULT_CSS = """
    WaterfallPanel { height: 1fr; }
    """

    def __init__(self, state: LiveState) -> None:
        super().__init__()
        self.state = state
        self.request: Request | None = None

    def draw(self, ink: Ink, width: int, height: int) -> list[Strip]:
        if self.request is None or width < LABEL + VALUE + 10:
            return [heading(ink, width, "Why a request is slow").strip(width)]
        shown = waterfall(self.state, self.request, width - LABEL - VALUE)
        slot = self.state.slot(self.request)
        return [line.strip(width) for line in picture(ink, shown, slot, width, height)]


def picture(ink: Ink, shown: Waterfall, slot: int | None, width: int, height: int) -> list[Line]:
    """As many lines as there is room for; the bars stay longest."""
    total_s, ticks = axis_of(shown.total_s, width - LABEL - VALUE)
    bars = width - LABEL - VALUE
    owner = ink.roles.owner(slot) if slot is not None else ink.colour("muted")
    lines = [_title(ink, shown, slot, width), *_sentence(ink, shown.verdict, width)]
    rows = [_band_line(ink, band, total_s, owner, bars) for band in shown.bands]
    room = height - len(lines) - 1 - len(rows)
    if room >= 5:
        lines.append(Line())
        room -= 1
    lines += [_axis(ink, total_s, ticks, bars), *rows]
    advice = shown.verdict.advice
    lines += _batch(ink, shown, total_s, bars, min(2, room - bool(advice)))
    if advice and len(lines) < height:
        if len(lines) + 1 < height:
            lines.append(Line())
        lines.append(Line(("Try ", ink("muted"))).put(shortened(advice, width - 4), ink()))
    return lines[:height]


def _title(ink: Ink, shown: Waterfall, slot: int | None, width: int) -> Line:
    title = f"Why {shown.name} is slow" if shown.verdict.is_slow and not shown.is_over else f"Time of {shown.name}"
    if shown.verdict.is_slow and shown.is_over:
        title = f"Why {shown.name} was slow"
    ending = "in all" if shown.is_over else "so far"
    info = Line((f"{_steady(shown.total_s, shown.is_over)} {ending} ", ink("muted"))).add(swatch(ink, slot))
    return heading(ink, width, title, info)


def _steady(span_s: float, is_over: bool) -> str:
    """Hundredths of a second are read only when they stand still."""
    return words.seconds(span_s) if is_over else words.age(span_s)


def _sentence(ink: Ink, verdict: Verdict, width: int) -> list[Line]:
    text = f"{verdict.lead} {verdict.rest}".strip()
    if len(text) <= width:
        parts = [text]
    else:
        first = text.rfind(" ", 0, width + 1)
        first = first if first > 0 else width
        parts = [text[:first], shortened(text[first:].strip(), width)]
    lines, loud = [], len(verdict.lead)
    for part in parts[: 2 if width < NARROW or len(parts) > 1 else 1]:
        cut = max(0, min(len(part), loud))
        lines.append(Line((part[:cut], ink("bright", bold=True))).put(part[cut:], ink()))
        loud -= len(part) + 1
    return lines


def axis_of(total_s: float, width: int) -> tuple[float, list[float]]:
    """The length of the axis, in whole halves of a step so that it does not crawl, and its ticks."""
    most = max(1, width // 6)
    longest = STEPS_S[-1] * math.ceil(total_s / STEPS_S[-1] / most)
    step = next((step for step in STEPS_S if step * width >= total_s * (len(_tick(step, step)) + 1.5)), longest)
    halves = max(2, math.ceil(total_s / step * 2 - 1e-9))
    return step * halves / 2, [step * number for number in range(halves // 2 + 1)]


def _tick(span_s: float, step_s: float) -> str:
    if step_s >= 60:
        return f"{span_s / 60:g} min"
    return f"{span_s:g} s" if step_s >= 1 else f"{round(span_s, 2):g} s"


def _axis(ink: Ink, total_s: float, ticks: Sequence[float], bars: int) -> Line:
    text = [" "] * (bars + VALUE)
    end = -1
    for tick in ticks:
        at, label = round(tick / total_s * bars), _tick(tick, ticks[1])
        if at > end and at + len(label) <= len(text):
            text[at : at + len(label)] = label
            end = at + len(label)
    return Line((" " * LABEL + "".join(text), ink("faint")))


def _band_line(ink: Ink, band: Band, total_s: float, owner: str, bars: int) -> Line:
    colour = owner if band.phase in ("prefill", "decode") else ink.colour(ROLES[band.phase])
    line = Line((band.phase.ljust(LABEL), ink("muted"))).add(bar(ink, band.spans, total_s, bars, colour, band.phase))
    if band.tokens is not None:
        value, role = f"{words.short_count(band.tokens)} tok", "text"
    else:
        value = words.seconds(band.total_s) if band.spans else words.UNKNOWN
        role = {"queued": "warn", "preempted": "err"}.get(band.phase, "text") if band.total_s >= 0.1 else "text"
    style = ink("faint" if value == words.UNKNOWN else role)
    return line.put(value.rjust(VALUE), style)


def bar(ink: Ink, spans: Sequence[Span], total_s: float, width: int, colour: str, phase: str = "") -> Line:
    """Spans in eighths of a cell over a dotted ground. Chunks are told apart by the gap at the end of each."""
    ground = ink(mix(ink.colour("line"), ink.colour("bg"), 0.25))
    style = ink(colour)
    cells = ["┈"] * width
    for start, end in spans:
        low, high = start / total_s * width, end / total_s * width
        if phase == "prefill" and high - low > 1.5:
            high -= 0.25
        if high - low < 0.2:
            cells[min(width - 1, int(low))] = "▏"  # a moment
            continue
        for at in range(max(0, int(low)), min(width, max(int(low) + 1, math.ceil(high)))):
            cells[at] = _block(max(low, at) - at, min(high, at + 1) - at)
    line = Line()
    for cell in cells:
        line.segments.append(Segment(cell, ground if cell == "┈" else style))
    line.width = width
    return Line().add(_merged(line))


def _block(left: float, right: float) -> str:
    """The part of a cell from `left` to `right`, as near as there are characters."""
    if left > 0.5 and right >= 0.99:
        return "▐"
    eighths = max(1, round(right * 8))
    return "█" if eighths >= 8 else " ▏▎▍▌▋▊▉"[eighths]


def _merged(line: Line) -> Line:
    merged = Line()
    for segment in line.segments:
        last = merged.segments[-1] if merged.segments else None
        if last is not None and last.style == segment.style:
            merged.segments[-1] = Segment(last.text + segment.text, last.style)
        else:
            merged.segments.append(segment)
    merged.width = line.width
    return merged


def _batch(ink: Ink, shown: Waterfall, total_s: float, bars: int, height: int) -> list[Line]:
    """How many ran beside it, on the same axis."""
    known = [value for value in shown.batch if value is not None]
    if height < 1 or not known or not shown.total_s:
        return []
    filled = max(1, round(shown.total_s / total_s * bars))
    samples = [shown.batch[at * len(shown.batch) // filled] for at in range(filled)]
    rows = area(ink, samples, filled, height, max(4.0, max(known)), "muted")
    now = f"now {shown.batch_now}" if shown.batch_now is not None and not shown.is_over else ""
    lines = []
    for number, row in enumerate(rows):
        is_last = number == height - 1
        line = Line((("batch" if is_last else "").ljust(LABEL), ink("muted"))).add(row).pad_to(LABEL + bars)
        lines.append(line.put((now if is_last else "").rjust(VALUE), ink("muted")))
    return lines
