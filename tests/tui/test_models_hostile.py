"""Names, licences and errors that were written to do harm: as rows they are text of the right width, no more."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from textual.strip import Strip

from localllm.client import InspectedModel, InstalledModels, MetadataItem, PullError, TensorItem
from localllm.tui.lines import Line
from localllm.tui.models.detail import ModelDetail
from localllm.tui.models.list import ModelList
from localllm.tui.models.pages import metadata_lines, template_lines, tensor_lines
from localllm.tui.models.pulls import PullList
from localllm.tui.models.sheet import Question, Sheet
from localllm.tui.models.state import ModelsState, Title, Words
from localllm.tui.palette import DARK, MONO, Ink
from tests.tui.models_world import fit_for, installed, offer, pulling

EVIL = (
    "\x1b[31mred\x1b[0m", "\x1b]0;title\x07", "\x9b2J", "[bold]x[/bold]", "\u202egnp.exe", "a\u200fb\u2066c",
    "x\r\nmoved", "tab\there", "\x08\x08\x08", "\x1b[", "\x1bP+q\x1b\\", "漢字" * 30, "é" * 200,
    "👩‍👩‍👧‍👦 zero\u200bwidth", "",
)  # fmt: skip
TEXTS = st.one_of(
    st.sampled_from(EVIL), st.text(max_size=60), st.text(alphabet="\x1b[]0;31m\u202e\x9b AΩ漢", max_size=30)
)
HARMFUL = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
WIDTHS = st.integers(46, 130)
INK, MONO_INK = Ink(DARK), Ink(MONO, is_mono=True)


def check(line: Line | Strip, width: int) -> None:
    text = line.text
    assert not HARMFUL.search(text), repr(text)
    if isinstance(line, Strip):
        assert line.cell_length == width and cell_len(text) == width


@settings(max_examples=300, deadline=None)
@given(TEXTS, TEXTS, WIDTHS)
def test_rows_of_the_list_and_the_model_beside_it(name: str, other: str, width: int) -> None:
    here = installed(name or "x", 2.0, other, license=other, file=name, parameters=other, capabilities=(name, other))
    offers = (offer(other or "y", 3.0, name or "Q", license=name, refusal=other, repo=name),)
    state = ModelsState(here=InstalledModels(models=(here,), damaged=(name, other)), is_told=True, query="")
    state.catalog = type(state.catalog)(models=offers)
    state.found = type(state.catalog)(models=(), notice=name)
    state.fits = {here.name: fit_for(here.name, here.size_bytes)}
    shown = ModelList(state)
    shown._rows = state.rows()
    detail = ModelDetail(state)
    for row, each in enumerate(shown._rows):
        for ink in (INK, MONO_INK):
            check(shown.draw_row(row, ink, width), width)
        if each is not None and not isinstance(each, Title | Words):
            detail.model = each
            for line in detail.lines(each, INK, width, 60):
                check(line, width)
                assert line.width <= width


@settings(max_examples=300, deadline=None)
@given(TEXTS, TEXTS, WIDTHS, st.sampled_from(["running", "paused", "failed"]))
def test_pulls_and_questions(name: str, other: str, width: int, state: str) -> None:
    error = PullError(message=other, hint=name) if state == "failed" else None
    known = ModelsState(pulls=(pulling(name, 1.0, 2.0, state, 38, error=error),))
    check(PullList(known).draw_row(0, INK, max(58, width)), max(58, width))
    sheet = Sheet()
    sheet.question = Question(name, other, "go on")
    for strip in sheet.draw(INK, width, 3):
        check(strip, width)


@settings(max_examples=200, deadline=None)
@given(TEXTS, TEXTS, WIDTHS)
def test_what_stands_in_files(name: str, other: str, width: int) -> None:
    inside = InspectedModel(
        name=name,
        metadata=(MetadataItem(key=name, value=other, left_out=3),),
        tensors=(TensorItem(name=name, shape=(1, 2), type=other, size_bytes=5),),
        types={other: 5},
        template=name + "\n" + other,
        license=other,
        system=name,
    )
    for make in (metadata_lines, tensor_lines, template_lines):
        for line in make(inside)(INK, width):
            check(line, width)


@pytest.mark.parametrize("text", EVIL)
def test_nothing_of_the_payloads_is_drawn_as_more_than_text(text: str) -> None:
    state = ModelsState(here=InstalledModels(models=(installed(text or "x", 1.0),)), is_told=True)
    shown = ModelList(state)
    shown._rows = state.rows()
    for row in range(len(shown._rows)):
        check(shown.draw_row(row, INK, 70), 70)
