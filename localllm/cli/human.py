"""Sizes, ages and tables as people read them. The formats are Ollama's, so that scripts and eyes carry over."""

import math
import textwrap
import unicodedata
from collections.abc import Sequence

from localllm.safe_text import one_line

_BYTE_UNITS = ((10**12, "TB"), (10**9, "GB"), (10**6, "MB"), (10**3, "KB"))
_GAP = 4  # columns between cells
_LEAST = 24  # columns in which sentences can be read


def size_text(size_bytes: float) -> str:
    """Decimal units: `986 B`, `1.5 KB`, `5.2 GB`, `92 MB`."""
    for unit, name in _BYTE_UNITS:
        if size_bytes >= unit:
            value = size_bytes / unit
            return f"{value:.1f} {name}" if value < 10 and value != int(value) else f"{int(value)} {name}"
    return f"{int(size_bytes)} B"


def duration_text(seconds: float) -> str:
    """A span in words: `Less than a second`, `12 seconds`, `About an hour`, `3 weeks`."""
    whole, minutes, hours = int(seconds), int(seconds / 60), math.floor(seconds / 3600 + 0.5)
    if whole < 60:
        return "Less than a second" if whole < 1 else "1 second" if whole == 1 else f"{whole} seconds"
    if minutes < 60:
        return "About a minute" if minutes == 1 else f"{minutes} minutes"
    if hours < 48:
        return "About an hour" if hours == 1 else f"{hours} hours"
    return _long_duration_text(hours, seconds)


def _long_duration_text(hours: int, seconds: float) -> str:
    if hours < 24 * 7 * 2:
        return f"{hours // 24} days"
    if hours < 24 * 30 * 2:
        return f"{hours // 24 // 7} weeks"
    if hours < 24 * 365 * 2:
        return f"{hours // 24 // 30} months"
    return f"{int(seconds / 3600 / 24 / 365)} years"


def age_text(then_s: float, now_s: float) -> str:
    """How long ago `then_s` was, or how far ahead it is; both are seconds since the epoch, 0 is `Never`."""
    if not then_s:
        return "Never"
    return f"{duration_text(now_s - then_s)} ago" if then_s <= now_s else f"{duration_text(then_s - now_s)} from now"


def stopwatch_text(seconds: float) -> str:
    """A measured time: `1.234567s`, `45.1ms`, `130ms`, `2m4.5s`."""
    nanoseconds = round(seconds * 1e9)
    for unit, name in ((1, "ns"), (10**3, "µs"), (10**6, "ms")):
        if nanoseconds < unit * 1000:
            return _trimmed(nanoseconds / unit) + name
    minutes, rest = divmod(nanoseconds, 60 * 10**9)
    hours, minutes = divmod(minutes, 60)
    head = f"{hours}h{minutes}m" if hours else f"{minutes}m" if minutes else ""
    return f"{head}{_trimmed(rest / 1e9)}s"


def _trimmed(value: float) -> str:
    return f"{value:.9f}".rstrip("0").rstrip(".")


def display_width(text: str) -> int:
    """Columns that `text` takes in a terminal: wide characters take two, combining ones none."""
    if text.isascii():
        return len(text)
    return sum(_character_width(character) for character in text)


def _character_width(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def clipped(text: str, width: int) -> str:
    """The beginning of `text` that fits in `width` columns."""
    while display_width(text) > width:
        text = text[:-1]
    return text


def padded(text: str, width: int) -> str:
    return text + " " * max(0, width - display_width(text))


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Left-aligned columns, each as wide as its widest cell and four spaces, as Ollama prints them; no rules."""
    return "".join(f"{line}\n" for line in _lines([header, *rows]))


def aligned(rows: Sequence[Sequence[str]], indent: str = "") -> str:
    """Rows of cells as padded lines without blanks at their ends, each ended by a newline. Cells are sanitized."""
    return "".join(f"{indent}{line}".rstrip() + "\n" for line in _lines(rows))


def with_sentences(rows: Sequence[Sequence[str]], columns: int) -> str:
    """As `aligned`, for rows that end with a sentence. On a terminal of `columns` (0: no terminal) that are too few,
    it goes on below itself; below its row where that would leave it hardly any room."""
    *head, last = zip(*rows, strict=True)
    lines = _lines([*zip(*head, strict=True)])
    ends = [one_line(cell) for cell in last]
    left = columns - display_width(lines[0])
    if columns < _LEAST or max(map(display_width, ends)) <= left:
        return aligned(rows)
    if left < _LEAST:
        lines = [f"{line.rstrip()}\n{' ' * _GAP}" for line in lines]
        left = columns - _GAP
    below = "\n" + " " * (columns - left)
    folded = [below.join(textwrap.wrap(end, left, break_on_hyphens=False)) for end in ends]
    return "".join(f"{line}{end}".rstrip() + "\n" for line, end in zip(lines, folded, strict=True))


def _lines(rows: Sequence[Sequence[str]]) -> list[str]:
    clean = [[one_line(cell) for cell in row] for row in rows]
    widths = [max(map(display_width, column)) + _GAP for column in zip(*clean, strict=True)]
    return ["".join(padded(cell, width) for cell, width in zip(row, widths, strict=True)) for row in clean]
