"""Copies of one prompt compute it once: they wait for the first of them, share its pages and copy the last one."""

from pathlib import Path
from typing import Any

import pytest

from localllm.engine.engine import Engine
from localllm.engine.step import CopyPage
from localllm.wire import SamplingParams, Submit

from .worlds import PAGE_SIZE, SHAPES, alone, answers_of, ask, drain, engine_on, fake, finish, oracle, step

COUNT = 6


def num_prompt_tokens(engine: Engine, num_generated: int) -> int:
    """Tokens computed beyond those that each sequence's own answer needs."""
    return engine.counters.num_step_tokens - num_generated


def copies(prompt: list[int], max_tokens: int = 5, **fields: Any) -> list[Submit]:
    return [ask(f"r{n}", prompt, max_tokens, **fields) for n in range(COUNT)]


@pytest.mark.parametrize("overlaps", [False, True])
@pytest.mark.parametrize("length", [2, 3, 4, 5, 8, 19, 40])
@pytest.mark.parametrize("shape", ["full", "windowed", "windows only"])
def test_a_burst_of_copies_computes_one_prompt(shape: str, length: int, overlaps: bool) -> None:
    prompt = [n * 5 % 64 for n in range(length)]
    backend = fake(shape, overlaps=overlaps)
    engine = engine_on(backend, token_budget=16)
    answers = answers_of(engine, copies(prompt))
    expected = oracle(backend, ask("a", prompt, 5)).ids
    assert all(answer.ids == expected for answer in answers.values())
    # each copy computes the last token again, for its logits, and all but the last of its own
    assert num_prompt_tokens(engine, COUNT * 4) == length + COUNT - 1
    assert [answer.num_cached for answer in answers.values()] == [0] + [length - 1] * (COUNT - 1)


@pytest.mark.parametrize("shape", ["hybrid", "windowed hybrid", "state only"])
def test_copies_share_a_recurrent_state_up_to_its_last_checkpoint(shape: str) -> None:
    prompt = [n * 5 % 64 for n in range(39)]
    backend = fake(shape)
    engine = engine_on(backend, token_budget=16)
    answers = answers_of(engine, copies(prompt))
    assert all(answer.ids == oracle(backend, ask("a", prompt, 5)).ids for answer in answers.values())
    assert num_prompt_tokens(engine, COUNT * 4) == 39 + (COUNT - 1) * 3


def test_copies_that_draw_go_their_own_ways() -> None:
    prompt = list(range(10))
    submits = [ask(f"r{n}", prompt, 12, sampling=SamplingParams(temperature=1.0, seed=n)) for n in range(COUNT)]
    backend = fake()
    answers = answers_of(engine_on(backend), submits)
    for submit in submits:
        assert answers[submit.request_id].ids == oracle(backend, submit).ids
    assert len({tuple(answer.ids) for answer in answers.values()}) == COUNT


def test_the_last_page_is_copied_and_not_shared() -> None:
    backend = fake()
    engine = engine_on(backend, token_budget=16)
    for submit in copies(list(range(2 * PAGE_SIZE + 3))):
        engine.add(submit)
    answers: dict[str, Any] = {}
    step(engine, answers)
    step(engine, answers)
    ops = [op for op in backend.plans[1].memory if isinstance(op, CopyPage)]
    assert len(ops) == COUNT - 1 and len({op.source for op in ops}) == 1
    assert list(engine.snapshot().pages).count(3) == 2, "the full pages have many holders, no other page has"
    finish(engine, answers)


def test_a_common_beginning_is_computed_once_too() -> None:
    common = [n % 64 for n in range(32)]
    submits = [ask(f"r{n}", [*common, 60 - n, n], 1) for n in range(COUNT)]
    engine = engine_on(fake(), token_budget=16)
    answers = answers_of(engine, submits)
    assert num_prompt_tokens(engine, 0) == 32 + COUNT * 2
    assert all(answer.num_cached in (0, 32) for answer in answers.values())


def test_who_shares_nothing_passes_those_who_wait() -> None:
    engine = engine_on(fake(), token_budget=16)
    long = list(range(40))
    engine.add(ask("first", long, 4))
    engine.step()
    engine.add(ask("copy", long, 4))
    engine.add(ask("other", [50, 51], 4))
    engine.step()
    states = {view.request_id: view.state for view in engine.snapshot().sequences}
    assert states == {"first": "running", "copy": "waiting", "other": "waiting"}, "the budget is spent"
    engine.step()
    states = {view.request_id: view.state for view in engine.snapshot().sequences}
    assert states["other"] == "running"
    drain(engine)


@pytest.mark.parametrize(
    "fields", [{"cache_salt": "mine"}, {"prompt_logprobs": 0}], ids=["another salt", "scores of the prompt"]
)
def test_nothing_is_shared_with_those_who_may_not(fields: dict[str, Any]) -> None:
    engine = engine_on(fake(), token_budget=64)
    prompt = list(range(18))
    answers = answers_of(engine, [ask("a", prompt, 1), ask("b", prompt, 1, **fields)])
    assert (answers["a"].num_cached, answers["b"].num_cached) == (0, 0)


def test_an_urgent_copy_waits_for_no_one_of_a_lower_class() -> None:
    for priority, state in ((0, "waiting"), (1, "running")):
        engine = engine_on(fake(), token_budget=16)
        engine.add(ask("low", range(20), 4))
        engine.step()  # 16 of its tokens
        engine.add(ask("copy", range(20), 4, priority=priority))
        engine.step()
        assert {view.request_id: view.state for view in engine.snapshot().sequences}["copy"] == state
        drain(engine)


@pytest.mark.parametrize("shape", sorted(SHAPES))
def test_a_cancelled_first_copy_leaves_the_others_whole(shape: str) -> None:
    prompt = [n * 3 % 64 for n in range(30)]
    backend = fake(shape)
    for steps in range(4):
        engine = engine_on(fake(shape), token_budget=8)
        for submit in copies(prompt):
            engine.add(submit)
        answers: dict[str, Any] = {}
        for _ in range(steps):
            step(engine, answers)
        engine.abort("r0")
        finish(engine, answers)
        expected = oracle(backend, ask("a", prompt, 5)).ids
        assert all(answers[f"r{n}"].ids == expected for n in range(1, COUNT))


def test_without_a_prefix_cache_each_copy_computes_its_own() -> None:
    engine = engine_on(fake(), prefix_cache=False)
    answers = answers_of(engine, copies(list(range(9))))
    assert num_prompt_tokens(engine, COUNT * 4) == COUNT * 9
    assert all(answer.ids == alone(prompt=range(9), max_tokens=5).ids for answer in answers.values())


def test_a_real_model_computes_one_prompt_for_many_and_says_the_same(small_model_file: Path) -> None:
    from localllm import LLM

    with LLM(small_model_file, context_length=256) as llm:
        prompt = llm.text.tokenizer.encode("The three primary colours, named in order of their wavelengths, are")
        answers = llm.generate([prompt] * 4, max_tokens=12, temperature=0)
        computed = llm.engine.counters.num_step_tokens
        drafted = llm.engine.counters.num_drafted_tokens
    with LLM(small_model_file, context_length=256) as llm:
        alone_ids = llm.generate([prompt], max_tokens=12, temperature=0)[0].token_ids
    assert all(answer.token_ids == alone_ids for answer in answers)
    assert computed - drafted <= len(prompt) + 3 + 4 * 11
