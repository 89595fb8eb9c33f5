"""Events of an answer on their way to a client: at once, through slow connections, to the end or to an error."""

import asyncio
from contextlib import AsyncExitStack
from typing import Any

import pytest

from localllm import wire
from localllm.daemon.replies import Piece, Reply
from localllm.errors import WorkerCrashed
from localllm.server import answers
from localllm.server.answers import KEEP_ALIVE, Chunks, Envelope, delta_choice, text_choice
from localllm.server.outlet import EXTENSION, outlet_of
from localllm.server.pump import AnswerStream, Pump
from tests.daemon.test_replies import FakeResident, opened


class Memory:
    """An outlet that keeps what is written; `is_full` until it was drained, where the test says so."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.is_full = False
        self.drained = asyncio.Event()

    def write(self, data: bytes) -> None:
        self.written.append(data)

    async def drain(self) -> None:
        await self.drained.wait()
        self.is_full = False


def render(pieces: list[Piece]) -> bytes:
    return b"|".join(piece.text.encode() + (b"." if piece.finish else b"") for piece in pieces)


def pumped(early: list[Piece] | None = None) -> tuple[FakeResident, Reply, Memory, "asyncio.Task[bool]"]:
    resident, reply = opened()
    outlet = Memory()
    return resident, reply, outlet, asyncio.ensure_future(Pump(reply, render, outlet).run(early or []))


async def begun() -> None:
    await asyncio.sleep(0)


async def test_a_step_is_written_before_anything_else_runs() -> None:
    resident, _, outlet, task = pumped()
    await begun()
    for word in ("one", "two"):
        resident.say(0, word)
    assert outlet.written == [b"one", b"two"]
    resident.say(0, "three", finish="length")
    assert await task and outlet.written[-1] == b"three."


async def test_what_was_taken_before_comes_first() -> None:
    resident, reply = opened()
    resident.say(0, "early", started=True)
    early = await reply.gather()
    resident.say(0, "late", finish="length")
    outlet = Memory()
    assert await Pump(reply, render, outlet).run(early)
    assert outlet.written == [b"early", b"late."]


async def test_while_a_client_does_not_read_words_gather_and_are_written_as_one() -> None:
    resident, _, outlet, task = pumped()
    await begun()
    write = outlet.write

    def write_and_fill(data: bytes) -> None:
        write(data)
        outlet.is_full = True

    outlet.write = write_and_fill  # type: ignore[method-assign]  # a connection with no room
    for word in ("one", "two", "three"):
        resident.say(0, word)
    assert outlet.written == [b"one"]
    resident.say(0, "", finish="length")
    outlet.drained.set()
    assert await asyncio.wait_for(task, 5)
    assert outlet.written == [b"one", b"twothree."]


async def test_a_client_that_stops_reading_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("localllm.server.http.STALLED_WRITE_S", 0.02)
    resident, reply = opened()
    resident.say(0, "one")
    outlet = Memory()
    outlet.is_full = True
    assert not await asyncio.wait_for(Pump(reply, render, outlet).run([]), 5)


async def test_an_error_in_the_middle_is_an_event_after_what_was_said() -> None:
    resident, _, outlet, task = pumped()
    await begun()
    resident.say(0, "half")
    next(iter(resident.sinks.values())).fail(WorkerCrashed("it died"))
    assert await task
    assert outlet.written[0] == b"half" and b"it died" in outlet.written[1]
    assert outlet.written[1].endswith(answers.DONE)


async def test_an_error_in_the_same_step_as_words_is_an_event_too() -> None:
    resident, _, outlet, task = pumped()
    await begun()
    (sink,) = resident.sinks.values()
    sink.feed(wire.TokenChunk(next(iter(resident.sinks)), ids=[*b"half"], started=True))
    sink.fail(WorkerCrashed("it died"))
    await task
    assert outlet.written[0] == b"half" and b"it died" in outlet.written[1]


async def test_a_silent_stream_is_kept_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("localllm.server.pump.KEEP_ALIVE_S", 0.01)
    resident, _, outlet, task = pumped()
    while KEEP_ALIVE not in outlet.written:
        await asyncio.sleep(0.002)
    resident.say(0, "", finish="length")
    assert await asyncio.wait_for(task, 5)


async def test_what_cannot_be_written_down_ends_that_stream_with_its_error() -> None:
    resident, reply = opened()

    def sick(pieces: list[Piece]) -> bytes:
        raise RuntimeError("no words")

    task = asyncio.ensure_future(Pump(reply, sick, Memory()).run([]))
    await begun()
    resident.say(0, "x")
    with pytest.raises(RuntimeError, match="no words"):
        await task


async def test_any_other_server_gets_messages_with_the_same_bytes() -> None:
    resident, reply = opened()
    sent: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def never() -> dict[str, Any]:
        await asyncio.Event().wait()
        raise AssertionError("an event nobody sets was set")

    stack = AsyncExitStack()
    stack.callback(reply.close)
    task = asyncio.ensure_future(AnswerStream(reply, [], render, stack)({"type": "http"}, never, send))
    while len(sent) < 1:
        await asyncio.sleep(0)
    for word in ("one", "two"):
        resident.say(0, word)
        await asyncio.sleep(0.001)
    resident.say(0, "", finish="length")
    await asyncio.wait_for(task, 5)
    assert b"".join(message.get("body", b"") for message in sent) == b"onetwo."
    assert sent[0]["type"] == "http.response.start" and not sent[-1]["more_body"]


async def test_an_outlet_of_the_server_is_used_where_there_is_one() -> None:
    async def send(message: Any) -> None:
        raise AssertionError("it goes around the layers")

    outlet = Memory()
    assert outlet_of({"type": "http", "extensions": {EXTENSION: outlet}}, send) is outlet


@pytest.mark.parametrize("text", ["plain", 'quote " and \\', "line\nend", "\u2028 é 🐈", "\x00\x1f"])
def test_the_short_way_writes_the_same_chunk(text: str) -> None:
    chunks = Chunks(Envelope("chat", "id", 1, "model", "print"), announces_usage=True)
    assert chunks.content(3, text) == chunks.chunk(delta_choice(3, {"content": text}))
    assert chunks.text(3, text) == chunks.chunk(text_choice(3, text))
