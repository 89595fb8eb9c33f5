"""Where states are kept, so that models with recurrent layers share what their prompts have in common."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localllm.engine.engine import Engine
from localllm.engine.marks import LONG_RUN_PAGES, MOST_PARTINGS, Marks

from .worlds import PAGE_SIZE, answers_of, ask, drain, engine_on, fake, finish, oracle, step

HYBRIDS = ["hybrid", "windowed hybrid", "state only"]
END_OF_TURN = 63
OWN = 7
SYSTEM = [n * 7 % 61 for n in range(999)] + [END_OF_TURN]


def roomy(shape: str, **changes: Any) -> Engine:
    return engine_on(fake(shape), context_length=4096, num_pages=9000, token_budget=128, max_sequences=32, **changes)


def questions(count: int, **fields: Any) -> list[Any]:
    return [ask(f"r{n}", [*SYSTEM, *range(n, n + OWN)], 1, **fields) for n in range(count)]


@pytest.mark.parametrize("shape", HYBRIDS)
def test_a_system_prompt_of_sixteen_simultaneous_requests_is_computed_once(shape: str) -> None:
    engine = roomy(shape)
    submits = questions(16)
    answers = answers_of(engine, submits)
    assert engine.counters.num_step_tokens == len(SYSTEM) + 16 * OWN
    assert sorted(answer.num_cached for answer in answers.values()) == [0] + [len(SYSTEM)] * 15
    expected = oracle(fake(shape), submits[5], 4096)
    assert answers["r5"].ids == expected.ids


@pytest.mark.parametrize("shape", HYBRIDS)
def test_a_system_prompt_that_ends_a_turn_is_shared_from_the_second_request_on(shape: str) -> None:
    engine = roomy(shape)
    cached = [answers_of(engine, [submit])[submit.request_id].num_cached for submit in questions(4, stop_ids=[63])]
    assert cached == [0, 1000, 1000, 1000]


@pytest.mark.parametrize("shape", HYBRIDS)
def test_where_prompts_part_is_learnt_from_the_second_one(shape: str) -> None:
    engine = roomy(shape)
    cached = [answers_of(engine, [submit])[submit.request_id].num_cached for submit in questions(4)]
    assert cached == [0, cached[1], 1000, 1000]
    assert cached[1] % (LONG_RUN_PAGES * PAGE_SIZE) == 0, "and what a long text is given on the way serves the second"
    assert cached[1] > 0


@pytest.mark.parametrize("shape", HYBRIDS)
def test_ten_turns_compute_their_new_tokens_only(shape: str) -> None:
    engine = roomy(shape)
    ids = list(SYSTEM)
    for turn in range(10):
        ids += [(turn * 5 + n) % 60 for n in range(20)] + [END_OF_TURN]
        before = engine.counters.num_step_tokens
        answer = answers_of(engine, [ask(f"turn{turn}", ids, 30, stop_ids=[END_OF_TURN])])[f"turn{turn}"]
        num_computed = engine.counters.num_step_tokens - before
        num_new = len(ids) if turn == 0 else 22 + len(answer.ids)
        assert num_computed <= num_new + PAGE_SIZE + len(answer.ids), f"turn {turn} computed {num_computed} tokens"
        ids += [*answer.ids, END_OF_TURN]


def test_a_turn_that_drops_what_was_thought_goes_on_from_the_last_prompt() -> None:
    engine = roomy("hybrid")
    first = [*SYSTEM, *range(10), END_OF_TURN, 1]
    answers_of(engine, [ask("a", first, 50)])
    again = answers_of(engine, [ask("b", [*first, 9, 9, END_OF_TURN, 4, 4, 4], 2)])["b"]
    assert again.num_cached == (len(first) - 1) // PAGE_SIZE * PAGE_SIZE


@pytest.mark.parametrize("shape", HYBRIDS)
def test_a_preempted_sequence_goes_on_from_a_kept_state_and_says_the_same(shape: str) -> None:
    windows = 1 if shape == "windowed hybrid" else 0
    engine = engine_on(fake(shape), num_pages=24 + 12 * windows, max_sequences=3, num_checkpoints=16)
    submits = [ask(f"r{n}", [n, *range(20)], 40) for n in range(3)]
    answers = answers_of(engine, submits)
    for submit in submits:
        assert answers[submit.request_id].ids == oracle(fake(shape), submit).ids
    if shape != "state only":
        assert engine.snapshot().num_preemptions > 0


def test_who_waits_for_a_state_does_not_wait_for_one_that_has_passed_it() -> None:
    engine = roomy("hybrid")
    engine.add(ask("elder", range(60), 40))
    answers: dict[str, Any] = {}
    step(engine, answers)  # the elder's prompt is computed, its state was kept at its end only
    engine.add(ask("younger", [*range(40), 5, 5, 5], 2))
    step(engine, answers)
    assert {view.request_id: view.state for view in engine.snapshot().sequences}["younger"] == "running"
    finish(engine, answers)


def test_slots_bound_how_many_run() -> None:
    engine = engine_on(fake("hybrid"), max_sequences=2)
    for n in range(4):
        engine.add(ask(f"r{n}", [n] * 5, 4))
    engine.step()
    seen = engine.snapshot()
    assert (seen.num_running, seen.num_waiting, seen.num_slots, seen.num_slots_used) == (2, 2, 2, 2)
    drain(engine)
    assert engine.snapshot().num_slots_used == 0


# ---- marks


def test_marks_lie_before_the_last_token_and_after_the_first_and_last_turns() -> None:
    ids = [0] * 50
    for index in (9, 15, 21, 27):
        ids[index] = END_OF_TURN
    marks = Marks(ids, {END_OF_TURN}, 4, 16)
    assert [tokens for tokens in range(60) if tokens in marks] == [8, 20, 28, 48]
    assert (marks.next_after(0), marks.next_after(8), marks.next_after(9), marks.next_after(48)) == (8, 20, 20, None)


def test_a_long_text_has_marks_on_the_way_but_only_a_part_of_what_can_be_kept() -> None:
    tokens = LONG_RUN_PAGES * 4 * 40
    few, many = Marks([0] * tokens, (), 4, 16), Marks([0] * tokens, (), 4, 1000)
    assert 1 < len([n for n in range(0, tokens, 4) if n in few]) <= 4
    assert len([n for n in range(0, tokens, 4) if n in many]) == 40


def test_partings_are_few_and_worth_it() -> None:
    marks = Marks([0] * 1000, (), 4, 16)
    assert not marks.add_parting(0)
    assert not marks.add_parting(1)
    assert [marks.add_parting(pages) for pages in range(2, 2 + MOST_PARTINGS + 1)] == [True] * MOST_PARTINGS + [False]
    assert marks.add_parting(2), "it is one already"


@given(st.lists(st.sampled_from([0, END_OF_TURN]), min_size=1, max_size=300), st.integers(0, 64))
def test_marks_are_reached_from_anywhere_and_leave_a_token(ids: list[int], capacity: int) -> None:
    marks = Marks(ids, {END_OF_TURN}, PAGE_SIZE, capacity)
    reached, at = [], 0
    while (following := marks.next_after(at)) is not None:
        assert at < following < len(ids)
        assert following in marks
        reached.append(following)
        at = following
    assert reached == [tokens for tokens in range(len(ids) + PAGE_SIZE) if tokens in marks]
