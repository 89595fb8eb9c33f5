"""Broken clusters are cut like any text: rich alone does not come to an end of some."""

import random
from collections.abc import Iterator

import pytest
from rich import cells

from localllm.tui.cells import mend

BROKEN = ["\u200d\u200d\u5b57", "\u200d\u200d\u5b57#", "\U0001f1ea1#", "\u200d\u200d\u2764\ufe0f"]
PIECES = "a\u5b57\U0001f44d\u200d\ufe0f\u0301\U0001f3fb\u2764\U0001f1e9\U0001f1ea\u200b1#"


@pytest.fixture
def mended(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(cells, "_split_text", cells._split_text)  # given back after the test
    mend()
    mend()  # twice does nothing more
    yield


def test_whole_clusters_are_cut_as_rich_does_it(mended: None) -> None:
    assert cells.set_cell_size("\u5b57\u5b57", 3) == "\u5b57 "
    assert cells.split_text("a\u5b57b", 2) == ("a ", " b")


@pytest.mark.parametrize("text", BROKEN)
def test_broken_ones_keep_their_characters(mended: None, text: str) -> None:
    for position in range(8):
        left, right = cells.split_text(text, position)
        assert (left + right).replace(" ", "") in (text, "".join(c for c in text if cells.cell_len(c) < 2))


def test_nothing_raises(mended: None) -> None:
    rng = random.Random(5)
    for _ in range(20_000):
        text = "".join(rng.choice(PIECES) for _ in range(rng.randint(1, 6)))
        cells.set_cell_size(text, rng.randint(1, 7))
        cells.split_text(text, rng.randint(0, 7))
