"""Drafts change how many steps an answer takes, and nothing else."""

from collections.abc import Sequence
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from localllm.backends.fake import FakeBackend
from localllm.engine.engine import Engine
from localllm.engine.scheduler import Drafts
from localllm.engine.sequence import Sequence as Running
from localllm.engine.speculative import LookupDrafter, drafter_for, num_standing
from localllm.engine.step import BackendInfo, Row, StepPlan
from localllm.wire import SamplingParams, Submit

from .walks import come_and_go, engines, few_tokens, growing, requests, samplings, shapes
from .worlds import (
    SHAPES,
    VOCAB_SIZE,
    answers_of,
    ask,
    assert_as_alone,
    engine_on,
    fake,
    oracle,
)


class Oracle:
    """Drafts the true answers, with wrong tokens strewn in: `rate` of the drafted tokens are wrong."""

    def __init__(self, backend: FakeBackend, submits: Sequence[Submit], seed: int, rate: float = 0.2) -> None:
        self.random = Random(seed)
        self.rate = rate
        self.most = 7
        self.truth: dict[str, list[int]] = {}
        for submit in submits:
            answer = oracle(backend, submit)
            ending = [] if answer.stop_id is None else [answer.stop_id]
            self.truth[submit.request_id] = [*submit.prompt, *answer.ids, *ending]
        self.plans: list[StepPlan] = []

    def propose(self, running: Sequence[Running]) -> Drafts:
        return {sequence: self.guess(sequence) for sequence in running if self.random.random() < 0.8}

    def guess(self, sequence: Running) -> tuple[int, ...]:
        length = self.random.randint(0, self.most)
        true = self.truth.get(sequence.request_id, [])[len(sequence.ids) :][:length]
        padded = [*true, *(self.token() for _ in range(length - len(true)))]
        return tuple(self.token() if self.random.random() < self.rate else token for token in padded)

    def token(self) -> int:
        return self.random.randrange(VOCAB_SIZE)

    def note(self, plan: StepPlan, seconds: float) -> None:
        self.plans.append(plan)


def is_draft(row: Row) -> bool:
    return row.want.sample is not None and row.want.sample.num_positions > 1


@settings(max_examples=300)
@given(shapes, engines, requests(), st.integers(0, 999), st.sampled_from([0.0, 0.2, 1.0]))
def test_every_answer_is_the_one_without_drafts(
    shape: str, changes: dict[str, Any], submits: list[Submit], seed: int, rate: float
) -> None:
    backend = fake(shape)
    drafter = Oracle(backend, submits, seed, rate)
    answers = answers_of(engine_on(backend, drafter=drafter, **changes), submits)
    assert_as_alone(backend, submits, answers)
    assert all(plan.num_tokens <= changes["token_budget"] for plan in drafter.plans)


@settings(max_examples=100)
@given(shapes, engines, requests(), st.data())
def test_requests_may_come_and_go_between_drafts(
    shape: str, changes: dict[str, Any], submits: list[Submit], data: st.DataObject
) -> None:
    backend = fake(shape)
    engine = engine_on(backend, drafter=Oracle(backend, submits, 3), **changes)
    come_and_go(engine, backend, submits, data)


@given(shapes, few_tokens, few_tokens, st.integers(2, 24), st.integers(0, 99))
def test_the_prefix_cache_never_learns_a_wrong_guess(
    shape: str, first: list[int], second: list[int], budget: int, seed: int
) -> None:
    backend = fake(shape)
    one = ask("one", first, 10)
    two = ask("two", [*first, *oracle(backend, one).ids, *second], 10)
    engine = engine_on(backend, token_budget=budget, drafter=Oracle(backend, [one, two], seed, rate=0.5))
    assert answers_of(engine, [one])["one"].ids == oracle(backend, one).ids
    answer = answers_of(engine, [two])["two"]
    assert answer.ids == oracle(backend, two).ids
    if shape in ("full", "windowed"):
        assert answer.num_cached >= (len(two.prompt) - len(second) - 1) // 4 * 4


@given(samplings, st.integers(0, 99))
def test_log_probabilities_come_with_the_tokens_that_stand(sampling: SamplingParams, seed: int) -> None:
    submit = ask("a", [5, 6, 7], 20, sampling=sampling, top_logprobs=2, prompt_logprobs=1)
    plain = answers_of(engine_on(fake()), [submit])["a"]
    drafted = answers_of(engine_on(fake(), drafter=Oracle(fake(), [submit], seed)), [submit])["a"]
    assert drafted == plain


@pytest.mark.parametrize("shape", sorted(set(SHAPES) - {"state only"}))
def test_a_pool_cut_to_a_tenth_preempts_sequences_with_drafts_and_changes_nothing(shape: str) -> None:
    submits = growing()
    backend = fake(shape)
    drafter = Oracle(backend, submits, 1)
    engine = engine_on(backend, num_pages=14 if shape == "windows only" else 22, drafter=drafter)
    answers = answers_of(engine, submits)
    assert engine.snapshot().num_preemptions > 0
    assert any(is_draft(row) for plan in drafter.plans for row in plan.rows)
    assert_as_alone(backend, submits, answers)


@pytest.mark.parametrize("shape", sorted(SHAPES))
def test_right_guesses_save_steps_and_are_counted(shape: str) -> None:
    backend = fake(shape)
    submit = ask("a", [1, 2, 3], 40)
    engine = engine_on(backend, drafter=Oracle(backend, [submit], 0, rate=0.0))
    answers_of(engine, [submit])
    shot = engine.snapshot()
    assert shot.num_steps < 25
    assert shot.num_drafted_tokens == shot.num_accepted_tokens == 40 - shot.num_steps
    assert shot.num_generated_tokens == 40


def test_wrong_guesses_are_counted_as_drafted_only() -> None:
    submit = ask("a", [1, 2, 3], 40)
    engine = engine_on(fake(), drafter=Oracle(fake(), [submit], 0, rate=1.0))
    answers_of(engine, [submit])
    shot = engine.snapshot()
    assert shot.num_drafted_tokens > 40 > 5 > shot.num_accepted_tokens


def test_a_stop_inside_an_accepted_draft_ends_the_answer_there() -> None:
    plain = oracle(fake(), ask("a", [1, 2, 3], 12)).ids
    submit = ask("a", [1, 2, 3], 12, stop_ids=[plain[5]])
    drafter = Oracle(fake(), [submit], 0)
    drafter.truth["a"] = [1, 2, 3, *plain]
    drafter.most, drafter.rate = 100, 0.0
    engine = engine_on(fake(), drafter=drafter, token_budget=64)
    answer = answers_of(engine, [submit])["a"]
    first = plain.index(plain[5])
    assert (answer.ids, answer.finish, answer.stop_id) == (plain[:first], "stop", plain[5])
    assert engine.snapshot().num_generated_tokens == first


def test_a_draft_takes_the_budget_that_others_leave() -> None:
    """A long prompt beside it: the drafts ride in what is left of the step."""
    submits = [ask("a", [1, 2, 3], 30), ask("b", range(40), 1)]
    drafter = Oracle(fake(), submits, 0, rate=0.0)
    engine = engine_on(fake(), drafter=drafter, token_budget=8)
    answers_of(engine, submits)
    with_prompt = [plan for plan in drafter.plans if len(plan.rows) == 2 and plan.num_tokens == 8]
    assert with_prompt and not any(is_draft(plan.rows[0]) for plan in with_prompt)


class Fragile(FakeBackend):
    """Breaks down after token 63, as a model might on text that it would never write."""

    def _logits(self, row: Row, index: int, states: list[Any]) -> NDArray[np.float32]:
        logits = super()._logits(row, index, states)
        return logits if row.token_ids[index] != 63 else np.full_like(logits, np.nan)


@pytest.mark.parametrize("has_state", [False, True])
def test_a_guess_that_breaks_the_model_does_not_break_the_answer(has_state: bool) -> None:
    submit = ask("a", [1, 2, 3], 20)
    plain = fake(has_state=has_state)
    assert 63 not in oracle(plain, submit).ids

    class Bad(Oracle):
        def token(self) -> int:
            return 63

    backend = Fragile(vocab_size=VOCAB_SIZE, page_size=4, has_state=has_state)
    engine = engine_on(backend, drafter=Bad(plain, [submit], 1, rate=0.3))
    answer = answers_of(engine, [submit])["a"]
    assert (answer.ids, answer.finish) == (oracle(plain, submit).ids, "length")
    assert answer.num_started == 1


def test_a_backend_that_overlaps_steps_is_given_no_drafts() -> None:
    backend = fake(overlaps=True)
    submit = ask("a", [1, 2, 3], 20)
    engine = engine_on(backend, drafter=Oracle(backend, [submit], 0))
    assert answers_of(engine, [submit])["a"].ids == oracle(backend, submit).ids
    assert engine.snapshot().num_drafted_tokens == 0


# ---- drafts from the text


def repeating(period: int) -> Engine:
    """A model that repeats what it said `period` tokens ago."""
    backend = fake(answer=lambda visible: visible[-period] if len(visible) >= period else 0)
    return engine_on(backend, context_length=1024, token_budget=64, drafter=LookupDrafter())


def test_a_text_that_repeats_itself_takes_few_steps() -> None:
    engine = repeating(9)
    prompt = [3, 1, 4, 1, 5, 9, 2, 6, 5]
    answer = answers_of(engine, [ask("a", prompt, 300)])["a"]
    assert answer.ids == (prompt * 34)[:300]
    shot = engine.snapshot()
    assert shot.num_steps < 60
    assert shot.num_accepted_tokens > 0.9 * shot.num_drafted_tokens > 200


def test_a_text_without_repetition_is_hardly_ever_guessed_at() -> None:
    backend = fake(vocab_size=VOCAB_SIZE)
    engine = engine_on(backend, context_length=2048, drafter=LookupDrafter())
    submit = ask("a", [1, 2, 3], 1000)
    assert answers_of(engine, [submit])["a"].ids == oracle(backend, submit, 2048).ids
    assert engine.snapshot().num_drafted_tokens < 20


@given(st.sampled_from(sorted(set(SHAPES) - {"state only"})), engines, requests())
def test_drafts_from_the_text_change_no_answer(shape: str, changes: dict[str, Any], submits: list[Submit]) -> None:
    """Few different tokens, so that much repeats, and a model that looks at the last two only."""
    shown = fake(shape, answer=lambda visible: sum(visible[-2:]) % 5)
    plain = fake(shape, answer=lambda visible: sum(visible[-2:]) % 5)
    drafted = answers_of(engine_on(shown, drafter=LookupDrafter(), **changes), submits)
    assert drafted == answers_of(engine_on(plain, **changes), submits)


def test_one_that_has_nothing_to_guess_is_not_slowed_by_one_that_has() -> None:
    backend = fake(answer=lambda visible: visible[-4] if visible[0] == 1 else len(visible) * 7 % 61)
    engine = engine_on(backend, drafter=LookupDrafter())
    for request_id, prompt in (("a", [1, 2, 3, 4] * 6), ("b", range(20, 60))):
        engine.add(ask(request_id, prompt, 30))
    engine.step()
    shot = engine.snapshot()
    while shot.num_running == 2:
        engine.step()
        shot = engine.snapshot()
    assert shot.num_drafted_tokens < 10


def test_a_long_prompt_is_taken_in_piece_by_piece() -> None:
    drafter = LookupDrafter()
    backend = fake(answer=lambda visible: visible[-50] if len(visible) >= 50 else 0)
    engine = engine_on(backend, context_length=4096, num_pages=1100, token_budget=4096, drafter=drafter)
    prompt = [n * n % 61 for n in range(3000)]
    answers_of(engine, [ask("a", prompt, 40)])
    assert engine.snapshot().num_accepted_tokens > 0


# ---- parts


@pytest.mark.parametrize(
    "drafted, sampled, count",
    [((), (1,), 0), ((1, 2), (1, 2, 3), 2), ((1, 2), (1, 3, 3), 1), ((1, 2), (2, 2, 3), 0), ((1, 2), (), 0)],
)
def test_a_guess_stands_where_the_model_says_the_same(
    drafted: tuple[int, ...], sampled: tuple[int, ...], count: int
) -> None:
    assert num_standing(drafted, sampled) == count


def test_the_setting_decides_who_drafts() -> None:
    steady = BackendInfo("cpu", "cpu", True, 1, 0, same_in_any_step=True)
    other = BackendInfo("torch", "cuda", True, 1, 0)
    assert drafter_for("auto", steady) is not None
    assert drafter_for("auto", other) is None, "a near tie could go the other way"
    assert drafter_for("off", steady) is None
    assert drafter_for("8", other) is not None
