"""Streamed answers as bytes: an HTTP/1.1 reader without I/O that cuts out events, and looks at each of them once."""

from __future__ import annotations

from typing import Any

import msgspec

from localllm.errors import NetworkError

MAX_HEAD_BYTES = 64 * 1024
MAX_LINE_BYTES = 16 * 2**20


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
        """The events that are complete now. NetworkError for what is no HTTP or no JSON."""
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
                raise NetworkError("the server's answer begins with more than 64 KiB of headers")
            return False
        lines = head.decode("latin-1").split("\r\n")
        words = lines[0].split(" ")
        if not words[0].startswith("HTTP/1.") or len(words) < 2 or not words[1].isdigit():
            raise NetworkError("what answers there does not speak HTTP")
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
            raise NetworkError("the server's answer is not cut into chunks as HTTP says") from None
        self._raw = rest
        self.is_done = self._left == 0
        return not self.is_done

    def _events(self, body: bytes) -> list[Event]:
        *lines, self._text = (self._text + body).split(b"\n")
        if len(self._text) > MAX_LINE_BYTES:
            raise NetworkError("the server sends a line without an end")
        events = []
        for line in lines:
            if line.startswith(b"data:") and (payload := line[5:].strip()) != b"[DONE]":
                try:
                    events.append(_decode_event(payload))
                except (msgspec.DecodeError, UnicodeDecodeError) as error:
                    raise NetworkError(f"the server sent an event that is none of a completion: {error}") from None
        return events


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
