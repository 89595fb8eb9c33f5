"""Models on their way: a line each, with how much is here, how fast it comes, and how long it will take."""

from __future__ import annotations

from textual.strip import Strip

from localllm.client import PullJob
from localllm.safe_text import one_line
from localllm.tui import words
from localllm.tui.drawn import DrawnList
from localllm.tui.lines import Line, cell, gauge, heading, shortened
from localllm.tui.models.list import selected
from localllm.tui.models.state import ModelsState
from localllm.tui.palette import Ink

AMOUNT, RATE, LEFT = 17, 11, 13
LEAST_BAR = 8
SHOWN = {"compact": 2, "normal": 4, "wide": 8, "tiny": 0}
"""Rows below the heading."""


def amount_text(job: PullJob) -> str:
    """`3.0 of 4.9 GB`, `1.2 GB`, `41 of 98 MB`."""
    done, total = job.done_bytes, job.total_bytes
    if not total:
        return words.size(done) if done else words.UNKNOWN
    if done >= total:
        return words.size(total)
    if total >= 999.5e6:
        return f"{words.gigabytes(done)} of {words.gigabytes(total)} GB"
    return f"{done / 1e6:.0f} of {total / 1e6:.0f} MB"


def left_text(job: PullJob) -> str:
    """The time that is left, or the state."""
    if job.state != "running":
        return "waiting" if job.state == "queued" else job.state
    if not job.bytes_per_s or not job.total_bytes:
        return words.UNKNOWN if job.done_bytes else "starting" if job.kind == "quantize" else "connecting"
    left_s = (job.total_bytes - job.done_bytes) / job.bytes_per_s
    return f"{left_s:.0f} s left" if left_s < 59.5 else words.seconds(left_s)


def rate_text(per_s: float) -> str:
    return f"{words.size(per_s)}/s" if per_s else ""


class PullsHead(DrawnList, can_focus=False):
    """The rule above the pulls: how much comes in all, and how many at once."""

    DEFAULT_CSS = "PullsHead { height: 1; }"

    def __init__(self, state: ModelsState) -> None:
        super().__init__()
        self.styles.scrollbar_size_vertical = 0
        self._state = state
        self.is_focused_below = False

    def row_count(self) -> int:
        return 1

    def can_choose(self, row: int) -> bool:
        return False

    def draw_row(self, row: int, ink: Ink, width: int) -> Strip:
        running = [job for job in self._state.pulls if job.state == "running"]
        rate = sum(job.bytes_per_s for job in running)
        info = Line((rate_text(rate), ink())).put("   " if rate else "")
        if running:
            info.put(f"{len(running)} at once", ink("muted"))
        return heading(ink, width, "Pulls", info, is_focused=self.is_focused_below).strip(width)


class PullList(DrawnList):
    """All pulls; the cursor says which one the keys mean."""

    def __init__(self, state: ModelsState) -> None:
        super().__init__(id="models-pulls")
        self.styles.scrollbar_size_vertical = 0
        self._state = state

    @property
    def job(self) -> PullJob | None:
        jobs = self._state.pulls
        return jobs[self.cursor] if self.cursor < len(jobs) else None

    def row_count(self) -> int:
        return len(self._state.pulls)

    def draw_row(self, row: int, ink: Ink, width: int) -> Strip:
        job = self._state.pulls[row]
        is_at = row == self.cursor and self.has_focus
        line = _failed(job, ink, width) if job.error else _moving(job, ink, width)
        return selected(line, ink).strip(width) if is_at else line.strip(width)


def _name(job: PullJob, ink: Ink, width: int, role: str) -> Line:
    room = 20 if width < 100 else 24
    return Line((cell(shortened(one_line(job.model), room - 2, "middle"), room), ink(role)))


def _moving(job: PullJob, ink: Ink, width: int) -> Line:
    is_still = job.state in ("paused", "queued")
    role = "muted" if is_still else "text"
    line = _name(job, ink, width, role)
    room = width - line.width - AMOUNT - LEFT
    rate = RATE if room - RATE >= LEAST_BAR else 0  # the heading tells the rate of all
    share = job.done_bytes / job.total_bytes if job.total_bytes else 0.0
    line.add(gauge(ink, share, max(0, room - rate), "muted" if is_still else "accent"))
    line.put(cell(amount_text(job), AMOUNT, "right"), ink(role))
    line.put(cell(rate_text(job.bytes_per_s), rate, "right"), ink("muted"))
    return line.put(cell(left_text(job), LEFT, "right"), ink("accent" if job.state == "done" else "muted"))


def _failed(job: PullJob, ink: Ink, width: int) -> Line:
    """The reason where the line would be, and the key that helps."""
    line = _name(job, ink, width, "text")
    keys = Line(("p", ink("text", bold=True))).put(" again   ", ink("muted"))
    keys.put("x", ink("text", bold=True)).put(" forget", ink("muted"))
    room = width - line.width - keys.width - 3
    message = one_line(job.error.message if job.error else "").removeprefix(f"{one_line(job.model)} ")
    line.put("▪ ", ink("err")).put(cell(f"failed: {message}", room - 2), ink("err"))
    return line.pad_to(width - keys.width).add(keys)
