"""Tokens that were said before: an answer that goes on with them is the answer that would have come anyway."""

from dataclasses import replace
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from localllm.engine.speculative import LookupDrafter
from localllm.errors import InvalidRequest
from localllm.wire import SamplingParams, Submit
from tests.engine.test_guides import Rule, RuleGuides, guided
from tests.engine.walks import engines, requests, shapes
from tests.engine.worlds import GREEDY, PROMPT, Answer, answers_of, ask, drain, engine_on, fake, oracle


def continued(submit: Submit, said: list[int], keep: int) -> Submit:
    """The same request with the first `keep` tokens of its answer given."""
    left = None if submit.max_tokens is None else submit.max_tokens - keep
    return msgspec.structs.replace(
        submit, prompt=[*submit.prompt, *said[:keep]], num_given=keep, max_tokens=left, request_id="again"
    )


@settings(max_examples=200)
@given(shapes, st.booleans(), engines, requests(max_size=1), st.data())
def test_what_follows_the_first_tokens_of_an_answer_is_the_rest_of_it(
    shape: str, overlaps: bool, changes: dict[str, Any], submits: list[Submit], data: st.DataObject
) -> None:
    backend = fake(shape, overlaps=overlaps)
    engine = engine_on(backend, **changes)
    told = answers_of(engine, submits)[submits[0].request_id]
    keep = data.draw(st.integers(0, len(told.ids)), label="keep")
    if keep and keep == submits[0].max_tokens:
        return  # it was whole
    again = answers_of(engine, [continued(submits[0], told.ids, keep)])["again"]
    assert replace(again, num_cached=0) == replace(told, ids=told.ids[keep:], num_cached=0)


def test_another_token_in_the_middle_computes_no_full_page_again() -> None:
    engine = engine_on(fake())
    told = answers_of(engine, [ask("a", PROMPT, 20)])["a"].ids
    branch = ask("b", [*PROMPT, *told[:10], 63], 4, num_given=11)
    answer = answers_of(engine, [branch])["b"]
    assert answer.num_cached == (len(PROMPT) + 10) // 4 * 4
    assert answer.ids == oracle(fake(), ask("plain", branch.prompt, 4)).ids


def test_given_tokens_count_for_penalties_and_for_the_least_number_of_tokens() -> None:
    strict = SamplingParams(temperature=0.0, frequency_penalty=2.0, min_tokens=6)
    told = answers_of(engine_on(fake()), [ask("a", PROMPT, 12, sampling=strict)])["a"].ids
    again = ask("b", [*PROMPT, *told[:5]], 7, sampling=strict, num_given=5)
    as_prompt = ask("c", [*PROMPT, *told[:5]], 7, sampling=strict)
    assert answers_of(engine_on(fake()), [again])["b"].ids == told[5:]
    assert answers_of(engine_on(fake()), [as_prompt])["c"].ids != told[5:]


@pytest.mark.parametrize("keep", [1, 4, 6])
@pytest.mark.parametrize("overlaps", [False, True])
def test_a_guide_has_heard_what_was_given(overlaps: bool, keep: int) -> None:
    """Rule, length and the fixed sixth token go by all that was said."""
    rules = RuleGuides({"rule": Rule(length=9, force_at=5)})
    engine = engine_on(fake(overlaps=overlaps), guides=rules)
    told = answers_of(engine, [guided("a", "rule", max_tokens=20)])["a"]
    again = answers_of(engine, [continued(guided("a", "rule", max_tokens=20), told.ids, keep)])["again"]
    assert (told.ids[5], told.finish, len(told.ids)) == (9, "stop", 9)
    assert (again.ids, again.finish) == (told.ids[keep:], "stop")


def test_what_a_guide_has_no_place_for_cannot_be_gone_on_with() -> None:
    engine = engine_on(fake(), guides=RuleGuides({"rule": Rule(length=3)}))
    told = answers_of(engine, [guided("a", "rule")])["a"]
    whole = answers_of(engine, [continued(guided("a", "rule"), told.ids, 3)])["again"]
    assert (whole.finish, whole.error_code, whole.ids) == ("error", InvalidRequest.code, [])


@given(st.lists(st.integers(0, 2), min_size=1, max_size=30), st.integers(1, 11))
def test_guesses_from_the_text_go_on_with_it_too(prompt: list[int], keep: int) -> None:
    submit = ask("a", prompt, 12)
    told = answers_of(engine_on(fake()), [submit])["a"].ids
    engine = engine_on(fake(), drafter=LookupDrafter())
    assert answers_of(engine, [continued(submit, told, keep)])["again"].ids == told[keep:]


def test_what_is_only_computed_has_no_answer_to_go_on_with() -> None:
    engine = engine_on(fake())
    answer = answers_of(engine, [ask("a", PROMPT, 0, num_given=3)])["a"]
    assert answer == Answer(finish="length", num_started=1)


@pytest.mark.parametrize("num_given", [len(PROMPT), len(PROMPT) + 1, -1])
def test_a_prompt_must_have_more_than_what_is_given(num_given: int) -> None:
    engine = engine_on(fake())
    with pytest.raises(InvalidRequest) as caught:
        engine.add(ask("a", PROMPT, num_given=num_given, sampling=GREEDY))
    assert caught.value.param == "num_given"
    drain(engine)
