"""Logits, scores and pooled vectors of whole prompts, whatever the chunks and the company."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from localllm.engine.step import RowResult, StepResult, Want
from localllm.errors import BadLogits, ContextExceeded, NotEnoughMemory

from .worlds import (
    PROMPT,
    Answer,
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


@pytest.mark.parametrize("overlaps", [False, True])
@pytest.mark.parametrize("kind", ["mean", "first", "last"])
def test_a_submitted_prompt_comes_back_as_a_vector_beside_those_who_generate(kind: Any, overlaps: bool) -> None:
    expected = engine_on(fake()).pool([range(40)], kind)[0]
    engine = engine_on(fake(overlaps=overlaps), token_budget=8)
    engine.add(ask("talker", PROMPT, 20))
    engine.add(ask("pooled", range(40), pooled=kind))
    answers, chunks = {}, []
    while engine.has_work:
        for chunk in engine.step():
            if chunk.request_id == "pooled":
                chunks.append(chunk)
            else:
                answers.setdefault(chunk.request_id, Answer()).take(chunk)
        engine.check()
    assert answers["talker"].ids == alone(max_tokens=20).ids
    assert len(chunks) > 2, "it was cut into chunks, and each is told"
    assert [chunk.num_computed for chunk in chunks] == sorted({chunk.num_computed for chunk in chunks})
    assert [chunk.started for chunk in chunks] == [True] + [False] * (len(chunks) - 1)
    assert [chunk.finish for chunk in chunks] == [None] * (len(chunks) - 1) + ["length"]
    np.testing.assert_allclose(np.frombuffer(chunks[-1].vector, "<f4"), expected, rtol=1e-6)
    assert not any(chunk.vector for chunk in chunks[:-1]) and not any(chunk.ids for chunk in chunks)
    assert_all_free(engine)


def test_only_the_last_token_s_vector_can_do_with_a_cached_prefix() -> None:
    engine = engine_on(fake(), token_budget=32)
    answers_of(engine, [ask("a", range(20))])
    for kind, num_cached in (("last", 16), ("mean", 0), ("first", 0)):
        engine.add(ask("b", range(20), pooled=kind))
        (chunk,) = [chunk for chunk in engine.step() if chunk.finish]
        assert chunk.num_cached == num_cached
        fresh = engine_on(fake(), token_budget=100).pool([range(20)], kind)[0]
        np.testing.assert_array_equal(np.frombuffer(chunk.vector, "<f4"), fresh)


def test_a_preempted_vector_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = engine_on(fake()).pool([range(30)], "mean")[0]
    engine = engine_on(fake(), token_budget=4, num_pages=12)
    engine.add(ask("pooled", range(30), pooled="mean"))
    vectors = {chunk.request_id: chunk.vector for chunk in engine.step()}
    engine.add(ask("first", range(30, 60), 4, priority=5))
    while engine.has_work:
        vectors |= {chunk.request_id: chunk.vector for chunk in engine.step() if chunk.vector}
        engine.check()
    assert engine.snapshot().num_preemptions > 0
    np.testing.assert_allclose(np.frombuffer(vectors["pooled"], "<f4"), expected, rtol=1e-6)


def test_a_submitted_vector_that_fails_is_one_failed_sequence(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = fake()
    engine, collect = engine_on(backend, token_budget=4), backend.collect

    def failing() -> StepResult:
        result = collect()
        rows = tuple(RowResult(row.seq, error="no numbers", error_code=BadLogits.code) for row in result.rows)
        return replace(result, rows=rows)

    monkeypatch.setattr(backend, "collect", failing)
    engine.add(ask("pooled", PROMPT, pooled="mean"))
    (chunk,) = engine.step()
    assert (chunk.finish, chunk.error_code, chunk.vector) == ("error", BadLogits.code, b"")
    assert not engine.has_work


def test_a_prompt_to_pool_may_fill_the_context_but_not_exceed_it() -> None:
    engine = engine_on(fake(), context_length=16)
    engine.add(ask("a", range(16), None, pooled="last"))
    with pytest.raises(ContextExceeded):
        engine.add(ask("b", range(17), None, pooled="last"))
    assert [chunk.finish for chunk in engine.step()] == ["length"]
