"""The Responses API: answers as items, which are kept and can be gone on from."""

import asyncio
import contextlib
import functools
import logging
import time
import uuid
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from localllm.daemon.replies import Reply
from localllm.errors import InvalidRequest, LocalLLMError
from localllm.server import responses_shapes as shapes
from localllm.server import unknowns
from localllm.server.callers import caller_of
from localllm.server.calming import calming
from localllm.server.desk import Desk, Opened
from localllm.server.http import HttpError, Json, attended, read_object
from localllm.server.notes import Notes
from localllm.server.operations import Operation
from localllm.server.passing import headers_of, named_as
from localllm.server.patience import streaming
from localllm.server.pump import AnswerStream, Form
from localllm.server.response_store import ResponseStore, Stored
from localllm.server.responses_asking import Translated, Where, translated
from localllm.server.responses_input import items_of
from localllm.server.responses_writing import Events, Head, Script
from localllm.server.writing import FIRST_EVENT_S

logger = logging.getLogger("localllm.server")

EVENTS = ("text/event-stream", "With `stream`: events, numbered, from response.created to response.completed.")
COUNT = "input_tokens"
PAGE = 20
MAX_PAGE = 100
_PREFIXES = {"message": "msg", "reasoning": "rs", "function_call": "fc", "function_call_output": "fco"}


class Responses:
    """`/v1/responses` and what was kept of it."""

    def __init__(self, desk: Desk, store: ResponseStore) -> None:
        self._desk = desk
        self._store = store

    def operations(self) -> Sequence[Operation]:
        base, tag = "/v1/responses", "openai"
        query = (
            ("after", "Items behind the one with this id."),
            ("limit", f"1 to {MAX_PAGE} items; {PAGE} without it."),
            ("order", "asc or desc; desc without it: the last item comes first."),
        )
        return (
            Operation(
                "POST", base, self.create, "Create a response", tag,
                shapes.ResponseObject, shapes.ResponseRequest, (EVENTS,), asks=True,
            ),
            Operation(
                "POST", f"{base}/{COUNT}", self.count, "Count the tokens of a response's input", tag,
                shapes.InputTokens, shapes.CountRequest,
            ),
            Operation(
                "GET", f"{base}/{{response_id}}", self.retrieve, "Get a response", tag, shapes.ResponseObject,
            ),
            Operation(
                "DELETE", f"{base}/{{response_id}}", self.delete, "Delete a response", tag, shapes.DeletedResponse,
            ),
            Operation(
                "GET", f"{base}/{{response_id}}/input_items", self.input_items, "List a response's input", tag,
                shapes.InputItems, query=query,
            ),
            Operation(
                "POST", f"{base}/{{response_id}}/cancel", self.cancel, "Cancel a background response", tag,
                shapes.ResponseObject,
            ),
        )  # fmt: skip

    # ---- answers

    async def create(self, request: Request) -> Response:
        taken = unknowns.take(await self._desk.read(request), shapes.ResponseRequest, request)
        notes = Notes.of(request, taken)
        items = _with_ids(items_of(taken.request.input))
        done = await self._translated(request, taken.request, items, notes)
        is_kept = await self._will_be_kept(taken.request, notes)
        answering = _Answering(self._desk, self._store, request, taken.request, items, done, is_kept)
        if taken.request.stream:
            response = await streaming(request, answering.stream(), Form(error=_early_failure))
        else:
            response = Json(await attended(request, answering.whole()))
        response.headers.update(headers_of(notes, done.names))
        return response

    async def count(self, request: Request) -> Response:
        taken = unknowns.take(await read_object(request), shapes.CountRequest, request)
        notes = Notes.of(request, taken)
        done = await self._translated(request, taken.request, items_of(taken.request.input), notes)
        num_tokens = await attended(request, self._counted(done))
        body = {"object": "response.input_tokens", "input_tokens": num_tokens}
        return Json(body, headers=headers_of(notes, done.names))

    async def _counted(self, done: Translated) -> int:
        self._desk.check_open()
        settings = self._desk.settings
        with named_as(done.names):
            async with self._desk.residency.using(done.chat.model or settings.default_model) as resident:
                size = resident.ready.vocab_size if resident.ready else 0
                make = calming(done.notes)
                work = functools.partial(make, done.chat, resident.entry, resident.text, settings, size)
                return len((await self._desk.residency.in_thread(work))[0].prompt)

    async def _translated(
        self, request: Request, wanted: shapes.Asked, items: list[dict[str, Any]], notes: Notes
    ) -> Translated:
        earlier: list[Where] = []
        if wanted.previous_response_id is not None:
            owner = caller_of(request).name
            chain = await self._store.conversation(owner, wanted.previous_response_id)
            if not chain:
                raise _gone(wanted.previous_response_id)
            earlier = [("previous_response_id", item) for stored in chain for item in _said(stored)]
        is_text = isinstance(wanted.input, str)
        own = [("input" if is_text else f"input[{number}]", item) for number, item in enumerate(items)]
        return translated(wanted, earlier, own, notes)

    async def _will_be_kept(self, wanted: shapes.ResponseRequest, notes: Notes) -> bool:
        """Known before there is an answer, so that its stream can say so. Where it cannot be, only who asked for it in
        so many words is refused."""
        if wanted.store is False:
            return False
        try:
            await self._store.ready()
        except LocalLLMError as error:
            if wanted.store:
                error.param = "store"
                raise
            notes.warnings.append(_not_kept(error))
            return False
        return True

    # ---- what was kept

    async def retrieve(self, request: Request) -> Response:
        if request.query_params.get("stream", "false").lower() not in ("false", "0"):
            raise InvalidRequest(
                "stream: a response that is over is not streamed again", hint="leave it out", param="stream"
            )
        return Response((await self._found(request)).body, media_type="application/json")

    async def delete(self, request: Request) -> Response:
        response_id = _id_in(request)
        if not await self._store.delete(caller_of(request).name, response_id):
            raise _unknown(response_id)
        return Json({"id": response_id, "object": "response", "deleted": True})

    async def input_items(self, request: Request) -> Response:
        """The items of the request itself; those of the responses before it are theirs."""
        limit, is_rising, after = _paging(request)
        items: list[dict[str, Any]] = msgspec.json.decode((await self._found(request)).input)
        if not is_rising:
            items.reverse()
        if after is not None:
            place = next((number for number, item in enumerate(items) if item["id"] == after), None)
            if place is None:
                raise InvalidRequest(f"there is no item {after[:64]!r}", param="after")
            items = items[place + 1 :]
        page = items[:limit]
        ids = {"first_id": page[0]["id"] if page else None, "last_id": page[-1]["id"] if page else None}
        return Json({"object": "list", "data": page, **ids, "has_more": len(items) > limit})

    async def cancel(self, request: Request) -> Response:
        stored = await self._found(request)
        raise InvalidRequest(
            f"{stored.id} does not run in the background", hint="close the connection to end a response that runs"
        )

    async def _found(self, request: Request) -> Stored:
        response_id = _id_in(request)
        stored = await self._store.find(caller_of(request).name, response_id)
        if stored is None:
            raise _unknown(response_id)
        return stored


class _Answering:
    """One response that is made. `items` are the input, as it is kept if `is_kept`."""

    def __init__(
        self,
        desk: Desk,
        store: ResponseStore,
        request: Request,
        wanted: shapes.ResponseRequest,
        items: list[dict[str, Any]],
        done: Translated,
        is_kept: bool,
    ) -> None:
        self._desk = desk
        self._store = store
        self._request = request
        self._wanted = wanted
        self._items = items
        self._done = done
        self._is_kept = is_kept
        self._kept: Future[None] | None = None

    async def stream(self) -> AnswerStream:
        async with contextlib.AsyncExitStack() as stack:
            opened = await self._opened(stack)
            script = self._script(opened)
            early = await opened.reply.gather(FIRST_EVENT_S)
            return AnswerStream(opened.reply, early, script.events, stack.pop_all(), Form(error=script.failed))

    async def whole(self) -> dict[str, Any]:
        async with contextlib.AsyncExitStack() as stack:
            opened = await self._opened(stack)
            script = self._script(opened)
            while not opened.reply.is_done:
                script.events(await opened.reply.gather())
            opened.reply.take()  # raises what ended it before anybody looked
            return script.body | await self._after_keeping()

    async def _opened(self, stack: contextlib.AsyncExitStack) -> Opened:
        with named_as(self._done.names):
            return await self._desk.open(self._request, stack, self._done.chat, calming(self._done.notes))

    def _script(self, opened: Opened) -> Script:
        wanted, is_kept = self._wanted, self._is_kept
        warnings = self._done.notes.warnings
        response_id = _id_of(opened.reply)
        head = Head(
            response_id, int(time.time()), opened.name, wanted, self._done.box, opened.asks[0], is_kept, warnings
        )
        tokenizer = opened.resident.text.tokenizer
        return Script(head, opened.reply, tokenizer, self._keep) if is_kept else Script(head, opened.reply, tokenizer)

    def _keep(self, body: dict[str, Any]) -> None:
        self._kept = self._store.put(caller_of(self._request).name, functools.partial(self._stored, body))
        self._kept.add_done_callback(_complain)

    def _stored(self, body: dict[str, Any]) -> Stored:
        items = msgspec.json.encode(self._items)
        return Stored(body["id"], self._wanted.previous_response_id, msgspec.json.encode(body), items)

    async def _after_keeping(self) -> dict[str, Any]:
        """What the body has to say of it: an answer that could not be kept is still an answer."""
        if self._kept is None:
            return {}
        try:
            await asyncio.wrap_future(self._kept)
        except LocalLLMError as error:
            return {"store": False, "warnings": [*self._done.notes.warnings, _not_kept(error)]}
        return {}


def _not_kept(error: LocalLLMError) -> str:
    return f"the response is not kept: {error.message} ({error.hint})"


def _id_in(request: Request) -> str:
    """The path's. `input_tokens` is no response but a path of its own, which takes POST only."""
    response_id: str = request.path_params["response_id"]
    if response_id == COUNT:
        raise HttpError(405, f"{request.method} is not allowed here")
    return response_id


def _id_of(reply: Reply) -> str:
    return f"resp_{reply.id}"


def _complain(kept: "Future[None]") -> None:
    error = kept.exception()
    if error is not None:
        logger.error("a response was not kept: %s", error)


def _early_failure(error: LocalLLMError) -> bytes:
    """An error before there is a response."""
    message = f"{error.message} ({error.hint})" if error.hint else error.message
    return Events().event("error", code=error.code, message=message, param=error.param)


def _with_ids(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Items as they are kept: each has an id of its own."""
    return [item if isinstance(item.get("id"), str) else {"id": _new_id(item), **_as_kept(item)} for item in items]


def _new_id(item: dict[str, Any]) -> str:
    return f"{_PREFIXES.get(str(item.get('type')), 'item')}_{uuid.uuid4().hex}"


def _as_kept(item: dict[str, Any]) -> dict[str, Any]:
    """With what OpenAI's clients want to be there: parts of a message, and that it is complete."""
    content = item.get("content")
    if item.get("type") == "message" and isinstance(content, str):
        kind = "output_text" if item.get("role") == "assistant" else "input_text"
        extra: dict[str, Any] = {"annotations": []} if kind == "output_text" else {}
        return {"status": "completed", **item, "content": [{"type": kind, "text": content, **extra}]}
    return {"status": "completed", **item}


def _said(stored: Stored) -> list[dict[str, Any]]:
    """The items that a response adds to the conversation."""
    output: list[dict[str, Any]] = msgspec.json.decode(stored.body)["output"]
    return [*msgspec.json.decode(stored.input), *output]


def _gone(response_id: str) -> InvalidRequest:
    error = InvalidRequest(
        f"there is no response {response_id[:80]!r} to go on from",
        hint="it was not kept, or is another caller's: send the whole conversation as `input`",
        param="previous_response_id",
    )
    error.code = "previous_response_not_found"
    return error


def _unknown(response_id: str) -> HttpError:
    return HttpError(404, f"there is no response {response_id[:80]!r}")


def _paging(request: Request) -> tuple[int, bool, str | None]:
    """Limit, whether the first item comes first, and the id behind which to begin."""
    order, limit = request.query_params.get("order", "desc"), request.query_params.get("limit", str(PAGE))
    if order not in ("asc", "desc"):
        raise InvalidRequest("order must be asc or desc", param="order")
    if not (limit.isascii() and limit.isdecimal()) or len(limit) > 4 or not 1 <= int(limit) <= MAX_PAGE:
        raise InvalidRequest(f"limit must be between 1 and {MAX_PAGE}", param="limit")
    return int(limit), order == "asc", request.query_params.get("after")
