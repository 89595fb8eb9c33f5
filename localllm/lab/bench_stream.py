"""One streamed answer over a bare socket: an HTTP/1.1 reader without I/O, and the few calls that feed it.

Light, because it shares its cores with the server that it measures: no HTTP library, an event is cut out and looked at
once, as it comes in.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import msgspec

from localllm.errors import DaemonUnreachable, LocalLLMError, UsageError

MAX_HEAD_BYTES = 64 * 1024
MAX_LINE_BYTES = 16 * 2**20


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


class BrokenAnswer(LocalLLMError):
    """A server answered something that is no stream of events, or broke off."""

    code = "broken_answer"
    http_status = 502


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None


class _Choice(msgspec.Struct):
    text: str | None = None
    delta: _Delta | None = None


class Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Event(msgspec.Struct):
    """What is looked at in an event of a completion or a chat."""

    choices: list[_Choice] = []
    usage: Usage | None = None
    error: msgspec.Raw | None = None

    @property
    def has_content(self) -> bool:
        """Whether it brings text, and be it of reasoning."""
        return any(choice.text or _says_something(choice.delta) for choice in self.choices)


def _says_something(delta: _Delta | None) -> bool:
    return delta is not None and bool(delta.content or delta.reasoning_content or delta.reasoning)


_decode_event = msgspec.json.Decoder(Event).decode


class AnswerReader:
    """Bytes of one HTTP/1.1 answer in, events out. Reads bodies in chunks, of a length, and up to the end."""

    def __init__(self) -> None:
        self.status = 0
        self.is_done = False
        self.error_body = b""
        self._is_chunked = False
        self._left: int | None = None  # of the body or of the chunk; None: up to the end of the connection
        self._raw = b""
        self._text = b""

    def feed(self, data: bytes) -> list[Event]:
        """The events that are complete now. BrokenAnswer for what is no HTTP or no JSON."""
        self._raw += data
        if not self.status and not self._read_head():
            return []
        body = self._read_body()
        if self.status >= 300:
            self.error_body = (self.error_body + body)[:MAX_HEAD_BYTES]
            return []
        return self._events(body)

    def end(self) -> None:
        """The connection is closed: fine for a body that has no other end."""
        if self.status and not self._is_chunked and self._left is None:
            self.is_done = True

    def _read_head(self) -> bool:
        head, found, rest = self._raw.partition(b"\r\n\r\n")
        if not found:
            if len(head) > MAX_HEAD_BYTES:
                raise BrokenAnswer("the server's answer begins with more than 64 KiB of headers")
            return False
        lines = head.decode("latin-1").split("\r\n")
        words = lines[0].split(" ")
        if not words[0].startswith("HTTP/1.") or len(words) < 2 or not words[1].isdigit():
            raise BrokenAnswer("what answers there does not speak HTTP")
        self.status, self._raw = int(words[1]), rest
        fields = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
        self._is_chunked = "chunked" in fields.get("transfer-encoding", "").lower()
        length = fields.get("content-length", "")
        self._left = 0 if self._is_chunked else int(length) if length.isdigit() else None
        self.is_done = self._left == 0 and not self._is_chunked
        return True

    def _read_body(self) -> bytes:
        if self._is_chunked:
            return b"".join(iter(self._next_of_chunks, b""))
        body = self._raw if self._left is None else self._raw[: self._left]
        self._raw = b""
        if self._left is not None:
            self._left -= len(body)
            self.is_done = self._left == 0
        return body

    def _next_of_chunks(self) -> bytes:
        """The next bytes of a chunk; empty when more has to come in first."""
        if not self._left and not self._begin_chunk():
            return b""
        assert self._left is not None, "a chunk has a length"
        part, self._raw = self._raw[: self._left], self._raw[self._left :]
        self._left -= len(part)
        return part

    def _begin_chunk(self) -> bool:
        if self.is_done:
            return False
        line, found, rest = self._raw.removeprefix(b"\r\n").partition(b"\r\n")
        if not found:
            return False
        try:
            self._left = int(line.partition(b";")[0], 16)
        except ValueError:
            raise BrokenAnswer("the server's answer is not cut into chunks as HTTP says") from None
        self._raw = rest
        self.is_done = self._left == 0
        return not self.is_done

    def _events(self, body: bytes) -> list[Event]:
        *lines, self._text = (self._text + body).split(b"\n")
        if len(self._text) > MAX_LINE_BYTES:
            raise BrokenAnswer("the server sends a line without an end")
        events = []
        for line in lines:
            if line.startswith(b"data:") and (payload := line[5:].strip()) != b"[DONE]":
                try:
                    events.append(_decode_event(payload))
                except (msgspec.DecodeError, UnicodeDecodeError) as error:
                    raise BrokenAnswer(f"the server sent an event that is none of a completion: {error}") from None
        return events


@dataclass(slots=True)
class Answer:
    """When things happened in one answer, in seconds of the clock. `event_times` are those of events with content."""

    sent: float
    event_times: list[float] = field(default_factory=list)
    usage: Usage | None = None
    error: str = ""


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


def error_text(body: bytes) -> str:
    """The sentence in an error of the usual shapes (`{"error": {"message": ...}}`, its inside, `{"detail": ...}`)."""
    try:
        found: Any = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return body[:200].decode("utf-8", "replace").strip()
    for name in ("error", "message", "detail"):
        if isinstance(found, dict) and name in found:
            found = found[name]
    return found if isinstance(found, str) else msgspec.json.encode(found).decode()[:200]
