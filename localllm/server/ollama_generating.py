"""`/api/generate` and `/api/chat`: answers, and loading or unloading where there is nothing to answer."""

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from localllm.daemon.keepalive import keep_alive_seconds
from localllm.errors import LocalLLMError
from localllm.server import ollama_shapes as shapes
from localllm.server import unknowns
from localllm.server.collect import collect
from localllm.server.desk import Desk, Opened
from localllm.server.fields import ChatRequest, CompletionRequest
from localllm.server.http import Json, Streamed, attended, read_object
from localllm.server.ollama_errors import LINES, in_ollamas_words
from localllm.server.ollama_options import sorted_options
from localllm.server.ollama_requests import NAMES, Prompting, chat_request, check, generate_request
from localllm.server.ollama_writing import Kind, Script, Stamps
from localllm.server.operations import Operation
from localllm.server.passing import named_as
from localllm.server.patience import streaming
from localllm.server.pump import AnswerStream
from localllm.server.writing import FIRST_EVENT_S

NDJSON = "application/x-ndjson"
TRUNCATED_HEADER = "x-localllm-truncated"
R = TypeVar("R", bound=msgspec.Struct)


class OllamaAnswers:
    """What a model says."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def operations(self) -> Sequence[Operation]:
        lines = ((NDJSON, "Unless `stream` is false: objects with parts of the answer, the last with `done`: true."),)
        return (
            Operation(
                "POST", "/api/generate", self.generate, "Answer a prompt", "ollama",
                shapes.OllamaGenerated, shapes.OllamaGenerateRequest, lines, errors=shapes.OllamaError,
                unwell=shapes.OllamaError, asks=True, orders=True,
            ),
            Operation(
                "POST", "/api/chat", self.chat, "Answer a conversation, Ollama's way", "ollama",
                shapes.OllamaChatted, shapes.OllamaChatRequest, lines, errors=shapes.OllamaError,
                unwell=shapes.OllamaError, asks=True, orders=True,
            ),
        )  # fmt: skip

    async def generate(self, request: Request) -> Response:
        asked, headers = await read(request, shapes.OllamaGenerateRequest, self._desk)
        if not asked.prompt and not asked.suffix and not asked.images:
            return await self._load(request, asked, "generate", headers)
        return await self._answer(request, asked, generate_request(asked), "generate", headers)

    async def chat(self, request: Request) -> Response:
        asked, headers = await read(request, shapes.OllamaChatRequest, self._desk)
        if not asked.messages:
            return await self._load(request, asked, "chat", headers)
        return await self._answer(request, asked, chat_request(asked), "chat", headers)

    # ---- answers

    async def _answer(
        self,
        request: Request,
        asked: shapes.OllamaAsked,
        wanted: ChatRequest | CompletionRequest,
        kind: Kind,
        headers: Mapping[str, str],
    ) -> Response:
        begun = _Begun(self._desk, request, asked, wanted, kind)
        try:
            with named_as(NAMES):
                if begun.prompting.wants_much:  # said before the model is loaded for it
                    begun.prompting.check_capabilities(await self._desk.residency.find(asked.model))
                if wanted.stream:
                    response = await streaming(request, begun.stream(), LINES)
                else:
                    response = Json(await attended(request, begun.whole()))
        except LocalLLMError as error:
            raise in_ollamas_words(error, asked.model) from None
        response.headers.update({**headers, **begun.headers})
        return response

    # ---- loading

    async def _load(
        self, request: Request, asked: shapes.OllamaAsked, kind: Kind, headers: Mapping[str, str]
    ) -> Response:
        check(asked)
        is_leaving = asked.keep_alive is not None and keep_alive_seconds(asked.keep_alive) == 0
        try:
            self._desk.check_open()
            await attended(request, self._unload(asked.model) if is_leaving else self._loaded(asked))
        except LocalLLMError as error:
            raise in_ollamas_words(error, asked.model) from None
        said = {"message": {"role": "assistant", "content": ""}} if kind == "chat" else {"response": ""}
        reason = "unload" if is_leaving else "load"
        body = {"model": asked.model, "created_at": Stamps().now(), **said, "done": True, "done_reason": reason}
        response = Json(body) if asked.stream is False else _one_line(body)
        response.headers.update(headers)
        return response

    async def _loaded(self, asked: shapes.OllamaAsked) -> None:
        async with self._desk.residency.using(asked.model, asked.keep_alive):
            pass

    async def _unload(self, model: str) -> None:
        """At once where nobody uses it; else as soon as its answers are done."""
        residency = self._desk.residency
        entry = await residency.find(model)
        loaded = next((each for each in residency.residents() if each.entry.digest == entry.digest), None)
        if loaded is not None and loaded.num_users == 0:
            await residency.stop(model)
        elif loaded is not None:
            async with residency.using(model, 0):
                pass


class _Begun:
    """One request on its way to an answer."""

    def __init__(
        self,
        desk: Desk,
        request: Request,
        asked: shapes.OllamaAsked,
        wanted: ChatRequest | CompletionRequest,
        kind: Kind,
    ) -> None:
        self._desk = desk
        self._request = request
        self._asked = asked
        self._wanted = wanted
        self._kind = kind
        self.prompting = Prompting(asked)

    @property
    def headers(self) -> dict[str, str]:
        dropped = self.prompting.dropped
        return {TRUNCATED_HEADER: f"{dropped} messages"} if dropped else {}

    async def stream(self) -> Streamed:
        """With its first words."""
        async with contextlib.AsyncExitStack() as stack:
            opened = await self._desk.open(self._request, stack, self._wanted, self.prompting)
            early = await opened.reply.gather(FIRST_EVENT_S)
            return AnswerStream(opened.reply, early, self._script(opened).lines, stack.pop_all(), LINES)

    async def whole(self) -> dict[str, Any]:
        async with contextlib.AsyncExitStack() as stack:
            opened = await self._desk.open(self._request, stack, self._wanted, self.prompting)
            (piece,) = await collect(opened.reply, len(opened.asks))
            return self._script(opened).whole(piece)

    def _script(self, opened: Opened) -> Script:
        asked = self._asked
        return Script(
            self._kind,
            asked.model,
            opened.reply,
            opened.asks,
            opened.resident.text.tokenizer,
            dropped=self.prompting.dropped,
            shows_logprobs=bool(asked.logprobs),
            shows_context=isinstance(asked, shapes.OllamaGenerateRequest) and not asked.raw,
        )


async def read(
    request: Request, kind: type[R], desk: Desk | None = None, *, without_effect: str = ""
) -> tuple[R, dict[str, str]]:
    """The request, and a header that names what of it has no effect: all of `without_effect`, too. `desk` is where it
    asks for an answer, if it does."""
    try:
        body = await (read_object(request) if desk is None else desk.read(request, but_orders=True))
    except LocalLLMError as error:
        raise in_ollamas_words(error) from None
    options, ignored = sorted_options(body.get("options"))
    if without_effect == "options":
        options, ignored = {}, [*(f"options.{name}" for name in options), *ignored]
    if body.get("top_logprobs") and not body.get("logprobs"):
        ignored.append("top_logprobs")
    if body.get("shift") is True:
        ignored.append("shift")  # the answer ends where the context does, and says so
    stripped, unknown = unknowns.split({**body, "options": options or None}, kind)
    unknown = [name for name in unknown if name != "options"]
    return unknowns.converted(stripped, kind), unknowns.ignored_header([*unknown, *ignored])


def _one_line(body: dict[str, Any]) -> Response:
    response = Json(body)
    response.body = bytes(response.body) + b"\n"
    response.headers["content-length"] = str(len(response.body))
    response.headers["content-type"] = NDJSON
    return response
