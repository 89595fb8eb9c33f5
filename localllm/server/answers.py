"""Answers as OpenAI writes them: whole bodies, and the chunks of a stream with everything constant encoded once."""

import codecs
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from localllm import wire
from localllm.daemon.replies import Piece, Stats
from localllm.errors import LocalLLMError
from localllm.server.http import error_object

if TYPE_CHECKING:
    from localllm.tokens.tokenizer import Tokenizer

Kind = Literal["chat", "text"]
DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": waiting\n\n"

_PLAIN_END = b'"logprobs":null,"finish_reason":null}]}\n\n'
_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class Envelope:
    """What all chunks of one answer share. `created` is in seconds since the epoch."""

    kind: Kind
    id: str
    created: int
    model: str
    fingerprint: str

    def head(self, *, is_chunk: bool) -> dict[str, Any]:
        chat_object = "chat.completion.chunk" if is_chunk else "chat.completion"
        return {
            "id": self.id,
            "object": chat_object if self.kind == "chat" else "text_completion",
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
        }


def event(payload: Any) -> bytes:
    return b"data: " + _encode(payload) + b"\n\n"


def error_event(error: LocalLLMError) -> bytes:
    """A failure after the status line is gone, and the end of the stream."""
    return event({"error": error_object(error)}) + DONE


class Chunks:
    """Writes the chunks of one stream. With `announces_usage` every chunk but the last carries `usage: null`; `beside`
    gives what every chunk carries besides."""

    def __init__(
        self, envelope: Envelope, *, announces_usage: bool, beside: Callable[[], dict[str, Any]] | None = None
    ) -> None:
        head = envelope.head(is_chunk=True)
        self._beside = beside
        if announces_usage and "usage" not in (beside() if beside else ()):
            head["usage"] = None
        self._open = b"data: " + _encode(head)[:-1] + b',"choices":['
        self._head = envelope.head(is_chunk=True)

    def chunk(self, choice: dict[str, Any], **extra: Any) -> bytes:
        if self._beside is not None:
            extra = {**self._beside(), **extra}
        tail = b"]}\n\n" if not extra else b"]," + _encode(extra)[1:] + b"\n\n"
        return self._open + _encode(choice) + tail

    def content(self, index: int, text: str) -> bytes:
        """`chunk` of a delta that is content and nothing else, as most are."""
        if self._beside is not None:
            return self.chunk(delta_choice(index, {"content": text}))
        return self._open + b'{"index":%d,"delta":{"content":%b},%b' % (index, _encode(text), _PLAIN_END)

    def text(self, index: int, text: str) -> bytes:
        """`chunk` of a choice that is text and nothing else."""
        if self._beside is not None:
            return self.chunk(text_choice(index, text))
        return self._open + b'{"index":%d,"text":%b,%b' % (index, _encode(text), _PLAIN_END)

    def last(self, **extra: Any) -> bytes:
        """A chunk without choices, such as the one that ends a stream with usage."""
        return event({**self._head, "choices": [], **extra})


# ---- choices


def delta_choice(index: int, delta: dict[str, Any], finish: str | None = None, **extra: Any) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": extra.pop("logprobs", None), "finish_reason": finish, **extra}


def text_choice(index: int, text: str, finish: str | None = None, **extra: Any) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": extra.pop("logprobs", None), "finish_reason": finish, **extra}


def delta_of(piece: Piece) -> dict[str, Any]:
    """What a piece adds to a message; empty when all of it is held back."""
    delta: dict[str, Any] = {}
    if piece.reasoning:
        delta["reasoning"] = delta["reasoning_content"] = piece.reasoning
    if piece.text:
        delta["content"] = piece.text
    if piece.tool_calls:
        delta["tool_calls"] = tool_calls(piece, with_index=True)
    return delta


def message_of(piece: Piece) -> dict[str, Any]:
    """A whole message. OpenAI's clients want `content` and `refusal` there even when they are null."""
    message: dict[str, Any] = {"role": "assistant", "content": piece.text, "refusal": None}
    if piece.reasoning:
        message["reasoning"] = message["reasoning_content"] = piece.reasoning
    if piece.tool_calls:
        message["content"] = piece.text or None
        message["tool_calls"] = tool_calls(piece, with_index=False)
    return message


def tool_calls(piece: Piece, *, with_index: bool) -> list[dict[str, Any]]:
    calls = []
    for call in piece.tool_calls:
        shown: dict[str, Any] = {"index": call.index} if with_index else {}
        if call.id:
            function = {"name": call.name, "arguments": call.arguments}
            calls.append({**shown, "id": call.id, "type": "function", "function": function})
        else:  # a later part of a call
            calls.append({**shown, "function": {"arguments": call.arguments}})
    return calls


def finish_reason(piece: Piece, *, has_called_tools: bool) -> str | None:
    return "tool_calls" if piece.finish == "stop" and has_called_tools else piece.finish


# ---- log-probabilities


def chat_logprobs(
    tokenizer: "Tokenizer",
    entries: Sequence[wire.TokenLogprobs],
    *,
    as_ids: bool = False,
    reasoning: Sequence[bool] | None = None,
) -> dict[str, Any]:
    """`as_ids`: tokens are shown as `token_id:5`, as vLLM does. With `reasoning`, which of them are some, every token
    has its id besides, and its place the entropy in nats."""
    shown = [_chat_logprob(tokenizer, entry, as_ids, reasoning is not None) for entry in entries]
    for entry, details, is_reasoning in zip(entries, shown, reasoning or (), strict=False):
        details |= {"reasoning": is_reasoning, "entropy": entry.entropy if math.isfinite(entry.entropy) else None}
    return {"content": shown, "refusal": None}


def _chat_logprob(tokenizer: "Tokenizer", entry: wire.TokenLogprobs, as_ids: bool, with_ids: bool) -> dict[str, Any]:
    best = zip(entry.top_ids, entry.top_logprobs, strict=True)
    return {
        **_token(tokenizer, entry.token_id, entry.logprob, as_ids, with_ids),
        "top_logprobs": [_token(tokenizer, token_id, logprob, as_ids, with_ids) for token_id, logprob in best],
    }


def _token(tokenizer: "Tokenizer", token_id: int, logprob: float, as_ids: bool, with_ids: bool) -> dict[str, Any]:
    raw = tokenizer.said_bytes(token_id)
    shown = f"token_id:{token_id}" if as_ids else raw.decode("utf-8", errors="replace")
    token = {"token": shown, "logprob": finite(logprob), "bytes": list(raw)}
    return token | {"token_id": token_id} if with_ids else token


class CompletionLogprobs:
    """The four parallel lists of `/v1/completions`; `text_offset` runs on through a stream."""

    def __init__(self, tokenizer: "Tokenizer") -> None:
        self._tokenizer = tokenizer
        self._text = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._offset = 0

    def of(self, entries: Sequence[wire.TokenLogprobs], *, first_id: int | None = None) -> dict[str, Any]:
        """`first_id`: a prompt's first token, which nothing predicts: its log-probability is null."""
        lists: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        if first_id is not None:
            self._add(lists, first_id, None, None)
        for entry in entries:
            best = zip(entry.top_ids, entry.top_logprobs, strict=True)
            top = {self._shown(token_id): finite(logprob) for token_id, logprob in best}
            top.setdefault(self._shown(entry.token_id), finite(entry.logprob))
            self._add(lists, entry.token_id, finite(entry.logprob), top)
        return lists

    def _add(
        self, lists: dict[str, list[Any]], token_id: int, logprob: float | None, top: dict[str, float] | None
    ) -> None:
        for name, value in zip(lists, (self._shown(token_id), logprob, top, self._offset), strict=True):
            lists[name].append(value)
        self._offset += len(self._text.decode(self._tokenizer.said_bytes(token_id)))

    def _shown(self, token_id: int) -> str:
        """Parts of characters as OpenAI writes them: as U+FFFD two of them would be one key."""
        raw = self._tokenizer.said_bytes(token_id)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


def prompt_logprobs(
    tokenizer: "Tokenizer", entries: Sequence[wire.TokenLogprobs]
) -> list[dict[str, dict[str, Any]] | None]:
    """vLLM's form: null for the first token, then a table by token id of the token itself and the best ones."""
    return [None, *(_ranked(tokenizer, entry) for entry in entries)]


def _ranked(tokenizer: "Tokenizer", entry: wire.TokenLogprobs) -> dict[str, dict[str, Any]]:
    table: dict[str, dict[str, Any]] = {}
    for rank, (token_id, logprob) in enumerate(zip(entry.top_ids, entry.top_logprobs, strict=True), start=1):
        table[str(token_id)] = {"logprob": finite(logprob), "rank": rank, "decoded_token": _shown(tokenizer, token_id)}
    own = {"logprob": finite(entry.logprob), "rank": None, "decoded_token": _shown(tokenizer, entry.token_id)}
    table.setdefault(str(entry.token_id), own)
    return table


def _shown(tokenizer: "Tokenizer", token_id: int) -> str:
    return tokenizer.said_bytes(token_id).decode("utf-8", errors="replace")


def finite(logprob: float) -> float:
    """JSON has no infinity; -9999 is what other servers write for "never"."""
    return logprob if logprob > -9999.0 else -9999.0


# ---- counts


def usage(stats: Stats) -> dict[str, Any]:
    given = {"continued_tokens": stats.given_tokens} if stats.given_tokens else {}
    return {
        "prompt_tokens": stats.prompt_tokens,
        "completion_tokens": stats.completion_tokens,
        "total_tokens": stats.prompt_tokens + stats.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": stats.cached_tokens} | given,
        "completion_tokens_details": {"reasoning_tokens": stats.reasoning_tokens},
    }


def timings(stats: Stats) -> dict[str, Any]:
    """llama.cpp's names. Milliseconds; the prompt counts from its admission, or from submission where both came with
    the first token. While the answer is under way: as of now."""
    end = stats.finished or time.monotonic()
    first = stats.first_token or end
    admitted = stats.started if stats.started is not None and stats.started < first else stats.submitted
    prompt_s, predicted_s = first - admitted, end - first
    computed = stats.prompt_tokens - stats.cached_tokens
    return {
        "cache_n": stats.cached_tokens,
        "prompt_n": computed,
        "prompt_ms": prompt_s * 1000,
        "prompt_per_second": _rate(computed, prompt_s),
        "predicted_n": stats.completion_tokens,
        "predicted_ms": predicted_s * 1000,
        "predicted_per_second": _rate(max(0, stats.completion_tokens - 1), predicted_s),
        "load_ms": stats.load_s * 1000,
        "queue_ms": (admitted - stats.submitted) * 1000,
        "total_ms": (stats.load_s + end - stats.submitted) * 1000,
    }


def _rate(count: int, seconds: float) -> float:
    return count / seconds if seconds > 0 else 0.0
