"""What was computed once is found again: by the same tokens, the same salt, the same state, and by nobody else."""

from .worlds import (
    answers_of,
    ask,
    drain,
    engine_on,
    fake,
)


def test_a_repeated_prompt_is_read_from_the_cache_all_but_its_last_page() -> None:
    engine = engine_on(fake())
    first = answers_of(engine, [ask("a", range(16))])["a"]
    again = answers_of(engine, [ask("b", range(16))])["b"]
    assert (first.num_cached, again.num_cached) == (0, 12), "the last token is always recomputed"
    assert again.ids == first.ids
    assert engine.snapshot().num_cached_tokens == 12


def test_another_salt_shares_nothing() -> None:
    engine = engine_on(fake())
    answers_of(engine, [ask("a", range(16), cache_salt="mine")])
    assert answers_of(engine, [ask("b", range(16), cache_salt="yours")])["b"].num_cached == 0
    assert answers_of(engine, [ask("c", range(16), cache_salt="mine")])["c"].num_cached == 12


def test_running_sequences_share_the_pages_of_a_common_prefix() -> None:
    engine = engine_on(fake())
    engine.add(ask("a", range(16), 20))
    engine.step()
    engine.add(ask("b", range(16), 20))
    engine.step()
    assert list(engine.snapshot().pages).count(3) == 3
    assert {view.num_shared_pages for view in engine.snapshot().sequences} == {3}
    drain(engine)


def test_a_hybrid_shares_a_prefix_only_through_a_state_checkpoint() -> None:
    kept, lost = engine_on(fake("hybrid")), engine_on(fake("hybrid"), num_checkpoints=0)
    for engine, num_cached in ((kept, 12), (lost, 0)):
        first = answers_of(engine, [ask("a", range(16))])["a"].ids
        again = answers_of(engine, [ask("b", range(16))])["b"]
        assert (again.num_cached, again.ids) == (num_cached, first)


def test_a_window_needs_only_its_last_pages_for_a_hit() -> None:
    engine = engine_on(fake("windows only"), num_pages=12)
    first = answers_of(engine, [ask("a", range(40), 1)])["a"]
    again = answers_of(engine, [ask("b", range(40), 1)])["b"]
    assert (again.num_cached, again.ids) == (36, first.ids)
