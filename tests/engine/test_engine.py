"""What an engine promises to those who add requests: endings, what comes with the tokens, and looking in."""

from typing import Any

import numpy as np
import pytest

from localllm.wire import SamplingParams

from .worlds import (
    PAGE_SIZE,
    PROMPT,
    VOCAB_SIZE,
    Answer,
    alone,
    answers_of,
    ask,
    assert_all_free,
    drain,
    engine_on,
    fake,
    finish,
    step,
    true_logits,
)

overlapped = pytest.mark.parametrize("overlaps", [False, True])


# ---- endings


@overlapped
def test_a_stop_id_ends_the_answer_and_is_not_in_it(overlaps: bool) -> None:
    plain = alone(max_tokens=12).ids
    answer = alone(max_tokens=12, overlaps=overlaps, stop_ids=[plain[4]])
    assert (answer.ids, answer.finish, answer.stop_id) == (plain[: plain.index(plain[4])], "stop", plain[4])


@overlapped
def test_the_token_computed_past_a_stop_is_dropped_and_not_counted(overlaps: bool) -> None:
    plain = alone(max_tokens=12).ids
    engine = engine_on(fake(overlaps=overlaps))
    answer = answers_of(engine, [ask("a", PROMPT, 12, stop_ids=[plain[4]])])["a"]
    assert engine.snapshot().num_generated_tokens == len(answer.ids)


@overlapped
def test_stop_ids_are_banned_until_min_tokens_are_there(overlaps: bool) -> None:
    plain = alone(max_tokens=12).ids
    params = SamplingParams(temperature=0.0, min_tokens=6)
    answer = alone(max_tokens=12, overlaps=overlaps, stop_ids=plain[:3], sampling=params)
    assert len(answer.ids) >= 6
    assert not set(plain[:3]) & set(answer.ids[:6])


@overlapped
def test_a_stop_id_is_allowed_as_soon_as_min_tokens_are_there(overlaps: bool) -> None:
    params = SamplingParams(temperature=0.0, min_tokens=2, logit_bias={9: 100.0})
    answer = alone(overlaps=overlaps, stop_ids=[9], sampling=params)
    assert (len(answer.ids), answer.finish, answer.stop_id) == (2, "stop", 9)


@overlapped
def test_an_answer_without_limit_ends_where_the_context_is_full(overlaps: bool) -> None:
    engine = engine_on(fake(overlaps=overlaps), context_length=30)
    answer = answers_of(engine, [ask("a", PROMPT, None)])["a"]
    assert (len(PROMPT) + len(answer.ids), answer.finish) == (30, "length")


def test_an_answer_without_limit_ends_where_the_memory_is_full() -> None:
    engine = engine_on(fake(), num_pages=5)
    answer = answers_of(engine, [ask("a", PROMPT, None)])["a"]
    # the last token is never computed, so that it needs no page
    assert (len(PROMPT) + len(answer.ids), answer.finish) == (5 * PAGE_SIZE + 1, "length")


def test_max_tokens_0_computes_the_prompt_and_says_nothing() -> None:
    engine = engine_on(fake())
    answer = answers_of(engine, [ask("a", PROMPT, 0)])["a"]
    assert (answer.ids, answer.finish) == ([], "length")
    assert answers_of(engine, [ask("b", PROMPT, 1)])["b"].num_cached == 8, "the prompt is cached now"


@overlapped
def test_an_aborted_request_frees_its_pages_before_the_next_step(overlaps: bool) -> None:
    engine = engine_on(fake(overlaps=overlaps))
    engine.add(ask("a", PROMPT, 50))
    answers: dict[str, Answer] = {}
    for _ in range(5):
        step(engine, answers)
    assert engine.abort("a")
    assert_all_free(engine)
    assert not engine.abort("a"), "it is not known any more"
    before = len(answers["a"].ids)
    finish(engine, answers)
    assert len(answers["a"].ids) == before, "nothing is said of it after the abort"


def test_a_waiting_request_can_be_aborted() -> None:
    engine = engine_on(fake(), max_sequences=1)
    engine.add(ask("a", PROMPT))
    engine.add(ask("b", PROMPT))
    engine.step()
    assert engine.abort("b")
    assert [view.request_id for view in engine.snapshot().sequences] == ["a"]
    drain(engine)


def test_an_id_can_be_used_again_after_its_request_ended() -> None:
    engine = engine_on(fake())
    first = answers_of(engine, [ask("a", PROMPT)])["a"].ids
    assert answers_of(engine, [ask("a", PROMPT)])["a"].ids == first


def test_a_row_without_an_allowed_token_ends_its_request_alone() -> None:
    engine = engine_on(fake())
    nothing = SamplingParams(temperature=0.0, min_tokens=5)
    submits = [ask("bad", PROMPT, stop_ids=list(range(VOCAB_SIZE)), sampling=nothing), ask("good", PROMPT)]
    answers = answers_of(engine, submits)
    assert (answers["bad"].finish, answers["bad"].error_code) == ("error", "nothing_allowed")
    assert answers["good"].ids == alone().ids


# ---- what comes with the tokens


@overlapped
def test_logprobs_come_with_every_token(overlaps: bool) -> None:
    answer = alone(top_logprobs=3, overlaps=overlaps)
    assert [score.token_id for score in answer.logprobs] == answer.ids
    assert all(len(score.top_ids) == 3 and score.top_ids[0] == score.token_id for score in answer.logprobs)


def test_prompt_logprobs_score_every_prompt_token_from_the_second() -> None:
    backend = fake()
    answer = answers_of(engine_on(backend, token_budget=4), [ask("a", PROMPT, 0, prompt_logprobs=1)])["a"]
    assert [score.token_id for score in answer.prompt_logprobs] == PROMPT[1:]
    for place, score in enumerate(answer.prompt_logprobs):
        logits = true_logits(backend, PROMPT[: place + 1]).astype(np.float64)
        assert score.logprob == pytest.approx(logits[score.token_id] - np.log(np.exp(logits).sum()), abs=1e-5)
        assert score.top_ids == [int(logits.argmax())]


def test_a_seed_gives_the_same_answer_in_any_company_and_no_seed_another_one() -> None:
    def hot(**changes: Any) -> SamplingParams:
        return SamplingParams(temperature=3.0, **changes)

    engine = engine_on(fake())
    company = [ask(f"c{n}", [n], 20, sampling=hot()) for n in range(5)]
    answers = answers_of(engine, [*company, *(ask(f"s{n}", PROMPT, 20, sampling=hot(seed=5)) for n in range(2))])
    expected = alone(max_tokens=20, sampling=hot(seed=5)).ids
    assert answers["s0"].ids == answers["s1"].ids == expected
    assert len({tuple(alone(max_tokens=20, sampling=hot()).ids) for _ in range(3)}) == 3


def test_a_bias_makes_a_token_certain() -> None:
    assert alone(sampling=SamplingParams(temperature=0.0, logit_bias={7: 100.0})).ids == [7] * 8


@overlapped
def test_a_frequency_penalty_spreads_the_answer(overlaps: bool) -> None:
    params = SamplingParams(temperature=0.0, logit_bias={7: 30.0, 8: 29.5}, frequency_penalty=2.0)
    ids = alone(sampling=params, overlaps=overlaps).ids
    assert {ids.count(7), ids.count(8)} == {4}


def test_progress_of_a_long_prompt_is_reported_step_by_step() -> None:
    engine = engine_on(fake(), token_budget=8)
    engine.add(ask("a", range(20), 1))
    chunks = [engine.step()[0] for _ in range(3)]
    assert [chunk.num_computed for chunk in chunks] == [8, 16, 20]
    assert [chunk.started for chunk in chunks] == [True, False, False]


# ---- looking in


def test_a_snapshot_counts_everything() -> None:
    engine = engine_on(fake(), max_sequences=1)
    engine.add(ask("a", PROMPT, 10))
    engine.add(ask("b", PROMPT, 10))
    engine.step()
    seen = engine.snapshot()
    assert (seen.num_running, seen.num_waiting, seen.num_steps, seen.last_step_tokens) == (1, 1, 1, len(PROMPT))
    assert [(view.request_id, view.state, view.num_pages) for view in seen.sequences] == [
        ("a", "running", 3),
        ("b", "waiting", 0),
    ]
    assert seen.pages.count(2) == 3
    drain(engine)
    assert engine.snapshot().num_generated_tokens == 20
    assert engine.snapshot().num_prompt_tokens == 2 * len(PROMPT)


@overlapped
def test_closing_in_the_middle_gives_everything_back(overlaps: bool) -> None:
    backend = fake(overlaps=overlaps)
    engine = engine_on(backend)
    engine.add(ask("a", PROMPT, 50))
    engine.step()
    engine.close()
    assert_all_free(engine)
    assert backend.is_closed


def test_an_idle_engine_has_nothing_to_do() -> None:
    engine = engine_on(fake())
    assert not engine.has_work
    assert engine.step() == []
