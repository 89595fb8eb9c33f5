"""`/api/embed`, and `/api/embeddings` as it was before."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from localllm.errors import ContextExceeded, InvalidRequest, LocalLLMError
from localllm.server import ollama_shapes as shapes
from localllm.server.desk import Desk
from localllm.server.fields import Common
from localllm.server.http import Json, attended
from localllm.server.ollama_errors import in_ollamas_words, named, too_long_to_embed
from localllm.server.ollama_generating import TRUNCATED_HEADER, read
from localllm.server.operations import Operation
from localllm.server.vector_shapes import check_count
from localllm.server.vectors import Cut, Embedded, embed, numbers_of

R = TypeVar("R", bound=msgspec.Struct)
BAD_INPUT = "invalid input type"


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What both requests come to. `param` is what the texts are called."""

    model: str
    texts: Sequence[str]
    keep_alive: str | float | None
    param: str
    dimensions: int | None = None
    truncates: bool = False


class OllamaVectors:
    """Texts to vectors of length 1."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def operations(self) -> tuple[Operation, ...]:
        return (
            Operation(
                "POST", "/api/embed", self.embed, "Embed texts, Ollama's way", "ollama", shapes.OllamaEmbedded,
                shapes.OllamaEmbedRequest, errors=shapes.OllamaError, unwell=shapes.OllamaError, asks=True,
                orders=True,
            ),
            Operation(
                "POST", "/api/embeddings", self.embed_one, "Embed one text, as older clients ask", "ollama",
                shapes.OllamaOldEmbedded, shapes.OllamaOldEmbedRequest, errors=shapes.OllamaError,
                unwell=shapes.OllamaError, asks=True, orders=True,
            ),
        )  # fmt: skip

    async def embed(self, request: Request) -> Response:
        try:
            asked, headers = await _read(request, shapes.OllamaEmbedRequest, self._desk)
        except InvalidRequest as error:
            raise (
                InvalidRequest(BAD_INPUT, param="input") if (error.param or "").startswith("input") else error
            ) from None
        texts = [asked.input] if isinstance(asked.input, str) else asked.input
        if texts is None:
            raise InvalidRequest(BAD_INPUT, param="input")
        if asked.dimensions is not None and asked.dimensions < 1:
            raise InvalidRequest("dimensions must be at least 1", param="dimensions")
        wanted = _Wanted(
            asked.model, texts, asked.keep_alive, "input", asked.dimensions, truncates=asked.truncate is True
        )
        done = await self._vectors(request, wanted)
        body: dict[str, Any] = {
            "model": asked.model,
            "embeddings": [numbers_of(vector).tolist() for vector in done.vectors],
            "total_duration": round(done.total_s * 1e9),
            "load_duration": round(done.load_s * 1e9),
            "prompt_eval_count": sum(done.num_tokens),
        }
        cut = [i for i, (length, kept) in enumerate(zip(done.lengths, done.num_tokens, strict=True)) if length > kept]
        if cut:
            body["truncated_inputs"] = cut
            headers[TRUNCATED_HEADER] = f"{len(cut)} inputs"
        return Json(body, headers=headers)

    async def embed_one(self, request: Request) -> Response:
        asked, headers = await _read(request, shapes.OllamaOldEmbedRequest, self._desk)
        wanted = _Wanted(asked.model, [asked.prompt or ""], asked.keep_alive, "prompt")
        done = await self._vectors(request, wanted)
        return Json({"embedding": numbers_of(done.vectors[0]).tolist() if done.vectors else []}, headers=headers)

    async def _vectors(self, request: Request, wanted: _Wanted) -> Embedded:
        named(wanted.model)
        common = Common(model=wanted.model, keep_alive=wanted.keep_alive)
        try:
            if not any(wanted.texts):
                return await attended(request, self._nothing(wanted))
            check_count(wanted.param, len(wanted.texts))
            async with contextlib.AsyncExitStack() as stack:
                work = embed(
                    self._desk, request, stack, common, wanted.texts, cut=Cut() if wanted.truncates else None,
                    dimensions=wanted.dimensions, param=wanted.param,
                )  # fmt: skip
                return await attended(request, work)
        except ContextExceeded:
            raise too_long_to_embed() from None
        except LocalLLMError as error:
            raise in_ollamas_words(error, wanted.model) from None

    async def _nothing(self, wanted: _Wanted) -> Embedded:
        """No text asks for the model to be loaded."""
        async with self._desk.residency.using(wanted.model, wanted.keep_alive):
            return Embedded(wanted.model, "", [], [], [], 0.0, 0.0)


async def _read(request: Request, kind: type[R], desk: Desk) -> tuple[R, dict[str, str]]:
    """No option changes a vector: all of them are named."""
    return await read(request, kind, desk, without_effect="options")
