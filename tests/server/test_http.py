"""Streams to clients that do not read, or leave."""

import asyncio
import re
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from localllm.server.http import EventStream
from tests.server.world import daemon

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


def raw(port: int, version: str, *bodies: dict[str, Any]) -> bytes:
    """What a server answers to completions on one connection, until it closes it."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        for number, body in enumerate(bodies, start=1):
            content = msgspec.json.encode({"model": "toy:1b", "temperature": 0, "max_tokens": 8, **body})
            last = "Connection: close\r\n" if number == len(bodies) else ""
            head = f"POST /v1/completions HTTP/{version}\r\nHost: localhost\r\n{last}"
            connection.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
        return b"".join(iter(lambda: connection.recv(65536), b""))


def unchunked(body: bytes) -> bytes:
    """RFC 9112, 7.1, to the letter: sizes must fit, and nothing may follow the end."""
    data = b""
    while True:
        size, _, body = body.partition(b"\r\n")
        length = int(size, 16)
        assert body[length : length + 2] == b"\r\n"
        data, body = data + body[:length], body[length + 2 :]
        if not length:
            assert body == b""
            return data


def test_a_stream_is_cut_into_chunks_and_for_old_clients_ends_with_the_connection(tmp_path: Path) -> None:
    with daemon(tmp_path) as world:
        new, old = (raw(world.port, version, {"prompt": "abc", "stream": True}) for version in ("1.1", "1.0"))
    head, _, body = new.partition(b"\r\n\r\n")
    old_head, _, old_body = old.partition(b"\r\n\r\n")
    assert b"transfer-encoding: chunked" in head.lower() and b"chunked" not in old_head.lower()
    texts = [b"".join(re.findall(rb'"text":"([^"]*)"', events)) for events in (unchunked(body), old_body)]
    assert texts[0] == texts[1] != b""
    assert unchunked(body).endswith(b"data: [DONE]\n\n") and old_body.endswith(b"data: [DONE]\n\n")


def test_after_a_stream_the_connection_answers_again(tmp_path: Path) -> None:
    with daemon(tmp_path) as world:
        streamed = {"prompt": "abc", "stream": True}
        answered = raw(world.port, "1.1", streamed, streamed, {"prompt": "abc"})
    assert answered.count(b"HTTP/1.1 200 OK") == 3
    assert answered.count(b"data: [DONE]\n\n\r\n0\r\n\r\n") == 2


def test_javas_client_offers_http_2_sends_its_head_first_and_stays(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    body = msgspec.json.encode({"model": "toy:1b", "prompt": "ab", "max_tokens": 2})
    head = (
        "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade, HTTP2-Settings\r\n"
        "Upgrade: h2c\r\nHTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    with daemon(tmp_path) as world, socket.create_connection(("127.0.0.1", world.port), timeout=10) as client:
        for _ in range(2):
            client.sendall(head.encode())
            client.sendall(body)
            received = b""
            while not received.endswith(b"}}}"):
                received += client.recv(2**16)
            assert received.startswith(b"HTTP/1.1 200 ")
    assert "upgrade" not in caplog.text.lower()
