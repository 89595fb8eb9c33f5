"""Which backend `auto` takes: what the self-test finds out, what is remembered of it, and what follows."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from localllm.backends import measure, report, select, speeds
from localllm.backends.select import (
    BackendOptions,
    Choice,
    has_to_measure,
    native_problem,
    open_backend,
    ranked,
    work_of,
)
from localllm.backends.speeds import BILLION, Speed, Speeds, Work
from localllm.backends.trial import KINDS, OVERHEAD, WEIGHTS, TrialSource, kind_of
from localllm.errors import NotEnoughMemory, UnsupportedModel, UsageError
from localllm.formats.blocks import BlockType, row_bytes
from localllm.models.config import ModelConfig
from localllm.models.shapes import check_tensors
from tests.contract.worlds import BY_NAME, build

CPU = Speed("cpu", "", 0.001, 0.01, 0.02, 0.2)
GPU = Speed("torch", "cuda:0", 0.004, 0.001, 0.004, 0.002)
needs_native = pytest.mark.skipif(bool(native_problem()), reason="the native kernels have not been built")
seconds = st.floats(1e-6, 10.0)


# ---- the trials


@pytest.mark.parametrize("trial", [OVERHEAD, WEIGHTS])
@pytest.mark.parametrize("kind", [*KINDS, "F16", "F32"])
def test_a_trial_is_a_whole_model(trial: Any, kind: str) -> None:
    source = TrialSource(trial, BlockType[kind])
    check_tensors(trial.config, source)
    info = source.info("blk.0.ffn_up.weight")
    assert info is not None
    assert source.raw(info.name).size == info.shape[0] * row_bytes(info.type, info.shape[1])
    assert work_of(trial.config, source) == Work(trial.num_layers, pytest.approx(trial.num_weights, rel=0.01))


def test_the_trial_of_a_model_is_in_blocks_like_its_own() -> None:
    types = {"blocks of F16": "F16", "blocks of BF16": "BF16", "blocks of Q8_0": "Q8_0", "blocks of Q4_1": "Q4_0"}
    for world, expected in types.items():
        assert kind_of(build(BY_NAME[world])[1]) == expected


def test_only_chosen_experts_count_as_work() -> None:
    whole, _ = build(BY_NAME["experts in Q8_0"])  # uses all six
    config, source = build(BY_NAME["experts"])
    assert whole.layers[0].moe is not None and whole.layers[0].moe.num_used == 6
    assert work_of(config, source).num_weights < work_of(whole, source).num_weights


# ---- speeds


@given(seconds, seconds)
def test_the_time_of_any_model_follows_from_two_trials_and_grows_with_the_model(small: float, large: float) -> None:
    speed = Speed("x", "", small, large, small, large)
    sizes = [Work(layers, weights) for layers, weights in ((1, 10**6), (8, 10**8), (16, 10**9), (80, 7 * 10**10))]
    times = [speed.decode_s(work) for work in sizes]
    assert times == sorted(times) and times[0] >= 0 and times[-1] > 0


def test_the_trials_themselves_come_out_as_measured() -> None:
    for trial, expected in ((OVERHEAD, 0.002), (WEIGHTS, 0.005)):
        work = Work(trial.num_layers, trial.num_weights)
        assert Speed("x", "", 0.002, 0.005, 1, 1).decode_s(work) == pytest.approx(expected)


def test_a_device_with_much_overhead_wins_with_large_models_only() -> None:
    assert [choice.backend for choice in ranked([CPU, GPU], Work(4, 10**6))[0]] == ["cpu", "torch"]
    assert ranked([CPU, GPU], BILLION)[0] == [Choice("torch", "cuda:0"), Choice("cpu")]


def test_a_backend_must_be_faster_than_the_cpu_one_by_a_margin() -> None:
    almost = Speed("torch", "cpu", *(0.9 * value for value in (0.001, 0.01, 0.02, 0.2)))
    assert ranked([almost, CPU], BILLION)[0][0] == Choice("cpu")


def test_a_backend_that_failed_its_self_test_is_passed_over_with_the_reason() -> None:
    choices, notes = ranked([CPU, Speed("torch", "cuda:0", problem="its logits are off by 2")], BILLION)
    assert choices == [Choice("cpu")]
    assert notes == ["the torch backend was passed over: its logits are off by 2"]


# ---- the self-test


@needs_native
def test_the_self_test_measures_a_sound_backend_in_a_process_of_its_own() -> None:
    (speed,) = speeds.self_test("cpu", ("Q4_0",), 1)["Q4_0"]
    assert speed.problem == ""
    assert 0 < speed.decode_small_s < speed.decode_large_s and 0 < speed.prompt_small_s < speed.prompt_large_s


def test_wrong_numbers_are_a_problem_and_not_a_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    def logits(backend: str, device: str, kind: str, threads: int) -> Any:
        return np.full((2, 8), 1.0 if backend == "reference" else 1.5, np.float32)

    monkeypatch.setattr(measure, "_logits", logits)
    assert "off by 0.5" in measure.speed_of("cpu", "", "Q8_0", 1).problem


def test_numbers_that_are_none_are_a_problem_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "_logits", lambda *args: np.full((2, 8), np.nan, np.float32))
    assert "off by nan" in measure.speed_of("cpu", "", "Q8_0", 1).problem


@pytest.mark.parametrize(
    ("error", "said"),
    [(UnsupportedModel("there is no such device"), "there is no such device"), (KeyError("x"), "KeyError: 'x'")],
)
def test_what_a_backend_raises_is_its_problem(monkeypatch: pytest.MonkeyPatch, error: Exception, said: str) -> None:
    def fails(*args: object) -> None:
        raise error

    monkeypatch.setattr(measure, "open_backend", fails)
    assert measure.speed_of("torch", "cuda:7", "Q8_0", 1).problem == said


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("kill -SEGV $$", "ended with status"),
        ("echo broken >&2; exit 3", "status 3 (broken)"),
        ("echo no json", "ended with status 0"),
        ("exec sleep 60", "did not end within"),
    ],
)
def test_a_backend_that_crashes_or_hangs_takes_nobody_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, said: str
) -> None:
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setattr(speeds, "TIMEOUT_S", 0.3)
    found = speeds.self_test("torch", ("Q4_0", "BF16"), 1)
    assert set(found) == {"Q4_0", "BF16"} and said in found["BF16"][0].problem


# ---- what is remembered


class Trials:
    """Stands in for the self-tests and counts them."""

    def __init__(self, *found: Speed) -> None:
        self.found = found
        self.asked: list[str] = []

    def __call__(self, backend: str, kinds: Sequence[str], threads: int) -> dict[str, list[Speed]]:
        self.asked.append(backend)
        return {kind: [speed for speed in self.found if speed.backend == backend] for kind in kinds}


@pytest.fixture
def trials(monkeypatch: pytest.MonkeyPatch) -> Trials:
    made = Trials(CPU, replace_device(CPU, "torch", "cpu"))
    monkeypatch.setattr(speeds, "self_test", made)
    monkeypatch.setattr(select, "candidates", lambda: ["cpu", "torch"])
    return made


def replace_device(speed: Speed, backend: str, device: str) -> Speed:
    return Speed(
        backend, device, speed.decode_small_s, speed.decode_large_s, speed.prompt_small_s, speed.prompt_large_s
    )


def open_tiny(cache_dir: Path | str, **options: Any) -> Any:
    config, source = build(BY_NAME["blocks of Q8_0"])
    opened = open_backend("auto", config, source, BackendOptions(threads=1, cache_dir=str(cache_dir), **options))
    opened.close()
    return opened.info


@needs_native
def test_the_first_load_measures_and_the_next_ones_remember(tmp_path: Path, trials: Trials) -> None:
    options, (_, source) = (
        BackendOptions(cache_dir=str(tmp_path / "cache"), threads=1),
        build(BY_NAME["blocks of Q8_0"]),
    )
    assert has_to_measure("auto", source, options) and not has_to_measure("cpu", source, options)
    for _ in range(3):
        assert open_tiny(tmp_path / "cache").name == "cpu"
    assert trials.asked == ["cpu", "torch"] and not has_to_measure("auto", source, options)


@needs_native
def test_with_nothing_to_compare_nothing_is_measured(
    tmp_path: Path, trials: Trials, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(select, "candidates", lambda: ["cpu"])
    assert open_tiny(tmp_path).name == "cpu"
    monkeypatch.setattr(select, "candidates", lambda: ["cpu", "torch"])
    assert open_tiny("").name == "cpu"
    assert trials.asked == [] and not list(tmp_path.iterdir())


@pytest.mark.parametrize("change", ["facts", "damage", "threads"])
def test_what_was_measured_elsewhere_or_is_damaged_does_not_count(
    tmp_path: Path, trials: Trials, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    Speeds(tmp_path).measure(("Q8_0",), ["cpu", "torch"])
    assert len(Speeds(tmp_path).known("Q8_0")) == 2 and Speeds(tmp_path).known("BF16") == []
    if change == "facts":
        monkeypatch.setattr(speeds, "package_version", lambda name: "9.9")
    if change == "damage":
        (tmp_path / speeds.FILE_NAME).write_text("{")
    assert Speeds(tmp_path, 3 if change == "threads" else 0).known("Q8_0") == []


def test_a_home_that_cannot_be_written_costs_only_time(tmp_path: Path, trials: Trials) -> None:
    place = tmp_path / "file"
    place.write_text("")
    here = Speeds(place)
    here.measure(("Q8_0",), ["cpu"])
    assert [speed.backend for speed in here.known("Q8_0")] == ["cpu"], "the load that measured goes by it"
    assert Speeds(place).known("Q8_0") == []


# ---- opening


class Openers:
    """Backends that open or refuse as told; the tests see who was tried."""

    def __init__(self, **refusals: Exception | None) -> None:
        self.refusals = refusals
        self.tried: list[tuple[str, str]] = []

    def __call__(self, name: str) -> Any:
        if name not in select.PREFERENCE:
            raise UsageError(f"there is no backend {name!r}")

        def opens(config: ModelConfig, source: Any, options: BackendOptions, notes: tuple[str, ...]) -> Any:
            self.tried.append((name, options.device))
            refusal = self.refusals.get(name)
            if refusal is not None:
                raise refusal
            return (name, notes)

        return opens


def opened_by(openers: Openers, monkeypatch: pytest.MonkeyPatch, cache_dir: Path, **options: Any) -> Any:
    monkeypatch.setattr(select, "_opener", openers)
    config, source = build(BY_NAME["llama"])
    return open_backend("auto", config, source, replace(BackendOptions(cache_dir=str(cache_dir)), **options))


def test_the_fastest_that_can_is_taken_and_the_reasons_of_others_travel(
    tmp_path: Path, trials: Trials, monkeypatch: pytest.MonkeyPatch
) -> None:
    trials.found = (CPU, Speed("torch", "cuda:0", 1e-6, 1e-6, 1e-6, 1e-6))
    full = Openers(torch=NotEnoughMemory("it does not fit on cuda:0"))
    name, notes = opened_by(full, monkeypatch, tmp_path)
    assert full.tried == [("torch", "cuda:0"), ("cpu", "")]
    assert (name, notes) == ("cpu", ("the torch backend was passed over: it does not fit on cuda:0",))


def test_when_none_can_the_reasons_are_the_error(
    tmp_path: Path, trials: Trials, monkeypatch: pytest.MonkeyPatch
) -> None:
    no = UnsupportedModel("it has no such verb")
    with pytest.raises(UnsupportedModel, match="passed over: it has no such verb"):
        opened_by(Openers(cpu=no, torch=no, reference=no), monkeypatch, tmp_path)
    with pytest.raises(NotEnoughMemory):
        opened_by(Openers(cpu=no, torch=no, reference=NotEnoughMemory("full")), monkeypatch, tmp_path)


def test_a_device_that_is_named_is_torchs(tmp_path: Path, trials: Trials, monkeypatch: pytest.MonkeyPatch) -> None:
    openers = Openers()
    opened_by(openers, monkeypatch, tmp_path, device="cuda:1")
    assert openers.tried == [("torch", "cuda:1")] and trials.asked == []


# ---- doctor


def test_the_report_says_what_is_taken_and_how_many_times_faster_it_is(
    tmp_path: Path, trials: Trials, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "candidates", lambda: ["cpu", "torch"])
    monkeypatch.setattr(report, "problem_of", lambda name: "MLX is not installed" if name == "metal" else "")
    trials.found = (CPU, GPU)
    before = report.describe(tmp_path)
    assert "not yet measured" in before.rows[1].detail and "first model" in before.chosen and trials.asked == []
    after = report.describe(tmp_path, measure=True)
    details = {row.name: row.detail for row in after.rows}
    assert "on cuda:0 " in details["torch"] and "tokens/s in Q4_0" in details["torch"]
    assert "pip install" in details["metal"]
    times = CPU.turn_s(BILLION) / GPU.turn_s(BILLION)
    assert f"Q4_0: torch on cuda:0, {times:.1f} times cpu" in after.chosen


def test_the_report_names_the_problem_of_a_backend_that_failed(
    tmp_path: Path, trials: Trials, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "candidates", lambda: ["cpu", "torch"])
    monkeypatch.setattr(report, "problem_of", lambda name: "")
    trials.found = (CPU, Speed("torch", problem="its self-test ended with status -11"))
    found = report.describe(tmp_path, measure=True)
    (row,) = [row for row in found.rows if row.name == "torch"]
    assert row.available and not row.is_sound and "status -11" in row.detail
    assert "Q4_0: cpu" in found.chosen
