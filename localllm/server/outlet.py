"""Connections: where a stream's bytes go, and how long a request may take to arrive.

Bytes go straight into the connection where our own server runs the application, else through ASGI: every layer that a
body message passes, h11 last, costs as much again as the event in it.
"""

import asyncio
import sys
from dataclasses import dataclass
from typing import Any, Protocol

import h11
import msgspec
from starlette.types import Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_TIMEOUT_S = 30.0
"""For a request's first line and headers; also how long a connection may wait for its next request."""
LINGER_S = 1.0
"""How long what a refused client still sends is read and dropped: hung up on at once, it would never see why."""
EXTENSION = "localllm.outlet"


class Outlet(Protocol):
    """Body bytes of a response whose head was sent, and whose end `send` will tell."""

    @property
    def is_full(self) -> bool:
        """What was written has to `drain` before there is more."""

    def write(self, data: bytes) -> None: ...

    async def drain(self) -> None: ...

    def hang_up(self) -> None:
        """End the connection at once, whatever still waits to be sent."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """An answer as it goes over the wire. `num_missing` bytes of the request's body are still to come; `is_last` where
    the client wants the connection closed behind it."""

    answer: bytes
    num_missing: int
    is_last: bool


class Doorkeeper(Protocol):
    """Refuses requests while there is no room for them."""

    def refusal(self, data: bytes) -> Refusal | None:
        """For the next bytes of a connection on which nothing is under way; None where they are to be read."""


DOORKEEPER = "localllm.door"
"""Where the application's lifespan leaves one, if it has one."""


class HttpProtocol(H11Protocol):
    """Uvicorn's HTTP/1.1 with an outlet for streams, without patience for half a request, and with refusals that are
    JSON even for what is no HTTP, and quick where there is no room."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        app = self._bare_app = self.app

        async def with_outlet(scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] == "http" and scope["http_version"] == "1.1":  # 1.0 knows no chunks
                scope.setdefault("extensions", {})[EXTENSION] = _Chunked(self)
            await app(scope, receive, send)

        self.app = with_outlet
        self._head_timer: asyncio.TimerHandle | None = None
        self._is_refused = False
        self._door: Doorkeeper | None = self.app_state.get(DOORKEEPER)
        self._num_unread = 0  # bytes of a body whose request was turned away
        self._is_last = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn
        super().connection_made(transport)
        self._expect_head()

    def data_received(self, data: bytes) -> None:
        if self._num_unread:
            data = self._after_the_unread(data)
        if data and not self._is_refused and not self._turned_away(data):
            super().data_received(data)

    def _after_the_unread(self, data: bytes) -> bytes:
        """What follows the body that nobody wants; the connection may end behind it."""
        num_dropped = min(self._num_unread, len(data))
        self._num_unread -= num_dropped
        if self._is_last and not self._num_unread:
            self.transport.close()
        return b"" if self._is_last else data[num_dropped:]

    def _turned_away(self, data: bytes) -> bool:
        refusal = self._door.refusal(data) if self._door is not None and self._is_between_requests else None
        if refusal is None:
            return False
        self.transport.write(refusal.answer)
        self._num_unread, self._is_last = refusal.num_missing, refusal.is_last
        if refusal.is_last and not refusal.num_missing:
            self.transport.close()
        else:
            self.on_response_complete()
        return True

    @property
    def _is_between_requests(self) -> bool:
        """Nothing of a request has come, and no answer is owed."""
        is_idle = self.conn.our_state is h11.IDLE and self.conn.their_state is h11.IDLE
        return is_idle and self.conn.trailing_data == (b"", False) and not self.transport.is_closing()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
        super().connection_lost(exc)
        self.app = self._bare_app  # the other one holds us: nobody should have to search for such a circle

    def on_response_complete(self) -> None:
        self._expect_head()
        super().on_response_complete()

    def _expect_head(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
        self._head_timer = self.loop.call_later(HEAD_TIMEOUT_S, self._end_without_head)

    def _end_without_head(self) -> None:
        is_answering = self.cycle is not None and not self.cycle.response_complete
        if not is_answering and not self.transport.is_closing():
            self.transport.close()

    def _unsupported_upgrade_warning(self) -> None:
        """Java's client offers HTTP/2 with every request, and takes the answer in HTTP/1.1: nothing to warn of."""

    def send_400_response(self, msg: str) -> None:
        """Called while h11's complaint about what arrived is being handled; its hint is 400, 431 or 501."""
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.close()
            return
        is_long = getattr(sys.exc_info()[1], "error_status_hint", 400) == 431
        status, sentence = (431, "the request headers are too long") if is_long else (400, "this is not HTTP/1.1")
        shown = {"message": sentence, "type": "invalid_request_error", "param": None, "code": "invalid_request"}
        body = msgspec.json.encode({"error": shown})
        headers = [("content-type", "application/json"), ("content-length", str(len(body))), ("connection", "close")]
        for event in (
            h11.Response(status_code=status, headers=headers),
            h11.Data(data=body),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")
        self._is_refused = True
        self.transport.write_eof()
        self.loop.call_later(LINGER_S, self.transport.close)


class _Chunked:
    """Chunks (RFC 9112, 7.1) of a response without a length, which h11 would write as well."""

    def __init__(self, protocol: H11Protocol) -> None:
        self._protocol = protocol

    @property
    def is_full(self) -> bool:
        return self._protocol.flow.write_paused

    def write(self, data: bytes) -> None:
        if data and not self._protocol.transport.is_closing():
            self._protocol.transport.write(b"%x\r\n%b\r\n" % (len(data), data))

    async def drain(self) -> None:
        await self._protocol.flow.drain()

    def hang_up(self) -> None:
        self._protocol.transport.abort()


class _ThroughSend:
    """For any other server: what is written is sent by whoever drains."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._waiting = b""

    @property
    def is_full(self) -> bool:
        return bool(self._waiting)

    def write(self, data: bytes) -> None:
        self._waiting += data

    async def drain(self) -> None:
        data, self._waiting = self._waiting, b""
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    def hang_up(self) -> None:
        """Another server closes the connection of an answer without an end."""
        self._waiting = b""


def outlet_of(scope: Scope, send: Send) -> Outlet:
    outlet: Outlet | None = scope.get("extensions", {}).get(EXTENSION)
    return outlet or _ThroughSend(send)
