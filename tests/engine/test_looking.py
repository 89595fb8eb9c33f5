"""Questions to an engine: what is cached, what a page holds. The answers are true, and asking changes nothing."""

import copy
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from localllm.engine.engine import Engine
from localllm.wire import AskPage, PageAnswer, Probe, Probed, Submit
from tests.engine.walks import engines, few_tokens, requests, shapes
from tests.engine.worlds import PROMPT, Answer, answers_of, ask, engine_on, fake, finish, oracle, step


def probe(engine: Engine, prompt: list[int], salt: str = "") -> int:
    answer = engine.answer(Probe(7, prompt, salt))
    assert isinstance(answer, Probed) and answer.question_id == 7
    return answer.num_cached


def page(engine: Engine, number: int) -> PageAnswer:
    answer = engine.answer(AskPage(9, number))
    assert isinstance(answer, PageAnswer) and answer.question_id == 9 and answer.page == number
    return answer


def visible_state(engine: Engine) -> Any:
    """All that questions could have changed, the order of the least recently used included."""
    memory = engine.memory
    pool, checkpoints = memory.pool, memory.states.kept
    inside = {name: getattr(pool, name) for name in ("_references", "_free", "_known", "_index", "_states")}
    order = (list(pool._cached), list(checkpoints._kept.items()), list(checkpoints._unused))
    return copy.deepcopy((inside, order)), engine.snapshot(detailed=True)


@settings(max_examples=100)
@given(shapes, st.booleans(), engines, requests(), st.data())
def test_asking_in_the_midst_of_everything_changes_nothing(
    shape: str, overlaps: bool, changes: dict[str, Any], submits: list[Submit], data: st.DataObject
) -> None:
    backend = fake(shape, overlaps=overlaps)
    engine = engine_on(backend, **changes)
    answers: dict[str, Answer] = {}
    for submit in submits:
        engine.add(submit)
        for _ in range(data.draw(st.integers(0, 3), label="steps")):
            step(engine, answers)
            before = visible_state(engine)
            assert probe(engine, data.draw(few_tokens, label="prompt")) % 4 == 0
            page(engine, data.draw(st.integers(-1, changes["num_pages"]), label="page"))
            assert visible_state(engine) == before
            engine.check()
    finish(engine, answers)
    for submit in submits:
        assert answers[submit.request_id].ids == oracle(backend, submit).ids


@settings(max_examples=100)
@given(shapes, engines, requests(max_size=3), few_tokens)
def test_a_probe_says_what_a_request_then_finds(
    shape: str, changes: dict[str, Any], submits: list[Submit], prompt: list[int]
) -> None:
    engine = engine_on(fake(shape), **changes)
    answers_of(engine, submits)
    expected = probe(engine, prompt)
    assert answers_of(engine, [ask("now", prompt, 1)])["now"].num_cached == expected


def test_a_probe_sees_only_its_own_salt() -> None:
    engine = engine_on(fake())
    answers_of(engine, [ask("a", PROMPT, 4, cache_salt="mine")])
    assert (probe(engine, PROMPT, "mine"), probe(engine, PROMPT), probe(engine, PROMPT[:1])) == (8, 0, 0)


def test_a_held_page_says_who_holds_it_where_and_what_stands_in_it() -> None:
    engine = engine_on(fake())
    engine.add(ask("a", PROMPT, 20))
    engine.add(ask("b", [*PROMPT[:8], 60, 61], 20))
    for _ in range(3):
        engine.step()
    views = {view.request_id: view.pages for view in engine.snapshot(detailed=True).sequences}
    pages = {
        name: [int.from_bytes(raw[at : at + 4], "little") for at in range(0, len(raw), 4)]
        for name, raw in views.items()
    }
    shared, own = page(engine, pages["a"][1]), page(engine, pages["b"][2])
    assert sorted(tuple(holder.request_id for holder in shared.holders)) == ["a", "b"]
    assert (shared.state, shared.num_references, shared.index, shared.tokens) == (3, 2, 1, PROMPT[4:8])
    assert [link.page for link in shared.chain] == [pages["a"][1], pages["a"][0]] and shared.num_links == 2
    assert all(sorted(link.holders) == ["a", "b"] for link in shared.chain)
    assert (own.state, own.num_references, own.index) == (2, 1, 2)
    assert own.tokens[:2] == [60, 61] and [holder.index for holder in own.holders] == [2]
    assert [link.chain for link in own.chain][-2:] == [link.chain for link in shared.chain]
    finish(engine, {"a": Answer(num_started=1), "b": Answer(num_started=1)})


def test_a_cached_page_remembers_its_place_and_the_way_to_the_root() -> None:
    engine = engine_on(fake())
    answers_of(engine, [ask("a", PROMPT, 8)])
    kept = [number for number, state in enumerate(engine.snapshot().pages) if state == 1]
    found = sorted((page(engine, number) for number in kept), key=lambda answer: answer.index)
    assert [answer.index for answer in found] == list(range(len(kept)))
    assert found[1].tokens == PROMPT[4:8] and not found[1].holders
    assert [link.page for link in found[-1].chain] == [answer.page for answer in reversed(found)]
    assert len({link.chain for link in found[-1].chain}) == len(kept) == found[-1].num_links


def test_a_chain_ends_where_a_page_of_it_was_forgotten() -> None:
    engine = engine_on(fake())
    answers_of(engine, [ask("a", PROMPT, 8)])
    pool = engine.memory.pool
    kept = {page(engine, number).index: number for number in pool._cached}
    first = kept[0]
    pool._cached.move_to_end(first, last=False)
    while pool.content(first) is not None:
        pool.release(pool.allocate()) if not pool._free else pool._free.pop()
    assert [link.page for link in page(engine, kept[2]).chain] == [kept[2], kept[1], None]


def test_a_free_page_and_one_that_there_is_not_hold_nothing() -> None:
    engine = engine_on(fake())
    for number in (0, 255, 256, -1):
        answer = page(engine, number)
        assert (answer.state, answer.num_references, answer.tokens, answer.chain) == (0, 0, [], [])
