"""Who is let in, who is not, and when another try makes sense."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localllm.daemon.admission import Admission, Bounds, Ticket
from localllm.errors import Overloaded, RateLimited


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def refusal(admission: Admission, caller: str = "", tokens: int = 0) -> Overloaded:
    with pytest.raises(Overloaded) as caught:
        admission.enter(caller, tokens)
    return caught.value


def test_beyond_the_bound_of_all_the_machine_is_overloaded() -> None:
    admission = Admission(Bounds(requests=2))
    first = admission.enter("a")
    admission.enter("b")
    assert refusal(admission, "c").http_status == 503
    admission.leave(first)
    admission.enter("c")


def test_beyond_its_own_bound_a_caller_is_refused_and_others_are_not() -> None:
    admission = Admission(Bounds(requests_per_key=1, tokens_per_key=100))
    admission.enter("a", 60)
    error = refusal(admission, "a", 1)
    assert isinstance(error, RateLimited) and error.http_status == 429
    admission.enter("b", 60)


def test_tokens_count_as_they_really_are_once_that_is_known() -> None:
    admission = Admission(Bounds(tokens=100))
    ticket = admission.enter("a", 80)
    admission.settle(ticket, 1, 20)
    other = admission.enter("a", 70)
    with pytest.raises(Overloaded):
        admission.settle(other, 1, 90)
    admission.settle(other, 1, 90, is_certain=True)
    assert admission.num_tokens == 110


def test_what_is_larger_than_the_bound_may_come_alone() -> None:
    admission = Admission(Bounds(tokens=100, requests=4))
    ticket = admission.enter("a", 500)
    admission.settle(ticket, 16, 500)
    refusal(admission, "b", 1)


def test_zero_is_no_bound() -> None:
    admission = Admission(Bounds())
    for _ in range(1000):
        admission.enter("a", 10**9)


def test_when_nothing_has_left_yet_a_usual_wait_is_told() -> None:
    clock = Clock()
    admission = Admission(Bounds(requests=8, tokens=1000), clock)
    assert refusal_when_full(admission).retry_after_s == 2.0, "nothing has left yet"
    clock.now += 1.0
    error = refusal_when_full(admission)
    assert error.retry_after_s == 1.0 and error.hint == "try again in 1 s"


def refusal_when_full(admission: Admission) -> Overloaded:
    tickets = [admission.enter("x") for _ in range(8)]
    error = refusal(admission, "y")
    for ticket in tickets:
        admission.leave(ticket)
    return error


@pytest.mark.parametrize(("seconds_each", "expected"), [(0.1, 1.0), (5.0, 5.0), (50.0, 50.0)])
def test_slow_answers_mean_a_later_try(seconds_each: float, expected: float) -> None:
    clock = Clock()
    admission = Admission(Bounds(requests=2), clock)
    running = [admission.enter("a"), admission.enter("a")]
    for _ in range(4):
        clock.now += seconds_each
        admission.leave(running.pop(0))
        running.append(admission.enter("a"))
    clock.now += seconds_each
    assert refusal(admission, "b").retry_after_s == pytest.approx(expected, rel=0.35)


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 50), st.booleans()), max_size=60))
def test_what_is_counted_is_what_is_under_way(moves: list[tuple[str, int, bool]]) -> None:
    admission = Admission(Bounds(requests=10, tokens=200, requests_per_key=6, tokens_per_key=150))
    held: list[Ticket] = []
    for caller, tokens, leaves in moves:
        if leaves and held:
            admission.leave(held.pop(0))
        else:
            try:
                held.append(admission.enter(caller, tokens))
            except Overloaded:
                continue
        assert admission.num_requests == len(held) <= 10
        assert admission.num_tokens == sum(ticket.tokens for ticket in held) <= 200
