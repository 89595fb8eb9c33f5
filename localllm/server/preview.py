"""What a chat request would cost, before it is sent: tokens of its parts, how many are cached, how long the rest takes.

Nothing is generated, no page is taken, and no model is loaded for it.
"""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from localllm import wire
from localllm.daemon.replies import Ask
from localllm.daemon.residency import key_of
from localllm.daemon.resident import Resident
from localllm.daemon.texts import Texts
from localllm.errors import InvalidRequest, LocalLLMError
from localllm.server import preview_shapes as shapes
from localllm.server.asks import chat_asks, told_by, wish_of
from localllm.server.desk import Desk
from localllm.server.fields import ChatRequest
from localllm.server.http import Json, attended, read_object
from localllm.server.notes import Notes
from localllm.server.operations import Operation
from localllm.server.tokenizing import meant_model
from localllm.server.unknowns import take
from localllm.store.entry import Entry

if TYPE_CHECKING:
    from localllm.runtime.load import TextSide
    from localllm.tokens.tokenizer import Tokenizer

_OTHER_TEXT = "\u2630"
"""Hardly anybody begins a message with this."""


@dataclass(frozen=True, slots=True)
class _Counted:
    ask: Ask
    parts: shapes.PromptParts


class Previews:
    """`POST /localllm/v1/preview`."""

    def __init__(self, desk: Desk, texts: Texts) -> None:
        self._desk = desk
        self._residency = desk.residency
        self._texts = texts

    def operations(self) -> Sequence[Operation]:
        return (
            Operation(
                "POST", "/localllm/v1/preview", self.preview, "Preview a chat request", "localllm",
                shapes.Preview, shapes.PreviewRequest,
            ),
        )  # fmt: skip

    async def preview(self, request: Request) -> Response:
        body = await read_object(request)
        has_draft = _add_draft(body)
        taken = take(body, ChatRequest, request)
        shown = await attended(request, self._previewed(taken.request, has_draft))
        return Json(shown, headers=taken.headers)

    async def _previewed(self, wanted: ChatRequest, has_draft: bool) -> shapes.Preview:
        wish_of(wanted).checked()
        entry = await self._residency.find(meant_model(self._desk, wanted.model))
        resident = next((each for each in self._residency.residents() if key_of(each.entry) == key_of(entry)), None)
        if resident is not None and resident.state == "ready":
            try:
                return await self._of_loaded(wanted, resident, has_draft)
            except LocalLLMError:
                if resident.state == "ready":
                    raise  # otherwise it was unloaded meanwhile: then the other way is the right one
        state: shapes.LoadedState = "loading" if resident is not None and resident.state == "loading" else "not loaded"
        return await self._of_unloaded(wanted, entry, state, has_draft)

    async def _of_loaded(self, wanted: ChatRequest, resident: Resident, has_draft: bool) -> shapes.Preview:
        assert resident.ready is not None
        work = partial(self._count, wanted, resident.entry, resident.text, resident.ready.vocab_size, has_draft)
        counted = await self._residency.in_thread(work)
        prompt, salt = counted.ask.prompt, counted.ask.cache_salt
        answer = await resident.ask(lambda number: wire.Probe(number, prompt, salt))
        num_cached = answer.num_cached if isinstance(answer, wire.Probed) else 0
        to_compute, rate = len(prompt) - num_cached, resident.prefill_per_s
        return _shown(
            counted, "ready", resident.entry,
            context_length=resident.context_length,
            page_size=resident.ready.page_size,
            num_cached=num_cached,
            compute_s=to_compute / rate if rate else None,
        )  # fmt: skip

    async def _of_unloaded(
        self, wanted: ChatRequest, entry: Entry, state: shapes.LoadedState, has_draft: bool
    ) -> shapes.Preview:
        async with self._texts.using(entry) as text:
            work = partial(self._count, wanted, entry, text, text.tokenizer.vocab_size, has_draft)
            counted = await self._residency.in_thread(work)
            known = entry.context_length or text.context_length
        bounds = [each for each in (known, self._desk.settings.context_length) if each]
        page_size = wire.Load(path=entry.path).page_size
        return _shown(
            counted, state, entry, context_length=min(bounds, default=None), page_size=page_size, num_cached=0
        )

    def _count(self, wanted: ChatRequest, entry: Entry, text: "TextSide", vocab_size: int, has_draft: bool) -> _Counted:
        """Slow: not for the event loop."""
        notes = Notes()
        ask = chat_asks(wanted, entry, text, self._desk.settings, vocab_size, notes=notes)[0]
        conversation = ask.prompt[: len(ask.prompt) - ask.num_given]
        num_told = next((n for n, each in enumerate(wanted.messages) if not _is_system(each)), len(wanted.messages))
        parts = _Parts(
            conversation, ask.prompt_text, wanted.messages, partial(_told_text, wanted, entry, text), text.tokenizer
        )
        before = parts.of_first(len(wanted.messages) - 1) if has_draft else len(conversation)
        system = min(parts.of_first(num_told), before)
        return _Counted(ask, shapes.PromptParts(system, before - system, len(conversation) - before, ask.num_given))


def _told_text(wanted: ChatRequest, entry: Entry, text: "TextSide", messages: list[dict[str, Any]]) -> str:
    """Another conversation in the place of this one, without the opening of an answer."""
    other = msgspec.structs.replace(
        wanted, messages=messages, add_generation_prompt=False, continue_final_message=False
    )
    return told_by(other, entry, text, Notes()).prompt


def _add_draft(body: dict[str, Any]) -> bool:
    """Make it the last message; whether there is one."""
    draft = body.pop("draft", None)
    if draft is not None and not isinstance(draft, str):
        raise InvalidRequest("draft must be a string", param="draft")
    if not draft:
        return False
    messages = body.setdefault("messages", [])
    if isinstance(messages, list):
        body["messages"] = [*messages, {"role": "user", "content": draft}]
    return True


def _is_system(message: dict[str, Any]) -> bool:
    return message.get("role") in ("system", "developer")


class _Parts:
    """A conversation as `ids` and as `text`, of which ids at the beginning may have been cut off. `told` gives the text
    of another one. Tokens are found by their bytes, so that a long conversation is cut into tokens once."""

    def __init__(
        self,
        ids: list[int],
        text: str,
        messages: list[dict[str, Any]],
        told: Callable[[list[dict[str, Any]]], str],
        tokenizer: "Tokenizer",
    ) -> None:
        self._ids, self._text, self._messages, self._told = ids, text, messages, told
        self._special_ids = tokenizer.special_ids
        self._lengths = list(accumulate(len(tokenizer.said_bytes(token_id)) for token_id in reversed(ids)))

    def of_first(self, count: int) -> int:
        """How many of the tokens come from the first `count` messages."""
        if count == len(self._messages):
            return len(self._ids)
        try:
            return self._tokens_in(_num_alike(self._text, self._told(self._messages[:count])))
        except LocalLLMError:  # the template refuses to show those alone
            return self._up_to_turn(count)

    def _tokens_in(self, num_characters: int) -> int:
        """Tokens that begin before this place."""
        behind = len(self._text[num_characters:].encode("utf-8", errors="replace"))
        return max(0, len(self._ids) - bisect_left(self._lengths, behind) - 1) if behind else len(self._ids)

    def _up_to_turn(self, count: int) -> int:
        """As far as all is the same when that message says something else, without the tag that opens its turn."""
        changed = {**self._messages[count], "content": _OTHER_TEXT}
        try:
            other = self._told([*self._messages[:count], changed, *self._messages[count + 1 :]])
        except LocalLLMError:
            return 0
        alike = range(self._tokens_in(_num_alike(self._text, other)) - 1, -1, -1)
        return next((place for place in alike if self._ids[place] in self._special_ids), 0)


def _num_alike(one: str, other: str) -> int:
    """Characters at the beginning that are the same."""
    low, high = 0, min(len(one), len(other))
    while low < high:  # by halves: slices are compared fast, single characters are not
        middle = (low + high + 1) // 2
        low, high = (middle, high) if one[low:middle] == other[low:middle] else (low, middle - 1)
    return low


def _shown(
    counted: _Counted,
    state: shapes.LoadedState,
    entry: Entry,
    *,
    context_length: int | None,
    page_size: int,
    num_cached: int,
    compute_s: float | None = None,
) -> shapes.Preview:
    num_prompt, sampling = len(counted.ask.prompt), counted.ask.sampling
    return shapes.Preview(
        model=entry.name,
        state=state,
        parts=counted.parts,
        prompt_tokens=num_prompt,
        cached_tokens=num_cached,
        compute_tokens=num_prompt - num_cached,
        compute_s=compute_s,
        context_length=context_length,
        left_tokens=None if context_length is None else max(0, context_length - num_prompt),
        max_tokens=counted.ask.max_tokens,
        sampling=shapes.PreviewSampling(sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p),
        page_size=page_size,
    )
