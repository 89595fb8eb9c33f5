"""The page map as lines: how many pages a cell shows, where each lies, and what colour and letter it has. No widgets.

Row-major over half rows: a terminal cell is two pages, one above the other. Rows that look as before are not made anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from rich.segment import Segment
from rich.style import Style
from textual.strip import Strip

from localllm.tui.colour import mix
from localllm.tui.lines import Line
from localllm.tui.live.pages import (
    LOOK_CACHED,
    LOOK_FREE,
    LOOK_FREED,
    LOOK_HELD,
    LOOK_PREEMPTED,
    LOOK_SHARED,
    NUM_LOOKS,
    age_of_look,
    common_look,
    slot_of_look,
)
from localllm.tui.palette import OTHERS as OTHERS_LETTER
from localllm.tui.palette import OWNER_LETTERS, Ink, Roles

Mode = Literal["full", "half", "letters"]
LABEL = 6
"""Columns that the numbers of the rows have at least."""
MAX_PER_CELL = 4096
AGE_MIX = (0.0, 0.13, 0.26, 0.39, 0.5)
CHEQUER = 0.07
DIMMED = 0.55
MAX_DIGIT = 9
NOWHERE = bytes([NUM_LOOKS])
"""The look of cells behind the last page."""


@dataclass(frozen=True, slots=True)
class Zoom:
    """`per_cell` pages in a cell, or in half a cell."""

    mode: Mode
    per_cell: int = 1

    @property
    def is_half(self) -> bool:
        return self.mode == "half"


@dataclass(frozen=True, slots=True)
class MapLayout:
    """Where pages lie: `columns` cells after a label of `label` columns, `num_rows` rows of cells in all."""

    num_pages: int
    zoom: Zoom
    columns: int
    label: int
    num_rows: int

    @property
    def per_row(self) -> int:
        """Half cells, or cells, of a row."""
        return self.columns * (2 if self.zoom.is_half else 1)

    @property
    def pages_per_row(self) -> int:
        return self.per_row * self.zoom.per_cell

    def row_of(self, page: int) -> int:
        return page // self.pages_per_row

    def column_of(self, page: int) -> int:
        return page // self.zoom.per_cell % self.columns

    def page_at(self, row: int, column: int, *, is_lower: bool = False) -> int | None:
        """The first page of a cell; None beside the map."""
        place = row * self.per_row + column + (self.columns if is_lower and self.zoom.is_half else 0)
        page = place * self.zoom.per_cell
        return page if 0 <= column < self.columns and 0 <= page < self.num_pages else None

    def beside(self, page: int, columns: int, rows: int) -> int:
        """The page so many cells to the right, and so many half rows (or rows) below; it stays on the map."""
        moved = page + (columns + rows * self.columns) * self.zoom.per_cell
        return moved if 0 <= moved < self.num_pages else page


def zooms(num_pages: int, columns: int, height: int, *, has_letters: bool) -> list[Zoom]:
    """From the finest to the first that shows all pages in `height` rows."""
    found = [] if has_letters else [Zoom("full")]
    mode: Mode = "letters" if has_letters else "half"
    per_cell = 1
    while not found or (found[-1].mode != mode or _num_rows(num_pages, found[-1], columns) > height):
        found.append(Zoom(mode, per_cell))
        per_cell *= 2
        if per_cell > MAX_PER_CELL:
            break
    return found


@lru_cache(64)
def layout(
    num_pages: int,
    width: int,
    height: int,
    *,
    wanted: Zoom | None = None,
    has_letters: bool = False,
    reach: int | None = None,
) -> MapLayout:
    """`wanted` overrides what is picked: the finest zoom that shows all pages, or all up to `reach` and a quarter more
    where all of them would be too small to tell apart."""
    columns = max(4, (width - LABEL) // 4 * 4)
    levels = zooms(num_pages, columns, max(1, height), has_letters=has_letters)
    zoom = _finest(num_pages, levels, columns, height)
    if zoom.per_cell > 1 and reach is not None:
        zoom = _finest(
            min(num_pages, reach * 5 // 4), [level for level in levels if level.mode != "full"], columns, height
        )
    if wanted in levels and wanted is not None:
        zoom = wanted
    return MapLayout(num_pages, zoom, columns, max(LABEL, width - columns), _num_rows(num_pages, zoom, columns))


def _finest(num_pages: int, levels: Sequence[Zoom], columns: int, height: int) -> Zoom:
    return next((zoom for zoom in levels if _num_rows(num_pages, zoom, columns) <= height), levels[-1])


def _num_rows(num_pages: int, zoom: Zoom, columns: int) -> int:
    return -(-num_pages // (columns * (2 if zoom.is_half else 1) * zoom.per_cell))


# ---- colours


class MapInk:
    """The colours of all looks under one theme; all owners but `chosen` are dimmed where one is."""

    def __init__(self, ink: Ink, chosen: int | None, *, has_chequer: bool) -> None:
        self.ink = ink
        roles = ink.roles
        self.plain = [_dimmed(roles, look, chosen, _hue(roles, look)) for look in range(NUM_LOOKS)]
        self.odd = [
            mix(hue, roles.bg, CHEQUER) if has_chequer and look not in (LOOK_FREE, LOOK_FREED) else hue
            for look, hue in enumerate(self.plain)
        ]
        self._style = lru_cache(8192)(_style)
        self.even_cells = HalfCells([*self.plain, roles.bg], [*self.odd, roles.bg], self.style)
        self.odd_cells = HalfCells([*self.odd, roles.bg], [*self.plain, roles.bg], self.style)

    def style(self, front: str, back: str, *, bold: bool = False) -> Style:
        return self._style(front, back, bold)


def _style(front: str, back: str, bold: bool) -> Style:
    return Style(color=front, bgcolor=back, bold=bold)


class HalfCells(dict[tuple[int, int], Style]):
    """The style of a cell by the looks of its upper and its lower page. One object for each pair of colours:
    neighbours that look alike are found at a glance."""

    def __init__(self, upper: Sequence[str], lower: Sequence[str], style: Callable[[str, str], Style]) -> None:
        super().__init__()
        self._upper, self._lower, self._style = upper, lower, style

    def __missing__(self, looks: tuple[int, int]) -> Style:
        made = self[looks] = self._style(self._upper[looks[0]], self._lower[looks[1]])
        return made

    def with_cursor(self, looks: tuple[int, int], is_lower: int, hue: str) -> Style:
        return self._style(self._upper[looks[0]], hue) if is_lower else self._style(hue, self._lower[looks[1]])


def _hue(roles: Roles, look: int) -> str:
    if look == LOOK_FREE:
        return roles.free
    if look == LOOK_CACHED:
        return roles.cached
    if look == LOOK_FREED:
        return mix(roles.free, roles.text, 0.22)
    if look == LOOK_PREEMPTED:
        return roles.preempted
    age = 0 if roles.name == "contrast" else age_of_look(look)
    if look < LOOK_HELD:
        return mix(roles.shared, roles.bg, 0.08 + 0.05 * age)
    return mix(roles.owner(slot_of_look(look) or 0), roles.bg, AGE_MIX[age])


def _dimmed(roles: Roles, look: int, chosen: int | None, hue: str) -> str:
    slot = slot_of_look(look)
    return hue if chosen is None or slot is None or slot == chosen else mix(hue, roles.bg, DIMMED)


# ---- rows


class MapPainter:
    """Makes the rows of one map; keeps those that look as they did."""

    def __init__(self) -> None:
        self._kept: dict[int, tuple[object, Strip]] = {}
        self._inks: dict[object, MapInk] = {}

    def ink_for(self, ink: Ink, chosen: int | None, *, has_chequer: bool) -> MapInk:
        key = (ink.roles.name, ink.roles.accent, ink.roles.text, ink.is_mono, chosen, has_chequer)
        if key not in self._inks:
            if len(self._inks) > 64:
                self._inks.clear()
            self._inks[key] = MapInk(ink, chosen, has_chequer=has_chequer)
        return self._inks[key]

    def rows(
        self,
        map_ink: MapInk,
        place: MapLayout,
        looks: Sequence[int],
        references: Callable[[int], int],
        cursor: int | None,
        first_row: int,
        count: int,
    ) -> list[Strip]:
        """`count` rows from `first_row` on, with their labels."""
        made = []
        for row in range(first_row, min(first_row + count, place.num_rows)):
            part = bytes(looks[row * place.pages_per_row : (row + 1) * place.pages_per_row])
            here = cursor if cursor is not None and place.row_of(cursor) == row else None
            digits = _digits(part, row * place.pages_per_row, references) if place.zoom.mode != "half" else b""
            key = (map_ink, place, part, here, digits)
            kept = self._kept.get(row)
            if kept is None or kept[0] != key:
                kept = self._kept[row] = (key, _row(map_ink, place, row, part, here, digits))
            made.append(kept[1])
        return made


def _digits(part: bytes, start: int, references: Callable[[int], int]) -> bytes:
    """How many hold each shared page; of others nothing is said."""
    if not any(LOOK_SHARED <= look < LOOK_HELD for look in part):
        return b""
    return bytes(
        min(MAX_DIGIT, references(start + at)) if LOOK_SHARED <= look < LOOK_HELD else 0 for at, look in enumerate(part)
    )


def _row(map_ink: MapInk, place: MapLayout, row: int, part: bytes, here: int | None, digits: bytes) -> Strip:
    line = _label(map_ink.ink, place, row, is_here=here is not None)
    painters = {"half": _half_cells, "full": _full_cells, "letters": _letter_cells}
    cells = painters[place.zoom.mode](map_ink, place, row, part, here, digits)
    line.segments += _runs(cells)
    line.width = place.label + place.columns
    return line.strip(place.label + place.columns)


def _runs(cells: Cells) -> Iterator[Segment]:
    """Neighbours that look alike as one: styles are compared as objects, as each is made once."""
    if not cells:
        return
    (text, style), length = cells[0], 0
    for each, look in cells:
        if look is style and each == text:
            length += 1
        else:
            yield Segment(text * length, style)
            text, style, length = each, look, 1
    yield Segment(text * length, style)


def _label(ink: Ink, place: MapLayout, row: int, *, is_here: bool) -> Line:
    text = f"{row * place.pages_per_row:,}".rjust(place.label - 1)
    style = ink("accent", bold=True) if is_here else ink("faint")
    return Line((text[-(place.label - 1) :], style)).put("▸" if is_here else " ", ink("accent"))


def _grouped(part: bytes, per_cell: int) -> bytes:
    """One look for each cell."""
    if per_cell == 1:
        return part
    return bytes(_common(part[at : at + per_cell]) for at in range(0, len(part), per_cell))


_common = lru_cache(16384)(common_look)

Cells = list[tuple[str, Style]]


def _half_cells(map_ink: MapInk, place: MapLayout, row: int, part: bytes, here: int | None, _: bytes) -> Cells:
    columns = place.columns
    looks = _grouped(part, place.zoom.per_cell).ljust(2 * columns, NOWHERE)
    pairs = list(zip(looks[:columns], looks[columns:], strict=True))
    styles = [map_ink.even_cells[pair] for pair in pairs]
    styles[1::2] = [map_ink.odd_cells[pair] for pair in pairs[1::2]]
    if here is not None:
        is_lower, column = divmod(here // place.zoom.per_cell - row * place.per_row, columns)
        cells = map_ink.odd_cells if column % 2 else map_ink.even_cells
        styles[column] = cells.with_cursor(pairs[column], is_lower, map_ink.ink.roles.bright)
    return [("▀", style) for style in styles]


def _full_cells(map_ink: MapInk, place: MapLayout, row: int, part: bytes, here: int | None, digits: bytes) -> Cells:
    cells: Cells = []
    before = -1
    for at, look in enumerate(part):
        hue = (map_ink.odd if (at + row) % 2 else map_ink.plain)[look]
        if here == row * place.columns + at:
            hue = map_ink.ink.roles.bright
        is_run = LOOK_SHARED <= before < LOOK_HELD
        cells.append(_full_cell(map_ink, look, hue, digits[at] if digits and not is_run else 0))
        before = look
    return cells + [(" ", Style())] * (place.columns - len(cells))


def _full_cell(map_ink: MapInk, look: int, hue: str, digit: int) -> tuple[str, Style]:
    roles = map_ink.ink.roles
    if digit:
        return str(digit), map_ink.style(roles.bg, hue, bold=True)
    if look == LOOK_PREEMPTED:
        return "×", map_ink.style(mix(hue, roles.bg, 0.35), hue)
    if look == LOOK_CACHED:
        return "·", map_ink.style(mix(hue, roles.text, 0.35), hue)
    return " ", map_ink.style(hue, hue)


def _letter_cells(map_ink: MapInk, place: MapLayout, row: int, part: bytes, here: int | None, digits: bytes) -> Cells:
    per_cell, ink = place.zoom.per_cell, map_ink.ink
    cursor = None if here is None else here // per_cell - row * place.columns
    cells: Cells = []
    for at, look in enumerate(_grouped(part, per_cell)):
        if at == cursor and here is not None:
            page = here - row * place.pages_per_row
            cells.append((letter_of(part[page], digits[page] if digits else 0), ink("bg", on="bright", bold=True)))
            continue
        text = letter_of(look, max(digits[at * per_cell : (at + 1) * per_cell], default=0))
        cells.append((text, _letter_style(ink, look)))
    return cells + [(" ", Style())] * (place.columns - len(cells))


def letter_of(look: int, references: int = 0) -> str:
    """What stands for a page where there are no colours."""
    slot = slot_of_look(look)
    if slot is not None:
        return OWNER_LETTERS[slot] if slot < len(OWNER_LETTERS) else OTHERS_LETTER
    if look >= LOOK_SHARED:
        return str(min(MAX_DIGIT, max(2, references)))
    return {LOOK_CACHED: ":", LOOK_PREEMPTED: "×"}.get(look, "·")


def _letter_style(ink: Ink, look: int) -> Style:
    if slot_of_look(look) is not None:
        return ink(mix(ink.roles.text, ink.roles.bg, 0.11 * age_of_look(look)))
    return ink("bright" if look >= LOOK_SHARED else "err" if look == LOOK_PREEMPTED else "faint")


def ruler(ink: Ink, place: MapLayout, cursor: int | None) -> Line:
    """Numbers of columns, and above the cursor a mark."""
    texts = [" "] * place.columns
    column = None if cursor is None else place.column_of(cursor)
    for at in range(0, place.columns, 16):
        text = f"{at * place.zoom.per_cell:,}"
        is_covered = column is not None and at <= column < at + len(text) + 1
        if at + len(text) <= place.columns and not is_covered:
            texts[at : at + len(text)] = text
    if column is None:
        return Line((" " * place.label + "".join(texts), ink("faint")))
    line = Line((" " * place.label + "".join(texts[:column]), ink("faint"))).put("▾", ink("accent", bold=True))
    return line.put("".join(texts[column + 1 :]), ink("faint"))
