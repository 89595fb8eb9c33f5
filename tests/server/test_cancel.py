"""Requests have names, can be looked at, and can be ended from outside; whose they are decides who may."""

import asyncio
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import httpx
import pytest

from localllm.client import Client
from localllm.daemon.journal import KEPT, KEPT_REFUSED, Journal, record_id_of
from localllm.daemon.replies import Reply
from localllm.errors import Cancelled, LocalLLMError
from localllm.server.desk import Leash
from localllm.server.verdict import phases_of, verdict
from tests.daemon.toy import ToyLibrary, toy_entry
from tests.server.world import World, daemon

LONG: dict[str, Any] = {"model": "toy:slow", "prompt": "abc", "max_tokens": 400, "ignore_eos": True}


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    library = ToyLibrary(
        toy_entry("toy:1b"), toy_entry("toy:slow", "toy:slow"), toy_entry("toy:endless", "toy:endless")
    )
    with daemon(tmp_path, library) as world:
        yield world


def cancel(world: World, name: str, **options: Any) -> httpx.Response:
    return world.client.post(f"/v1/requests/{name}/cancel", json={}, **options)


class Asking:
    """A request sent from a thread of its own."""

    def __init__(self, world: World, name: str, **body: Any) -> None:
        self.answer: httpx.Response | None = None
        self._thread = threading.Thread(target=self._ask, args=(world.url, name, LONG | body))
        self._thread.start()

    def _ask(self, url: str, name: str, body: dict[str, Any]) -> None:
        headers = {"x-request-id": name}
        self.answer = httpx.post(f"{url}/v1/completions", json=body, headers=headers, timeout=30, trust_env=False)

    def result(self) -> httpx.Response:
        self._thread.join(30)
        assert self.answer is not None
        return self.answer


def until_known(world: World, name: str, *states: str) -> dict[str, Any]:
    while True:
        answer = world.client.get(f"/v1/requests/{name}")
        if answer.status_code == 200 and answer.json()["state"] in states:
            found: dict[str, Any] = answer.json()
            return found


class Held:
    """A reply under way that knows what it was ended with."""

    stats = SimpleNamespace(finished=None)
    error: LocalLLMError | None = None

    def abort(self, error: LocalLLMError) -> None:
        self.error = error


async def test_who_is_ended_in_the_moment_in_which_the_answer_opens_gets_none() -> None:
    leash, reply, error = Leash(), Held(), Cancelled("enough")
    async with leash.opening():
        leash.pull(error)  # what ends the block comes with the loop's next turn, and the block is over before
        leash.hold(cast(Reply, reply))
    assert reply.error is error


async def test_who_is_ended_before_the_answer_opens_never_sees_it_open() -> None:
    leash, error = Leash(), Cancelled("enough")
    with pytest.raises(Cancelled):
        async with leash.opening():
            leash.pull(error)
            await asyncio.sleep(60)


def test_every_answer_has_a_name_and_a_good_one_of_the_client_is_kept(world: World) -> None:
    assert world.client.get("/health", headers={"x-request-id": "mine.1"}).headers["x-request-id"] == "mine.1"
    assert re.fullmatch("[0-9a-f]{32}", world.client.get("/nothing").headers["x-request-id"])
    odd = world.client.get("/health", headers={"x-request-id": "a b"}).headers["x-request-id"]
    assert re.fullmatch("[0-9a-f]{32}", odd)
    answer = world.client.post("/v1/completions", json={"model": "toy:1b", "prompt": "a", "max_tokens": 1})
    assert world.client.get(f"/v1/requests/{answer.headers['x-request-id']}").json()["state"] == "finished"


def test_a_stream_that_is_cancelled_ends_with_an_error_event(world: World) -> None:
    with world.client.stream("POST", "/v1/completions", json=LONG | {"stream": True}) as stream:
        lines = stream.iter_lines()
        next(line for line in lines if line.startswith("data:"))
        shown = cancel(world, stream.headers["x-request-id"]).json()
        assert shown["cancelled"] is True and shown["state"] == "failed"
        rest = [line for line in lines if line]
    assert '"code":"request_cancelled"' in rest[-2] and rest[-1] == "data: [DONE]"
    assert sum(row["running"] for row in world.ps()) == 0


def test_an_answer_that_is_not_streamed_is_a_499_when_cancelled(world: World) -> None:
    asking = Asking(world, "mine")
    until_known(world, "mine", "writing")
    assert cancel(world, "mine").json()["cancelled"] is True
    answer = asking.result()
    assert answer.status_code == 499 and answer.json()["error"]["code"] == "request_cancelled"
    assert answer.headers["x-request-id"] == "mine"


def test_a_request_can_be_cancelled_while_its_model_loads(world: World) -> None:
    asking = Asking(world, "early", model="toy:endless")
    loading = until_known(world, "early", "loading")
    assert "for the model to load; it is under way" in loading["verdict"]
    assert cancel(world, "early").json()["cancelled"] is True
    assert asking.result().status_code == 499
    shown = world.client.get("/v1/requests/early").json()
    assert shown["state"] == "failed" and shown["events"][-1]["data"] == {"code": "request_cancelled"}
    world.client.post("/localllm/v1/stop", json={"model": "toy:endless"})


def test_a_request_that_is_over_or_unknown_cannot_be_cancelled(world: World) -> None:
    world.complete("a", max_tokens=1)
    (row,) = world.client.get("/v1/requests").json()["data"]
    shown = cancel(world, row["id"]).json()
    assert (shown["cancelled"], shown["state"]) == (False, "finished")
    missing = cancel(world, "nobody")
    assert missing.status_code == 404 and missing.json()["error"]["code"] == "request_not_found"


def test_a_name_that_is_taken_gets_an_ending(world: World) -> None:
    first = Asking(world, "twin")
    until_known(world, "twin", "writing")
    body = {"model": "toy:slow", "prompt": "a", "max_tokens": 1}
    second = world.client.post("/v1/completions", json=body, headers={"x-request-id": "twin"})
    assert second.status_code == 200 and re.fullmatch("twin-[0-9a-f]{8}", second.headers["x-request-id"])
    assert cancel(world, "twin").json()["cancelled"] is True
    assert first.result().status_code == 499


def test_a_request_tells_its_timeline(world: World) -> None:
    prompt = "ab" * 30
    world.complete(prompt, max_tokens=5, ignore_eos=True)
    name = world.complete(prompt, max_tokens=5, ignore_eos=True).headers["x-request-id"]
    shown = world.client.get(f"/v1/requests/{name}").json()
    names = [event["name"] for event in shown["events"]]
    assert [each for each in names if each != "progress"] == [
        "queued", "submitted", "admitted", "first_token", "finished",
    ]  # fmt: skip
    times = [event["at"] for event in shown["events"]]
    assert times == sorted(times)
    walls = [event["time"] - event["at"] for event in shown["events"]]
    assert max(walls) - min(walls) < 1e-3
    assert (shown["prompt_tokens"], shown["cached_tokens"], shown["completion_tokens"]) == (61, 48, 5)
    assert "61 tokens (48 of them cached)" in shown["verdict"] and "wrote 5 tokens" in shown["verdict"]
    phases = shown["phases"]
    assert sum(phases[key] for key in ("load_s", "queue_s", "read_s", "write_s")) == pytest.approx(phases["total_s"])


def test_our_client_lists_and_cancels(world: World) -> None:
    client = Client(world.url)
    asking = Asking(world, "by-hand")
    until_known(world, "by-hand", "writing")
    row = client.requests()[0]
    assert (row.id, row.state, row.model) == ("by-hand", "writing", "toy:slow") and row.completion_tokens > 0
    assert client.cancel("by-hand") is True
    assert asking.result().status_code == 499
    assert client.cancel("by-hand") is False


def test_whose_request_it_is_decides_who_sees_it() -> None:
    from localllm.server.callers import Caller
    from localllm.server.requests import may_see

    record = Journal().open("/x", "toy", caller="anna")
    assert may_see(Caller("anna", frozenset(("open", "inference"))), record)
    assert not may_see(Caller("ben", frozenset(("open", "inference"))), record)
    assert may_see(Caller("ben", frozenset(("open", "inference", "manage"))), record)


# ---- the journal


def test_the_names_of_sequences_lead_to_their_request_and_are_never_used_twice() -> None:
    journal = Journal()
    first = journal.open("/x", "toy", request_id="again")
    journal.close(first)
    second = journal.open("/x", "toy", request_id="again")
    assert first.id == second.id and first.sequence_id(0) != second.sequence_id(0)
    assert record_id_of(second.sequence_id(3)) == "again"


def test_a_flood_of_refusals_does_not_wash_away_what_was_answered() -> None:
    journal = Journal()
    answered = journal.open("/x", "toy")
    answered.note("submitted", sequences=1, max_tokens=None)
    journal.close(answered)
    for _ in range(2 * KEPT):
        journal.close(journal.open("/x", "toy"))
    assert journal.find(answered.id) is answered and len(journal.over()) == KEPT_REFUSED + 1
    assert journal.over()[-1] is answered


def test_an_error_before_there_is_an_answer_is_how_the_request_ended() -> None:
    journal = Journal()
    record = journal.open("/x", "toy")
    with pytest.raises(Cancelled), record.opening():
        raise Cancelled("no")
    journal.close(record)
    assert record.events[-1].data == {"code": "request_cancelled"} and journal.find(record.id) is record


@pytest.mark.parametrize(
    ("events", "sentence"),
    [
        ([], "Nothing has happened to it yet; it is under way."),
        (
            [("loading", 0, {}), ("submitted", 1.2, {}), ("admitted", 1.5, {"cached": 640, "prompt": 812})],
            "Waited 1.2 s for the model to load, waited 300 ms in the queue and read 812 tokens (640 of them cached)",
        ),
        ([("failed", 0.1, {"code": "client_gone"})], "its client left."),
        (
            [("submitted", 0, {}), ("admitted", 0, {"cached": 0, "prompt": 1}), ("preempted", 1, {}),
             ("preempted", 2, {}), ("failed", 3, {"code": "worker_crashed"})],
            "Gave its memory to others twice and read 1 token in 3.0 s; it failed (worker_crashed).",
        ),
    ],
)  # fmt: skip
def test_a_sentence_says_where_the_time_went(events: list[tuple[Any, float, dict[str, Any]]], sentence: str) -> None:
    record = Journal().open("/x", "toy")
    for name, after_s, data in events:
        record.note(name, at=record.events[0].at + after_s, **data)
    assert sentence in verdict(record)
    assert phases_of(record).total_s >= 0
