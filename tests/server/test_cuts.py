"""Texts that are cut for vectors keep the token that models expect at the end that was cut off."""

from localllm.server.vectors import Cut

TEXT = [101, *range(1, 11), 102]


def test_the_end_marker_stays_where_the_end_is_cut() -> None:
    assert Cut().of_text(TEXT, 6, {101, 102}) == [101, 1, 2, 3, 4, 102]
    assert Cut(5).of_text(TEXT, 512, {101, 102}) == [101, 1, 2, 3, 102]


def test_the_start_marker_stays_where_the_start_is_cut() -> None:
    assert Cut(4, keeps_end=True).of_text(TEXT, 512, {101, 102}) == [101, 9, 10, 102]


def test_texts_that_fit_or_have_no_markers_are_only_cut() -> None:
    assert Cut().of_text(TEXT, 512, {101, 102}) == TEXT
    assert Cut(3).of_text(TEXT, 512, set()) == [101, 1, 2]
