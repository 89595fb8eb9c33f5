"""Kept runs: their names, what is read back, and when two of them differ."""

from pathlib import Path
from typing import Any

import pytest

from localllm.errors import StoreError, UsageError
from localllm.lab.bench_rows import Row, mean_and_deviation
from localllm.lab.bench_saved import Run, SavedRuns, compare, is_outside_noise

MACHINE = {"cpu": "a", "cores": "2", "localllm": "1"}


def row(samples: list[float], test: str = "tg128", **changes: Any) -> Row:
    mean, deviation = mean_and_deviation(samples)
    fields: dict[str, Any] = {
        **{"model": "m", "size": 10, "params": 20, "quantization": "Q4_0", "backend": "cpu", "device": "cpu"},
        **{"threads": 2, "kv_type": "f16", "speculation": "off", "test": test, "n_prompt": 0, "n_gen": 128},
        **{"n_parallel": 1, "n_depth": 0, "avg_ts": mean, "stddev_ts": deviation, "samples_ts": samples},
    }
    return Row(**{**fields, **changes})


def test_a_run_comes_back_as_it_was_kept_and_a_new_one_takes_its_place(tmp_path: Path) -> None:
    saved = SavedRuns(tmp_path / "bench")
    assert saved.names() == []
    for samples in ([1.0, 2.0], [3.0, 4.0]):
        saved.save("before", [row(samples)], MACHINE)
        assert saved.load("before").rows == [row(samples)] and saved.load("before").machine == MACHINE
    assert saved.names() == ["before"]
    assert [path.name for path in (tmp_path / "bench").iterdir()] == ["before.json"]


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "a b", "x" * 65, "a\n"])
def test_a_name_that_could_leave_the_folder_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no name for a run"):
        SavedRuns(tmp_path).save(name, [row([1.0])], MACHINE)
    assert not list(tmp_path.iterdir())


def test_a_missing_run_is_told_with_the_ones_there_are(tmp_path: Path) -> None:
    saved = SavedRuns(tmp_path)
    saved.save("before", [row([1.0])], MACHINE)
    with pytest.raises(UsageError, match="'after'") as refused:
        saved.load("after")
    assert "before" in refused.value.hint


@pytest.mark.parametrize("text", [b"", b"[]", b'{"saved_at": 1}', b"\xff"])
def test_a_damaged_run_is_told(text: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_bytes(text)
    with pytest.raises(StoreError, match="holds no run"):
        SavedRuns(tmp_path).load("x")


def test_noise_is_two_standard_errors_of_the_difference() -> None:
    old = row([99.0, 100.0, 101.0])  # sd 1, so the error of the difference is sqrt(2/3) = 0.816
    assert is_outside_noise(row([100.7, 101.7, 102.7]), old) is True
    assert is_outside_noise(row([100.6, 101.6, 102.6]), old) is False
    assert is_outside_noise(row([97.3, 98.3, 99.3]), old) is True
    assert is_outside_noise(row([100.0]), old) is None


def test_a_comparison_has_ratio_and_verdict_of_each_row() -> None:
    old = Run(0.0, MACHINE, [row([10.0, 10.0]), row([5.0, 7.0], "pp512"), row([5.0], "pp8")])
    found = compare([row([20.0, 20.0]), row([6.0, 7.0], "pp512"), row([9.0], "pp8")], old, MACHINE)
    assert [(pair.test, pair.verdict) for pair in found.pairs] == [
        ("tg128", "faster"),
        ("pp512", "within the noise"),
        ("pp8", "one repetition: noise unknown"),
    ]
    assert found.pairs[0].ratio == 2.0 and found.differences == ()
    assert compare(old.rows[:1], Run(0.0, MACHINE, [row([20.0, 20.0])]), MACHINE).pairs[0].verdict == "slower"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": "n"}, "model m (now n)"),
        ({"size": 11}, "size 10 (now 11)"),
        ({"kv_type": "f32"}, "kv type f16 (now f32)"),
        ({"backend": "torch"}, "backend cpu (now torch)"),
        ({"threads": 3}, "only in this run: tg128 on 3 threads"),
        ({"test": "tg64"}, "only in that run: tg128 on 2 threads"),
    ],
)
def test_what_is_not_the_same_is_said(changes: dict[str, Any], said: str) -> None:
    old = Run(0.0, MACHINE, [row([1.0, 1.0])])
    assert said in compare([row([1.0, 1.0], **changes)], old, MACHINE).differences


def test_another_machine_is_said() -> None:
    old = Run(0.0, MACHINE, [row([1.0, 1.0])])
    assert compare(old.rows, old, {**MACHINE, "cpu": "b"}).differences == ("cpu a (now b)",)
