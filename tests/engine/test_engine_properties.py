"""Whatever happens around a request (batch, chunks, cache, shortage, overlap, cancels) its answer stays the same."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from localllm.engine.step import Want
from localllm.wire import Submit

from .walks import come_and_go, engines, few_tokens, growing, requests, shapes
from .worlds import (
    SHAPES,
    VOCAB_SIZE,
    Answer,
    answers_of,
    ask,
    assert_as_alone,
    drain,
    engine_on,
    fake,
    finish,
    oracle,
    step,
    true_logits,
)


@settings(max_examples=300)
@given(shapes, st.booleans(), engines, requests())
def test_every_answer_is_the_one_that_the_plain_history_gives(
    shape: str, overlaps: bool, changes: dict[str, Any], submits: list[Submit]
) -> None:
    backend = fake(shape, overlaps=overlaps)
    answers = answers_of(engine_on(backend, **changes), submits)
    assert_as_alone(backend, submits, answers)


@pytest.mark.parametrize("shape", sorted(SHAPES))
@pytest.mark.parametrize("overlaps", [False, True])
def test_chunks_of_any_size_give_the_same_answer(shape: str, overlaps: bool) -> None:
    prompt = [n * 7 % VOCAB_SIZE for n in range(33)]
    backend = fake(shape, overlaps=overlaps)
    expected = oracle(backend, ask("a", prompt)).ids
    for budget in range(1, 40):
        engine = engine_on(fake(shape, overlaps=overlaps), token_budget=budget)
        assert answers_of(engine, [ask("a", prompt)])["a"].ids == expected


@pytest.mark.parametrize("shape", sorted(set(SHAPES) - {"state only"}))
@pytest.mark.parametrize("overlaps", [False, True])
def test_a_pool_cut_to_a_tenth_preempts_and_changes_nothing(shape: str, overlaps: bool) -> None:
    submits = growing()
    backend = fake(shape, overlaps=overlaps)
    engine = engine_on(backend, num_pages=14 if shape == "windows only" else 22)
    answers = answers_of(engine, submits)
    assert engine.snapshot().num_preemptions > 0
    assert_as_alone(backend, submits, answers)


@settings(max_examples=150)
@given(shapes, st.booleans(), engines, requests(), st.data())
def test_requests_may_come_and_go_at_any_time(
    shape: str, overlaps: bool, changes: dict[str, Any], submits: list[Submit], data: st.DataObject
) -> None:
    backend = fake(shape, overlaps=overlaps)
    engine = engine_on(backend, **changes)
    come_and_go(engine, backend, submits, data)


@given(shapes, st.booleans(), few_tokens, few_tokens, st.integers(1, 24))
def test_a_conversation_that_goes_on_reads_its_cached_past_and_answers_the_same(
    shape: str, overlaps: bool, first: list[int], second: list[int], budget: int
) -> None:
    backend = fake(shape, overlaps=overlaps)
    engine = engine_on(backend, token_budget=budget)
    told = answers_of(engine, [ask("one", first, 10)])["one"].ids
    turn = ask("two", [*first, *told, *second], 10)
    answer = answers_of(engine, [turn])["two"]
    assert answer.ids == oracle(backend, turn).ids
    if shape in ("full", "windowed"):
        assert answer.num_cached >= (len(first) + len(told) - 1) // 4 * 4
    assert answer.num_cached < len(turn.prompt)


@given(shapes, st.booleans(), st.lists(few_tokens, min_size=1, max_size=4), st.integers(1, 20))
def test_prompt_scores_are_complete_and_in_order_whatever_the_chunks(
    shape: str, overlaps: bool, prompts: list[list[int]], budget: int
) -> None:
    submits = [ask(f"r{n}", p, n % 2 * 5, prompt_logprobs=2, top_logprobs=1) for n, p in enumerate(prompts)]
    engine = engine_on(fake(shape, overlaps=overlaps), token_budget=budget, num_pages=26)
    answers = answers_of(engine, submits)
    plain = answers_of(engine_on(fake(shape), token_budget=64, prefix_cache=False), submits)
    for submit in submits:
        got = answers[submit.request_id]
        assert [score.token_id for score in got.prompt_logprobs] == submit.prompt[1:]
        assert got.prompt_logprobs == plain[submit.request_id].prompt_logprobs
        assert got.logprobs == plain[submit.request_id].logprobs
        assert got.num_cached == 0


@pytest.mark.parametrize("overlaps", [False, True])
def test_prompt_scores_are_said_once_even_when_a_prompt_is_computed_again(overlaps: bool) -> None:
    submits = [ask(f"r{n}", [n] * 18, 12, prompt_logprobs=0, priority=n) for n in range(4)]
    engine = engine_on(fake(overlaps=overlaps), num_pages=14, token_budget=5, prefix_cache=False)
    answers: dict[str, Answer] = {}
    for submit in submits:  # each newcomer outranks those before it, in the middle of their prompts and after
        engine.add(submit)
        for _ in range(5):
            step(engine, answers)
    finish(engine, answers)
    assert engine.snapshot().num_preemptions > 0
    for submit in submits:
        assert [score.token_id for score in answers[submit.request_id].prompt_logprobs] == submit.prompt[1:]
        assert answers[submit.request_id].ids == oracle(fake(), submit).ids


@given(st.booleans(), st.integers(1, 9), st.lists(st.integers(1, 30), min_size=1, max_size=4), st.integers(10, 14))
def test_whole_answers_are_complete_even_when_their_memory_is_taken_away(
    overlaps: bool, budget: int, lengths: list[int], num_pages: int
) -> None:
    engine = engine_on(fake(overlaps=overlaps), num_pages=num_pages, token_budget=budget, prefix_cache=False)
    for number in range(3):
        engine.add(ask(f"r{number}", [number], 28, priority=1))
    prompts = [list(range(length)) for length in lengths]
    results = engine.run_rows(prompts, Want(logits="all"))
    for prompt, result in zip(prompts, results, strict=True):
        expected = [true_logits(fake(), prompt[: n + 1]) for n in range(len(prompt))]
        np.testing.assert_array_equal(result.logits, expected)
    drain(engine)


def test_a_checkpoint_is_kept_at_page_boundaries_only() -> None:
    engine = engine_on(fake("hybrid"), num_checkpoints=1)
    long = ask("long", [7] * 9, 4)
    engine.add(long)
    engine.step()
    engine.add(ask("other", [5] * 5, 1))  # its state takes the place of the other one while that goes on
    drain(engine)
    again = ask("again", long.prompt)
    assert answers_of(engine, [again])["again"].ids == oracle(fake("hybrid"), again).ids
