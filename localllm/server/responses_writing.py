"""A response under way: its object, its items, and the events that tell of them."""

import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from localllm import wire
from localllm.daemon.replies import Ask, Piece, Reply, Stats
from localllm.errors import LocalLLMError
from localllm.server.answers import chat_logprobs
from localllm.server.parts import Part, Row
from localllm.server.responses_input import sealed
from localllm.server.responses_shapes import ENCRYPTED, LOGPROBS, ResponseRequest
from localllm.server.responses_tools import Toolbox, text_input

if TYPE_CHECKING:
    from localllm.tokens.tokenizer import Tokenizer

Item = dict[str, Any]
_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class Head:
    """What does not change while a response comes. `created` is in seconds since the epoch, `name` the model's."""

    id: str
    created: int
    name: str
    wanted: ResponseRequest
    box: Toolbox
    ask: Ask
    is_kept: bool
    warnings: list[str]

    def body(self) -> dict[str, Any]:
        """The response as it is at first, in progress."""
        wanted = self.wanted
        reasoning = wanted.reasoning
        body = {
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "status": "in_progress",
            "completed_at": None,
            "background": False,
            "error": None,
            "incomplete_details": None,
            "instructions": wanted.instructions,
            "max_output_tokens": wanted.max_output_tokens,
            "max_tool_calls": wanted.max_tool_calls,
            "metadata": wanted.metadata or {},
            "model": self.name,
            "output": [],
            "parallel_tool_calls": wanted.parallel_tool_calls is not False,
            "previous_response_id": wanted.previous_response_id,
            "prompt_cache_key": wanted.prompt_cache_key,
            "reasoning": {"effort": reasoning and reasoning.effort, "summary": reasoning and _summary(wanted)},
            "safety_identifier": wanted.safety_identifier,
            "service_tier": "default",
            "store": self.is_kept,
            "temperature": self.ask.sampling.temperature,
            "text": {"format": _format(wanted)},
            "tool_choice": wanted.tool_choice if wanted.tool_choice is not None else "auto",
            "tools": [_tool(tool) for tool in wanted.tools or ()],
            "top_logprobs": wanted.top_logprobs or 0,
            "top_p": self.ask.sampling.top_p,
            "truncation": "disabled",
            "usage": None,
            "user": wanted.user,
        }
        return body | ({"warnings": self.warnings} if self.warnings else {})


def _summary(wanted: ResponseRequest) -> str | None:
    reasoning = wanted.reasoning
    return (reasoning.summary or reasoning.generate_summary) if reasoning else None


def _format(wanted: ResponseRequest) -> dict[str, Any]:
    return (wanted.text.format if wanted.text else None) or {"type": "text"}


def _tool(tool: dict[str, Any]) -> dict[str, Any]:
    """As it was sent, with what OpenAI's clients want to be there."""
    return {"parameters": None, "strict": False, **tool} if tool.get("type") == "function" else tool


def usage(stats: Stats) -> dict[str, Any]:
    return {
        "input_tokens": stats.prompt_tokens,
        "input_tokens_details": {"cached_tokens": stats.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": stats.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": stats.reasoning_tokens},
        "total_tokens": stats.prompt_tokens + stats.completion_tokens,
    }


class Events:
    """Writes events with rising numbers."""

    def __init__(self) -> None:
        self.count = 0

    def next_number(self) -> int:
        self.count += 1
        return self.count - 1

    def event(self, kind: str, **data: Any) -> bytes:
        payload = _encode({"type": kind, "sequence_number": self.next_number(), **data})
        return b"event: %b\ndata: %b\n\n" % (kind.encode(), payload)


class Script:
    """The events of one response, from its creation on. `keep` gets what it is in the end."""

    def __init__(
        self, head: Head, reply: Reply, tokenizer: "Tokenizer", keep: Callable[[dict[str, Any]], None] = lambda _: None
    ) -> None:
        self.body = head.body()
        self._reply = reply
        self._keep = keep
        self._events = Events()
        self._items = _Items(head, tokenizer, self._events)
        self._row = Row(self._items)
        self._has_begun = False

    def events(self, pieces: list[Piece]) -> bytes:
        written = self._begin()
        for piece in pieces:
            written += self._row.feed(piece)
            if piece.finish is not None:
                written += self._end(is_cut=piece.finish == "length")
        return written

    def failed(self, error: LocalLLMError) -> bytes:
        """A failure after the response has begun, and the end of the stream."""
        written = self._begin()
        message = f"{error.message} ({error.hint})" if error.hint else error.message
        self.body |= {"status": "failed", "error": {"code": _code(error), "message": message}}
        return written + self._events.event("response.failed", response=self.body)

    def _begin(self) -> bytes:
        if self._has_begun:
            return b""
        self._has_begun = True
        created = self._events.event("response.created", response=self.body)
        return created + self._events.event("response.in_progress", response=self.body)

    def _end(self, *, is_cut: bool) -> bytes:
        written = self._row.end(is_cut=is_cut)
        status = "incomplete" if is_cut else "completed"
        self.body |= {
            "status": status,
            "completed_at": None if is_cut else int(time.time()),
            "incomplete_details": {"reason": "max_output_tokens"} if is_cut else None,
            "output": self._items.items,
            "usage": usage(self._reply.stats),
        }
        self._keep(self.body)
        return written + self._events.event(f"response.{status}", response=self.body)


def _code(error: LocalLLMError) -> str:
    """OpenAI's clients know few codes; agents look for the one about the context."""
    known = ("context_length_exceeded", "rate_limit_exceeded")
    return error.code if error.code in known else "server_error"


# ---- items


class _Items:
    """Parts as items of the output. `items` are those that are closed."""

    def __init__(self, head: Head, tokenizer: "Tokenizer", events: Events) -> None:
        self.items: list[Item] = []
        self._tokenizer = tokenizer
        self._events = events
        self._box = head.box
        self._has_summary = _summary(head.wanted) is not None
        self._seals = ENCRYPTED in (head.wanted.include or ())
        self._shows_logprobs = LOGPROBS in (head.wanted.include or ()) or bool(head.wanted.top_logprobs)
        self._place: dict[str, Any] = {}
        self._delta = b""

    # ---- opened

    def opened(self, part: Part) -> bytes:
        item = self._new_item(part)
        self._place = {"item_id": item["id"], "output_index": part.rank}
        written = self._events.event("response.output_item.added", output_index=part.rank, item=item)
        if part.kind == "text":
            self._place["content_index"] = 0
            written += self._part_event("response.content_part.added", _output_text("", []))
        elif part.kind == "reasoning" and self._has_summary:
            self._place["summary_index"] = 0
            written += self._part_event("response.reasoning_summary_part.added", _summary_text(""))
        elif part.kind == "reasoning":
            self._place["content_index"] = 0
            written += self._part_event("response.content_part.added", _reasoning_text(""))
        kind = self._delta_kind(part)
        opening = _encode({"type": kind, **self._place})[:-1]
        self._delta = b'event: %b\ndata: %b,"delta":' % (kind.encode(), opening)
        return written

    def _new_item(self, part: Part) -> Item:
        if part.kind == "text":
            return {**_item("msg", "message"), "role": "assistant", "content": []}
        if part.kind == "reasoning":
            return {**_item("rs", "reasoning"), "summary": []}
        return self._call_item(part, f"{self._prefix(part)}_{uuid.uuid4().hex}", "", "in_progress")

    def _prefix(self, part: Part) -> str:
        return "ctc" if self._box.of_call(part.name).is_custom else "fc"

    def _delta_kind(self, part: Part) -> str:
        if part.kind == "text":
            return "response.output_text.delta"
        if part.kind == "call":
            return "response.function_call_arguments.delta"
        return "response.reasoning_summary_text.delta" if self._has_summary else "response.reasoning_text.delta"

    def _part_event(self, kind: str, part: dict[str, Any]) -> bytes:
        return self._events.event(kind, **self._place, part=part)

    # ---- added

    def added(self, part: Part, text: str, logprobs: list[wire.TokenLogprobs]) -> bytes:
        if part.kind == "call" and self._box.of_call(part.name).is_custom:
            return b""  # the text inside of the arguments is known in the end
        number = self._events.next_number()
        if part.kind != "text":
            return b'%b%b,"sequence_number":%d}\n\n' % (self._delta, _encode(text), number)
        shown = _encode(self._logprobs(logprobs)) if self._shows_logprobs else b"[]"
        return b'%b%b,"logprobs":%b,"sequence_number":%d}\n\n' % (self._delta, _encode(text), shown, number)

    def _logprobs(self, entries: list[wire.TokenLogprobs]) -> list[dict[str, Any]]:
        return chat_logprobs(self._tokenizer, entries)["content"] if self._shows_logprobs else []

    # ---- closed

    def closed(self, part: Part, *, is_cut: bool) -> bytes:
        status = "incomplete" if is_cut else "completed"
        item, written = self._closed_item(part, status)
        self.items.append(item)
        return written + self._events.event("response.output_item.done", output_index=part.rank, item=item)

    def _closed_item(self, part: Part, status: str) -> tuple[Item, bytes]:
        item_id = self._place["item_id"]
        if part.kind == "text":
            return self._message(part, item_id, status)
        if part.kind == "reasoning":
            return self._reasoning(part, item_id, status)
        return self._call(part, item_id, status)

    def _message(self, part: Part, item_id: str, status: str) -> tuple[Item, bytes]:
        logprobs = self._logprobs(part.logprobs)
        content = _output_text(part.text, logprobs)
        written = self._events.event("response.output_text.done", **self._place, text=part.text, logprobs=logprobs)
        written += self._part_event("response.content_part.done", content)
        item = {"id": item_id, "type": "message", "status": status, "role": "assistant", "content": [content]}
        return item, written

    def _reasoning(self, part: Part, item_id: str, status: str) -> tuple[Item, bytes]:
        text = part.text
        item: Item = {"id": item_id, "type": "reasoning", "status": status, "summary": []}
        if self._has_summary:
            item["summary"] = [_summary_text(text)]
            written = self._events.event("response.reasoning_summary_text.done", **self._place, text=text)
            written += self._part_event("response.reasoning_summary_part.done", _summary_text(text))
        else:
            item["content"] = [_reasoning_text(text)]
            written = self._events.event("response.reasoning_text.done", **self._place, text=text)
            written += self._part_event("response.content_part.done", _reasoning_text(text))
        if self._seals:
            item["encrypted_content"] = sealed(text)
        return item, written

    def _call(self, part: Part, item_id: str, status: str) -> tuple[Item, bytes]:
        tool, arguments = self._box.of_call(part.name), part.text
        if not tool.is_custom:
            done = "response.function_call_arguments.done"
            written = self._events.event(done, **self._place, name=tool.name, arguments=arguments)
            return self._call_item(part, item_id, arguments, status), written
        text = text_input(arguments)
        written = self._events.event("response.custom_tool_call_input.delta", **self._place, delta=text)
        written += self._events.event("response.custom_tool_call_input.done", **self._place, input=text)
        return self._call_item(part, item_id, text, status), written

    def _call_item(self, part: Part, item_id: str, said: str, status: str) -> Item:
        tool = self._box.of_call(part.name)
        item: Item = {"id": item_id, "call_id": part.id, "name": tool.name}
        if tool.namespace:
            item["namespace"] = tool.namespace
        if tool.is_custom:
            return {"type": "custom_tool_call", **item, "input": said}
        return {"type": "function_call", "status": status, **item, "arguments": said}


def _item(prefix: str, kind: str) -> Item:
    return {"id": f"{prefix}_{uuid.uuid4().hex}", "type": kind, "status": "in_progress"}


def _output_text(text: str, logprobs: list[dict[str, Any]]) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}


def _summary_text(text: str) -> dict[str, Any]:
    return {"type": "summary_text", "text": text}


def _reasoning_text(text: str) -> dict[str, Any]:
    return {"type": "reasoning_text", "text": text}
