"""What a chat request would cost, before it is sent: tokens of its parts, how many are cached, how long the rest takes.

Nothing is generated, no page is taken, and no model is loaded for it.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
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
from localllm.server.asks import chat_asks, wish_of
from localllm.server.desk import Desk
from localllm.server.fields import ChatRequest
from localllm.server.http import Json, attended, read_object
from localllm.server.operations import Operation
from localllm.server.tokenizing import meant_model
from localllm.server.unknowns import take
from localllm.store.entry import Entry

if TYPE_CHECKING:
    from localllm.runtime.load import TextSide

MAX_DRAFT_CHARS = 4 * 2**20
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
        ask = chat_asks(wanted, entry, text, self._desk.settings, vocab_size)[0]
        tokens = partial(self._tokens, wanted, entry, text, vocab_size)
        conversation = ask.prompt[: len(ask.prompt) - ask.num_given]
        num_told = next((n for n, each in enumerate(wanted.messages) if not _is_system(each)), len(wanted.messages))
        num_before = len(wanted.messages) - has_draft
        parts = _Parts(conversation, wanted.messages, tokens, text.tokenizer.special_ids)
        before = parts.of_first(num_before) if has_draft else len(conversation)
        system = min(parts.of_first(num_told), before)
        return _Counted(ask, shapes.PromptParts(system, before - system, len(conversation) - before, ask.num_given))

    def _tokens(
        self, wanted: ChatRequest, entry: Entry, text: "TextSide", vocab_size: int, messages: list[dict[str, Any]]
    ) -> list[int]:
        """Of another conversation in the place of this one, without the opening of an answer."""
        other = msgspec.structs.replace(
            wanted, messages=messages, add_generation_prompt=False, continue_final_message=False,
            continue_token_ids=None, truncate_prompt_tokens=None, echo=None,
        )  # fmt: skip
        return chat_asks(other, entry, text, self._desk.settings, vocab_size)[0].prompt


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


@dataclass(frozen=True, slots=True)
class _Parts:
    """The tokens `ids` of a conversation; `tokens` gives those of another one, `special_ids` are tags of turns."""

    ids: list[int]
    messages: list[dict[str, Any]]
    tokens: Callable[[list[dict[str, Any]]], list[int]]
    special_ids: Collection[int]

    def of_first(self, count: int) -> int:
        """How many of the tokens come from the first `count` messages."""
        if count == len(self.messages):
            return len(self.ids)
        try:
            return _num_alike(self.ids, self.tokens(self.messages[:count]))
        except LocalLLMError:  # the template refuses to show those alone
            return self._up_to_turn(count)

    def _up_to_turn(self, count: int) -> int:
        """As far as all is the same when that message says something else, without the tag that opens its turn."""
        changed = {**self.messages[count], "content": _OTHER_TEXT}
        try:
            others = self.tokens([*self.messages[:count], changed, *self.messages[count + 1 :]])
        except LocalLLMError:
            return 0
        alike = range(_num_alike(self.ids, others) - 1, -1, -1)
        return next((place for place in alike if self.ids[place] in self.special_ids), 0)


def _num_alike(one: Sequence[int], other: Sequence[int]) -> int:
    alike = (place for place, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    return next(alike, min(len(one), len(other)))


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
