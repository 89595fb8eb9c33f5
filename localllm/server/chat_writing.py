"""The choices of a chat, written down whole and in chunks."""

import time
from typing import TYPE_CHECKING, Any

from localllm.daemon.replies import Piece
from localllm.server import answers
from localllm.server.fields import ChatRequest
from localllm.server.messages import plain_messages

if TYPE_CHECKING:
    from localllm.server.collect import Collected
    from localllm.server.writing import Answer


def chat_choice(answer: "Answer", wanted: ChatRequest, piece: "Collected") -> dict[str, Any]:
    """One choice of a whole answer."""
    if hides_reasoning(wanted):
        piece.reasoning = ""
    piece.text = echoed(wanted) + piece.text
    choice = {
        "index": piece.index,
        "message": answers.message_of(piece),
        "logprobs": _logprobs(answer, wanted, piece),
        "finish_reason": answers.finish_reason(piece, has_called_tools=bool(piece.tool_calls)),
        "stop_reason": piece.stop,
    }
    return choice | ({"token_ids": piece.ids} if wanted.return_token_ids else {})


def chat_extras(answer: "Answer", wanted: ChatRequest, piece: "Collected") -> dict[str, Any]:
    """What goes beside the choices of a whole answer; `piece` is the first of them."""
    extra: dict[str, Any] = {}
    if wanted.prompt_logprobs is not None:
        extra["prompt_logprobs"] = answers.prompt_logprobs(answer.resident.text.tokenizer, piece.prompt_logprobs)
    if wanted.return_token_ids:
        extra["prompt_token_ids"] = answer.asks[0].prompt
    return extra


def hides_reasoning(wanted: ChatRequest) -> bool:
    return wanted.include_reasoning is False or bool(wanted.reasoning and wanted.reasoning.exclude)


def echoed(wanted: ChatRequest) -> str:
    """What the answer goes on with, where that is to be repeated; tokens that it goes on with come as text anyway."""
    if not wanted.echo or wanted.continue_token_ids:
        return ""
    last = plain_messages(wanted.messages[-1:], lambda error: None)[0]
    return str(last["content"]) if last.get("role") == "assistant" else ""


def _logprobs(answer: "Answer", wanted: ChatRequest, piece: Piece) -> dict[str, Any] | None:
    if not wanted.logprobs:
        return None
    tokenizer, as_ids = answer.resident.text.tokenizer, bool(wanted.return_tokens_as_token_ids)
    reasoning = piece.are_reasoning if wanted.return_token_ids else None
    return answers.chat_logprobs(tokenizer, piece.logprobs, as_ids=as_ids, reasoning=reasoning)


class ChatWriter:
    """Role first, then how far the prompt is where that was asked for, then what the model says, then an empty delta
    with the reason for the end."""

    def __init__(self, answer: "Answer", wanted: ChatRequest) -> None:
        self._answer = answer
        self._wanted = wanted
        self._has_begun: set[int] = set()
        self._has_called: set[int] = set()
        self._shows_tokens = bool(wanted.logprobs or wanted.return_token_ids)
        self._hides_reasoning = hides_reasoning(wanted)
        self._progress = _Progress(answer) if wanted.return_progress else None

    def events(self, chunks: answers.Chunks, piece: Piece, extra: dict[str, Any]) -> bytes:
        written = b""
        if piece.is_text and piece.index in self._has_begun and not self._shows_tokens and self._progress is None:
            return chunks.content(piece.index, piece.text) if piece.text else b""
        if self._hides_reasoning:
            piece.reasoning = ""
        if piece.index not in self._has_begun:
            written += self._beginning(chunks, piece.index)
        if self._progress is not None:
            written += self._progress.events(chunks, piece)
            self._progress = None if self._progress.is_done else self._progress
        if piece.tool_calls:
            self._has_called.add(piece.index)
        if (delta := answers.delta_of(piece)) or (piece.ids and self._shows_tokens):
            written += chunks.chunk(answers.delta_choice(piece.index, delta, **self._details(piece)))
        if piece.finish is not None:
            reason = answers.finish_reason(piece, has_called_tools=piece.index in self._has_called)
            written += chunks.chunk(answers.delta_choice(piece.index, {}, reason, stop_reason=piece.stop), **extra)
        return written

    def _beginning(self, chunks: answers.Chunks, index: int) -> bytes:
        wanted = self._wanted
        self._has_begun.add(index)
        ids = {"prompt_token_ids": self._answer.asks[0].prompt} if wanted.return_token_ids else {}
        role = chunks.chunk(answers.delta_choice(index, {"role": "assistant", "content": ""}), **ids)
        before = echoed(wanted)
        return role + (chunks.content(index, before) if before else b"")

    def _details(self, piece: Piece) -> dict[str, Any]:
        details: dict[str, Any] = {}
        if self._wanted.logprobs:
            details["logprobs"] = _logprobs(self._answer, self._wanted, piece)
        if self._wanted.return_token_ids:
            details["token_ids"] = piece.ids
        return details


class _Progress:
    """llama.cpp's word of how far the prompt is; the last one says that all of it is done."""

    def __init__(self, answer: "Answer") -> None:
        self._stats = answer.reply.stats
        self._total = len(answer.asks[0].prompt)
        self._num_cached = 0
        self._num_told = -1

    @property
    def is_done(self) -> bool:
        return self._num_told >= self._total

    def events(self, chunks: answers.Chunks, piece: Piece) -> bytes:
        if piece.index != 0:
            return b""
        self._num_cached = max(self._num_cached, piece.num_cached)
        num_done = self._total if piece.ids or piece.finish else max(piece.num_computed, self._num_cached)
        if num_done <= self._num_told:
            return b""
        self._num_told = num_done
        time_ms = (time.monotonic() - self._stats.submitted) * 1000
        told = {"total": self._total, "cache": self._num_cached, "processed": num_done, "time_ms": round(time_ms, 3)}
        return chunks.last(prompt_progress=told)
