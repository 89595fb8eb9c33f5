"""HTTP without opinions about models: bodies with limits, JSON and event streams, errors as OpenAI writes them."""

import asyncio
import contextlib
import logging
import math
import uuid
from collections.abc import AsyncIterator, Awaitable, Mapping
from typing import Any, TypeVar

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from localllm.errors import ContextExceeded, DeadlineExceeded, LocalLLMError, NotEnoughMemory, Overloaded
from localllm.server.callers import caller_of, check_names
from localllm.server.json_text import decoded_object
from localllm.server.outlet import outlet_of

logger = logging.getLogger("localllm.server")

MAX_BODY_BYTES = 16 * 2**20
MAX_BODY = "localllm.max_body"
"""Where the guard leaves the limit of the settings, in bytes, in a request's scope."""
BODY_TIMEOUT_S = 30.0
STALLED_WRITE_S = 60.0
ERROR_HEADER = "x-localllm-error"
"""The code of an error, for dialects whose bodies have no place for it."""
RETRY_AFTER_S = 2

T = TypeVar("T")


class HttpError(LocalLLMError):
    """A refusal below the level of fields: method, length, content type."""

    code = "invalid_request"

    def __init__(self, status: int, message: str, *, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.http_status = status


class Disconnected(Exception):
    """The client went away; there is nobody to answer."""


# ---- in


async def read_object(request: Request) -> dict[str, Any]:
    """The body as a JSON object. HttpError: too long, too slow, packed; BadJson: not an object of sane proportions."""
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            body = await _read_limited(request, max_body_bytes(request))
    except TimeoutError:
        raise HttpError(408, f"the request body did not arrive within {BODY_TIMEOUT_S:.0f} s") from None
    except ClientDisconnect:
        raise Disconnected from None
    decoded = decoded_object(body)
    check_names(caller_of(request), (decoded.get(name) for name in _NAMING))
    return decoded


_NAMING = ("model", "name", "source", "destination", "from")
"""Fields of any dialect that hold a model's name."""


def max_body_bytes(request: Request) -> int:
    """As the settings have it; the guard notes it."""
    return int(request.scope.get(MAX_BODY, MAX_BODY_BYTES))


async def _read_limited(request: Request, limit: int) -> bytes:
    declared = request.headers.get("content-length", "0")
    if not (declared.isascii() and declared.isdigit()) or len(declared) > 18 or int(declared) > limit:
        raise _too_long(limit)
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > limit:
            raise _too_long(limit)
    return bytes(body)


def _too_long(limit: int) -> HttpError:
    return HttpError(413, f"the request body is longer than {limit / 2**20:g} MiB", hint="see the setting max_body_mb")


async def attended(request: Request, work: Awaitable[T]) -> T:
    """The work's result, or Disconnected with the work cancelled as soon as the client goes away."""
    task = asyncio.ensure_future(work)
    gone = asyncio.create_task(_until_gone(request.receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise Disconnected
        return task.result()
    finally:
        await _cancelled(task, gone)


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _cancelled(*tasks: "asyncio.Future[Any]") -> None:
    for task in tasks:
        if not task.done():
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await task


# ---- out


class Json(Response):
    """A JSON body, compact."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return msgspec.json.encode(content)


async def in_time(write: Awaitable[None]) -> bool:
    """Whether the client took it; one that stopped reading is to be hung up on."""
    try:
        async with asyncio.timeout(STALLED_WRITE_S):
            await write
    except TimeoutError:
        logger.warning("a client did not read for %.0f s and is hung up on", STALLED_WRITE_S)
        return False
    return True


class Streamed(Response):
    """A body of unknown length. It is closed when the client leaves or stops reading."""

    def __init__(self, media_type: str = "text/event-stream; charset=utf-8") -> None:
        super().__init__(None, media_type=None, headers={"cache-control": "no-store", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self.headers["content-type"] = media_type

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        writer = asyncio.create_task(self._send_all(scope, send))
        gone = asyncio.create_task(_until_gone(receive))
        try:
            await asyncio.wait({writer, gone}, return_when=asyncio.FIRST_COMPLETED)
            if writer.done():
                writer.result()
        finally:
            await _cancelled(writer, gone)
            await self.close()

    async def _send_all(self, scope: Scope, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        if not await self.write(scope, send):
            # without an end; what still waits to be sent would keep the connection open for ever
            outlet_of(scope, send).hang_up()
            return
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def write(self, scope: Scope, send: Send) -> bool:
        """Write all of the body; False when the client does not read."""
        raise NotImplementedError

    async def close(self) -> None:
        """Nothing more will be written."""


class EventStream(Streamed):
    """Server-sent events, or lines, from a generator."""

    def __init__(self, events: AsyncIterator[bytes], media_type: str = "text/event-stream; charset=utf-8") -> None:
        super().__init__(media_type)
        self._events = events

    async def write(self, scope: Scope, send: Send) -> bool:
        async for event in self._events:
            if not await in_time(send({"type": "http.response.body", "body": event, "more_body": True})):
                return False
        return True

    async def close(self) -> None:
        close = getattr(self._events, "aclose", None)  # async generators have it, plain iterators need not
        if close is not None:
            await close()


# ---- errors

_TYPES: Mapping[int, str] = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    429: "rate_limit_error",
    502: "api_error",
    503: "unavailable_error",
}


def error_object(error: LocalLLMError) -> dict[str, Any]:
    """The value of `error` in a body or an event."""
    status = error.http_status
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    message = f"{error.message} ({error.hint})" if error.hint else error.message
    shown: dict[str, Any] = {"message": message, "type": kind, "param": error.param, "code": error.code}
    if error.hint:
        shown["hint"] = error.hint
    if isinstance(error, ContextExceeded):
        shown |= {"n_prompt_tokens": error.num_prompt_tokens, "n_ctx": error.context_length}
    return shown


def error_response(error: LocalLLMError, path: str = "", request_id: str = "") -> Json:
    """In the form of the dialect whose route `path` is; without one, OpenAI's. `request_id` is what the request is
    called."""
    headers = retry_after(error) | {ERROR_HEADER: error.code}
    if error.http_status == 401:
        headers["www-authenticate"] = "Bearer"
    if isinstance(error, DeadlineExceeded):
        headers["x-should-retry"] = (
            "false"  # the same deadline would pass again; OpenAI's clients retry a 408 otherwise
        )
    body, status = error_body(error, path, request_id), error.http_status
    if "request_id" in body:
        headers["request-id"] = body["request_id"]
        status = ANTHROPIC_OVERLOADED if body["error"]["type"] == "overloaded_error" else status
    return Json(body, status_code=status, headers=headers)


def retry_after(error: LocalLLMError) -> dict[str, str]:
    """When another try makes sense, as a header; empty where it never does."""
    if error.http_status not in (429, 503) or isinstance(error, NotEnoughMemory):
        return {}
    seconds = error.retry_after_s if isinstance(error, Overloaded) else RETRY_AFTER_S
    return {"retry-after": str(math.ceil(seconds))}


ANTHROPIC_OVERLOADED = 529
"""What their clients know as a server with too much to do."""
_ANTHROPIC = "/v1/messages"
_OLLAMA = "/api/"
_ANTHROPIC_TYPES: Mapping[int, str] = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


def error_body(error: LocalLLMError, path: str = "", request_id: str = "") -> dict[str, Any]:
    """Ollama's is a sentence under `error`, Anthropic's names itself an error."""
    shown = error_object(error)
    if path.startswith(_OLLAMA):
        return {"error": shown["message"]}
    if path == _ANTHROPIC or path.startswith(_ANTHROPIC + "/"):
        status = error.http_status
        kind = _ANTHROPIC_TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")
        error_of = {"type": kind, "message": shown["message"]}
        return {"type": "error", "error": error_of, "request_id": f"req_{request_id or uuid.uuid4().hex}"}
    return {"error": shown}
