"""Changed cells on their way to the terminal in one go, past the compositor.

For a few changed cells the compositor asks every widget of the screen for all its rows, cuts them at every edge, and
throws most of it away; its timers and messages wake the process four times for one picture. Where a widget lies open
and nothing is about to move, what changed can be written where it stands. Anywhere else it is left to the compositor,
which asks the widgets again and so never knows less than was written here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from textual._compositor import CompositorUpdate
from textual.geometry import Offset, Region
from textual.screen import Screen
from textual.widget import Widget


class Picture:
    """The short way of one screen: `begin`, `put` as much as there is, `show` it."""

    def __init__(self, screen: Screen[Any]) -> None:
        self._screen = screen
        self._visible: Mapping[Widget, tuple[Region, Region]] = {}
        self._open: Mapping[Widget, Region] = {}
        self._is_at_rest = False
        self._parts: list[str] = []

    def begin(self) -> Picture:
        self._parts = []
        self._is_at_rest = _is_at_rest(self._screen)
        if self._is_at_rest and self._screen._compositor.visible_widgets is not self._visible:  # arranged anew
            self._visible = self._screen._compositor.visible_widgets
            self._open = open_among(self._visible)
        return self

    def place_of(self, widget: Widget) -> Offset | None:
        """Where its first cell is, if it is seen whole and what is written there stays; else None."""
        region = self._open.get(widget) if self._is_at_rest else None
        return region.offset if region is not None and region.size == widget.size else None

    def put(self, x: int, y: int, written: str) -> None:
        """What the terminal is told from a cell on."""
        self._parts.append(f"\x1b[{y + 1};{x + 1}H{written}")

    def show(self) -> None:
        if self._parts:
            told = _Written("".join(self._parts))
            self._screen.app._display(self._screen, told)  # type: ignore[arg-type]  # as with its own updates


class _Written(CompositorUpdate):
    def __init__(self, text: str) -> None:
        self._text = text

    def render_segments(self, console: object) -> str:
        return self._text


def _is_at_rest(screen: Screen[Any]) -> bool:
    """Whether it is what one sees, and no widget of it is about to be somewhere else."""
    is_moving = screen._layout_required or screen._scroll_required or screen._recompose_required
    return screen.is_current and not is_moving and not screen.app._batch_count


def open_among(visible: Mapping[Widget, tuple[Region, Region]]) -> Mapping[Widget, Region]:
    """Those that are seen whole, and where. Widgets in front come first, children before their parents."""
    seen: list[Region] = []
    found = {}
    for widget, (region, clip) in visible.items():
        if clip.contains_region(region) and not any(other.overlaps(region) for other in seen):
            found[widget] = region
        seen.append(region.intersection(clip))
    return found
