"""Tables in a width: columns as wide as they need, cells wrapped where they must, rows below each other at last."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from localllm.tui.lines import Line
from localllm.tui.markdown.rows import Look
from localllm.tui.markdown.tree import Table
from localllm.tui.markdown.wrap import Span, cells, wrap

GAP = 3
NARROWEST = 6
"""Cells of a column below which a table is no table any more."""
Spans = Callable[[str], list[Span]]
Kept = Callable[[object, Callable[[], list[Line]]], list[Line]]


def table_lines(table: Table, look: Look, spans: Spans, kept: Kept) -> list[Line]:
    """`spans` reads the text of a cell; `kept` makes what was not made for the picture before."""
    grid = [[spans(text) for text in texts] for texts in table.rows]
    sizes = [[_width(cell) for cell in row] for row in grid]
    wanted = [max(column) for column in zip(*sizes, strict=True)]
    room = look.width - GAP * (len(wanted) - 1)
    if sum(wanted) > room and room < NARROWEST * len(wanted):
        return _records(grid, look)
    widths = _shares(wanted, room)
    head, *body = [
        kept(
            ("row", texts, tuple(widths), look, number == 0),
            partial(_row, read, widths, table.aligns, look, number == 0),
        )
        for number, (texts, read) in enumerate(zip(table.rows, grid, strict=True))
    ]
    rule = Line(("─" * (sum(widths) + GAP * (len(widths) - 1)), look.ink("line")))
    return [*head, rule, *(line for lines in body for line in lines)]


def _width(spans: list[Span]) -> int:
    """Of the widest line of a cell; at least 1, so that empty columns stand."""
    text = "".join(text for text, _ in spans)
    return max(1, *(cells(line) for line in text.split("\n")))


def _shares(wanted: list[int], room: int) -> list[int]:
    """What columns get: narrow ones what they want, the wide ones the same share of the rest."""
    if sum(wanted) <= room:
        return wanted
    widths, left = list(wanted), sorted(range(len(wanted)), key=wanted.__getitem__)
    while left:
        share = max(2, room // len(left))
        column = left.pop(0)
        widths[column] = min(wanted[column], share)
        room -= widths[column]
    return widths


def _row(texts: list[list[Span]], widths: list[int], aligns: tuple[str, ...], look: Look, is_head: bool) -> list[Line]:
    columns = [wrap(spans, max(2, width)) for spans, width in zip(texts, widths, strict=True)]
    lines = []
    for level in range(max(map(len, columns))):
        line = Line()
        for number, (column, width, align) in enumerate(zip(columns, widths, aligns, strict=True)):
            part = column[level] if level < len(column) else Line()
            line.put(" " * GAP if number else "").add(_aligned(part, width, align))
        lines.append(line.on(look.ink("muted", bold=True)).over(look.ink("muted", bold=True)) if is_head else line)
    return lines


def _aligned(line: Line, width: int, align: str) -> Line:
    room = max(0, width - line.width)
    left = room if align == "right" else room // 2 if align == "center" else 0
    return Line().put(" " * left).add(line).put(" " * (room - left))


def _records(grid: list[list[list[Span]]], look: Look) -> list[Line]:
    """Too many columns: each row as lines of `head  value`."""
    heads, *rows = grid
    lines: list[Line] = []
    none: list[list[Span]] = [[] for _ in heads]
    for number, texts in enumerate(rows or [none]):
        lines += [Line()] if number else []
        for head, value in zip(heads, texts, strict=True):
            name = "".join(text for text, _ in head).replace("\n", " ")
            lines += wrap([(f"{name}  " if name else "", look.ink("muted", bold=True)), *value], look.width)
    return lines
