"""Logits, scores and pooled vectors of whole prompts, whatever the chunks and the company."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from localllm.engine.step import RowResult, StepResult, Want
from localllm.errors import BadLogits, NotEnoughMemory

from .worlds import (
    PROMPT,
    alone,
    answers_of,
    ask,
    assert_all_free,
    engine_on,
    fake,
    finish,
    true_logits,
)


@pytest.mark.parametrize("budget", [3, 100])
def test_logits_of_every_position_come_back_whatever_the_chunks(budget: int) -> None:
    backend = fake("windowed hybrid")
    engine = engine_on(backend, token_budget=budget)
    results = engine.run_rows([PROMPT, PROMPT[:4]], Want(logits="all"))
    for prompt, result in zip([PROMPT, PROMPT[:4]], results, strict=True):
        expected = np.stack([true_logits(backend, prompt[: n + 1]) for n in range(len(prompt))])
        assert result.logits is not None
        np.testing.assert_array_equal(result.logits, expected)
    assert_all_free(engine)


def test_the_last_logits_come_alone() -> None:
    backend = fake()
    (result,) = engine_on(backend, token_budget=4).run_rows([PROMPT], Want(logits="last"))
    assert result.logits is not None
    np.testing.assert_array_equal(result.logits, true_logits(backend, PROMPT)[None])


@pytest.mark.parametrize("kind", ["mean", "first", "last"])
def test_pooled_vectors_do_not_depend_on_the_chunks(kind: Any) -> None:
    small, large = (engine_on(fake(), token_budget=n).pool([PROMPT, [1]], kind) for n in (2, 100))
    assert small.shape == (2, 8)
    np.testing.assert_allclose(small, large, rtol=1e-6)


def test_scores_of_a_whole_prompt_are_its_prompt_logprobs() -> None:
    (result,) = engine_on(fake(), token_budget=4).run_rows([PROMPT], Want(targets=(0,), target_top=1))
    assert list(result.targets) == alone(max_tokens=0, prompt_logprobs=1).prompt_logprobs


def test_an_atomic_prompt_is_computed_in_one_step_however_long() -> None:
    backend = fake()
    engine = engine_on(backend, token_budget=4)
    engine.run_rows([range(30), range(10)], Want(pooled="mean"), atomic=True)
    rows = [row for plan in backend.plans for row in plan.rows]
    assert [(row.atomic, len(row.token_ids)) for row in rows] == [(True, 30), (True, 10)]
    assert answers_of(engine, [ask("a", range(30))])["a"].num_cached == 0, "their pages are of no use to others"


def test_other_sequences_go_on_while_whole_answers_are_computed() -> None:
    engine = engine_on(fake(), token_budget=4)
    engine.add(ask("a", PROMPT, 20))
    engine.run_rows([range(40)], Want(pooled="last"))
    assert engine.snapshot().num_generated_tokens > 3
    assert finish(engine)["a"].ids == alone(max_tokens=20).ids


def test_a_row_that_fails_is_the_error_of_the_whole_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = fake()
    engine, collect = engine_on(backend, token_budget=4), backend.collect

    def failing() -> StepResult:
        result = collect()
        rows = tuple(RowResult(row.seq, error="no numbers", error_code=BadLogits.code) for row in result.rows)
        return replace(result, rows=rows)

    monkeypatch.setattr(backend, "collect", failing)
    with pytest.raises(BadLogits, match="no numbers"):
        engine.run_rows([PROMPT, PROMPT[:3]], Want(logits="all"))
    assert not engine.has_work and engine.step() == []
    assert_all_free(engine)


def test_an_atomic_prompt_larger_than_the_pool_is_refused() -> None:
    engine = engine_on(fake(), num_pages=4)
    with pytest.raises(NotEnoughMemory):
        engine.run_rows([range(17)], Want(pooled="mean"), atomic=True)
    assert not engine.has_work
