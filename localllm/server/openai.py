"""The OpenAI endpoints: models, chat completions, completions; streaming and not."""

import contextlib
import time
from collections.abc import Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from localllm.server import answers, shapes
from localllm.server.asks import chat_asks, completion_asks
from localllm.server.desk import Desk, MakeAsks
from localllm.server.fields import ChatRequest, CompletionRequest, parse
from localllm.server.http import Json, attended, read_object
from localllm.server.operations import Operation
from localllm.server.writing import Answer, streamed, whole
from localllm.store.entry import Entry

EVENTS = ("text/event-stream", "With `stream`: `data:` lines of chunks (or of an error body), then `data: [DONE]`.")


class OpenAI:
    """`/v1/models`, `/v1/chat/completions`, `/v1/completions`."""

    def __init__(self, desk: Desk, fingerprint: str) -> None:
        self._desk = desk
        self._fingerprint = fingerprint

    def operations(self) -> Sequence[Operation]:
        return (
            Operation("GET", "/v1/models", self.models, "List the models on disk", "openai", shapes.Models),
            Operation("GET", "/v1/models/{name:path}", self.model, "Find one model", "openai", shapes.Model),
            Operation(
                "POST", "/v1/chat/completions", self.chat, "Answer a conversation", "openai",
                shapes.ChatAnswer, ChatRequest, (EVENTS,),
            ),
            Operation(
                "POST", "/v1/completions", self.completion, "Continue a text", "openai",
                shapes.TextAnswer, CompletionRequest, (EVENTS,),
            ),
        )  # fmt: skip

    # ---- models

    async def models(self, request: Request) -> Response:
        entries = await self._desk.residency.entries()
        return Json({"object": "list", "data": [_model_object(entry) for entry in entries]})

    async def model(self, request: Request) -> Response:
        return Json(_model_object(await self._desk.residency.find(request.path_params["name"])))

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
        stack = contextlib.AsyncExitStack()
        try:
            answer = await attended(request, self._begin(request, stack, wanted, make, shape, warnings))
            if wanted.stream:
                await attended(request, answer.first_word())
                return streamed(answer, stack.pop_all())
            return Json(await attended(request, whole(answer)))
        finally:
            await stack.aclose()

    async def _begin(
        self,
        request: Request,
        stack: contextlib.AsyncExitStack,
        wanted: ChatRequest | CompletionRequest,
        make: MakeAsks,
        shape: answers.Kind,
        warnings: list[str],
    ) -> Answer:
        opened = await self._desk.open(request, stack, wanted, make)
        prefix = "chatcmpl-" if shape == "chat" else "cmpl-"
        envelope = answers.Envelope(shape, prefix + opened.reply.id, int(time.time()), opened.name, self._fingerprint)
        return Answer(wanted, opened.resident, opened.asks, opened.reply, envelope, warnings, [])


def _model_object(entry: Entry) -> dict[str, Any]:
    owner = "library" if "/" not in entry.name else entry.name.split("/")[-2]
    shown = {"id": entry.name, "object": "model", "created": int(entry.modified), "owned_by": owner}
    return shown | ({"max_model_len": entry.context_length} if entry.context_length else {})
