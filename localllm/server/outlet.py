"""Where a stream's bytes go: straight into the connection where our own server runs the application, else through ASGI.

Every layer that a body message passes, h11 last, costs as much again as the event in it.
"""

from typing import Any, Protocol

from starlette.types import Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

EXTENSION = "localllm.outlet"


class Outlet(Protocol):
    """Body bytes of a response whose head was sent, and whose end `send` will tell."""

    @property
    def is_full(self) -> bool:
        """What was written has to `drain` before there is more."""

    def write(self, data: bytes) -> None: ...

    async def drain(self) -> None: ...


class HttpProtocol(H11Protocol):
    """Uvicorn's HTTP/1.1 with an outlet for streams."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        app = self.app

        async def with_outlet(scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] == "http" and scope["http_version"] == "1.1":  # 1.0 knows no chunks
                scope.setdefault("extensions", {})[EXTENSION] = _Chunked(self)
            await app(scope, receive, send)

        self.app = with_outlet


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


def outlet_of(scope: Scope, send: Send) -> Outlet:
    outlet: Outlet | None = scope.get("extensions", {}).get(EXTENSION)
    return outlet or _ThroughSend(send)
