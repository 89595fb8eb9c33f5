"""Answers as Ollama writes them: one JSON object per line, or one in all, with everything constant encoded once."""

import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from localllm.daemon.incremental import ToolCall
from localllm.daemon.replies import Ask, Piece, Reply, Stats
from localllm.server.answers import chat_logprobs
from localllm.server.collect import Collected, joined_calls

if TYPE_CHECKING:
    from localllm.tokens.tokenizer import Tokenizer

Kind = Literal["generate", "chat"]
_encode = msgspec.json.Encoder().encode


class Stamps:
    """RFC 3339 times in UTC to the nanosecond; the part before the point is made once a second."""

    def __init__(self) -> None:
        self._second = -1
        self._text = ""

    def now(self) -> str:
        second, nanoseconds = divmod(time.time_ns(), 10**9)
        if second != self._second:
            self._second, self._text = second, f"{datetime.fromtimestamp(second, UTC):%Y-%m-%dT%H:%M:%S}"
        return f"{self._text}.{nanoseconds:09d}Z"


def rfc3339(seconds: float) -> str:
    """A time since the epoch, in UTC, to the microsecond."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


class Script:
    """The lines of one answer. `model` is the name in the request; `dropped` counts messages that were left out."""

    def __init__(
        self, kind: Kind, model: str, reply: Reply, asks: Sequence[Ask], tokenizer: "Tokenizer", *, dropped: int = 0,
        shows_logprobs: bool = False, shows_context: bool = False,
    ) -> None:  # fmt: skip
        self._kind = kind
        self._model = model
        self._reply = reply
        self._asks = asks
        self._tokenizer = tokenizer
        self._dropped = dropped
        self._shows_logprobs = shows_logprobs
        self._shows_context = shows_context
        self._stamps = Stamps()
        self._ids: list[int] = []
        self._calls: list[ToolCall] = []
        self._num_sent = 0
        self._before = b'{"model":' + _encode(model) + b',"created_at":"'
        text = b'"message":{"role":"assistant","content":' if kind == "chat" else b'"response":'
        self._between = b'",' + text
        self._behind = b'},"done":false}\n' if kind == "chat" else b',"done":false}\n'

    # ---- streams

    def lines(self, pieces: list[Piece]) -> bytes:
        """What the pieces add; behind the last one the line that ends the answer."""
        return b"".join([self._line(piece) for piece in pieces])

    def _line(self, piece: Piece) -> bytes:
        if self._shows_context:
            self._ids += piece.ids
        if piece.is_text and not self._shows_logprobs:
            return self._plain(piece.text) if piece.text else b""
        calls = self._whole_calls(piece)
        is_empty = not (piece.text or piece.reasoning or calls or (self._shows_logprobs and piece.logprobs))
        line = b"" if is_empty else _encode(self._object(piece, calls, done=False)) + b"\n"
        return line if piece.finish is None else line + _encode(self._last(piece)) + b"\n"

    def _plain(self, text: str) -> bytes:
        return b"".join((self._before, self._stamps.now().encode(), self._between, _encode(text), self._behind))

    def _whole_calls(self, piece: Piece) -> list[ToolCall]:
        """Calls come in parts and are sent whole: when the next one begins, or at the end."""
        self._calls = joined_calls([*self._calls, *piece.tool_calls])
        num_whole = len(self._calls) if piece.finish is not None else max(0, len(self._calls) - 1)
        whole, self._num_sent = self._calls[self._num_sent : num_whole], max(num_whole, self._num_sent)
        return whole

    def _last(self, piece: Piece) -> dict[str, Any]:
        return self._object(Piece(piece.index), [], done=True) | self._ending(piece, self._ids)

    # ---- one body

    def whole(self, piece: Collected) -> dict[str, Any]:
        return self._object(piece, piece.tool_calls, done=True) | self._ending(piece, piece.ids)

    # ---- parts

    def _object(self, piece: Piece, calls: Sequence[ToolCall], *, done: bool) -> dict[str, Any]:
        shown: dict[str, Any] = {"model": self._model, "created_at": self._stamps.now()}
        told, strays = _told(calls)
        text = piece.text + strays
        if self._kind == "chat":
            message: dict[str, Any] = {"role": "assistant", "content": text}
            shown["message"] = message
        else:
            shown["response"] = text
            message = shown
        if piece.reasoning:
            message["thinking"] = piece.reasoning
        if told:
            message["tool_calls"] = told
        shown["done"] = done
        if self._shows_logprobs and piece.logprobs:
            shown["logprobs"] = chat_logprobs(self._tokenizer, piece.logprobs)["content"]
        return shown

    def _ending(self, piece: Piece, ids: Sequence[int]) -> dict[str, Any]:
        ending: dict[str, Any] = {"done_reason": piece.finish or "stop"}
        if self._shows_context:
            end = [piece.stop] if isinstance(piece.stop, int) and piece.stop not in ids[-1:] else []
            ending["context"] = [*self._asks[0].prompt, *ids, *end]
        if self._dropped:
            ending["truncated_messages"] = self._dropped
        return ending | counts(self._reply.stats)


def _told(calls: Sequence[ToolCall]) -> tuple[list[dict[str, Any]], str]:
    """Calls as objects; what a model meant for one, but is none, as the text that it is."""
    told: list[dict[str, Any]] = []
    strays = ""
    for call in calls:
        arguments = _object_of(call.arguments)
        if arguments is None:
            strays += call.arguments
            continue
        function = {"index": call.index, "name": call.name, "arguments": arguments}
        told.append({"id": short_id(call.id), "function": function})
    return told, strays


def _object_of(arguments: str) -> dict[str, Any] | None:
    try:
        decoded = msgspec.json.decode(arguments or "{}")
    except (msgspec.DecodeError, RecursionError):
        return None
    return decoded if isinstance(decoded, dict) else None


def short_id(call_id: str) -> str:
    """`call_` and eight characters, as Ollama's."""
    return "call_" + call_id.removeprefix("call_")[:8].lower()


def counts(stats: Stats) -> dict[str, int]:
    """Token counts, and durations in nanoseconds; those that are 0 are left out, as Ollama does."""
    end = stats.finished or time.monotonic()
    first = stats.first_token or end
    admitted = stats.started if stats.started is not None and stats.started < first else stats.submitted
    found = {
        "total_duration": _nanoseconds(stats.load_s + end - stats.submitted),
        "load_duration": _nanoseconds(stats.load_s),
        "prompt_eval_count": stats.prompt_tokens,
        "prompt_eval_cached_count": stats.cached_tokens,
        "prompt_eval_duration": _nanoseconds(first - admitted),
        "eval_count": stats.completion_tokens,
        "eval_duration": _nanoseconds(end - first),
    }
    return {name: value for name, value in found.items() if value}


def _nanoseconds(seconds: float) -> int:
    return max(0, round(seconds * 1e9))
