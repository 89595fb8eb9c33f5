"""Beside the requests in a wide window: what memory there is and who has it, and what happened lately."""

from __future__ import annotations

import time

from textual.strip import Strip

from localllm.safe_text import one_line
from localllm.tui import words
from localllm.tui.colour import mix
from localllm.tui.drawn import Drawn
from localllm.tui.lines import Line, gauge, heading, shortened
from localllm.tui.live.state import LiveState, ModelState
from localllm.tui.palette import Ink

LABEL, VALUE = 11, 20


class DevicePanel(Drawn):
    """Only what is measured: memory of the machine and of the model's process, and what the model was given."""

    DEFAULT_CSS = """
    DevicePanel { height: 7; }
    """

    def __init__(self, state: LiveState) -> None:
        super().__init__()
        self.state = state
        self.model: ModelState | None = None

    def draw(self, ink: Ink, width: int, height: int) -> list[Strip]:
        machine, row = self.state.machine, self.model.row if self.model is not None else None
        total = machine.total_bytes
        device = one_line(row.device) if row is not None else ""
        info = Line((shortened(device, max(0, width - 30)), ink())) if device else Line()
        info.put(f"  {words.gigabytes(total)} GB" if total else "", ink("muted"))
        lines = [heading(ink, width, "Device", info)]
        used = total - machine.available_bytes
        lines.append(_gauge(ink, width, "machine", used, total))
        if row is None:
            return [line.strip(width) for line in lines]
        lines.append(_gauge(ink, width, "model", row.resident_bytes, total))
        if row.memory_bytes:
            lines.append(_parts(ink, row.size_bytes, row.memory_bytes - row.size_bytes, machine.daemon_bytes))
        held = row.pages_used / row.pages_total if row.pages_total else 0.0
        lines.append(_gauge(ink, width, "pages", row.pages_used, row.pages_total, share=held, is_bytes=False))
        shot = self.model.snapshot if self.model is not None else None
        if shot is not None and shot.num_slots:
            lines.append(_gauge(ink, width, "states", shot.num_slots_used, shot.num_slots, is_bytes=False))
        lines.append(self._steps(ink))
        note = next(iter(row.notes), "")
        if note:
            lines.append(Line((shortened(one_line(note), width), ink("muted"))))
        return [line.strip(width) for line in lines[:height]]

    def _steps(self, ink: Ink) -> Line:
        shot = self.model.snapshot if self.model is not None else None
        line = Line(("last step".ljust(LABEL), ink("muted")))
        if shot is None or not shot.num_steps:
            return line.put(words.UNKNOWN, ink("faint"))
        line.put(words.seconds(shot.last_step_s), ink()).put(" for ", ink("muted"))
        return line.put(words.count(shot.last_step_tokens), ink()).put(
            " token" if shot.last_step_tokens == 1 else " tokens", ink("muted")
        )


def _gauge(
    ink: Ink, width: int, label: str, part: float, total: float, *, share: float | None = None, is_bytes: bool = True
) -> Line:
    filled = share if share is not None else part / total if total else 0.0
    text = f"{words.gigabytes(part)} of {words.gigabytes(total)} GB" if is_bytes else f"{part:,.0f} of {total:,.0f}"
    line = Line((label.ljust(LABEL), ink("muted"))).add(gauge(ink, filled, max(4, width - LABEL - VALUE)))
    return line.put(f" {text}".rjust(VALUE), ink())


def _parts(ink: Ink, weights: float, pages: float, daemon: float) -> Line:
    line = Line((" " * LABEL, ink()))
    half = mix(ink.colour("accent"), ink.colour("bg"), 0.5)
    for role, name, size in (("accent", "pages", pages), (half, "weights", weights), ("muted", "daemon", daemon)):
        line.put("   " if line.width > LABEL else "").put("▀", ink(role)).put(f" {name} ", ink("muted"))
        line.put(words.gigabytes(max(0.0, size)), ink())
    return line.put(" GB", ink("muted"))


class EventsPanel(Drawn):
    """The newest first."""

    def __init__(self, state: LiveState) -> None:
        super().__init__()
        self.state = state

    def draw(self, ink: Ink, width: int, height: int) -> list[Strip]:
        told = list(self.state.happenings)[: max(0, height - 1)]
        lines = [heading(ink, width, "Events", Line((self._span(), ink("muted"))) if told else None)]
        for each in told:
            line = Line((time.strftime("%M:%S", time.localtime(each.time)), ink("faint"))).put("  ")
            line.put(each.word.ljust(9), ink(each.role)).put(shortened(each.name, 6).ljust(7), ink())
            lines.append(line.put(shortened(each.text, width - line.width), ink("muted")))
        if not told:
            lines.append(Line(("What happens is told here.", ink("faint"))))
        return [line.strip(width) for line in lines]

    def _span(self) -> str:
        newest, oldest = self.state.happenings[0].time, self.state.happenings[-1].time
        return f"last {words.age(max(1.0, newest - oldest))}"
