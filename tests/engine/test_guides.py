"""Guides: what bounds a sequence from outside holds for every token, whatever else happens to the sequence."""

import math
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from localllm.engine.engine import Engine
from localllm.engine.guides import Guide, LateMask
from localllm.engine.sampling import sample_logits
from localllm.engine.speculative import LookupDrafter
from localllm.engine.step import LogitEdit, SampleWant
from localllm.errors import ConstraintFailed, InvalidRequest, LocalLLMError
from localllm.wire import Constraint, SamplingParams, Submit, ThinkingBudget
from tests.engine.worlds import (
    GREEDY,
    PROMPT,
    SHAPES,
    VOCAB_SIZE,
    Answer,
    answers_of,
    ask,
    drain,
    engine_on,
    fake,
    finish,
    plain_edits,
    step,
    true_logits,
)

EVERYTHING = frozenset(range(VOCAB_SIZE))


def mask_of(ids: Iterable[int]) -> bytes:
    mask = bytearray(-(-VOCAB_SIZE // 8))
    for token in ids:
        mask[token // 8] |= 1 << token % 8
    return bytes(mask)


class Rule:
    """What may follow depends on all that was said: a share of the vocabulary, named by the last token and the count.
    After `length` tokens nothing may. Number `force_at` is a fixed token."""

    def __init__(self, length: int = 1000, *, stride: int = 5, force_at: int = -1, forced: int = 9) -> None:
        self.length, self.stride, self.force_at, self.forced = length, stride, force_at, forced

    def allowed(self, said: Sequence[int]) -> frozenset[int]:
        if len(said) == self.force_at:
            return frozenset([self.forced])
        first = (sum(said) + len(said)) % self.stride
        return frozenset(range(first, VOCAB_SIZE, self.stride))


class RuleGuide:
    """Follows a rule; checks that the engine tells it nothing that it did not allow."""

    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        self.said: list[int] = []
        self.num_masks = 0
        self._mask: LateMask | None = None

    @property
    def is_finished(self) -> bool:
        return len(self.said) >= self.rule.length

    @property
    def may_end(self) -> bool:
        return False

    @property
    def is_forced(self) -> bool:
        return len(self.said) == self.rule.force_at

    def mask(self) -> LateMask:
        if self._mask is None:
            said = tuple(self.said)
            self.num_masks += 1
            self._mask = LateMask(-(-VOCAB_SIZE // 8), lambda: mask_of(self.rule.allowed(said)))
        return self._mask

    def accept(self, token_id: int) -> None:
        assert token_id in self.rule.allowed(self.said), "a token that was not allowed"
        self._mask = None
        self.said.append(token_id)


class RuleGuides:
    """Guides by the name in `constraint.grammar`; `made` keeps them, `late` are made when the test says so."""

    def __init__(self, rules: dict[str, Any], late: Iterable[str] = ()) -> None:
        self.rules = rules
        self.made: dict[str, Guide] = {}
        self.late = {name: Future[Guide]() for name in late}

    def open(self, submit: Submit) -> Future[Guide]:
        assert submit.constraint is not None
        made = self.rules[submit.constraint.grammar]
        guide = self.made[submit.request_id] = RuleGuide(made) if isinstance(made, Rule) else made
        if submit.request_id in self.late:
            return self.late[submit.request_id]
        future = Future[Guide]()
        if isinstance(made, Exception):
            future.set_exception(made)
        else:
            future.set_result(guide)
        return future

    def compute(self) -> None:
        """Masks are computed by who reads them."""


def guided(request_id: str, name: str, prompt: Iterable[int] = PROMPT, max_tokens: int = 8, **fields: Any) -> Submit:
    return ask(request_id, prompt, max_tokens, constraint=Constraint(grammar=name), **fields)


def expected(backend: Any, submit: Submit, rule: Rule) -> Answer:
    """What must be answered, computed from the plain history."""
    answer, ids = Answer(num_started=1), list(submit.prompt)
    while len(answer.ids) < (submit.max_tokens or 0):
        is_forced = len(answer.ids) == rule.force_at
        edits: tuple[LogitEdit, ...] = () if is_forced else plain_edits(submit, answer.ids)
        masks = (mask_of(rule.allowed(answer.ids)),)
        want = SampleWant(submit.sampling, submit.sampling.seed or 0, len(answer.ids), edits=edits, masks=masks)
        token, scored = sample_logits(true_logits(backend, ids), want, top_logprobs=submit.top_logprobs)
        if token in submit.stop_ids:
            answer.finish, answer.stop_id = "stop", token
            return answer
        ids.append(token)
        answer.ids.append(token)
        answer.logprobs += [scored] if scored else []
        if len(answer.ids) >= rule.length:
            answer.finish = "stop"
            return answer
    answer.finish = "length"
    return answer


def same(ours: Answer, theirs: Answer) -> bool:
    return (ours.ids, ours.logprobs, ours.finish, ours.stop_id) == (
        theirs.ids, theirs.logprobs, theirs.finish, theirs.stop_id,
    )  # fmt: skip


def test_a_guided_sequence_says_what_is_allowed_and_ends_with_its_guide() -> None:
    backend, rule = fake(), Rule(5)
    submit = guided("a", "five", max_tokens=20)
    answer = answers_of(engine_on(backend, guides=RuleGuides({"five": rule})), [submit])["a"]
    assert same(answer, expected(backend, submit, rule))
    assert (len(answer.ids), answer.finish, answer.stop_id) == (5, "stop", None)


SAMPLINGS = {
    "greedy": GREEDY,
    "random": SamplingParams(temperature=1.3, seed=5),
    "truncated": SamplingParams(temperature=1.0, top_k=9, top_p=0.9, seed=5),
    "penalties": SamplingParams(temperature=0.0, repetition_penalty=1.6, presence_penalty=1.0, frequency_penalty=0.5),
    "bias": SamplingParams(temperature=0.0, logit_bias={7: 40.0, 12: 30.0}),
}


@pytest.mark.parametrize("overlaps", [False, True], ids=["in turn", "overlapping"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", SAMPLINGS)
def test_every_way_of_sampling_keeps_to_the_guide(name: str, shape: str, overlaps: bool) -> None:
    rules = {"long": Rule(), "short": Rule(4, stride=3), "forced": Rule(stride=2, force_at=3)}
    submits = [
        *(guided(f"{rule}/{n}", rule, [n, *PROMPT], 9, sampling=SAMPLINGS[name], top_logprobs=2) for rule in rules
          for n in range(2)),
        *(ask(f"free/{n}", [n, *PROMPT], 9, sampling=SAMPLINGS[name], top_logprobs=2) for n in range(2)),
    ]  # fmt: skip
    backend = fake(shape, overlaps=overlaps)
    answers = answers_of(engine_on(backend, guides=RuleGuides(rules)), submits)
    for submit in submits:
        kind = submit.request_id.partition("/")[0]
        if kind == "free":
            alone = answers_of(engine_on(fake(shape, overlaps=overlaps)), [submit])[submit.request_id]
            assert same(answers[submit.request_id], alone)
        else:
            assert same(answers[submit.request_id], expected(backend, submit, rules[kind])), submit.request_id


@settings(max_examples=40)
@given(
    num_pages=st.integers(8, 30),
    budget=st.integers(1, 20),
    overlaps=st.booleans(),
    drafts=st.booleans(),
    lengths=st.lists(st.tuples(st.integers(1, 14), st.integers(1, 14), st.booleans()), min_size=1, max_size=6),
)
def test_preemption_chunks_and_drafts_change_nothing(
    num_pages: int, budget: int, overlaps: bool, drafts: bool, lengths: list[tuple[int, int, bool]]
) -> None:
    backend, rule = fake(overlaps=overlaps), Rule(11, stride=4)
    guides = RuleGuides({"rule": rule})
    engine = engine_on(
        backend, guides=guides, num_pages=num_pages, token_budget=budget, drafter=LookupDrafter() if drafts else None
    )
    submits = [
        guided(f"{n}", "rule", [n + 1] * size, most) if is_guided else ask(f"{n}", [n + 1] * size, most)
        for n, (size, most, is_guided) in enumerate(lengths)
    ]
    answers = answers_of(engine, submits)
    for submit in submits:
        if submit.constraint is not None:
            assert same(answers[submit.request_id], expected(backend, submit, rule))


def test_a_preempted_sequence_keeps_its_guide_where_it_was() -> None:
    backend, rule = fake(), Rule(stride=3)
    engine = engine_on(backend, guides=RuleGuides({"rule": rule}), num_pages=8, token_budget=32)
    submits = [guided(name, "rule", [n, *PROMPT], 14) for n, name in enumerate("abc")]
    answers = answers_of(engine, submits)
    assert engine.snapshot().num_preemptions > 0
    assert all(same(answers[submit.request_id], expected(backend, submit, rule)) for submit in submits)


def test_a_guided_sequence_does_not_draft() -> None:
    rule = Rule(stride=1)  # everything is allowed
    backend = fake(answer=lambda visible: 5)
    guides = RuleGuides({"rule": rule})
    engine = engine_on(backend, guides=guides, drafter=LookupDrafter())
    assert answers_of(engine, [guided("a", "rule", [5] * 20, 20)])["a"].ids == [5] * 20
    assert engine.snapshot().num_drafted_tokens == 0


def test_a_mask_is_asked_for_once_a_token() -> None:
    guides = RuleGuides({"rule": Rule(stride=3)})
    answers_of(engine_on(fake(), guides=guides), [guided("a", "rule", PROMPT, 6)])
    guide = guides.made["a"]
    assert isinstance(guide, RuleGuide) and guide.num_masks == 6


def test_where_nothing_more_may_be_said_the_least_number_of_tokens_does_not_matter() -> None:
    class Complete(RuleGuide):
        """After two tokens only the end may follow."""

        @property
        def may_end(self) -> bool:
            return len(self.said) == 2

        def mask(self) -> LateMask:
            allowed = [63] if self.may_end else [3, 4]
            return LateMask(8, lambda: mask_of(allowed))

    params = SamplingParams(temperature=0.0, min_tokens=6)
    rule = Rule()
    rule.allowed = lambda said: EVERYTHING  # type: ignore[method-assign]
    engine = engine_on(fake(), guides=RuleGuides({"two": Complete(rule)}))
    answer = answers_of(engine, [guided("a", "two", sampling=params, stop_ids=[63])])["a"]
    assert (len(answer.ids), answer.finish, answer.error_code) == (2, "stop", "")


def test_a_forced_token_is_said_although_it_is_banned() -> None:
    rule = Rule(stride=1, force_at=0, forced=63)
    engine = engine_on(fake(), guides=RuleGuides({"rule": rule}))
    params = SamplingParams(temperature=0.0, min_tokens=4, logit_bias={63: -100.0})
    answer = answers_of(engine, [guided("a", "rule", sampling=params, stop_ids=[62])])["a"]
    assert answer.ids[0] == 63
    engine = engine_on(fake(), guides=RuleGuides({"rule": rule}))
    answer = answers_of(engine, [guided("a", "rule", sampling=params, stop_ids=[63])])["a"]
    assert (answer.finish, answer.stop_id) == ("stop", 63)


# ---- when a guide fails


class Failing(RuleGuide):
    def __init__(self, where: str) -> None:
        super().__init__(Rule())
        self.where = where

    def mask(self) -> LateMask:
        return super().mask() if self.where == "accept" or len(self.said) < 2 else LateMask(8, self._fail)

    def accept(self, token_id: int) -> None:
        super().accept(token_id)
        if self.where == "accept" and len(self.said) == 2:
            self._fail()

    def _fail(self) -> bytes:
        raise ConstraintFailed("the grammar is too much")


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("overlaps", [False, True], ids=["in turn", "overlapping"])
@pytest.mark.parametrize("where", ["accept", "mask", "open"])
def test_a_guide_that_fails_is_the_error_of_one_sequence(where: str, overlaps: bool, temperature: float) -> None:
    bad = ConstraintFailed("no such rule") if where == "open" else Failing(where)
    backend, rule = fake(overlaps=overlaps), Rule(6)
    params = SamplingParams(temperature=temperature, seed=3)
    submits = [guided("good", "rule", sampling=params), guided("bad", "bad"), ask("free", PROMPT, sampling=params)]
    answers = answers_of(engine_on(backend, guides=RuleGuides({"rule": rule, "bad": bad})), submits)
    assert (answers["bad"].finish, answers["bad"].error_code) == ("error", "constraint_failed")
    assert same(answers["good"], expected(backend, submits[0], rule))
    assert answers["free"].finish == "length"


def test_a_mask_that_allows_nothing_is_an_error() -> None:
    rule = Rule()
    rule.allowed = lambda said: frozenset()  # type: ignore[method-assign]
    answer = answers_of(engine_on(fake(), guides=RuleGuides({"rule": rule})), [guided("a", "rule")])["a"]
    assert (answer.finish, answer.error_code) == ("error", "nothing_allowed")


def test_an_engine_without_guides_refuses_what_it_cannot_keep() -> None:
    budget = ThinkingBudget(max_tokens=3, end="x", end_ids=[4])
    for submit in (guided("a", "rule"), ask("b", PROMPT, thinking=budget)):
        engine = engine_on(fake())
        with pytest.raises(InvalidRequest):
            engine.add(submit)
        assert not engine.has_work


# ---- while a guide is being made


def opened(late: str) -> tuple[Engine, RuleGuides]:
    guides = RuleGuides({"rule": Rule(6)}, late=[late])
    return engine_on(fake(), guides=guides), guides


def test_others_go_on_while_a_guide_is_being_made() -> None:
    engine, guides = opened("late")
    submits = [guided("late", "rule"), guided("soon", "rule"), ask("free", PROMPT)]
    answers: dict[str, Answer] = {}
    for submit in submits:
        engine.add(submit)
    while len([answer for answer in answers.values() if answer.finish]) < 2:
        step(engine, answers)
    assert "late" not in answers and engine.has_work
    guides.late["late"].set_result(guides.made["late"])
    assert same(finish(engine, answers)["late"], expected(fake(), submits[0], Rule(6)))


def test_a_step_with_nothing_else_to_do_waits_a_moment_and_comes_back() -> None:
    engine, guides = opened("late")
    engine.add(guided("late", "rule"))
    assert engine.step() == [] and engine.has_work
    guides.late["late"].set_result(guides.made["late"])
    assert finish(engine)["late"].finish == "stop"


def test_a_sequence_may_be_forgotten_before_its_guide_is_there() -> None:
    engine, guides = opened("late")
    engine.add(guided("late", "rule"))
    assert engine.abort("late")
    assert guides.late["late"].cancelled() and not engine.has_work
    drain(engine)


def test_a_closed_engine_waits_for_no_guide() -> None:
    engine, guides = opened("late")
    engine.add(guided("late", "rule"))
    engine.close()
    assert guides.late["late"].cancelled()


def test_a_late_mask_is_computed_once_and_fails_for_every_reader() -> None:
    calls: list[int] = []
    mask = LateMask(2, lambda: calls.append(1) or b"\1\0")  # type: ignore[func-returns-value]
    mask.run()
    assert bytes(mask) == bytes(mask) == b"\1\0" and len(mask) == 2 and calls == [1]

    def fail() -> bytes:
        raise ConstraintFailed("no")

    broken = LateMask(2, fail)
    broken.run()
    for _ in range(2):
        with pytest.raises(LocalLLMError):
            bytes(broken)
    assert math.isfinite(len(broken))
