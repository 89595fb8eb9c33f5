"""Tokenizers explained: texts side by side, words step by step, vocabularies, templates. For the Tokens screen.

No model is loaded and no worker started for it: only tokenizers are opened, in threads, and closed when nobody asked
for a while.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from localllm import told
from localllm.daemon.residency import Residency
from localllm.daemon.tokenizers import Tokenizers
from localllm.errors import InvalidRequest
from localllm.server import explaining_shapes as shapes
from localllm.server.callers import caller_of, check_names
from localllm.server.http import Json, attended, read_object
from localllm.server.operations import Operation
from localllm.server.unknowns import converted, refusal

BASE, TAG = "/localllm/v1/tokenizers", "localllm"
IDLE_S = 600.0
"""What nobody asked for this long is closed."""

S = TypeVar("S", bound=msgspec.Struct)


class Explaining:
    """Endpoints under `/localllm/v1/tokenizers`."""

    def __init__(self, residency: Residency, tokenizers: Tokenizers) -> None:
        self._residency = residency
        self._tokenizers = tokenizers
        self._closing: asyncio.TimerHandle | None = None

    def operations(self) -> Sequence[Operation]:
        return (
            Operation("GET", BASE, self.rows, "List the tokenizers", TAG, told.TokenizerRows),
            Operation(
                "POST", f"{BASE}/explain", self.explain, "Show a text through several tokenizers", TAG,
                told.Explanation, shapes.ExplainTextRequest,
            ),
            Operation(
                "POST", f"{BASE}/trace", self.trace, "Show how a word becomes tokens", TAG, told.Trace,
                shapes.TraceWordRequest,
            ),
            Operation(
                "POST", f"{BASE}/token", self.token, "Tell what is known of a token", TAG, told.TokenFacts,
                shapes.TokenFactsRequest,
            ),
            Operation(
                "POST", f"{BASE}/vocabulary", self.vocabulary, "Look tokens up", TAG, told.VocabularyPage,
                shapes.VocabularyRequest,
            ),
            Operation(
                "POST", f"{BASE}/template", self.template, "Show a conversation part by part", TAG, told.TemplateView,
                shapes.TemplateViewRequest,
            ),
        )  # fmt: skip

    async def rows(self, request: Request) -> Response:
        entries = await self._residency.entries()
        return await self._answer(request, lambda: told.TokenizerRows(self._tokenizers.rows(entries)))

    async def explain(self, request: Request) -> Response:
        body = await _read(request, shapes.ExplainTextRequest)
        check_names(caller_of(request), body.models)

        def explained() -> told.Explanation:
            from localllm.tokens.explainer import explanation  # deferred: tokenizers come with the first question

            asked = [self._tokenizers.explainer(name) for name in body.models]
            return explanation(
                asked, body.text, add_special=body.add_special, parse_special=body.parse_special, most=body.most
            )

        return await self._answer(request, explained)

    async def trace(self, request: Request) -> Response:
        body = await _read(request, shapes.TraceWordRequest)
        return await self._answer(
            request,
            lambda: self._tokenizers.explainer(body.model).trace(body.text, body.at, parse_special=body.parse_special),
        )

    async def token(self, request: Request) -> Response:
        body = await _read(request, shapes.TokenFactsRequest)
        return await self._answer(request, lambda: self._facts(body))

    def _facts(self, body: shapes.TokenFactsRequest) -> told.TokenFacts:
        explainer = self._tokenizers.explainer(body.model)
        if body.id >= explainer.tokenizer.vocab_size:
            last = explainer.tokenizer.vocab_size - 1
            raise InvalidRequest(f"{body.id} is no token id: {body.model} has ids from 0 to {last}", param="id")
        return explainer.facts(body.id)

    async def vocabulary(self, request: Request) -> Response:
        body = await _read(request, shapes.VocabularyRequest)
        asked = [name for name in ("text", "id", "bytes") if getattr(body, name) is not None]
        if len(asked) > 1:
            raise InvalidRequest(f"send `text`, `id` or `bytes`, not {' and '.join(asked)}", param=asked[-1])
        raw = bytes.fromhex(body.bytes) if body.bytes else None

        def page() -> told.VocabularyPage:
            explainer = self._tokenizers.explainer(body.model)
            return explainer.page(text=body.text, token_id=body.id, raw=raw, offset=body.offset, limit=body.limit)

        return await self._answer(request, page)

    async def template(self, request: Request) -> Response:
        body = await _read(request, shapes.TemplateViewRequest)
        messages = [{"role": message.role, "content": message.content} for message in body.messages]
        return await self._answer(
            request,
            lambda: self._tokenizers.template(body.model, messages, add_generation_prompt=body.add_generation_prompt),
        )

    async def _answer(self, request: Request, work: Callable[[], msgspec.Struct]) -> Response:
        """What the work gives, done in a thread; tokenizers stay open for a while."""
        try:
            return Json(await attended(request, self._residency.in_thread(work)))
        finally:
            if self._closing is not None:
                self._closing.cancel()
            self._closing = asyncio.get_running_loop().call_later(IDLE_S, self._tokenizers.forget)


async def _read(request: Request, kind: type[S]) -> S:
    """The body. InvalidRequest names a field that is wrong, and one that these routes do not have."""
    body = await read_object(request)
    if unknown := [name for name in body if name not in kind.__struct_fields__]:
        raise refusal(unknown[0])
    return converted(body, kind)
