"""The page map: where pages lie, what they look like, and that little is made anew."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from textual.strip import Strip

from localllm.tui.dashboard.map import LABEL, MapLayout, MapPainter, Zoom, layout, letter_of, ruler, zooms
from localllm.tui.live.pages import (
    LOOK_CACHED,
    LOOK_FREE,
    LOOK_PREEMPTED,
    LOOK_SHARED,
    NUM_LOOKS,
    held_look,
)
from localllm.tui.palette import CONTRAST, DARK, LIGHT, MONO, Ink, Roles

INK = Ink(DARK)


def rows(
    looks: list[int], place: MapLayout, *, ink: Ink = INK, cursor: int | None = None, chosen: int | None = None,
    painter: MapPainter | None = None, references: int = 2, first: int = 0, count: int = 99,
) -> list[Strip]:  # fmt: skip
    painter = painter or MapPainter()
    map_ink = painter.ink_for(ink, chosen, has_chequer=True)
    return painter.rows(map_ink, place, looks, lambda page: references, cursor, first, count)


def texts(strips: list[Strip]) -> list[str]:
    return [strip.text for strip in strips]


@pytest.mark.parametrize(
    ("num_pages", "width", "height", "zoom", "num_rows", "columns"),
    [
        (2048, 116, 10, Zoom("half", 1), 10, 108),  # 120x40
        (2048, 78, 8, Zoom("half", 2), 8, 72),  # 80x24
        (2048, 137, 19, Zoom("full"), 16, 128),  # 200x60
        (10_240, 116, 10, Zoom("half", 8), 6, 108),
        (10_240, 78, 8, Zoom("half", 16), 5, 72),
    ],
)
def test_the_zoom_is_picked_so_that_all_pages_fit(
    num_pages: int, width: int, height: int, zoom: Zoom, num_rows: int, columns: int
) -> None:
    place = layout(num_pages, width, height)
    assert (place.zoom, place.num_rows, place.columns, place.label + place.columns) == (zoom, num_rows, columns, width)


@given(st.integers(1, 20_000), st.integers(20, 240), st.integers(1, 40), st.booleans())
def test_every_page_has_a_cell_and_every_cell_its_page(num_pages: int, width: int, height: int, letters: bool) -> None:
    place = layout(num_pages, width, height, has_letters=letters)
    assert place.num_rows <= height and place.label >= LABEL and place.columns % 4 == 0
    for page in {0, num_pages // 2, num_pages - 1}:
        row, column = place.row_of(page), place.column_of(page)
        halves = [place.page_at(row, column, is_lower=is_lower) for is_lower in (False, True)]
        first = page // place.zoom.per_cell * place.zoom.per_cell
        assert first in halves and 0 <= row < place.num_rows and 0 <= column < place.columns
    assert place.page_at(0, place.columns) is None and place.page_at(-1, 0) is None


@given(st.lists(st.integers(0, NUM_LOOKS - 1), min_size=1, max_size=400), st.sampled_from([DARK, LIGHT, MONO]),
       st.integers(20, 90), st.integers(1, 12), st.booleans(), st.data())  # fmt: skip
def test_whatever_pages_there_are_rows_have_the_width(
    looks: list[int], roles: Roles, width: int, height: int, letters: bool, data: st.DataObject
) -> None:
    ink = Ink(roles)
    place = layout(len(looks), width, height, has_letters=letters or ink.is_mono)
    cursor = data.draw(st.one_of(st.none(), st.integers(0, len(looks) - 1)))
    made = rows(looks, place, ink=ink, cursor=cursor, chosen=data.draw(st.one_of(st.none(), st.integers(0, 16))))
    assert len(made) == place.num_rows
    assert all(strip.cell_length == place.label + place.columns == len(strip.text) for strip in made)


def test_a_cell_is_two_pages_one_above_the_other() -> None:
    place = layout(16, LABEL + 4, 2, wanted=Zoom("half"))
    (strip, _) = rows([LOOK_FREE] * 4 + [held_look(0, 0)] * 4 + [LOOK_FREE] * 8, place)
    cells = [segment for segment in strip if segment.text.startswith("▀")]
    assert sum(len(cell.text) for cell in cells) == 4
    style = cells[0].style
    assert style is not None and style.color is not None and style.bgcolor is not None
    assert (style.color.name, style.bgcolor.name) == (DARK.free, DARK.owners[0]) or style.bgcolor.name != DARK.free


def test_without_colours_letters_say_whose_pages_they_are() -> None:
    looks = [
        LOOK_SHARED,
        held_look(0, 0),
        held_look(15, 4),
        held_look(16, 0),
        LOOK_CACHED,
        LOOK_FREE,
        LOOK_PREEMPTED,
        2,
    ]
    place = layout(8, LABEL + 8, 1, has_letters=True)
    assert texts(rows(looks, place, ink=Ink(MONO), references=4)) == ["    0 4ap+:·×·"]
    assert [letter_of(LOOK_SHARED, count) for count in (0, 3, 12)] == ["2", "3", "9"]


def test_in_full_cells_the_first_of_a_shared_run_says_how_many_hold_it() -> None:
    looks = [
        LOOK_SHARED,
        LOOK_SHARED + 1,
        LOOK_CACHED,
        LOOK_PREEMPTED,
        LOOK_FREE,
        LOOK_SHARED,
        held_look(1, 0),
        LOOK_FREE,
    ]
    place = layout(8, LABEL + 8, 1)
    assert place.zoom == Zoom("full")
    assert texts(rows(looks, place, references=12)) == ["    0 9 ·× 9  "]


def test_the_cursor_has_a_cross_hair() -> None:
    place = layout(2048, 116, 10)
    made = rows([LOOK_FREE] * 2048, place, cursor=959)
    assert [strip.text[:8] for strip in made][4] == "    864▸"
    line = ruler(INK, place, 959).text
    assert line.index("▾") == place.label + 95 and "96" in line and "80" in line


def test_selecting_a_request_dims_the_pages_of_all_others() -> None:
    painter = MapPainter()
    plain, dimmed = (painter.ink_for(INK, chosen, has_chequer=False).plain for chosen in (None, 1))
    assert dimmed[held_look(1, 0)] == plain[held_look(1, 0)] and dimmed[held_look(0, 0)] != plain[held_look(0, 0)]
    assert dimmed[LOOK_SHARED] == plain[LOOK_SHARED]


def test_pages_look_older_step_by_step_but_not_in_high_contrast() -> None:
    painter = MapPainter()
    ages = [painter.ink_for(INK, None, has_chequer=False).plain[held_look(2, age)] for age in range(5)]
    assert len(set(ages)) == 5
    plain = painter.ink_for(Ink(CONTRAST), None, has_chequer=False).plain
    assert len({plain[held_look(2, age)] for age in range(5)}) == 1


def test_rows_that_look_as_before_are_the_same_objects() -> None:
    painter, place = MapPainter(), layout(2048, 116, 10)
    looks = [LOOK_FREE] * 2048
    before = rows(looks, place, painter=painter, cursor=0)
    looks[500] = held_look(0, 0)
    after = rows(looks, place, painter=painter, cursor=0)
    assert [old is new for old, new in zip(before, after, strict=True)] == [True, True, False, *[True] * 7]


def test_zooms_go_from_single_pages_to_all_at_once() -> None:
    levels = zooms(10_240, 108, 10, has_letters=False)
    assert levels == [Zoom("full"), *[Zoom("half", count) for count in (1, 2, 4, 8)]]
    assert layout(10_240, 116, 10, wanted=Zoom("half")).num_rows == 48
    assert layout(10_240, 116, 10, wanted=Zoom("letters")).zoom == Zoom("half", 8)
