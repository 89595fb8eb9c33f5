"""The OpenAI endpoints: models, chat completions, completions; streaming and not."""

import contextlib
import functools
import time
from collections.abc import Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from localllm.daemon.replies import Ask, Reply
from localllm.daemon.residency import Residency
from localllm.daemon.resident import Resident
from localllm.errors import Overloaded
from localllm.server import answers
from localllm.server.asks import chat_asks, completion_asks, wish_of
from localllm.server.fields import ChatRequest, CompletionRequest, parse
from localllm.server.http import Json, attended, read_object
from localllm.server.writing import Answer, streamed, whole
from localllm.settings import Settings
from localllm.store.entry import Entry

MakeAsks = Callable[[Any, Entry, Any, Settings, int], list[Ask]]


class OpenAI:
    """Endpoints over one residency. `replies` holds every answer under way, for drains and counts."""

    def __init__(self, settings: Settings, residency: Residency, fingerprint: str) -> None:
        self._settings = settings
        self._residency = residency
        self._fingerprint = fingerprint
        self.replies: set[Reply] = set()
        self.is_draining = False

    # ---- models

    async def models(self, request: Request) -> Response:
        entries = await self._residency.entries()
        return Json({"object": "list", "data": [_model_object(entry) for entry in entries]})

    async def model(self, request: Request) -> Response:
        return Json(_model_object(await self._residency.find(request.path_params["name"])))

    # ---- answers

    async def chat(self, request: Request) -> Response:
        return await self._answer(request, ChatRequest, chat_asks, "chat")

    async def completion(self, request: Request) -> Response:
        return await self._answer(request, CompletionRequest, completion_asks, "text")

    async def _answer(
        self, request: Request, kind: type[ChatRequest] | type[CompletionRequest], make: MakeAsks, shape: answers.Kind
    ) -> Response:
        body = await read_object(request)
        wanted, warnings = parse(body, kind, lenient="handling=lenient" in request.headers.get("prefer", ""))
        if self.is_draining:
            raise Overloaded("the daemon is shutting down", hint="try again in a few seconds")
        stack = contextlib.AsyncExitStack()
        try:
            answer = await attended(request, self._begin(stack, wanted, make, shape, warnings))
            if wanted.stream:
                await attended(request, answer.first_word())
                return streamed(answer, stack.pop_all())
            return Json(await attended(request, whole(answer)))
        finally:
            await stack.aclose()

    async def _begin(
        self,
        stack: contextlib.AsyncExitStack,
        wanted: ChatRequest | CompletionRequest,
        make: MakeAsks,
        shape: answers.Kind,
        warnings: list[str],
    ) -> Answer:
        """Make the model resident, tokenize, submit; whatever is to be undone is put on the stack."""
        started = time.monotonic()
        name = wanted.model or self._settings.default_model
        resident = await stack.enter_async_context(self._residency.using(name, wanted.keep_alive, wish_of(wanted)))
        load_s = time.monotonic() - started
        self._refuse_crowds(resident)
        vocab_size = resident.ready.vocab_size if resident.ready else 0
        work = functools.partial(make, wanted, resident.entry, resident.text, self._settings, vocab_size)
        asks = await self._residency.in_thread(work)
        reply = Reply.open(resident, asks, load_s=load_s)
        self.replies.add(reply)
        stack.callback(self.replies.discard, reply)
        stack.callback(reply.close)
        prefix = "chatcmpl-" if shape == "chat" else "cmpl-"
        envelope = answers.Envelope(shape, prefix + reply.id, int(time.time()), name, self._fingerprint)
        return Answer(wanted, resident, asks, reply, envelope, warnings, [])

    def _refuse_crowds(self, resident: Resident) -> None:
        limit = self._settings.max_sequences + self._settings.max_queue
        if resident.num_streams >= limit:
            raise Overloaded(f"{resident.num_streams} requests already run or wait", hint="try again in a few seconds")


def _model_object(entry: Entry) -> dict[str, Any]:
    owner = "library" if "/" not in entry.name else entry.name.split("/")[-2]
    shown = {"id": entry.name, "object": "model", "created": int(entry.modified), "owned_by": owner}
    return shown | ({"max_model_len": entry.context_length} if entry.context_length else {})
