"""Anthropic's API: messages, and how many tokens they have."""

import contextlib
import functools
from collections.abc import Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from localllm.server import anthropic_shapes as shapes
from localllm.server import unknowns
from localllm.server.anthropic_asking import Translated, translated
from localllm.server.anthropic_writing import PING, Head, Script, failure
from localllm.server.calming import calming
from localllm.server.desk import Desk, Opened
from localllm.server.http import Json, attended, read_object
from localllm.server.named import wanted_id
from localllm.server.notes import Notes
from localllm.server.operations import Operation
from localllm.server.passing import headers_of, named_as
from localllm.server.patience import streaming
from localllm.server.pump import AnswerStream, Form
from localllm.server.writing import FIRST_EVENT_S

EVENTS = ("text/event-stream", "With `stream`: events from message_start to message_stop, or to error.")


class Anthropic:
    """`/v1/messages`, `/v1/messages/count_tokens`."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def operations(self) -> Sequence[Operation]:
        return (
            Operation(
                "POST", "/v1/messages", self.create, "Create a message", "anthropic",
                shapes.MessageAnswer, shapes.MessagesRequest, (EVENTS,),
                unwell=shapes.AnthropicError, errors=shapes.AnthropicError, asks=True,
            ),
            Operation(
                "POST", "/v1/messages/count_tokens", self.count, "Count the tokens of messages", "anthropic",
                shapes.CountedTokens, shapes.Counted, unwell=shapes.AnthropicError, errors=shapes.AnthropicError,
            ),
        )  # fmt: skip

    async def create(self, request: Request) -> Response:
        taken = unknowns.take(await self._desk.read(request), shapes.MessagesRequest, request, always=True)
        done = translated(taken.request, _notes(taken))
        answering = _Answering(self._desk, request, taken.request, done)
        if taken.request.stream:
            response = await streaming(request, answering.stream(), _form(request))
        else:
            response = Json(await attended(request, answering.whole()))
        return _with_headers(response, request, done)

    async def count(self, request: Request) -> Response:
        taken = unknowns.take(await read_object(request), shapes.Counted, request, always=True)
        done = translated(taken.request, _notes(taken))
        body = {"input_tokens": await attended(request, self._counted(done))}
        return _with_headers(Json(body), request, done)

    async def _counted(self, done: Translated) -> int:
        self._desk.check_open()
        with named_as(done.names):
            async with self._desk.residency.using(done.chat.model or self._desk.settings.default_model) as resident:
                size = resident.ready.vocab_size if resident.ready else 0
                make = calming(done.notes)
                work = functools.partial(make, done.chat, resident.entry, resident.text, self._desk.settings, size)
                return len((await self._desk.residency.in_thread(work))[0].prompt)


class _Answering:
    """One message that is made."""

    def __init__(self, desk: Desk, request: Request, wanted: shapes.MessagesRequest, done: Translated) -> None:
        self._desk = desk
        self._request = request
        self._wanted = wanted
        self._done = done

    async def stream(self) -> AnswerStream:
        async with contextlib.AsyncExitStack() as stack:
            opened = await self._opened(stack)
            early = await opened.reply.gather(FIRST_EVENT_S)
            return AnswerStream(opened.reply, early, self._script(opened).events, stack.pop_all(), _form(self._request))

    async def whole(self) -> dict[str, Any]:
        async with contextlib.AsyncExitStack() as stack:
            opened = await self._opened(stack)
            script = self._script(opened)
            while not opened.reply.is_done:
                script.events(await opened.reply.gather())
            opened.reply.take()  # raises what ended it before anybody looked
            return script.body

    async def _opened(self, stack: contextlib.AsyncExitStack) -> Opened:
        with named_as(self._done.names):
            return await self._desk.open(self._request, stack, self._done.chat, calming(self._done.notes))

    def _script(self, opened: Opened) -> Script:
        head = Head(f"msg_{opened.reply.id}", opened.name, self._wanted, self._done.notes.warnings)
        return Script(head, opened.reply)


def _form(request: Request) -> Form:
    return Form(error=lambda error: failure(error, wanted_id(request)), waiting=lambda _: PING)


def _notes(taken: unknowns.Taken) -> Notes:
    """Nothing new is refused in this dialect."""
    return Notes(is_agent=True, warnings=taken.warnings, headers=taken.headers)


def _with_headers(response: Response, request: Request, done: Translated) -> Response:
    response.headers.update(headers_of(done.notes, done.names))
    response.headers["request-id"] = f"req_{wanted_id(request)}"
    return response
