"""Attention maps to look at: as shades in a terminal, as a picture, and as a page in which layers and heads are chosen.

Pictures need matplotlib (the extra `pictures`); the page needs nothing and holds all maps.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from localllm.errors import UsageError
from localllm.runtime.attention import AttentionMaps

Map = NDArray[np.float32]
SHADES = " ·░▒▓█"
ASCII_SHADES = " .:*#@"
MAX_LABELS = 64
"""More names of tokens on an axis can no longer be read."""


def shades(weights: Map, pieces: Sequence[str], width: int, *, is_plain: bool = False) -> list[str]:
    """A row for each token: its name, then a cell for each token before it, darker where it looked. What does not fit
    is left out at the left, where the text began; `shades` says so in a first line."""
    marks = ASCII_SHADES if is_plain else SHADES
    label = min(16, max(map(len, pieces)))
    room = max(8, width - label - 1)
    first = max(0, len(pieces) - room)
    lines = [f"the first {first} of {len(pieces)} tokens are left out at this width"] if first else []
    top = max(float(weights.max()), 1e-9)
    for row in range(len(pieces)):
        steps = np.ceil(weights[row, first:] / top * (len(marks) - 1)).astype(int)
        lines.append(f"{pieces[row][:label]:>{label}} " + "".join(marks[step] for step in steps).rstrip())
    return lines


def picture(
    maps: AttentionMaps, pieces: Sequence[str], path: Path, layer: int | None = None, head: int | None = None
) -> None:
    """Heat maps in a file whose ending says which kind: all heads of all layers as a sheet, all heads of a layer, or
    one head with its tokens named. UsageError without matplotlib."""
    try:
        from matplotlib.figure import Figure  # an extra
    except ImportError:
        hint = "install it with `pip install 'localllm[pictures]'`, or write an .html file"
        raise UsageError("pictures need matplotlib, which is not installed", hint=hint) from None
    if layer is not None and head is not None:
        figure = Figure(figsize=(8, 8), layout="constrained")
        _one(figure.add_subplot(), maps.of(layer, head), pieces, f"layer {layer}, head {head}")
    else:
        names = maps.names if layer is None else (layer,)
        rows = [[maps.of(name, number) for number in range(_num_heads(maps, name))] for name in names]
        columns = max(map(len, rows))
        figure = Figure(figsize=(0.9 * columns + 1, 0.9 * len(rows) + 1), layout="constrained")
        axes = figure.subplots(len(rows), columns, squeeze=False)
        for y, heads in enumerate(rows):
            for x in range(columns):
                axes[y, x].set_axis_off()
                if x < len(heads):
                    axes[y, x].imshow(heads[x], cmap="viridis", vmin=0, vmax=1, interpolation="nearest")
                    axes[y, x].set_title(f"{names[y]}.{x}", fontsize=6, pad=2)
    try:
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} could not be written: {error}", hint="endings: .png, .svg, .html") from None


def _num_heads(maps: AttentionMaps, layer: int) -> int:
    maps.of(layer)  # for its error
    return len(maps.layers[maps.names.index(layer)])


def _one(axes: object, weights: Map, pieces: Sequence[str], title: str) -> None:
    axes.imshow(weights, cmap="viridis", vmin=0, interpolation="nearest")  # type: ignore[attr-defined]  # an extra's
    axes.set_title(title, fontsize=9)  # type: ignore[attr-defined]
    if len(pieces) <= MAX_LABELS:
        names = [piece.replace("$", r"\$") for piece in pieces]  # a formula to matplotlib
        axes.set_xticks(range(len(names)), names, rotation=90, fontsize=6)  # type: ignore[attr-defined]
        axes.set_yticks(range(len(names)), names, fontsize=6)  # type: ignore[attr-defined]


def page(maps: AttentionMaps, pieces: Sequence[str], title: str) -> str:
    """A self-contained page: choose layer and head, point at a token to see where it looked. Weights are kept to a
    255th."""
    layers = [
        {"name": name, "heads": [(head * 255).round().astype(int).tolist() for head in heads]}
        for name, heads in zip(maps.names, maps.layers, strict=True)
    ]
    data = json.dumps({"pieces": list(pieces), "layers": layers}).replace("<", "\\u003c")
    template = Path(__file__).with_name("attention_page.html").read_text(encoding="utf-8")
    return template.replace("%TITLE%", escape(title)).replace("%DATA%", data)
