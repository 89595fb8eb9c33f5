"""Owners of one class get equal shares of what is computed, in order within an owner, and everybody's turn comes."""

from collections import Counter
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from localllm.engine.engine import Engine
from localllm.engine.shares import Shares

from .worlds import ask, drain, engine_on, fake


def spread(number: int, length: int) -> list[int]:
    """A prompt that shares nothing with those of other numbers."""
    return [(number * 7 + n * n) % 64 for n in range(length)] + [number % 64, number // 64]


def run_counting(engine: Engine, num_steps: int) -> Counter[str]:
    """Tokens that each owner (the request id up to the slash) got in so many steps."""
    got: Counter[str] = Counter()
    for _ in range(num_steps):
        engine.step()
        for view in engine.snapshot(detailed=True).rows:
            got[view.request_id.partition("/")[0]] += view.num_tokens
        engine.check()
    return got


def test_a_lonely_request_does_not_wait_behind_a_crowd_of_another_owner() -> None:
    engine = engine_on(fake(), max_sequences=2)
    for n in range(40):
        engine.add(ask(f"crowd/{n}", spread(n, 3), 10, owner="crowd"))
    for _ in range(5):
        engine.step()
    engine.add(ask("lonely/0", spread(50, 3), 10, owner="lonely"))
    finished: list[str] = []
    while "lonely/0" not in finished:
        finished += [chunk.request_id for chunk in engine.step() if chunk.finish]
    assert len(finished) < 6
    drain(engine)


def test_owners_of_unequal_hunger_get_equal_tokens() -> None:
    engine = engine_on(fake(), max_sequences=4, num_pages=2000)
    for n in range(300):
        engine.add(ask(f"many/{n}", spread(n, 2), 4, owner="many"))
    for n in range(40):
        engine.add(ask(f"few/{n}", spread(400 + n, 30), 30, owner="few"))
    got = run_counting(engine, 250)
    assert 0.8 < got["many"] / got["few"] < 1.25


def test_an_owner_is_served_in_order_of_arrival() -> None:
    engine = engine_on(fake(), max_sequences=2)
    for n in range(10):
        engine.add(ask(f"a/{n}", spread(n, 3), 3, owner="a"))
        engine.add(ask(f"b/{n}", spread(n + 20, 6), 5, owner="b"))
    order: list[str] = []
    while engine.has_work:
        for chunk in engine.step():
            order += [chunk.request_id] if chunk.started else []
    for owner in "ab":
        assert [name for name in order if name.startswith(owner)] == [f"{owner}/{n}" for n in range(10)]


def test_owners_do_not_matter_between_classes() -> None:
    engine = engine_on(fake(), max_sequences=1)
    engine.add(ask("a/0", [1], 2, owner="a"))
    engine.step()
    engine.add(ask("b/batch", [2], 2, owner="b"))
    engine.add(ask("a/urgent", [3], 2, owner="a", priority=1))
    order: list[str] = []
    while engine.has_work:
        order += [chunk.request_id for chunk in engine.step() if chunk.finish]
    assert order.index("a/urgent") < order.index("b/batch")


def test_what_was_not_used_is_not_saved_up() -> None:
    shares = Shares()
    shares.join("busy")
    shares.charge("busy", 1000)
    shares.join("back")
    shares.charge("busy", 100)
    shares.charge("back", 100)
    assert shares.spent("back") == shares.spent("busy") == 1100


def test_a_stream_of_new_owners_does_not_hold_back_an_old_one() -> None:
    engine = engine_on(fake(), max_sequences=1)
    engine.add(ask("old/0", spread(1, 20), 20, owner="old"))
    for _ in range(3):
        engine.step()
    engine.add(ask("old/1", spread(2, 2), 2, owner="old"))
    number, finished = 0, set()
    while "old/1" not in finished:
        waiting = sum(view.state == "waiting" for view in engine.snapshot().sequences)
        if waiting < 3:
            number += 1
            assert number < 60, "the old owner starves"
            engine.add(ask(f"new{number}/0", spread(number + 10, 3), 3, owner=f"new{number}"))
        finished |= {chunk.request_id for chunk in engine.step() if chunk.finish}
    drain(engine)


def test_owners_who_left_are_forgotten() -> None:
    shares = Shares()
    shares.join("stays")
    for number in range(2000):
        shares.join(f"guest {number}")
        shares.charge(f"guest {number}", 1)
        shares.charge("stays", 3)
        shares.leave(f"guest {number}")
    assert len(shares._spent) < 600


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_whatever_owners_ask_for_each_gets_its_share_while_it_wants_more(data: st.DataObject) -> None:
    """The bound of fair queueing: no owner is ahead of another who always wanted more by much more than what runs at a
    time."""
    num_owners = data.draw(st.integers(2, 4))
    max_sequences = data.draw(st.integers(1, 4))
    engine = engine_on(fake(), max_sequences=max_sequences, num_pages=4000, token_budget=data.draw(st.integers(4, 40)))
    shapes: list[Any] = [data.draw(st.tuples(st.integers(1, 20), st.integers(1, 20))) for _ in range(num_owners)]
    for n in range(30):
        for owner, (length, most) in enumerate(shapes):
            engine.add(ask(f"{owner}/{n}", spread(n * num_owners + owner, length), most, owner=str(owner)))
    for _ in range(40):
        engine.step()
    views = engine.snapshot().sequences
    if all(any(view.request_id.startswith(f"{owner}/") for view in views) for owner in range(num_owners)):
        spent = [engine.scheduler._shares[0].spent(str(owner)) for owner in range(num_owners)]
        assert max(spent) - min(spent) <= 2 * max_sequences * max(length + 2 + most for length, most in shapes)
    engine.check()
    engine.close()
