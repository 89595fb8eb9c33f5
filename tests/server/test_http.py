"""Streams to clients that do not read, or leave."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from localllm.server.http import EventStream

SCOPE: dict[str, Any] = {"type": "http"}


class Events:
    """An endless stream that knows whether it was closed."""

    def __init__(self) -> None:
        self.is_closed = False

    async def run(self) -> AsyncIterator[bytes]:
        try:
            while True:
                yield b"data: x\n\n"
                await asyncio.sleep(0)
        finally:
            self.is_closed = True


async def never() -> dict[str, Any]:
    await asyncio.Event().wait()
    raise AssertionError("an event nobody sets was set")


async def test_a_client_that_does_not_read_is_hung_up_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("localllm.server.http.STALLED_WRITE_S", 0.05)
    events, sent = Events(), []

    async def send(message: Any) -> None:
        sent.append(message)
        if len(sent) == 5:
            await asyncio.Event().wait()

    await asyncio.wait_for(EventStream(events.run())(SCOPE, never, send), 5)
    assert events.is_closed
    assert all(message.get("more_body", True) for message in sent), "it must not look complete"


async def test_a_client_that_leaves_closes_the_stream() -> None:
    events, gone = Events(), asyncio.Event()

    async def receive() -> dict[str, Any]:
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        gone.set()

    await asyncio.wait_for(EventStream(events.run())(SCOPE, receive, send), 5)
    assert events.is_closed


async def test_a_server_that_gives_up_closes_the_stream() -> None:
    events = Events()

    async def send(message: Any) -> None: ...

    task = asyncio.create_task(EventStream(events.run())(SCOPE, never, send))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
