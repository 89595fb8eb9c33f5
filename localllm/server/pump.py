"""Writes an answer's events the moment a step brings them, with no task in between.

A client that reads slowly gets fewer, larger pieces; one that stops reading is hung up on.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass

from starlette.types import Scope, Send

from localllm.daemon.replies import Piece, Reply
from localllm.errors import LocalLLMError
from localllm.server.answers import error_event
from localllm.server.http import Streamed, in_time
from localllm.server.outlet import Outlet, outlet_of

KEEP_ALIVE_S = 10.0

Render = Callable[[list[Piece]], bytes]
"""Pieces as events; behind the last ones everything that ends the stream."""


def comment(text: str) -> bytes:
    """A line that every reader of server-sent events passes over."""
    return b": " + text.encode() + b"\n\n"


@dataclass(frozen=True, slots=True)
class Form:
    """How a dialect writes down what is no part of an answer: an error in the middle, and that somebody has to wait
    ("waiting", or "loading weights 43 %")."""

    error: Callable[[LocalLLMError], bytes] = error_event
    waiting: Callable[[str], bytes] = comment
    media_type: str = "text/event-stream; charset=utf-8"


OPENAI_FORM = Form()


class AnswerStream(Streamed):
    """A reply as events. `early` are pieces that were taken before; the stack is closed when nobody reads any more."""

    def __init__(
        self,
        reply: Reply,
        early: list[Piece],
        render: Render,
        stack: contextlib.AsyncExitStack,
        form: Form = OPENAI_FORM,
    ) -> None:
        super().__init__(form.media_type)
        self._reply = reply
        self._early = early
        self._render = render
        self._stack = stack
        self._form = form

    async def write(self, scope: Scope, send: Send) -> bool:
        return await Pump(self._reply, self._render, outlet_of(scope, send), self._form).run(self._early)

    async def close(self) -> None:
        await self._stack.aclose()


class Pump:
    """Moves pieces from a reply to an outlet; an error in the middle is an event, too."""

    def __init__(self, reply: Reply, render: Render, outlet: Outlet, form: Form = OPENAI_FORM) -> None:
        self._reply = reply
        self._render = render
        self._outlet = outlet
        self._form = form
        self._wake = asyncio.Event()
        self._is_over = False
        self._failure: Exception | None = None
        self._last_write = time.monotonic()

    async def run(self, early: list[Piece]) -> bool:
        """Until all is written; False when the client does not read. Raises what rendering raised."""
        try:
            self._push(lambda: early)
            self._reply.listen(self._push)
            self._push()
            while self._outlet.is_full or not self._is_over:
                if not self._outlet.is_full:
                    await self._idle()
                elif await in_time(self._outlet.drain()):
                    self._push()
                else:
                    return False
        finally:
            self._is_over = True  # the connection may carry something else from here on
        if self._failure is not None:
            raise self._failure
        return True

    def _push(self, take: Callable[[], list[Piece]] | None = None) -> None:
        """Write what has gathered, unless the end was written or the client is behind."""
        if self._is_over or self._outlet.is_full:
            return
        try:
            self._write(take() if take else self._reply.take())
            if self._reply.has_failed and not self._outlet.is_full:
                self._write(self._reply.take())  # raises: nobody calls again to say so
        except LocalLLMError as error:
            self._outlet.write(self._form.error(error))
            self._is_over = True
        except Exception as error:  # we are called by the worker's socket, which carries other streams as well
            self._failure, self._is_over = error, True
        if self._is_over or self._outlet.is_full:
            self._wake.set()

    def _write(self, pieces: list[Piece]) -> None:
        if pieces:
            self._outlet.write(self._render(pieces))
            self._last_write = time.monotonic()
        self._is_over = self._reply.is_done

    async def _idle(self) -> None:
        """Until there is something to do; a stream that is silent for long is kept open."""
        until_quiet_s = self._last_write + KEEP_ALIVE_S - time.monotonic()
        try:
            async with asyncio.timeout(until_quiet_s):
                await self._wake.wait()
            self._wake.clear()
        except TimeoutError:
            if time.monotonic() - self._last_write >= KEEP_ALIVE_S:
                self._outlet.write(self._form.waiting("waiting"))
                self._last_write = time.monotonic()
