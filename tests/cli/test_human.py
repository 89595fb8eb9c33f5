"""The formats of the tables: Ollama's, checked against its published examples and for their properties."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localllm.cli.human import (
    age_text,
    aligned,
    display_width,
    duration_text,
    size_text,
    stopwatch_text,
    table,
    with_sentences,
)

HOUR, DAY = 3600, 86400


@pytest.mark.parametrize(
    ("size", "shown"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 KB"),
        (1500, "1.5 KB"),
        (92_300_000, "92 MB"),
        (5_200_000_000, "5.2 GB"),
        (9_999_999_999, "10.0 GB"),
        (10_900_000_000, "10 GB"),
        (2 * 10**12, "2 TB"),
    ],
)
def test_sizes_are_decimal_with_one_digit_below_ten(size: int, shown: str) -> None:
    assert size_text(size) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0.4, "Less than a second"),
        (1, "1 second"),
        (59.9, "59 seconds"),
        (60, "About a minute"),
        (119, "About a minute"),
        (59 * 60 + 59, "59 minutes"),
        (HOUR, "About an hour"),
        (1.6 * HOUR, "2 hours"),
        (47 * HOUR, "47 hours"),
        (48 * HOUR, "2 days"),
        (13 * DAY, "13 days"),
        (14 * DAY, "2 weeks"),
        (59 * DAY, "8 weeks"),
        (60 * DAY, "2 months"),
        (729 * DAY, "24 months"),
        (730 * DAY, "2 years"),
    ],
)
def test_spans_are_words(seconds: float, shown: str) -> None:
    assert duration_text(seconds) == shown


def test_an_age_looks_back_and_ahead_and_knows_never() -> None:
    now = 1_800_000_000
    assert age_text(now - 3 * DAY, now) == "3 days ago"
    assert age_text(now + 270, now) == "4 minutes from now"
    assert age_text(0, now) == "Never"


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (1.234567, "1.234567s"),
        (0.0451, "45.1ms"),
        (0.13, "130ms"),
        (4.799, "4.799s"),
        (0.00025, "250µs"),
        (124.5, "2m4.5s"),
        (3725, "1h2m5s"),
        (0, "0ns"),
    ],
)
def test_measured_times_drop_their_zeros(seconds: float, shown: str) -> None:
    assert stopwatch_text(seconds) == shown


cells = st.text(max_size=20)


@given(st.integers(1, 5).flatmap(lambda n: st.lists(st.lists(cells, min_size=n, max_size=n), min_size=1, max_size=6)))
def test_every_line_of_a_table_is_equally_wide_and_harmless(rows: list[list[str]]) -> None:
    header = [f"H{index}" for index in range(len(rows[0]))]
    lines = table(header, rows).splitlines(keepends=True)
    assert len(lines) == len(rows) + 1
    assert len({display_width(line.rstrip("\n")) for line in lines}) == 1
    assert all("\x1b" not in line and "\u202e" not in line for line in lines)


@given(st.integers(0, 10**15))
def test_a_size_never_takes_more_than_seven_columns(size: int) -> None:
    assert len(size_text(size)) <= 7


def test_a_table_has_ollamas_padding() -> None:
    assert table(["NAME", "SIZE"], [["qwen3:8b", "5.2 GB"]]) == "NAME        SIZE      \nqwen3:8b    5.2 GB    \n"


SENTENCES = [["NAME", "MEANING"], ["host", "address the daemon listens on"], ["port", "a-port, any"]]


def test_a_sentence_goes_on_below_itself_where_the_terminal_is_narrow() -> None:
    assert with_sentences(SENTENCES, 0) == with_sentences(SENTENCES, 37) == aligned(SENTENCES)
    assert with_sentences(SENTENCES, 36) == (
        "NAME    MEANING\nhost    address the daemon listens\n        on\nport    a-port, any\n"
    )


def test_a_sentence_goes_below_its_row_where_hardly_any_room_is_left() -> None:
    assert with_sentences(SENTENCES, 28) == (
        "NAME\n    MEANING\nhost\n    address the daemon\n    listens on\nport\n    a-port, any\n"
    )


@given(st.lists(st.lists(cells, min_size=3, max_size=3), min_size=1, max_size=6), st.integers(0, 90))
def test_no_word_of_a_sentence_is_lost(rows: list[list[str]], columns: int) -> None:
    wanted, shown = (text.split() for text in (aligned(rows), with_sentences(rows, columns)))
    assert "".join(shown) == "".join(wanted)
