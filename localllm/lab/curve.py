"""Points of size and divergence to look at: braille dots in a terminal, and a picture.

Pictures need matplotlib (the extra `pictures`). The vertical axis is logarithmic: divergences span decades.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from localllm.errors import UsageError

LEAST_KL = 1e-6
"""What is drawn of a divergence of 0."""
_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
"""Bits of a braille cell: its rows from the top, left and right."""
HEIGHT = 12


@dataclass(frozen=True, slots=True)
class Point:
    """A quantization: `size` in bytes, `kl` in nats."""

    name: str
    size: int
    kl: float


def drawn(points: Sequence[Point], width: int, *, is_plain: bool = False) -> list[str]:
    """Lines of a plot with a letter at each point, and a legend of the letters; nothing for fewer than two points.

    `is_plain`: where a terminal has ASCII only; the line between the points is left out then.
    """
    if len(points) < 2:
        return []
    ordered = sorted(points, key=lambda point: (point.size, point.kl))
    columns = max(16, min(width - 12, 72))
    places = _places(ordered, columns, HEIGHT)
    rows = [[" "] * columns for _ in range(HEIGHT)] if is_plain else _line(places, columns, HEIGHT)
    for index, (x, y) in enumerate(places):
        rows[round(y)][round(x)] = _mark(index)
    high, low = max(map(_height, ordered)), min(map(_height, ordered))
    labels = {0: f"{10**high:9.2g}", HEIGHT - 1: f"{10**low:9.2g}", 1: "KL, nats"}
    bar = "|" if is_plain else "│"
    lines = [f"{labels.get(row, ''):>9} {bar}{''.join(cells)}".rstrip() for row, cells in enumerate(rows)]
    left, right = (f"{point.size / 1e6:,.0f} MB" for point in (ordered[0], ordered[-1]))
    lines.append(f"{'':>9} {'+' if is_plain else '└'}{('-' if is_plain else '─') * columns}")
    lines.append(f"{'':>11}{left}{right:>{columns - len(left)}}")
    legend = [f"{_mark(index)} {point.name}" for index, point in enumerate(ordered)]
    return [*lines, *_wrapped(legend, columns + 11)]


def _mark(index: int) -> str:
    return "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"[index % 52]


def _height(point: Point) -> float:
    return math.log10(max(point.kl, LEAST_KL))


def _places(points: Sequence[Point], columns: int, height: int) -> list[tuple[float, float]]:
    """Cells from the left and from the top, not yet whole numbers."""
    sizes, heights = [point.size for point in points], [_height(point) for point in points]
    wide, tall = max(sizes) - min(sizes) or 1, max(heights) - min(heights) or 1.0
    return [
        ((size - min(sizes)) / wide * (columns - 1), (max(heights) - each) / tall * (height - 1))
        for size, each in zip(sizes, heights, strict=True)
    ]


def _line(places: Sequence[tuple[float, float]], columns: int, height: int) -> list[list[str]]:
    """Braille dots from point to point."""
    bits = [[0] * columns for _ in range(height)]
    for (x0, y0), (x1, y1) in pairwise(places):
        steps = max(1, round(max(abs(x1 - x0) * 2, abs(y1 - y0) * 4)))
        for step in range(steps + 1):
            x, y = (x0 + (x1 - x0) * step / steps) * 2, (y0 + (y1 - y0) * step / steps) * 4
            column, row = min(round(x) // 2, columns - 1), min(round(y) // 4, height - 1)
            bits[row][column] |= _DOTS[round(y) % 4][round(x) % 2]
    return [[chr(0x2800 + each) if each else " " for each in row] for row in bits]


def _wrapped(words: Sequence[str], width: int) -> list[str]:
    lines = [""]
    for word in words:
        if lines[-1] and len(lines[-1]) + len(word) + 3 > width:
            lines.append("")
        lines[-1] += f"   {word}" if lines[-1] else word
    return lines


def picture(points: Sequence[Point], title: str, path: Path) -> None:
    """The same in a file whose ending says which kind. UsageError without matplotlib, and for endings it does not
    know."""
    try:
        from matplotlib.figure import Figure  # an extra
    except ImportError:
        hint = "install it with `pip install 'localllm[pictures]'`, or leave --out away"
        raise UsageError("pictures need matplotlib, which is not installed", hint=hint) from None
    ordered = sorted(points, key=lambda point: (point.size, point.kl))
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    sizes, heights = [point.size / 1e6 for point in ordered], [max(point.kl, LEAST_KL) for point in ordered]
    axes.plot(sizes, heights, color="#9aa5b1", linewidth=1, zorder=1)
    axes.scatter(sizes, heights, color="#0b7a66", zorder=2)
    for point, size, height in zip(ordered, sizes, heights, strict=True):
        axes.annotate(point.name, (size, height), xytext=(5, 5), textcoords="offset points", fontsize=8)
    axes.margins(0.12)
    axes.set_yscale("log")
    axes.set_xlabel("size, MB")
    axes.set_ylabel("mean KL divergence, nats")
    axes.set_title(title, fontsize=10)
    axes.grid(visible=True, which="both", color="#e7e3d9", linewidth=0.5)
    try:
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} could not be written: {error}", hint="endings: .png, .svg, .pdf") from None
