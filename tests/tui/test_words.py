"""Numbers as the screens write them."""

import time

import pytest

from localllm.tui import words


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (words.count(8192), "8,192"),
        (words.count(None), "–"),
        (words.short_count(99_999), "99,999"),
        (words.short_count(131_072), "131k"),
        (words.short_count(12_800_000), "12.8M"),
        (words.rate(62.42), "62.4"),
        (words.rate(99.96), "100"),
        (words.rate(3120.4), "3,120"),
        (words.rate(None), "–"),
        (words.seconds(0.184), "184 ms"),
        (words.seconds(0.9996), "1.00 s"),
        (words.seconds(6.84), "6.84 s"),
        (words.seconds(170), "2 min 50 s"),
        (words.seconds(3 * 3600 + 300), "3 h 5 min"),
        (words.age(7.1), "7.1 s"),
        (words.age(42), "42 s"),
        (words.age(180), "3 min"),
        (words.age(3 * 3600), "3 h"),
        (words.age(2 * 86400), "2 d"),
        (words.gigabytes(7.9e9), "7.9"),
        (words.size(98.4e6), "98 MB"),
        (words.size(1.4e6), "1.4 MB"),
        (words.size(140e3), "140 kB"),
        (words.size(999.9e6), "1.0 GB"),
        (words.percent(0.55), "55 %"),
        (words.model_name("/models/smollm2.gguf"), "smollm2.gguf"),
        (words.model_name("hf.co/org/repo:Q4_K_M"), "hf.co/org/repo:Q4_K_M"),
        (words.plural(1, "message"), "1 message"),
        (words.noun(1, "byte"), "byte"),
        (words.noun(0, "byte"), "bytes"),
        (words.plural(1204, "message"), "1,204 messages"),
    ],
)
def test_numbers_are_written_in_one_way(said: str, expected: str) -> None:
    assert said == expected


def test_a_list_says_days_then_the_month_then_the_year() -> None:
    now = time.mktime((2026, 11, 21, 12, 0, 0, 0, 0, -1))
    assert words.day(now - 20, now) == "now"
    assert words.day(now - 7200, now) == "2 h"
    assert words.day(now - 3 * 86400, now) == "3 d"
    assert words.day(time.mktime((2026, 9, 3, 0, 0, 0, 0, 0, -1)), now) == "Sep"
    assert words.day(time.mktime((2025, 9, 3, 0, 0, 0, 0, 0, -1)), now) == "2025"
