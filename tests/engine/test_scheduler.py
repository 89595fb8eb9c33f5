"""Who runs next: single tokens before chunks, rank before age, nobody passed by for ever."""

import pytest

from localllm.engine.engine import Engine
from localllm.engine.scheduler import AGING_STEPS, rank_at
from localllm.engine.step import StepPlan
from localllm.wire import SamplingParams, SequenceView

from .worlds import Answer, answers_of, ask, drain, engine_on, fake, finish, oracle, step


def plan_of(engine: Engine) -> StepPlan:
    """One step, and the plan that it made."""
    engine.step()
    engine.check()
    backend = engine._backend
    plan: StepPlan = backend.plans[-1]  # type: ignore[attr-defined]  # a FakeBackend keeps its plans
    return plan


def sizes(plan: StepPlan) -> list[int]:
    return [len(row.token_ids) for row in plan.rows]


def views(engine: Engine) -> dict[str, SequenceView]:
    return {view.request_id: view for view in engine.snapshot().sequences}


def test_a_step_never_exceeds_its_budget() -> None:
    backend = fake()
    answers_of(engine_on(backend, token_budget=5), [ask(f"r{n}", range(n + 3), 9) for n in range(8)])
    assert backend.plans and all(plan.num_tokens <= 5 for plan in backend.plans)


def test_single_tokens_ride_before_chunks_of_prompts() -> None:
    engine = engine_on(fake(), token_budget=8)
    engine.add(ask("old", [1, 2], 20))
    engine.step()
    engine.add(ask("long", range(30), 4))
    plan = plan_of(engine)
    assert sizes(plan) == [1, 7]
    assert sizes(plan_of(engine)) == [1, 7]


def test_a_long_prompt_of_a_higher_rank_does_not_delay_others_tokens() -> None:
    engine = engine_on(fake(), token_budget=4)
    engine.add(ask("old", [1, 2], 20))
    engine.step()
    engine.add(ask("urgent", range(30), 4, priority=5))
    assert [sizes(plan_of(engine)) for _ in range(3)] == [[1, 3]] * 3


def test_greater_priority_is_admitted_first_and_equals_in_order_of_arrival() -> None:
    engine = engine_on(fake(), max_sequences=1)
    for name, priority in (("first", 0), ("second", 0), ("urgent", 1)):
        engine.add(ask(name, [1], 2, priority=priority))
    order: list[str] = []
    while engine.has_work:
        order += [chunk.request_id for chunk in engine.step() if chunk.finish]
    assert order == ["urgent", "first", "second"]


def test_a_newcomer_of_a_higher_class_takes_the_place_of_a_lower_one() -> None:
    engine = engine_on(fake(), max_sequences=1)
    low = ask("low", [1, 2, 3], 20)
    engine.add(low)
    answers: dict[str, Answer] = {}
    for _ in range(3):
        step(engine, answers)
    engine.add(ask("high", [4], 3, priority=1))
    step(engine, answers)
    assert {name: view.state for name, view in views(engine).items()} == {"high": "running", "low": "waiting"}
    finish(engine, answers)
    assert answers["low"].ids == oracle(fake(), low).ids, "what was interrupted ends as if nothing had happened"


def test_who_came_long_before_is_not_interrupted() -> None:
    engine = engine_on(fake(), max_sequences=1)
    engine.add(ask("old", [1], 100))
    for _ in range(AGING_STEPS + 1):
        engine.step()
    engine.add(ask("new", [1], 5, priority=1))
    engine.step()
    assert views(engine)["old"].state == "running"
    drain(engine)


def test_an_equal_newcomer_waits() -> None:
    engine = engine_on(fake(), max_sequences=1)
    engine.add(ask("first", [1], 20))
    engine.step()
    engine.add(ask("second", [1], 2))
    engine.step()
    assert views(engine)["second"].state == "waiting"


def test_the_newest_of_the_lowest_priority_is_preempted_first() -> None:
    engine = engine_on(fake(), num_pages=12)
    for name, priority in (("a", 1), ("b", 0), ("c", 0)):
        engine.add(ask(name, range(8), 30, priority=priority))
    first: list[str] = []
    while engine.has_work:
        engine.step()
        first += [name for name, view in views(engine).items() if view.num_preemptions and name not in first]
    assert first[0] == "c"
    assert "a" not in first


def test_a_cached_prefix_that_is_shared_again_counts_as_memory_taken() -> None:
    engine = engine_on(fake(), num_pages=12, token_budget=64)
    answers_of(engine, [ask("past", range(24), 1)])  # leaves 6 cached pages
    engine.add(ask("running", [50] * 17, 8))  # holds 5, and will hold 6
    engine.step()
    engine.add(ask("next", range(25), 8))  # needs the 6 cached ones and another
    drain(engine)
    assert engine.snapshot().num_preemptions == 0


def test_nobody_is_admitted_into_the_last_page_that_a_running_sequence_needs() -> None:
    engine = engine_on(fake(), num_pages=4, token_budget=64)
    engine.add(ask("running", range(10), 4))  # holds 3, and will hold 4
    engine.step()
    engine.add(ask("next", [50], 9))
    drain(engine)
    assert engine.snapshot().num_preemptions == 0


def test_waiting_counts_as_priority() -> None:
    assert rank_at(0, step=0) > rank_at(1, step=AGING_STEPS + 1)
    assert rank_at(0, step=0) < rank_at(1, step=AGING_STEPS - 1)
    assert rank_at(2**31, step=10**6) < rank_at(0, step=0), "no priority is beyond the reach of patience"


@pytest.mark.parametrize("num_pages", [8, 64])
def test_a_steady_stream_of_urgent_requests_starves_nobody(num_pages: int) -> None:
    engine = engine_on(fake(), max_sequences=2, num_pages=num_pages)
    engine.add(ask("patient", range(8), 8))
    answers: dict[str, Answer] = {}
    for number in range(400):
        engine.add(ask(f"urgent{number}", [number % 50, 1, 2], 6, priority=2))
        for _ in range(2):  # more comes in than can be done
            step(engine, answers)
        if answers.get("patient", Answer()).finish:
            break
    assert answers["patient"].finish == "length"
    assert number < 350
    finish(engine, answers, max_steps=10_000)


def test_a_large_request_is_not_passed_by_by_small_ones_for_ever() -> None:
    engine = engine_on(fake(), num_pages=12, max_sequences=8)
    answers: dict[str, Answer] = {}
    for number in range(6):
        engine.add(ask(f"early{number}", [number], 12))
    step(engine, answers)
    engine.add(ask("large", range(40), 2))
    for number in range(200):
        engine.add(ask(f"late{number}", [number % 50], 12))
        step(engine, answers)
        if answers.get("large", Answer()).finish:
            break
    assert answers["large"].finish == "length"
    assert number < 60
    finish(engine, answers, max_steps=10_000)


def test_more_sequences_than_the_budget_all_end() -> None:
    engine = engine_on(fake(), token_budget=2, max_sequences=8)
    submits = [ask(f"r{n}", [n, n], 6) for n in range(8)]
    answers = answers_of(engine, submits)
    assert all(answers[submit.request_id].ids == oracle(fake(), submit).ids for submit in submits)


def test_with_overlap_the_next_step_is_planned_before_the_last_token_is_known() -> None:
    backend = fake(overlaps=True)
    engine = engine_on(backend)
    engine.add(ask("a", [1, 2, 3], 5))
    engine.step()
    assert [row.token_ids for plan in backend.plans for row in plan.rows] == [(1, 2, 3), (-1,)]
    drain(engine)
    assert sum(plan.num_tokens for plan in backend.plans) == 3 + 4, "nothing is computed past a known end"


def test_with_overlap_a_sequence_whose_edits_need_its_history_waits_for_it() -> None:
    backend = fake(overlaps=True)
    params = SamplingParams(temperature=0.0, repetition_penalty=1.5)
    answers_of(engine_on(backend), [ask("a", [1, 2, 3], 5, sampling=params)])
    assert all(-1 not in row.token_ids for plan in backend.plans for row in plan.rows)


def test_page_tables_are_rebuilt_only_when_a_page_is_added() -> None:
    backend = fake()
    answers_of(engine_on(backend), [ask("a", range(4), 9)])
    tables = [plan.rows[0].tables for plan in backend.plans]
    assert tables[1] is tables[2] is tables[3] is tables[4]
    assert tables[5] is not tables[4]


def test_a_hybrid_prompt_is_cut_at_its_last_page_boundary_and_its_state_kept() -> None:
    backend = fake("hybrid")
    engine = engine_on(backend)
    engine.add(ask("a", range(10), 1))
    assert [sizes(plan_of(engine)) for _ in range(2)] == [[8], [2]]
    kinds = [[type(op).__name__ for op in plan.memory] for plan in backend.plans]
    assert kinds == [["ZeroSlot"], ["SaveState"]]


def test_checkpoints_stay_few_however_long_the_answers() -> None:
    backend = fake("hybrid", keep_plans=10_000)
    submits = [ask(f"r{n}", [n] * 9, 60) for n in range(6)]
    answers_of(engine_on(backend, num_checkpoints=3), submits)
    used = {op.checkpoint for plan in backend.plans for op in plan.memory if hasattr(op, "checkpoint")}
    assert used <= {0, 1, 2}
