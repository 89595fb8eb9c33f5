"""One streamed answer over a bare socket. Light, because it shares its cores with the server that it measures."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import msgspec

from localllm.errors import DaemonUnreachable, LocalLLMError, UsageError
from localllm.lab.bench_events import AnswerReader, Event, Usage, error_text


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server is: `path` is what stands before `/v1`."""

    host: str
    port: int
    path: str = ""

    @staticmethod
    def of(url: str) -> Address:
        """`http://host:port`, with or without a path and `/v1` behind it; UsageError for anything else."""
        try:
            parts = urlsplit(url if "//" in url else f"http://{url}")
            host, port = parts.hostname, parts.port or 80
        except ValueError:
            host, port = None, 0
        if not host or parts.scheme != "http":
            raise UsageError(f"{url!r} is no address of a server", hint="for example --url http://127.0.0.1:8080")
        return Address(host, port, parts.path.rstrip("/").removesuffix("/v1"))

    @property
    def url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}{self.path}"


@dataclass(slots=True)
class Answer:
    """When things happened in one answer, in seconds of the clock. `event_times` are those of events with content."""

    sent: float
    event_times: list[float] = field(default_factory=list)
    usage: Usage | None = None
    error: str = ""

    @property
    def problem(self) -> str:
        """Why it does not count; empty when it does."""
        return self.error or ("" if self.event_times else "an answer without content")


class _Exchange(asyncio.Protocol):
    """Notes the time as soon as bytes come in: all events of one read came at the same moment."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.reader = AnswerReader()
        self._clock = clock
        self.answer = Answer(0.0)

    def data_received(self, data: bytes) -> None:
        now = self._clock()
        try:
            for event in self.reader.feed(data):
                self._take(event, now)
        except LocalLLMError as error:
            self._finish(error.message)
        if self.reader.is_done:
            self._finish()

    def _take(self, event: Event, now: float) -> None:
        if event.has_content:
            self.answer.event_times.append(now)
        if event.usage is not None:
            self.answer.usage = event.usage
        if event.error is not None and bytes(event.error) != b"null":
            self.answer.error = self.answer.error or error_text(bytes(event.error))

    def connection_lost(self, error: Exception | None) -> None:
        self.reader.end()
        self._finish("" if self.reader.is_done else "the server broke off its answer")

    def _finish(self, error: str = "") -> None:
        if self.done.done():
            return
        if self.reader.status >= 300:
            error = error_text(self.reader.error_body) or f"the server answered with status {self.reader.status}"
        self.answer.error = self.answer.error or error
        self.done.set_result(None)


async def exchange(
    address: Address, path: str, body: Mapping[str, Any], api_key: str, timeout_s: float, clock: Callable[[], float]
) -> Answer:
    """Send one request on a connection of its own, and read its stream. The clock starts when the request is sent, the
    connection stands already. Failures are in `error`; only a server that is not there raises DaemonUnreachable."""
    loop = asyncio.get_running_loop()
    try:
        transport, protocol = await loop.create_connection(lambda: _Exchange(clock), address.host, address.port)
    except OSError as error:
        raise DaemonUnreachable(
            f"nothing answers at {address.url} ({(error.strerror or str(error)).lower()})", hint="check the address"
        ) from None
    try:
        protocol.answer.sent = clock()
        transport.write(request_bytes(address, path, body, api_key))
        async with asyncio.timeout(timeout_s):
            await protocol.done
    except TimeoutError:
        protocol.answer.error = f"no end after {timeout_s:g} s"
    finally:
        transport.close()
    return protocol.answer


def request_bytes(address: Address, path: str, body: Mapping[str, Any], api_key: str) -> bytes:
    content = msgspec.json.encode(body)
    key = f"Authorization: Bearer {api_key}\r\n" if api_key else ""
    head = (
        f"POST {address.path}{path} HTTP/1.1\r\nHost: {address.host}:{address.port}\r\nAccept: text/event-stream\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\nConnection: close\r\n{key}\r\n"
    )
    return head.encode("latin-1") + content
