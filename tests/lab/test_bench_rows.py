"""Names, order and bounds of what a benchmark measures."""

from typing import Any

import pytest

from localllm.errors import UsageError
from localllm.lab.bench_rows import BenchPlan, Work, mean_and_deviation, numbers


@pytest.mark.parametrize(
    ("work", "name"),
    [
        (Work(512, 0), "pp512"),
        (Work(0, 128), "tg128"),
        (Work(0, 128, 1, 2048), "tg128 @ d2048"),
        (Work(0, 64, 8), "tg64 x8"),
        (Work(128, 0, 16, 1024), "pp128 x16 @ d1024"),
    ],
)
def test_rows_are_named_as_llama_bench_names_them(work: Work, name: str) -> None:
    assert work.name == name


def test_every_combination_is_a_row_and_a_zero_is_none() -> None:
    plan = BenchPlan(prompts=(0, 128), generations=(64, 64), parallel=(1, 8), depths=(0, 512))
    names = [work.name for work in plan.works()]
    assert names == [
        *("pp128", "tg64", "pp128 x8", "tg64 x8"),
        *("pp128 @ d512", "tg64 @ d512", "pp128 x8 @ d512", "tg64 x8 @ d512"),
    ]
    assert [work.name for work in BenchPlan(prompts=(0,)).checked().works()] == ["tg128"]


@pytest.mark.parametrize(
    "fields",
    [
        {"prompts": (-1,)},
        {"generations": (10**8,)},
        {"parallel": (0,)},
        {"parallel": (1025,)},
        {"depths": (-1,)},
        {"threads": (257,)},
        {"repetitions": 0},
        {"prompts": (0,), "generations": (0,)},
    ],
)
def test_plans_out_of_bounds_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        BenchPlan(**fields).checked()


def test_lists_are_written_with_commas() -> None:
    assert numbers("-p", "128,512") == (128, 512)
    for text in ("", "a", "1,", "1.5"):
        with pytest.raises(UsageError, match="-p must be whole numbers"):
            numbers("-p", text)


def test_the_deviation_is_that_of_a_sample() -> None:
    assert mean_and_deviation([1.0, 2.0, 3.0]) == (2.0, 1.0)
    assert mean_and_deviation([5.0]) == (5.0, 0.0)
