"""What a running application shows: as text, and as SVG that no font and no viewer can shift.

Blocks, rules and braille become shapes; each run of text stands at its exact place. `python -m tests.tui.pictures
IN.svg OUT.png` makes a PNG where resvg-py is installed.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from itertools import groupby
from pathlib import Path

from rich.cells import cell_len
from rich.color import Color
from rich.style import Style

from localllm.tui.app import LocalApp
from localllm.tui.colour import mix

CELL_W, CELL_H, FONT = 8.4, 18.0, 14.0
PAD = 10.0
LEFT_EIGHTHS = {character: number for number, character in enumerate("▏▎▍▌▋▊▉█", 1)}
LOW_EIGHTHS = {character: number for number, character in enumerate("▁▂▃▄▅▆▇", 1)}
SHAPES = set(LEFT_EIGHTHS) | set(LOW_EIGHTHS) | set("▀▐─━╸╺╌┄┈│")


@dataclass(frozen=True)
class Cell:
    """One cell of the screen; the second half of a wide character has no text."""

    text: str
    ink: str
    ground: str
    is_bold: bool = False
    is_italic: bool = False
    is_underlined: bool = False

    @property
    def is_shape(self) -> bool:
        return self.text in SHAPES or "\u2800" <= self.text[:1] <= "\u28ff"


def screen_text(app: LocalApp) -> str:
    """All rows, without blanks at their ends."""
    return "\n".join("".join(cell.text for cell in row).rstrip() for row in cells(app))


def cells(app: LocalApp) -> list[list[Cell]]:
    roles = app.ink.roles
    rows = []
    for strip in app.screen._compositor.render_strips():
        row: list[Cell] = []
        for segment in strip:
            for character in segment.text:
                width = cell_len(character)
                if width:
                    row.append(_cell(character, segment.style or Style(), roles.text, roles.bg))
                    row += [_cell("", segment.style or Style(), roles.text, roles.bg)] * (width - 1)
        rows.append(row)
    return rows


def _cell(text: str, style: Style, ink: str, ground: str) -> Cell:
    front, back = _colour(style.color, ink), _colour(style.bgcolor, ground)
    if style.reverse:
        front, back = back, front
    if style.dim:
        front = mix(front, back, 0.4)
    return Cell(text, front, back, bool(style.bold), bool(style.italic), bool(style.underline))


def _colour(colour: Color | None, otherwise: str) -> str:
    if colour is None or colour.is_default:
        return otherwise
    red, green, blue = colour.get_truecolor()
    return f"#{red:02x}{green:02x}{blue:02x}"


def svg(app: LocalApp, title: str = "localllm") -> str:
    """The screen as it is now."""
    rows, ground = cells(app), app.ink.roles.bg
    width, height = max(map(len, rows)) * CELL_W, len(rows) * CELL_H
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{-PAD} {-PAD} {width + 2 * PAD:.1f} {height + 2 * PAD:.1f}" '
        f'role="img" aria-label="{escape(title)}">',
        "<style>text{font-family:'JetBrains Mono','DejaVu Sans Mono',Menlo,Consolas,monospace;"
        f"font-size:{FONT}px;white-space:pre}}.b{{font-weight:700}}.i{{font-style:italic}}</style>",
        f'<rect x="{-PAD}" y="{-PAD}" width="{width + 2 * PAD:.1f}" height="{height + 2 * PAD:.1f}" rx="6" '
        f'fill="{ground}"/>',
        '<g shape-rendering="crispEdges">',
    ]
    for number, row in enumerate(rows):
        parts += _grounds(row, number * CELL_H, ground, PAD if number in (0, len(rows) - 1) else 0.0)
        parts += _shapes(row, number * CELL_H)
    parts.append("</g>")
    for number, row in enumerate(rows):
        parts += _texts(row, number * CELL_H)
    return "\n".join([*parts, "</svg>", ""])


def _runs(row: list[Cell], key: str) -> Iterator[tuple[int, list[Cell]]]:
    at = 0
    for _, group in groupby(row, lambda cell: getattr(cell, key)):
        run = list(group)
        yield at, run
        at += len(run)


def _rect(x: float, y: float, width: float, height: float, colour: str) -> str:
    return f'<rect x="{x:.2f}" y="{y:.2f}" width="{width:.2f}" height="{height:.2f}" fill="{colour}"/>'


def _grounds(row: list[Cell], y: float, ground: str, above: float) -> Iterator[str]:
    """What lies at an edge goes on to the edge of the picture."""
    for at, run in _runs(row, "ground"):
        if run[0].ground != ground:
            left = at * CELL_W - (PAD if not at else 0)
            right = (at + len(run)) * CELL_W + (PAD if at + len(run) == len(row) else 0)
            yield _rect(left, y - (above if not y else 0), right - left, CELL_H + above, run[0].ground)


def _shapes(row: list[Cell], y: float) -> Iterator[str]:
    at = 0
    for (text, ink, is_shape), group in groupby(row, lambda cell: (cell.text, cell.ink, cell.is_shape)):
        length = len(list(group))
        if is_shape:
            yield from _shape(text, at * CELL_W, y, length, ink)
        at += length


def _shape(text: str, x: float, y: float, length: int, ink: str) -> Iterator[str]:
    """A run of one character."""
    width, middle = length * CELL_W, y + CELL_H / 2
    starts = [x + number * CELL_W for number in range(length)]
    if text == "█":
        yield _rect(x, y, width, CELL_H, ink)
    elif text in LEFT_EIGHTHS:
        yield from (_rect(start, y, CELL_W * LEFT_EIGHTHS[text] / 8, CELL_H, ink) for start in starts)
    elif text in LOW_EIGHTHS:
        tall = CELL_H * LOW_EIGHTHS[text] / 8
        yield _rect(x, y + CELL_H - tall, width, tall, ink)
    elif text == "▀":
        yield _rect(x, y, width, CELL_H / 2, ink)
    elif text == "▐":
        yield from (_rect(start + CELL_W / 2, y, CELL_W / 2, CELL_H, ink) for start in starts)
    elif text in "─━":
        thick = 1.0 if text == "─" else 2.5
        yield _rect(x, middle - thick / 2, width, thick, ink)
    elif text in "╸╺":
        yield from (
            _rect(start + (CELL_W / 2 if text == "╺" else 0), middle - 1.25, CELL_W / 2, 2.5, ink) for start in starts
        )
    elif text == "│":
        yield from (_rect(start + CELL_W / 2 - 0.5, y, 1, CELL_H, ink) for start in starts)
    elif text in "╌┄┈":
        for start in starts:
            yield from (
                _rect(start + part * CELL_W / 2 + 0.8, middle - 0.5, CELL_W / 4 + 0.6, 1, ink) for part in (0, 1)
            )
    else:
        yield from (dot for start in starts for dot in _dots(text, start, y, ink))


def _dots(text: str, x: float, y: float, ink: str) -> Iterator[str]:
    places = ((0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (0, 3), (1, 3))
    for bit, (column, row) in enumerate(places):
        if (ord(text) - 0x2800) >> bit & 1:
            centre = f'cx="{x + CELL_W * (0.25 + 0.5 * column):.2f}" cy="{y + CELL_H * (0.125 + 0.25 * row):.2f}"'
            yield f'<circle {centre} r="1.25" fill="{ink}" shape-rendering="auto"/>'


def _texts(row: list[Cell], y: float) -> Iterator[str]:
    at = 0
    for look, group in groupby(row, lambda cell: (cell.ink, cell.is_bold, cell.is_italic, cell.is_underlined)):
        run = list(group)
        for offset, words in _words(run):
            yield _text(words, (at + offset) * CELL_W, y, *look)
        if look[3]:
            yield _rect(at * CELL_W, y + CELL_H - 3, len(run) * CELL_W, 1, look[0])
        at += len(run)


def _words(run: list[Cell]) -> Iterator[tuple[int, str]]:
    """Texts with their places: ASCII in one piece, everything else a character at a time, so that nothing drifts."""
    at = 0
    for is_plain, group in groupby(run, lambda cell: cell.text.isascii() and cell.text != ""):
        part = list(group)
        if is_plain:
            text = "".join(cell.text for cell in part)
            if text.strip():
                yield at + len(text) - len(text.lstrip()), text.strip()
        else:
            yield from ((at + number, cell.text) for number, cell in enumerate(part) if cell.text and not cell.is_shape)
        at += len(part)


def _text(text: str, x: float, y: float, ink: str, is_bold: bool, is_italic: bool, is_underlined: bool) -> str:
    names = " ".join(name for name, is_on in (("b", is_bold), ("i", is_italic)) if is_on)
    kind = f' class="{names}"' if names else ""
    length = f' textLength="{cell_len(text) * CELL_W:.2f}" lengthAdjust="spacingAndGlyphs"' if len(text) > 1 else ""
    place = f'x="{x:.2f}" y="{y + CELL_H - 4.6:.2f}" xml:space="preserve"'
    return f'<text {place}{length} fill="{ink}"{kind}>{escape(text)}</text>'


def png(svg_text: str, width: int = 1400) -> bytes:
    import resvg_py

    return bytes(resvg_py.svg_to_bytes(svg_string=svg_text, width=width, font_family="DejaVu Sans Mono"))


if __name__ == "__main__":
    Path(sys.argv[2]).write_bytes(png(Path(sys.argv[1]).read_text(encoding="utf-8")))
