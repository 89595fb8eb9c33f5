"""Texts become vectors: the one way for every dialect (`embed`), and OpenAI's `/v1/embeddings`.

All inputs of a request are sequences of one batch, beside whoever generates. Without pooling of its own in the file a
model's vector is the final hidden state of the last token, which alone has seen the whole text.
"""

import asyncio
import contextlib
import math
import sys
from array import array
from base64 import b64encode
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import Response

from localllm import wire
from localllm.daemon.replies import Ask
from localllm.engine.limits import judges_only
from localllm.errors import ContextExceeded, InvalidRequest, LocalLLMError
from localllm.runtime.presets import load_order
from localllm.server.asks import wish_of
from localllm.server.collect import collect
from localllm.server.desk import Desk
from localllm.server.fields import Common
from localllm.server.http import Json, attended
from localllm.server.operations import Operation
from localllm.server.unknowns import take
from localllm.server.vector_shapes import (
    EmbeddingRequest,
    Embeddings,
    VectorRequest,
    check_count,
    usage_of,
)
from localllm.settings import Settings
from localllm.store.entry import Entry

if TYPE_CHECKING:
    from localllm.runtime.load import TextSide

Input = str | list[int]


@dataclass(frozen=True, slots=True)
class Cut:
    """Inputs longer than `max_tokens` (None: than the context) lose their end, or with `keeps_end` their start."""

    max_tokens: int | None = None
    keeps_end: bool = False

    def of(self, ids: list[int], context_length: int) -> list[int]:
        limit = min(self.max_tokens or context_length, context_length)
        return ids[max(0, len(ids) - limit) :] if self.keeps_end else ids[:limit]

    def of_text(self, ids: list[int], context_length: int, special: Collection[int]) -> list[int]:
        """The same of a text: a special token at the end that is cut off stays, as models were trained with it."""
        cut, outer = self.of(ids, context_length), ids[0] if self.keeps_end else ids[-1]
        if len(cut) == len(ids) or len(cut) < 3 or outer not in special:
            return cut
        return [outer, *cut[1:]] if self.keeps_end else [*cut[:-1], outer]


@dataclass(frozen=True, slots=True)
class Embedded:
    """Vectors of little-endian float32 in the order of the inputs. `lengths` are the inputs' tokens before they were
    cut, `num_tokens` those that were read. `load_s` and `total_s` are seconds."""

    name: str
    id: str
    vectors: list[bytes]
    num_tokens: list[int]
    lengths: list[int]
    load_s: float
    total_s: float

    @property
    def warnings(self) -> list[str]:
        """A sentence about each input that was cut."""
        counts = enumerate(zip(self.lengths, self.num_tokens, strict=True))
        return [
            f"input {index} has {length} tokens and was cut to {num_read}"
            for index, (length, num_read) in counts
            if length > num_read
        ]


@dataclass(slots=True)
class Prompts:
    """Makes the sequences of inputs; remembers how long they were."""

    inputs: Sequence[Input]
    param: str
    cut: Cut | None
    add_special: bool
    lengths: list[int] = field(default_factory=list)
    prompt_name: str | None = None

    def asks(self, wanted: Common, entry: Entry, text: "TextSide", settings: Settings, vocab_size: int) -> list[Ask]:
        if text.pair_form is not None:
            raise judges_only()
        context_length = longest_of(wanted, entry, text, settings)
        ask, before = bare_ask(wanted, text.pooling), text.prompts.text_of(self.prompt_name)
        inputs = [before + each if isinstance(each, str) else each for each in self.inputs]
        return [replace(ask, prompt=self._ids(each, text, vocab_size, context_length)) for each in inputs]

    def _ids(self, given: Input, text: "TextSide", vocab_size: int, context_length: int) -> list[int]:
        if isinstance(given, str):
            ids = text.tokenizer.encode(given, add_special=self.add_special, parse_special=True)
        else:
            ids = given
        if not ids:
            raise InvalidRequest(f"{self.param} has no tokens", hint="send some text", param=self.param)
        if min(ids) < 0 or max(ids) >= vocab_size:
            raise InvalidRequest(f"{self.param} names a token outside 0..{vocab_size - 1}", param=self.param)
        self.lengths.append(len(ids))
        if self.cut is None:
            if len(ids) > context_length:
                error = ContextExceeded(len(ids), context_length)
                error.param = self.param
                raise error
            return ids
        if isinstance(given, str) and self.add_special:
            return self.cut.of_text(ids, context_length, text.tokenizer.special_ids)
        return self.cut.of(ids, context_length)


def longest_of(wanted: Common, entry: Entry, text: "TextSide", settings: Settings) -> int:
    """Tokens of a text, with those around it."""
    order = load_order(entry, settings, wish_of(wanted))
    return min(filter(None, (text.context_length, order.context_length)), default=sys.maxsize)


def bare_ask(wanted: Common, pooled: wire.Pooled) -> Ask:
    """For a vector of a prompt that is still to come."""
    return Ask(
        prompt=[],
        sampling=wire.SamplingParams(temperature=0.0),
        max_tokens=0,
        priority=wanted.priority or 0,
        cache_salt=wanted.cache_salt or "",
        owner=wanted.user or "",
        pooled=pooled,
    )


async def embed(
    desk: Desk,
    request: Request,
    stack: contextlib.AsyncExitStack,
    wanted: Common,
    inputs: Sequence[Input],
    *,
    cut: Cut | None = None,
    dimensions: int | None = None,
    add_special: bool = True,
    param: str = "input",
    prompt_name: str | None = None,
) -> Embedded:
    """Vectors of length 1 of texts or token ids, of the first `dimensions` numbers each. `wanted` names the model and
    how to load it (`Common(model=...)` will do).

    Without `cut` a text that does not fit is ContextExceeded. InvalidRequest names `param` for an input without tokens
    or with unknown ones, and `dimensions` for more than the model has. Call it within `attended`.
    """
    prompts = Prompts(inputs, param, cut, add_special, prompt_name=prompt_name)
    try:
        opened = await desk.open(request, stack, wanted, prompts.asks)
    except ContextExceeded as error:
        error.param = param
        raise
    pieces = await collect(opened.reply, len(opened.asks))
    vectors = await asyncio.to_thread(lambda: [unit(piece.vector, dimensions) for piece in pieces])
    stats = opened.reply.stats
    return Embedded(
        opened.name,
        opened.reply.id,
        vectors,
        [len(ask.prompt) for ask in opened.asks],
        prompts.lengths,
        stats.load_s,
        stats.load_s + (stats.finished or stats.submitted) - stats.submitted,
    )


def unit(vector: bytes, dimensions: int | None = None) -> bytes:
    """The first `dimensions` numbers (None: all), scaled to length 1; zeros stay zeros. Both are little-endian float32.
    InvalidRequest when there are not so many."""
    numbers = numbers_of(vector)
    if not numbers:
        raise LocalLLMError("the engine gave no vector", hint="see `localllm daemon logs`")
    if dimensions is not None and dimensions > len(numbers):
        raise InvalidRequest(
            f"dimensions is {dimensions}, but this model's vectors have {len(numbers)}", param="dimensions"
        )
    numbers = numbers[:dimensions]
    length = math.hypot(*numbers) or 1.0
    return _little(array("f", [number / length for number in numbers])).tobytes()


def numbers_of(vector: bytes) -> "array[float]":
    """Little-endian float32 as numbers."""
    return _little(array("f", vector))


def _little(numbers: "array[float]") -> "array[float]":
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers


def cut_of(wanted: VectorRequest) -> Cut | None:
    """vLLM's truncation: the last so many tokens stay, -1: as many as fit."""
    limit = wanted.truncate_prompt_tokens
    return None if limit is None else Cut(None if limit < 0 else limit, keeps_end=True)


class Embedder:
    """`POST /v1/embeddings`."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def operations(self) -> Sequence[Operation]:
        paths = {"/v1/embeddings": "Embed texts", "/embeddings": "Embed texts as llama-server does"}
        return [
            Operation("POST", path, self.embeddings, summary, "vectors", Embeddings, EmbeddingRequest, asks=True)
            for path, summary in paths.items()
        ]

    async def embeddings(self, request: Request) -> Response:
        wanted, warnings, headers = take(await self._desk.read(request), EmbeddingRequest, request)
        inputs = inputs_of(wanted.input)
        async with contextlib.AsyncExitStack() as stack:
            work = embed(
                self._desk, request, stack, wanted.common(), inputs,
                cut=cut_of(wanted), dimensions=wanted.dimensions, add_special=wanted.add_special_tokens is not False,
                prompt_name=wanted.prompt_name,
            )  # fmt: skip
            done = await attended(request, work)
        shown = [
            {"object": "embedding", "index": index, "embedding": _written(vector, wanted.encoding_format)}
            for index, vector in enumerate(done.vectors)
        ]
        body = {"object": "list", "data": shown, "model": done.name, "usage": usage_of(sum(done.num_tokens))}
        return Json(body | told(warnings + done.warnings), headers=headers)


def inputs_of(given: str | list[str | int | list[int]]) -> list[Input]:
    """One or many inputs as OpenAI allows them. InvalidRequest: empty, too many, or mixed."""
    if isinstance(given, str):
        return [given]
    numbers = [each for each in given if isinstance(each, int)]
    if given and len(numbers) == len(given):
        return [numbers]
    check_count("input", len(given))
    texts = [each for each in given if isinstance(each, str)]
    lists = [each for each in given if isinstance(each, list)]
    if len(texts) != len(given) and len(lists) != len(given):
        raise InvalidRequest("input must not mix texts, token ids and lists of token ids", param="input")
    return [*texts, *lists]


def told(warnings: list[str]) -> dict[str, Any]:
    """What a body says beside its answer."""
    return {"warnings": warnings} if warnings else {}


def _written(vector: bytes, encoding: str | None) -> list[float] | str:
    return b64encode(vector).decode() if encoding == "base64" else numbers_of(vector).tolist()
