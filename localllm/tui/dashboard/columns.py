"""Columns of the table of requests: which there are at a width, and what stands in their cells."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from rich.style import Style

from localllm.tui import words
from localllm.tui.dashboard.page_line import swatch
from localllm.tui.lines import PLAIN, Align, Line, gauge, shortened
from localllm.tui.live.events import ENDED_BY_PEOPLE
from localllm.tui.live.requests import Request, State
from localllm.tui.live.state import LiveState
from localllm.tui.palette import Ink

SLOW_QUEUE_S = 1.0
SIGNS: dict[State, tuple[str, str, str]] = {
    "queued": ("·", "muted", "queued"),
    "loading": ("◔", "warn", "loading"),
    "waiting": ("·", "muted", "waiting"),
    "prefill": ("◐", "accent", "prefill"),
    "decode": ("▶", "accent", "decode"),
    "preempted": ("▪", "err", "preempted"),
    "done": ("✓", "muted", "done"),
    "failed": ("×", "err", "failed"),
}


@dataclass(frozen=True, slots=True)
class Column:
    """`rank`: those of the highest go first where there is no room; 0 stays."""

    name: str
    width: int
    align: Align = "right"
    rank: int = 0


NORMAL = (
    Column("", 3, "left"), Column("id", 5, "left"), Column("source", 12, "left", 4), Column("state", 14, "left"),
    Column("prompt", 6, rank=1), Column("cached", 6, rank=3), Column("out", 5), Column("pages", 5, rank=2),
    Column("tok/s", 5), Column("age", 6),
)  # fmt: skip
WIDE = (
    Column("", 3, "left"), Column("id", 5, "left"), Column("model", 11, "left"), Column("source", 14, "left"),
    Column("state", 18, "left"), Column("prompt", 6), Column("cached", 6), Column("out", 5), Column("pages", 5),
    Column("tok/s", 5), Column("age", 6), Column("first token", 11), Column("queued", 7), Column("lane", 11, "left"),
)  # fmt: skip


def columns_for(width: int) -> tuple[tuple[Column, ...], int]:
    """Columns that fill the width exactly, and the gap between them."""
    columns, gap = (list(WIDE), 2) if width >= _width_of(WIDE, 2) else (list(NORMAL), 1)
    while _width_of(columns, gap) > width and any(column.rank for column in columns):
        columns.remove(max(columns, key=lambda column: column.rank))
    stretched = next((at for at, column in enumerate(columns) if column.name == "source"), 3)
    extra = max(0, width - _width_of(columns, gap))
    wider = columns[stretched]
    columns[stretched] = Column(wider.name, wider.width + extra, wider.align, wider.rank)
    return tuple(columns), gap


def _width_of(columns: Sequence[Column], gap: int) -> int:
    return sum(column.width for column in columns) + gap * (len(columns) - 2)


def head_line(ink: Ink, columns: Sequence[Column], gap: int) -> Line:
    return _joined(columns, gap, [Line((column.name, ink("faint"))) for column in columns])


def row_line(ink: Ink, state: LiveState, row: Request, columns: Sequence[Column], gap: int) -> Line:
    return _joined(columns, gap, [_CELLS[column.name](ink, state, row, column.width) for column in columns])


def _joined(columns: Sequence[Column], gap: int, cells: Sequence[Line]) -> Line:
    """No gap behind the swatch."""
    line = Line()
    for number, (column, cell) in enumerate(zip(columns, cells, strict=True)):
        line.put(" " * gap if number > 1 else "").add(_fitted(cell, column))
    return line


def _fitted(cell: Line, column: Column) -> Line:
    if len(cell.segments) != 1:
        return cell.fit(column.width, column.align)
    text, style, _ = cell.segments[0]
    return _fitted_text(text, style or PLAIN, column.width, column.align)


@lru_cache(4096)
def _fitted_text(text: str, style: Style, width: int, align: Align) -> Line:
    """Kept, as most cells say again what they said."""
    return Line((text, style)).fit(width, align)


# ---- cells


def _role(row: Request) -> Literal["text", "muted"]:
    return "muted" if row.state in ("waiting", "queued", "loading", "done") else "text"


def _text(ink: Ink, text: str, role: str) -> Line:
    return Line((text, ink("faint" if text == words.UNKNOWN else role)))


def _swatch(ink: Ink, state: LiveState, row: Request, width: int) -> Line:
    return swatch(ink, state.slot(row))


def _id(ink: Ink, state: LiveState, row: Request, width: int) -> Line:
    return _text(ink, row.name, _role(row))


def _source(ink: Ink, state: LiveState, row: Request, width: int) -> Line:
    return _text(ink, shortened(row.source or words.UNKNOWN, width), _role(row))


def _model(ink: Ink, state: LiveState, row: Request, width: int) -> Line:
    return _text(ink, shortened(row.model, width), "muted")


def state_words(row: Request) -> tuple[str, str, str]:
    """Sign, its role, and the word: what a person ended is cancelled, not failed."""
    sign, role, word = SIGNS[row.state]
    return (
        (sign, "muted", "cancelled") if row.state == "failed" and row.reason in ENDED_BY_PEOPLE else (sign, role, word)
    )


def _state(ink: Ink, state: LiveState, row: Request, width: int) -> Line:
    sign, role, word = state_words(row)
    if row.state in ("waiting", "preempted") and row.place and row.state == "waiting":
        word = f"waiting {row.place}"
    line = Line((f"{sign} ", ink(role))).put(word, ink("err" if role == "err" else _role(row)))
    if row.state == "prefill" and row.prompt:
        line.put(" ").add(gauge(ink, row.fraction(), max(3, min(8, width - line.width - 1))))
    return line


def _prompt(ink: Ink, state: LiveState, row: Request, width: int) -> Line:
    return _text(ink, words.short_count(row.prompt), _role(row))


def _cached(ink: Ink, state: LiveState, row: Request, width: int) -> Line:
    return _text(ink, words.short_count(row.cached), "muted")


def _out(ink: Ink, state: LiveState, row: Request, width: int) -> Line:
    text = words.short_count(row.out) if row.out < 10_000 else f"{row.out / 1000:.0f}k"
    return _text(ink, text if row.out else words.UNKNOWN, _role(row))


def _pages(ink: Ink, state: LiveState, row: Request, width: int) -> Line:
    return _text(ink, words.short_count(row.pages or None), _role(row))


def _speed(ink: Ink, state: LiveState, row: Request, width: int) -> Line:
    return _text(ink, words.rate(row.tokens_per_s()), _role(row))


def _age(ink: Ink, state: LiveState, row: Request, width: int) -> Line:
    return _text(ink, words.age(row.age_s(state.now)) if row.is_known else words.UNKNOWN, "muted")


def _first_token(ink: Ink, state: LiveState, row: Request, width: int) -> Line:
    return _text(ink, words.seconds(row.first_token_s), "text")


def _queued(ink: Ink, state: LiveState, row: Request, width: int) -> Line:
    if row.queued_s is None:
        return _text(ink, words.UNKNOWN, "faint")
    return _text(ink, words.seconds(row.queued_s), "warn" if row.queued_s > SLOW_QUEUE_S else "muted")


def _lane(ink: Ink, state: LiveState, row: Request, width: int) -> Line:
    return _text(ink, row.lane, "muted")


Cell = Callable[[Ink, LiveState, Request, int], Line]
_CELLS: dict[str, Cell] = {
    "": _swatch, "id": _id, "source": _source, "model": _model, "state": _state, "prompt": _prompt, "cached": _cached,
    "out": _out, "pages": _pages, "tok/s": _speed, "age": _age, "first token": _first_token, "queued": _queued,
    "lane": _lane,
}  # fmt: skip
