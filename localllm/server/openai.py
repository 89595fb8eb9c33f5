"""The OpenAI endpoints: models, chat completions, completions; streaming and not."""

import contextlib
import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from localllm.daemon.replies import Ask
from localllm.server import answers, shapes
from localllm.server.anthropic_models import is_anthropic, model_body, models_body
from localllm.server.asks import chat_asks, completion_asks
from localllm.server.desk import Desk, MakeAsks
from localllm.server.fields import ChatRequest, CompletionRequest
from localllm.server.http import Json, attended
from localllm.server.loras import adapted_models
from localllm.server.notes import Notes
from localllm.server.operations import Operation
from localllm.server.patience import streaming
from localllm.server.pump import AnswerStream
from localllm.server.unknowns import take
from localllm.server.writing import Answer, streamed, whole
from localllm.store.entry import Entry

Wanted = ChatRequest | CompletionRequest
EVENTS = ("text/event-stream", "With `stream`: `data:` lines of chunks (or of an error body), then `data: [DONE]`.")


class OpenAI:
    """`/v1/models`, `/v1/chat/completions`, `/v1/completions`; the first two without `v1` as well, as llama-server."""

    def __init__(self, desk: Desk, fingerprint: str) -> None:
        self._desk = desk
        self._fingerprint = fingerprint

    def operations(self) -> Sequence[Operation]:
        return (
            Operation("GET", "/v1/models", self.models, "List the models on disk", "openai", shapes.Models),
            Operation("GET", "/models", self.models, "List the models on disk without v1", "openai", shapes.Models),
            Operation("GET", "/v1/models/{name:path}", self.model, "Find one model", "openai", shapes.Model),
            Operation(
                "POST", "/v1/chat/completions", self.chat, "Answer a conversation", "openai",
                shapes.ChatAnswer, ChatRequest, (EVENTS,), asks=True,
            ),
            Operation(
                "POST", "/chat/completions", self.chat, "Answer a conversation without v1", "openai",
                shapes.ChatAnswer, ChatRequest, (EVENTS,), asks=True,
            ),
            Operation(
                "POST", "/v1/completions", self.completion, "Continue a text", "openai",
                shapes.TextAnswer, CompletionRequest, (EVENTS,), asks=True,
            ),
        )  # fmt: skip

    # ---- models

    async def models(self, request: Request) -> Response:
        entries = await self._desk.residency.entries()
        if is_anthropic(request):
            return Json(models_body(entries))
        shown = [_model_object(entry) for entry in entries]
        by_name = {model["id"]: model for model in shown}
        adapted = [
            by_name[base] | {"id": name, "parent": base} for name, base in adapted_models(self._desk) if base in by_name
        ]
        return Json({"object": "list", "data": shown + adapted})

    async def model(self, request: Request) -> Response:
        name = request.path_params["name"]
        if not name:  # a slash behind `models`
            return await self.models(request)
        base, lora = self._desk.loras.split(name)
        entry = await self._desk.residency.find(base)
        if is_anthropic(request):
            return Json(model_body(entry))
        return Json(_model_object(entry) | ({} if lora is None else {"id": name, "parent": base}))

    # ---- answers

    async def chat(self, request: Request) -> Response:
        return await self._answer(request, ChatRequest, chat_asks)

    async def completion(self, request: Request) -> Response:
        return await self._answer(request, CompletionRequest, completion_asks)

    async def _answer(
        self, request: Request, kind: type[ChatRequest] | type[CompletionRequest], make: Callable[..., list[Ask]]
    ) -> Response:
        taken = take(await self._desk.read(request), kind, request)
        notes = Notes.of(request, taken)
        asking = _Asking(request, taken.request, functools.partial(make, notes=notes), notes)
        if taken.request.stream:
            response = await streaming(request, self._stream(asking))
        else:
            async with contextlib.AsyncExitStack() as stack:
                answer = await attended(request, self._begin(asking, stack))
                response = Json(await attended(request, whole(answer)))
        response.headers.update(notes.all_headers())
        return response

    async def _stream(self, asking: "_Asking") -> AnswerStream:
        async with contextlib.AsyncExitStack() as stack:
            answer = await self._begin(asking, stack)
            await answer.first_word()
            return streamed(answer, stack.pop_all())

    async def _begin(self, asking: "_Asking", stack: contextlib.AsyncExitStack) -> Answer:
        wanted = asking.wanted
        opened = await self._desk.open(asking.request, stack, wanted, asking.make)
        shape: answers.Kind = "chat" if isinstance(wanted, ChatRequest) else "text"
        own_id = ("chatcmpl-" if shape == "chat" else "cmpl-") + opened.reply.id
        envelope = answers.Envelope(shape, own_id, int(time.time()), opened.name, self._fingerprint)
        return Answer(wanted, opened.resident, opened.asks, opened.reply, envelope, asking.notes, [])


@dataclass(frozen=True, slots=True)
class _Asking:
    """A request that was read, and what will become of it."""

    request: Request
    wanted: Wanted
    make: MakeAsks
    notes: Notes


def _model_object(entry: Entry) -> dict[str, Any]:
    owner = "library" if "/" not in entry.name else entry.name.split("/")[-2]
    shown = {"id": entry.name, "object": "model", "created": int(entry.modified), "owned_by": owner}
    return shown | ({"max_model_len": entry.context_length} if entry.context_length else {})
