"""Numbers, times and sizes as the screens write them. What is not known is a dash, never a zero."""

from __future__ import annotations

import time

UNKNOWN = "–"
MINUS = "−"


def count(number: int | None) -> str:
    """`8,192`."""
    return UNKNOWN if number is None else f"{number:,}"


def short_count(number: int | None) -> str:
    """`8,192`, but `131k` from 100,000 up: for tight columns."""
    if number is None or number < 100_000:
        return count(number)
    return f"{number / 1e3:.0f}k" if number < 999_500 else f"{number / 1e6:.1f}M"


def rate(per_s: float | None) -> str:
    """`62.4` below 100, `412` above."""
    if per_s is None:
        return UNKNOWN
    return f"{per_s:.1f}" if per_s < 99.95 else f"{per_s:,.0f}"


def seconds(span_s: float | None) -> str:
    """A measured time: `184 ms`, `6.84 s`, `2 min 50 s`, `3 h 5 min`."""
    if span_s is None:
        return UNKNOWN
    if span_s < 0.9995:
        return f"{span_s * 1000:.0f} ms"
    if span_s < 59.995:
        return f"{span_s:.2f} s"
    whole = round(span_s)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def age(span_s: float | None) -> str:
    """How old something is: `7.1 s`, `42 s`, `3 min`, `3 h`, `2 d`."""
    if span_s is None:
        return UNKNOWN
    if span_s < 9.95:
        return f"{max(0.0, span_s):.1f} s"
    for bound, unit, name in ((59.5, 1, "s"), (3570, 60, "min"), (84600, 3600, "h")):
        if span_s < bound:
            return f"{span_s / unit:.0f} {name}"
    return f"{span_s / 86400:.0f} d"


def day(then_s: float, now_s: float) -> str:
    """An age in a list of chats or models: `2 h`, `3 d`, then the month, then the year. Both since the epoch."""
    if now_s - then_s < 60:
        return "now"
    if now_s - then_s < 30 * 86400:
        return age(now_s - then_s)
    then = time.localtime(then_s)
    return time.strftime("%b" if then.tm_year == time.localtime(now_s).tm_year else "%Y", then)


def gigabytes(size_bytes: float | None) -> str:
    """`7.9`: the unit stands in the head of the column."""
    if size_bytes is None:
        return UNKNOWN
    return f"{size_bytes / 1e9:.1f}" if size_bytes < 99.95e9 else f"{size_bytes / 1e9:,.0f}"


def size(size_bytes: float | None) -> str:
    """With its unit: `7.9 GB`, `412 MB`."""
    if size_bytes is None:
        return UNKNOWN
    if size_bytes >= 999.5e6:
        return f"{gigabytes(size_bytes)} GB"
    if size_bytes >= 999.5e3:
        return f"{size_bytes / 1e6:.0f} MB" if size_bytes >= 9.95e6 else f"{size_bytes / 1e6:.1f} MB"
    return f"{size_bytes / 1e3:.0f} kB" if size_bytes >= 9.95e3 else f"{size_bytes / 1e3:.1f} kB"


def percent(share: float | None) -> str:
    return UNKNOWN if share is None else f"{share * 100:.0f} %"


def model_name(name: str) -> str:
    """A model's name; of one that is a file, the name of the file."""
    return name.replace("\\", "/").rstrip("/").rpartition("/")[2] if name.startswith(("/", ".", "~")) else name


def plural(number: int, one: str, many: str = "") -> str:
    """`1 message`, `4 messages`."""
    return f"{count(number)} {noun(number, one, many)}"


def noun(number: int, one: str, many: str = "") -> str:
    """The word behind a number: `message` or `messages`."""
    return one if number == 1 else many or one + "s"
