"""What stderr shows while somebody waits: a bar with rate and time left, a spinner, or a line per ten percent."""

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, TextIO

from localllm.cli.human import clipped, display_width, size_text
from localllm.safe_text import one_line

if TYPE_CHECKING:
    from localllm.store.entry import PullEvent

FRAMES = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
REDRAW_S = 0.1
SAMPLES = 10  # of a second each, for the rate
MIN_BAR = 4
# the terminal shows the line when it is complete, so that nothing flickers
_BEGIN, _END = "\x1b[?2026h", "\x1b[?2026l"


class Meter:
    """How fast bytes come, from samples a second apart. What was there before does not count."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int]] = deque(maxlen=SAMPLES + 1)

    def add(self, now_s: float, done_bytes: int) -> None:
        if not self._samples or now_s - self._samples[-1][0] >= 1.0:
            self._samples.append((now_s, done_bytes))

    def rate(self, now_s: float, done_bytes: int) -> float:
        """Bytes per second; 0 until there is something to tell."""
        if not self._samples:
            return 0.0
        first_s, first_bytes = self._samples[0]
        passed_s = now_s - first_s
        return max(0.0, (done_bytes - first_bytes) / passed_s) if passed_s >= 0.5 else 0.0


def eta_text(seconds: float) -> str:
    """`4m28s`, `2h05m`, `99h+`."""
    if seconds >= 100 * 3600:
        return "99h+"
    whole = int(seconds)
    return f"{whole // 3600}h{whole % 3600 // 60}m" if whole >= 3600 else f"{whole // 60}m{whole % 60}s"


def bar_line(message: str, done: int, total: int, rate: float, width: int) -> str:
    """One line of at most `width` columns: message, percent, bar, sizes, rate and time left."""
    is_done = done >= total
    percent = f"{100 * done // total if total else 100:3d}%"
    sizes = f"{'' if is_done else size_text(done) + '/':>7}{size_text(total):<6}"
    left = eta_text((total - done) / rate) if rate > 0 and not is_done else ""
    speed = f"{size_text(rate) if rate > 0 and not is_done else '':>6}{'/s' if rate > 0 and not is_done else '  '}"
    tail = f" {sizes}  {speed}  {left:>6}"
    head = f"{message}: {percent} "
    room = width - display_width(head) - len(tail) - 3
    if room < MIN_BAR:
        return clipped(head, width).rstrip()
    filled = room * done // total if total else room
    return f"{head}▕{'█' * filled}{' ' * (room - filled)}▏{tail}"


class Progress:
    """One line on `stream` that is redrawn; where `stream` is no terminal, a line per status and per ten percent.

    Nothing shows in the first `delay_s` seconds. Use as a context manager: leaving it ends the line. Finished bars stay
    on the screen; those of a short wait (`delay_s` above 0) do not, and never go to a log file.
    """

    def __init__(
        self,
        stream: TextIO,
        *,
        is_quiet: bool = False,
        delay_s: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
        width: Callable[[], int] | None = None,
    ) -> None:
        self._stream, self._is_quiet, self._clock = stream, is_quiet, clock
        self._width = width or _terminal_width
        self._is_terminal = stream.isatty()
        self._visible_from, self._keeps_bars = clock() + delay_s, not delay_s
        self._lock = threading.RLock()
        self._ended = threading.Event()
        self._ticker: threading.Thread | None = None
        self._message, self._done, self._total, self._resumed = "", 0, 0, 0
        self._frame, self._tenth, self._is_drawn = 0, -1, False
        self._meter = Meter()

    def __enter__(self) -> "Progress":
        if self._is_terminal and not self._is_quiet:
            self._ticker = threading.Thread(target=self._tick, daemon=True)
            self._ticker.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._ticker:
            self._ticker.join()
        self.clear()

    def status(self, message: str) -> None:
        """A phase without numbers."""
        with self._lock:
            if message != self._message or self._total:
                self._leave()
                self._start(message, 0)
                self._log(message)

    def update(self, message: str, done: int, total: int, resumed: int = 0) -> None:
        """Bytes done of bytes in all; `resumed` of them were there before."""
        with self._lock:
            if (one_line(message), total) != (self._message, self._total):
                self._leave()
                self._start(message, total)
            self._meter.add(self._clock(), done - resumed)
            self._done, self._resumed = done, resumed
            self._log_tenth()

    def warn(self, message: str) -> None:
        """A line that stays above the moving one; said even when quiet."""
        with self._lock:
            self.clear()
            self._stream.write(f"Warning: {one_line(message)}\n")

    def say(self, message: str) -> None:
        """A line that stays."""
        with self._lock:
            self.clear()
            if not self._is_quiet:
                self._stream.write(f"{one_line(message)}\n")

    def keep(self) -> None:
        """Ends the moving line and leaves it on the screen."""
        with self._lock:
            if self._is_drawn or (self._total and self._shows()):
                self._draw(is_last=True)
                self._stream.write("\n")
                self._is_drawn = False

    def clear(self) -> None:
        """Takes the moving line off the screen; a finished bar stays."""
        with self._lock:
            if self._total and self._done >= self._total and self._keeps_bars:
                self.keep()
                self._total = 0
            if self._is_drawn:
                self._stream.write("\r\x1b[K")
                self._stream.flush()
                self._is_drawn = False

    def on_pull(self, event: "PullEvent") -> None:
        """Shows what the store says while it pulls."""
        if event.kind == "warning":
            self.warn(event.message)
        elif event.kind == "progress":
            self.update(event.message, event.completed_bytes, event.total_bytes, event.resumed_bytes)
        elif event.kind == "done":
            self.say(event.message)
        else:
            self.status(event.message)

    def _leave(self) -> None:
        """The line before a new one: a bar stays, a spinner is drawn over."""
        if self._total and self._keeps_bars:
            self.keep()

    def _start(self, message: str, total: int) -> None:
        self._message, self._done, self._total, self._resumed = one_line(message), 0, total, 0
        self._tenth, self._meter = -1, Meter()

    def _tick(self) -> None:
        while not self._ended.wait(REDRAW_S):
            with self._lock:
                if self._message and self._shows():
                    self._frame += 1
                    self._draw()

    def _shows(self) -> bool:
        return self._is_terminal and not self._is_quiet and self._clock() >= self._visible_from

    def _draw(self, *, is_last: bool = False) -> None:
        self._stream.write(f"{_BEGIN}\r{self._line(is_last)}\x1b[K{_END}")
        self._stream.flush()
        self._is_drawn = True

    def _line(self, is_last: bool) -> str:
        width = self._width()
        if self._total:
            rate = self._meter.rate(self._clock(), self._done - self._resumed)
            return bar_line(self._message, self._done, self._total, rate, width)
        line = self._message if is_last else f"{self._message} {FRAMES[self._frame % len(FRAMES)]}"
        return clipped(line, width - 1)

    def _log(self, line: str) -> None:
        if not (self._is_terminal or self._is_quiet) and self._keeps_bars:
            self._stream.write(one_line(line) + "\n")
            self._stream.flush()

    def _log_tenth(self) -> None:
        tenth = 10 * self._done // self._total if self._total else 10
        if tenth > self._tenth:
            self._tenth = tenth
            self._log(f"{self._message}: {10 * tenth}% of {size_text(self._total)}")


def _terminal_width() -> int:
    from shutil import get_terminal_size  # typer has it loaded anyway

    return get_terminal_size().columns
