"""Texts against texts: a reranker reads each pair as one prompt, any other model makes vectors whose cosine counts."""

import contextlib
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from starlette.requests import Request

from localllm.daemon.replies import Ask
from localllm.errors import ContextExceeded, InvalidRequest
from localllm.server.collect import collect
from localllm.server.desk import Desk
from localllm.server.fields import Common
from localllm.server.vector_shapes import Method
from localllm.server.vectors import Cut, Prompts, bare_ask, longest_of, numbers_of, unit
from localllm.settings import Settings
from localllm.store.entry import Entry

if TYPE_CHECKING:
    from localllm.runtime.load import TextSide


@dataclass(frozen=True, slots=True)
class Compared:
    """A score of each pair, in their order. `num_tokens` of all prompts."""

    name: str
    id: str
    method: Method
    scores: list[float]
    num_tokens: int
    warnings: list[str]


@dataclass(slots=True)
class _Sides:
    """Makes the sequences of both sides, once the model is known; remembers how long they were."""

    first: Sequence[str]
    second: Sequence[str]
    first_param: str
    param: str
    cut: Cut | None
    add_special: bool
    judges: bool = False
    lengths: list[int] = field(default_factory=list)

    def asks(self, wanted: Common, entry: Entry, text: "TextSide", settings: Settings, vocab_size: int) -> list[Ask]:
        self.judges = text.pair_form is not None
        if self.judges:
            longest = longest_of(wanted, entry, text, settings)
            return [self._pair(wanted, text, longest, *pair) for pair in self.pairs(self.first, self.second)]
        asks: list[Ask] = []
        for texts, param in ((self.first, self.first_param), (self.second, self.param)):
            prompts = Prompts(texts, param, self.cut, self.add_special, self.lengths)
            asks += prompts.asks(wanted, entry, text, settings, vocab_size)
        return asks

    def pairs(self, first: Sequence[str], second: Sequence[str]) -> list[tuple[str, str]]:
        """One to many, or one to one."""
        return list(zip(list(first) * (len(second) if len(first) == 1 else 1), second, strict=True))

    def _pair(self, wanted: Common, text: "TextSide", longest: int, query: str, document: str) -> Ask:
        assert text.pair_form is not None, "it judges"
        if not self.add_special:
            raise InvalidRequest(
                "a reranker wants its own tokens around and between texts: leave add_special_tokens out",
                param="add_special_tokens",
            )
        limit = longest if self.cut is None else min(self.cut.max_tokens or sys.maxsize, longest)
        pair = text.pair_form.pair(text.tokenizer, query, document, limit, cuts=self.cut is not None)
        self.lengths.append(pair.num_tokens)
        return replace(bare_ask(wanted, "rank"), prompt=pair.ids, second_from=pair.second_from)


async def compare(
    desk: Desk,
    request: Request,
    stack: contextlib.AsyncExitStack,
    wanted: Common,
    first: Sequence[str],
    second: Sequence[str],
    *,
    cut: Cut | None,
    add_special: bool,
    raw: bool,
    first_param: str,
    param: str,
) -> Compared:
    """One `first` against every `second`, or each against its own; the fields that hold them are `first_param` and
    `param`. Errors as of `vectors.embed`."""
    sides = _Sides(first, second, first_param, param, cut, add_special)
    try:
        opened = await desk.open(request, stack, wanted, sides.asks)
    except ContextExceeded as error:
        error.param = error.param if error.param == first_param else param
        raise
    pieces = await collect(opened.reply, len(opened.asks))
    vectors = [piece.vector for piece in pieces]
    counts = [len(ask.prompt) for ask in opened.asks]
    return Compared(
        opened.name,
        opened.reply.id,
        "cross-encoder" if sides.judges else "cosine",
        [judgement(vector, raw=raw) for vector in vectors] if sides.judges else _cosines(vectors, len(first)),
        sum(counts),
        [
            f"{'pair' if sides.judges else 'input'} {index} has {length} tokens and was cut to {num_read}"
            for index, (length, num_read) in enumerate(zip(sides.lengths, counts, strict=True))
            if length > num_read
        ],
    )


def judgement(vector: bytes, *, raw: bool) -> float:
    """The logit, or its sigmoid."""
    logit = numbers_of(vector)[0]
    if raw:
        return logit
    return 1 / (1 + math.exp(-logit)) if logit >= 0 else math.exp(logit) / (1 + math.exp(logit))


def _cosines(vectors: list[bytes], num_first: int) -> list[float]:
    units = [unit(vector) for vector in vectors]
    first, second = units[:num_first], units[num_first:]
    return [cosine(*pair) for pair in zip(first * (len(second) if num_first == 1 else 1), second, strict=True)]


def cosine(one: bytes, other: bytes) -> float:
    """Of two vectors of length 1, little-endian float32; -1 to 1."""
    product = sum(a * b for a, b in zip(numbers_of(one), numbers_of(other), strict=True))
    return max(-1.0, min(1.0, product))
