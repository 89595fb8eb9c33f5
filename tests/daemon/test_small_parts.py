"""Durations, crash counts, frames: the parts that need no process."""

import gc
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localllm import wire
from localllm.daemon.crashes import CrashLog
from localllm.daemon.failures import error_from
from localllm.daemon.heap import settle
from localllm.daemon.keepalive import keep_alive_seconds
from localllm.errors import BadModelFile, InvalidRequest, LocalLLMError, WorkerCrashed


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("5m", 300),
        ("1h30m", 5400),
        ("90s", 90),
        ("500ms", 0.5),
        ("2d", 172800),
        ("45", 45),
        (45, 45),
        (1.5, 1.5),
        (0, 0),
        ("+5m", 300),
        (".5h", 1800),
        ("1.h", 3600),
        ("1m0.5s", 60.5),
        ("250000us", 0.25),
        ("0ns", 0),
    ],
)
def test_durations_are_read_as_people_write_them(value: str | float, seconds: float) -> None:
    assert keep_alive_seconds(value) == seconds


@pytest.mark.parametrize("value", [-1, "-1", "-5m", -0.5, 1e20, "9999999d", math.inf])
def test_anything_negative_or_beyond_all_dates_is_for_ever(value: str | float) -> None:
    assert keep_alive_seconds(value) == math.inf


@pytest.mark.parametrize("value", ["", "soon", "5 parsecs", "m5", "5m!", "1e3", "1h-3m", ".h", "--5m", float("nan")])
def test_what_is_no_duration_is_refused(value: str | float) -> None:
    with pytest.raises(InvalidRequest) as refused:
        keep_alive_seconds(value)
    assert refused.value.param == "keep_alive"


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_three_crashes_in_five_minutes_are_enough() -> None:
    clock = Clock()
    log = CrashLog(clock)
    pauses = []
    for _ in range(3):
        pauses.append(log.pause_s("a"))
        log.record("a", "model a", "it fell over")
    assert pauses == [0, 0, 1]
    with pytest.raises(WorkerCrashed, match=r"3 times.*it fell over"):
        log.pause_s("a")
    assert log.pause_s("b") == 0
    clock.now += 301
    assert log.pause_s("a") == 0


def test_a_restart_heals_but_the_count_stays() -> None:
    log = CrashLog(Clock())
    for _ in range(3):
        log.record("a", "model a", "it fell over")
    log.heal("a")
    assert log.wounds() == []
    with pytest.raises(WorkerCrashed):
        log.pause_s("a")
    log.forgive("a")
    assert log.pause_s("a") == 0


@given(st.lists(st.integers(0, 2**31)), st.lists(st.integers(1, 40), min_size=1))
def test_frames_come_out_whole_however_they_were_cut(numbers: list[int], cuts: list[int]) -> None:
    sent = [wire.Cancel(str(number)) for number in numbers]
    stream = b"".join(wire.encode_frame(message) for message in sent)
    splitter, received, position, turn = wire.FrameSplitter(), [], 0, 0
    while position < len(stream):
        size = cuts[turn % len(cuts)]
        received += [wire.decode_to_worker(body) for body in splitter.feed(stream[position : position + size])]
        position, turn = position + size, turn + 1
    assert received == sent


def test_a_frame_that_claims_to_be_huge_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match="longer than the wire allows"):
        list(wire.FrameSplitter().feed(b"\xff\xff\xff\xff"))


def test_errors_come_back_from_a_worker_as_what_they_were() -> None:
    error = error_from("bad_model_file", "it is damaged", "pull it again")
    assert isinstance(error, BadModelFile) and error.hint == "pull it again"
    assert error_from("context_length_exceeded", "too long").http_status == 400
    assert type(error_from("never heard of", "x")) is LocalLLMError


def test_what_lives_long_is_not_looked_through_for_garbage_again_and_again() -> None:
    """A daemon with a vocabulary would stand still for 0.1 s each time."""
    settle()
    try:
        assert gc.get_freeze_count() > 100 * len(gc.get_objects(generation=2))
    finally:
        gc.unfreeze()
