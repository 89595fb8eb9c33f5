"""A message under way: its blocks, and the events that tell of them."""

import hashlib
from dataclasses import dataclass
from typing import Any

import msgspec

from localllm import wire
from localllm.daemon.replies import Piece, Reply, Stats
from localllm.errors import LocalLLMError
from localllm.server.anthropic_shapes import MessagesRequest
from localllm.server.http import error_body
from localllm.server.parts import Part, Row
from localllm.server.responses_input import sealed

PATH = "/v1/messages"
PING = b'event: ping\ndata: {"type":"ping"}\n\n'
_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class Head:
    """What does not change while a message comes. `name` is the model's."""

    id: str
    name: str
    wanted: MessagesRequest
    warnings: list[str]


def event(kind: str, **data: Any) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), _encode({"type": kind, **data}))


def failure(error: LocalLLMError, request_id: str = "") -> bytes:
    """A failure after the status line is gone, and the end of the stream."""
    return b"event: error\ndata: %b\n\n" % _encode(error_body(error, PATH, request_id))


def usage(stats: Stats) -> dict[str, Any]:
    return {
        "input_tokens": stats.prompt_tokens - stats.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": stats.cached_tokens,
        "output_tokens": stats.completion_tokens,
        "output_tokens_details": {"thinking_tokens": stats.reasoning_tokens},
    }


class Script:
    """The events of one message; `body` is all of it in the end."""

    def __init__(self, head: Head, reply: Reply) -> None:
        self._head = head
        self._reply = reply
        thinking = head.wanted.thinking
        self._blocks = _Blocks(hides_thinking=thinking is not None and thinking.display == "omitted")
        self._row = Row(self._blocks)
        self._has_begun = False
        self.body: dict[str, Any] = {
            "id": head.id,
            "type": "message",
            "role": "assistant",
            "model": head.name,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
        } | ({"warnings": head.warnings} if head.warnings else {})

    def events(self, pieces: list[Piece]) -> bytes:
        written = b"" if self._has_begun else self._begin()
        for piece in pieces:
            written += self._row.feed(piece)
            if piece.finish is not None:
                written += self._end(piece)
        return written

    def _begin(self) -> bytes:
        self._has_begun = True
        nothing_yet = {"output_tokens": 0, "output_tokens_details": {"thinking_tokens": 0}}
        return event("message_start", message=self.body | {"usage": usage(self._reply.stats) | nothing_yet})

    def _end(self, piece: Piece) -> bytes:
        written = self._row.end(is_cut=piece.finish == "length")
        reason, sequence = self._stop(piece)
        used = usage(self._reply.stats)
        self.body |= {"content": self._blocks.blocks, "stop_reason": reason, "stop_sequence": sequence, "usage": used}
        delta = {"stop_reason": reason, "stop_sequence": sequence}
        return written + event("message_delta", delta=delta, usage=used) + event("message_stop")

    def _stop(self, piece: Piece) -> tuple[str, str | None]:
        wanted = self._head.wanted
        if piece.finish == "length":
            has_room = self._reply.stats.completion_tokens < wanted.max_tokens
            return ("model_context_window_exceeded" if has_room else "max_tokens"), None
        if self._row.has_calls:
            return "tool_use", None
        if isinstance(piece.stop, str) and piece.stop in (wanted.stop_sequences or ()):
            return "stop_sequence", piece.stop
        return "end_turn", None


class _Blocks:
    """Parts as blocks of the content. `blocks` are those that are closed."""

    def __init__(self, *, hides_thinking: bool) -> None:
        self.blocks: list[dict[str, Any]] = []
        self._hides_thinking = hides_thinking
        self._delta = b""

    def opened(self, part: Part) -> bytes:
        start, delta, name = _OPENINGS[part.kind]
        block = {**start, "id": part.id, "name": part.name, "input": {}} if part.kind == "call" else start
        opening = {"type": "content_block_delta", "index": part.rank, "delta": {"type": delta}}
        self._delta = b'event: content_block_delta\ndata: %b,"%b":' % (_encode(opening)[:-2], name)
        return event("content_block_start", index=part.rank, content_block=block)

    def added(self, part: Part, text: str, logprobs: list[wire.TokenLogprobs]) -> bytes:
        if part.kind == "reasoning" and self._hides_thinking:
            return b""
        return b"%b%b}}\n\n" % (self._delta, _encode(text))

    def closed(self, part: Part, *, is_cut: bool) -> bytes:
        block, written = _closed(part), b""
        if part.kind == "reasoning":
            block = self._signed(part)
            signature = {"type": "signature_delta", "signature": block["signature"]}
            written = event("content_block_delta", index=part.rank, delta=signature)
        self.blocks.append(block)
        return written + event("content_block_stop", index=part.rank)

    def _signed(self, part: Part) -> dict[str, Any]:
        """Thinking that is hidden travels in its signature, so that the model has it in its next turn."""
        if self._hides_thinking:
            return {"type": "thinking", "thinking": "", "signature": sealed(part.text)}
        digest = hashlib.sha256(part.text.encode("utf-8", "replace")).hexdigest()
        return {"type": "thinking", "thinking": part.text, "signature": digest}


_OPENINGS: dict[str, tuple[dict[str, Any], str, bytes]] = {
    "text": ({"type": "text", "text": ""}, "text_delta", b"text"),
    "reasoning": ({"type": "thinking", "thinking": "", "signature": ""}, "thinking_delta", b"thinking"),
    "call": ({"type": "tool_use"}, "input_json_delta", b"partial_json"),
}


def _closed(part: Part) -> dict[str, Any]:
    if part.kind == "text":
        return {"type": "text", "text": part.text}
    return {"type": "tool_use", "id": part.id, "name": part.name, "input": _input(part.text)}


def _input(arguments: str) -> dict[str, Any]:
    """Arguments that are no object (an answer may be cut in the middle) as they are, under a name of their own."""
    try:
        decoded = msgspec.json.decode(arguments or "{}")
    except msgspec.DecodeError:
        decoded = None
    return decoded if isinstance(decoded, dict) else {"unfinished": arguments}
