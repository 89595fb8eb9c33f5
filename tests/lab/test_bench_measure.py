"""What is timed: on an engine that takes a second for every step, whatever it computes."""

from collections.abc import Iterator
from typing import Any

import pytest

from localllm.backends.fake import FakeBackend
from localllm.engine.engine import Engine
from localllm.engine.step import StepPlan, StepResult
from localllm.errors import LocalLLMError, NotEnoughMemory, UsageError
from localllm.lab.bench_measure import Sample, Stopwatch
from localllm.lab.bench_rows import Work
from localllm.wire import TokenChunk
from tests.engine.worlds import PAGE_SIZE, SHAPES, VOCAB_SIZE, engine_on


class SlowBackend(FakeBackend):
    """Every step takes one second of `now_s`."""

    now_s = 0.0

    def collect(self) -> StepResult:
        self.now_s += 1.0
        return super().collect()


def world(shape: str = "full", **changes: Any) -> tuple[SlowBackend, Engine, Stopwatch]:
    backend = SlowBackend(vocab_size=VOCAB_SIZE, page_size=PAGE_SIZE, keep_plans=1000, **SHAPES[shape])
    engine = engine_on(backend, **changes)
    return backend, engine, Stopwatch(engine, clock=lambda: backend.now_s)


def last_plans(backend: SlowBackend, count: int) -> Iterator[StepPlan]:
    return iter(list(backend.plans)[-count:])


def test_a_prompt_is_timed_up_to_its_first_token_in_the_chunks_of_the_engine() -> None:
    backend, engine, stopwatch = world(token_budget=16)
    assert stopwatch.time(Work(40, 0)) == Sample(40, 3.0)
    assert [plan.num_tokens for plan in backend.plans] == [16, 16, 8]
    assert not engine.has_work


def test_prompts_of_several_sequences_share_steps() -> None:
    _, _, stopwatch = world(token_budget=16)
    assert stopwatch.time(Work(8, 0, n_parallel=4)) == Sample(32, 2.0)


def test_generation_from_an_empty_cache_is_one_step_for_each_token() -> None:
    backend, engine, stopwatch = world()
    assert stopwatch.time(Work(0, 8)) == Sample(8, 8.0)
    assert [row.start for plan in backend.plans for row in plan.rows] == list(range(8))
    assert not engine.has_work


def test_sequences_decode_at_once_and_their_tokens_add_up() -> None:
    backend, _, stopwatch = world()
    assert stopwatch.time(Work(0, 8, n_parallel=4)) == Sample(32, 8.0)
    assert {len(plan.rows) for plan in backend.plans} == {4}


@pytest.mark.parametrize("parallel", [1, 3])
def test_the_depth_is_in_the_cache_before_the_clock_starts(parallel: int) -> None:
    backend, _, stopwatch = world()
    assert stopwatch.time(Work(0, 8, parallel, 32)) == Sample(8 * parallel, 8.0)
    timed = [[row.start for row in plan.rows] for plan in last_plans(backend, 8)]
    assert timed == [[32 + step] * parallel for step in range(8)]


def test_a_prompt_behind_a_depth_computes_nothing_of_the_depth() -> None:
    backend, _, stopwatch = world()
    assert stopwatch.time(Work(8, 0, 1, 32)) == Sample(8, 1.0)
    (plan,) = last_plans(backend, 1)
    assert [(row.start, len(row.token_ids)) for row in plan.rows] == [(32, 8)]


def test_what_is_left_of_a_page_of_the_depth_counts_as_computed() -> None:
    _, _, stopwatch = world()
    assert stopwatch.time(Work(8, 0, 1, 30)) == Sample(10, 1.0)  # pages have 4 tokens: 28 are kept


def test_the_depth_is_computed_once_for_all_repetitions() -> None:
    backend, _, stopwatch = world()
    stopwatch.time(Work(8, 0, 1, 32))
    num_steps = len(backend.plans)
    stopwatch.time(Work(8, 0, 1, 32))
    assert sum(plan.num_tokens for plan in list(backend.plans)[num_steps:]) < 8 + 32


def test_a_repetition_finds_nothing_of_the_last_one_in_the_cache() -> None:
    _, _, stopwatch = world()
    assert [stopwatch.time(Work(16, 0)) for _ in range(3)] == [Sample(16, 1.0)] * 3


def test_without_a_prefix_cache_the_first_of_several_sequences_waits_for_the_last_one() -> None:
    _, engine, stopwatch = world(prefix_cache=False, token_budget=16, context_length=256)
    assert stopwatch.time(Work(0, 8, 3, 32)) == Sample(24, 8.0)
    assert not engine.has_work


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("work", [Work(24, 0, 2, 20), Work(0, 12, 2, 20), Work(0, 12, 3, 0)], ids=lambda w: w.name)
def test_every_kind_of_memory_is_measured_and_given_back(shape: str, work: Work) -> None:
    _, engine, stopwatch = world(shape)
    stopwatch.check(work)
    for _ in range(3):
        sample = stopwatch.time(work)
        # a prompt may have to begin a page earlier, and with recurrent state another one
        most = work.num_tokens + (2 * PAGE_SIZE * work.n_parallel if work.n_prompt else 0)
        assert work.num_tokens <= sample.num_tokens <= most and sample.seconds > 0
        engine.check()
        assert not engine.has_work


@pytest.mark.parametrize(
    ("work", "kind", "said"),
    [
        (Work(120, 0, 1, 8), UsageError, "pp120 @ d8 needs a context of 129 tokens, but it holds 128"),
        (Work(0, 8, 9), UsageError, "tg8 x9 runs 9 sequences, but 8 are allowed"),
        (Work(0, 8, 8, 112), NotEnoughMemory, "tg8 x8 @ d112 needs 248 pages of memory, but there are 200"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_runs(work: Work, kind: type[Exception], said: str) -> None:
    backend, _, stopwatch = world(num_pages=200)
    with pytest.raises(kind, match=said):
        stopwatch.check(work)
    assert not backend.plans


def test_waiting_for_memory_is_no_measurement() -> None:
    _, engine, stopwatch = world(num_pages=12)
    with pytest.raises(NotEnoughMemory, match="wait for memory"):
        stopwatch.time(Work(0, 24, 4))
    assert not engine.has_work


def test_an_error_of_the_model_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    _, engine, stopwatch = world()
    step = engine.step

    def failing() -> list[TokenChunk]:
        return [TokenChunk(chunk.request_id, finish="error", error="no numbers") for chunk in step()]

    monkeypatch.setattr(engine, "step", failing)
    with pytest.raises(LocalLLMError, match="no numbers"):
        stopwatch.time(Work(0, 4))
    assert not engine.has_work
