"""Where the time of a request went: spans to draw, who else was in the batch, and a sentence that says it."""

from collections.abc import Iterator
from typing import Any

import pytest

from localllm.client import Client
from localllm.daemon.journal import Journal, Record
from localllm.server.verdict import verdict
from localllm.server.waterfall import Neighbour, Waterfall, waterfall_of
from tests.daemon.toy import ToyLibrary, toy_entry
from tests.server.world import World, daemon

SOON = 0.001


def record(journal: Journal, *events: tuple[Any, ...], model: str = "m", num_tokens: int = 0) -> Record:
    """A request whose events are (name, seconds, data...) by a clock that begins at 0."""
    made = journal.open("/v1/chat/completions", model, source="curl")
    made.events.clear()
    for name, at, *rest in (("queued", 0.0), *events):
        made.note(name, at=at, **(rest[0] if rest else {}))
    made.num_tokens = num_tokens
    return made


def admitted(at: float, prompt: int, cached: int = 0) -> tuple[str, float, dict[str, int]]:
    return ("admitted", at, {"prompt": prompt, "cached": cached})


def drawn(journal: Journal, of: Record) -> Waterfall:
    return waterfall_of(of, journal.running.values(), lambda other: True)


def spans(fall: Waterfall) -> list[tuple[str, float, float, int]]:
    return [(span.kind, span.start_s, span.end_s, span.tokens) for span in fall.spans]


FINISHED = ("finished", 6.84, {"reason": "stop"})


def test_every_part_of_the_time_is_a_span() -> None:
    journal = Journal()
    one = record(
        journal, ("submitted", 0.5), admitted(4.5, 1000, 100), ("progress", 5.0, {"computed": 600}),
        ("first_token", 5.5), ("preempted", 6.0, {"sequence": 0}), ("resumed", 6.3, {"sequence": 0}), FINISHED,
        num_tokens=20,
    )  # fmt: skip
    fall = drawn(journal, one)
    assert spans(fall) == [
        ("load", 0.0, 0.5, 0), ("queued", 0.5, 4.5, 0), ("prefill", 4.5, 5.0, 500), ("prefill", 5.0, 5.5, 400),
        ("preempted", 6.0, pytest.approx(6.3), 0), ("decode", 5.5, 6.84, 20),
    ]  # fmt: skip
    assert fall.cached_tokens == 100


def test_a_wait_is_blamed_on_who_was_prefilling() -> None:
    journal = Journal()
    small = record(journal, ("submitted", 0.0), admitted(0.0, 20), ("first_token", 0.1), FINISHED, num_tokens=99)
    long = record(journal, ("submitted", 0.0), admitted(0.2, 9216, 1024), ("first_token", 4.1), FINISHED)
    other = record(journal, ("submitted", 0.0), admitted(0.0, 50_000), ("first_token", 6.0), FINISHED, model="else")
    slow = record(journal, ("submitted", 0.0), admitted(4.12, 30), ("first_token", 4.2), FINISHED, num_tokens=50)
    fall = drawn(journal, slow)
    assert fall.why == f"It waited 4.12 s: {long.serial} was prefilling 8,192 tokens in the same batch."
    assert {each.serial for each in fall.neighbours} == {small.serial, long.serial}
    assert other.serial not in {each.serial for each in fall.neighbours} and "x-request-priority" in fall.advice


def test_what_is_somebody_elses_is_not_named() -> None:
    journal = Journal()
    record(journal, ("submitted", 0.0), admitted(0.2, 9216), ("first_token", 4.1), FINISHED)
    slow = record(journal, ("submitted", 0.0), admitted(4.12, 30), ("first_token", 4.2), FINISHED)
    fall = waterfall_of(slow, journal.running.values(), lambda other: False)
    (neighbour,) = fall.neighbours
    assert (neighbour.id, neighbour.serial, neighbour.source, neighbour.prompt_tokens) == (None, 0, "", 9216)
    assert fall.why.startswith("It waited 4.12 s: another request was prefilling 9,216 tokens")


@pytest.mark.parametrize(
    ("events", "words"),
    [
        ([("loading", 0.1), ("submitted", 3.0), admitted(3.0, 9), ("first_token", 3.1)], "3.00 s for the model"),
        ([("submitted", 0.0), admitted(0.0, 900, 90), ("first_token", 6.1)], "its prompt took 6.10 s: 810 tokens"),
        ([("submitted", 0.0), admitted(5.0, 9), ("first_token", 5.1)], "It waited 5.00 s in the queue"),
        (
            [("submitted", 0.0), admitted(0.0, 9), ("first_token", 0.1), ("preempted", 1.0), ("resumed", 3.0)],
            "It gave its memory to others and waited 2.00 s",
        ),
        ([("submitted", 0.0), admitted(0.0, 9), ("first_token", SOON)], "Nothing held it up: 10.1 tokens a second"),
    ],
)  # fmt: skip
def test_the_verdict_names_the_largest_part(events: list[tuple[Any, ...]], words: str) -> None:
    journal = Journal()
    fall = drawn(journal, record(journal, *events, FINISHED, num_tokens=70))
    assert words in fall.why
    assert bool(fall.advice) == ("Nothing" not in words)


def test_rates_of_sentences_are_those_of_timings_without_the_first_token() -> None:
    journal = Journal()
    ended = ("finished", 4.0, {"reason": "stop"})
    read = [("submitted", 0.0), admitted(0.0, 9), ("first_token", 2.0)]
    assert "wrote 5 tokens in 2.0 s (2 a second)" in verdict(record(journal, *read, ended, num_tokens=5))
    assert "wrote 1 token in 2.0 s; " in verdict(record(journal, *read, ended, num_tokens=1))


def test_the_batch_is_counted_from_what_happened_to_all() -> None:
    journal = Journal()
    record(journal, ("submitted", 0.0), admitted(0.0, 9), ("first_token", 0.1), ("finished", 3.0, {"reason": "stop"}))
    record(
        journal,
        ("submitted", 0.0),
        admitted(2.0, 9),
        ("preempted", 4.0),
        ("resumed", 5.0),
        ("failed", 6.0, {"code": "x"}),
    )
    one = record(journal, ("submitted", 0.0), admitted(1.0, 9), ("first_token", 1.1), FINISHED, num_tokens=9)
    points = [(point.at_s, point.size) for point in drawn(journal, one).batch]
    assert points == [(0.0, 1), (1.0, 2), (2.0, 3), (3.0, 2), (4.0, 1), (5.0, 2), (6.0, 1)]


def test_writing_in_company_is_the_verdict_where_nothing_else_was_slow() -> None:
    journal = Journal()
    for _ in range(3):
        record(
            journal, ("submitted", 0.0), admitted(0.0, 9), ("first_token", 0.01), ("finished", 7.0, {"reason": "stop"})
        )
    one = record(journal, ("submitted", 0.0), admitted(0.0, 9), ("first_token", 0.01), FINISHED, num_tokens=9)
    assert drawn(journal, one).why.startswith("It wrote beside 3 others, which share each step: 1.2 tokens a second")


def test_a_request_that_never_got_far_is_drawn_as_far_as_it_got() -> None:
    journal = Journal()
    refused = record(journal, ("failed", 0.002, {"code": "invalid_request"}))
    assert spans(drawn(journal, refused)) == [("load", 0.0, 0.002, 0)]


def test_long_pauses_between_tokens_are_kept_and_short_ones_are_not() -> None:
    one = record(Journal())
    for pause_s in (-1.0, 0.01, 0.4, 0.2, 1.5):
        one.note_tokens(1, pause_s)
    assert [seconds for _, seconds in one.stalls] == [0.4, 1.5]
    for _ in range(1000):
        one.note_tokens(1, 1.0)
    assert len(one.stalls) == 64


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with daemon(tmp_path_factory.mktemp("home"), ToyLibrary(toy_entry("toy:1b")), default_model="toy:1b") as world:
        yield world


def test_a_client_gets_all_of_it(world: World) -> None:
    assert world.chat("x" * 100, request_id="mine").status_code == 200
    details = Client(world.url).looking.request("mine")
    assert details.state == "finished" and details.phases.total_s > 0
    assert {event.name for event in details.events} >= {"queued", "submitted", "admitted", "first_token", "finished"}
    kinds = [span.kind for span in details.waterfall.spans]
    assert kinds[-1] == "decode" and "prefill" in kinds
    assert details.waterfall.why and max(point.size for point in details.waterfall.batch) == 1
    assert not any(isinstance(each, Neighbour) for each in details.waterfall.neighbours)
