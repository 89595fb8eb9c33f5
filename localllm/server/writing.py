"""An answer under way, written down as one body or as a stream of events."""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from localllm.daemon.replies import Ask, Piece, Reply, Stats
from localllm.daemon.resident import Resident
from localllm.server import answers
from localllm.server.chat_writing import ChatWriter, chat_choice, chat_extras
from localllm.server.collect import Collected, collect
from localllm.server.fields import ChatRequest, CompletionRequest
from localllm.server.notes import Notes
from localllm.server.pump import AnswerStream

FIRST_EVENT_S = 10.0
"""How long the status line waits for the engine's first word: a refusal then still gets its own status."""


@dataclass(slots=True)
class Answer:
    """A reply and how to write it down. `early` are pieces taken while the status line was held back."""

    wanted: ChatRequest | CompletionRequest
    resident: Resident
    asks: list[Ask]
    reply: Reply
    envelope: answers.Envelope
    notes: Notes
    early: list[Piece]

    async def first_word(self) -> None:
        """Wait for the first pieces. Raises when the engine refuses the request."""
        self.early = await self.reply.gather(FIRST_EVENT_S)

    @property
    def extras(self) -> dict[str, Any]:
        """What goes beside the choices at the end."""
        extra: dict[str, Any] = {"timings": answers.timings(self.reply.stats)} if self.wanted.timings else {}
        if self.notes.num_truncated:
            extra |= {"truncated": True, "truncated_prompt_tokens": self.notes.num_truncated}
        return extra | ({"warnings": self.notes.warnings} if self.notes.warnings else {})


# ---- whole bodies


async def whole(answer: Answer) -> dict[str, Any]:
    pieces = await collect(answer.reply, len(answer.asks))
    wanted = answer.wanted
    if isinstance(wanted, ChatRequest):
        choices = [chat_choice(answer, wanted, piece) for piece in pieces]
        extra = chat_extras(answer, wanted, pieces[0])
    else:
        choices = [_completion_choice(answer, wanted, rank, piece) for rank, piece in enumerate(_best(wanted, pieces))]
        extra = {}
    body = answer.envelope.head(is_chunk=False)
    return {**body, "choices": choices, "usage": answers.usage(answer.reply.stats), **extra, **answer.extras}


def _best(wanted: CompletionRequest, pieces: Sequence[Collected]) -> list[Collected]:
    """For each prompt the n choices with the highest mean log-probability, when more were asked for."""
    count, kept = wanted.best_of or wanted.n or 1, wanted.n or 1
    if count == kept:
        return list(pieces)
    groups = [pieces[start : start + count] for start in range(0, len(pieces), count)]
    return [piece for group in groups for piece in sorted(group, key=_mean_logprob, reverse=True)[:kept]]


def _mean_logprob(piece: Piece) -> float:
    return sum(entry.logprob for entry in piece.logprobs) / max(1, len(piece.logprobs))


def _completion_choice(answer: Answer, wanted: CompletionRequest, rank: int, piece: Collected) -> dict[str, Any]:
    ask, tokenizer = answer.asks[piece.index], answer.resident.text.tokenizer
    text = ask.prompt_text + piece.text if wanted.echo else piece.text
    choice = answers.text_choice(rank, text, piece.finish, stop_reason=piece.stop)
    if wanted.logprobs is not None:
        scored = [*piece.prompt_logprobs, *piece.logprobs] if wanted.echo else piece.logprobs
        choice["logprobs"] = answers.CompletionLogprobs(tokenizer).of(
            scored, first_id=ask.prompt[0] if wanted.echo else None
        )
    if wanted.prompt_logprobs is not None:
        choice["prompt_logprobs"] = answers.prompt_logprobs(tokenizer, piece.prompt_logprobs)
    if wanted.return_token_ids:
        choice |= {"token_ids": piece.ids, "prompt_token_ids": ask.prompt}
    return choice


# ---- streams


def streamed(answer: Answer, stack: contextlib.AsyncExitStack) -> AnswerStream:
    """Events until the answer is done. Closing it frees the pages."""
    return AnswerStream(answer.reply, answer.early, _Script(answer).events, stack)


class _Script:
    """The events of one answer: its pieces', then usage where it was asked for, then the end."""

    def __init__(self, answer: Answer) -> None:
        options = answer.wanted.stream_options
        self._answer = answer
        self._shows_usage = bool(options and options.include_usage)
        self._writer = _writer(answer)
        beside = self._beside if _beside_all(answer.wanted) else None
        self._chunks = answers.Chunks(answer.envelope, announces_usage=self._shows_usage, beside=beside)

    def events(self, pieces: list[Piece]) -> bytes:
        is_done = self._answer.reply.is_done
        written = b"".join([self._writer.events(self._chunks, piece, {}) for piece in pieces[:-1]])
        extra = self._answer.extras if is_done and not self._shows_usage else {}
        written += self._writer.events(self._chunks, pieces[-1], extra)
        return written + self._ending() if is_done else written

    def _beside(self) -> dict[str, Any]:
        """What goes with every chunk."""
        return {name: of(self._answer.reply.stats) for name, of in _beside_all(self._answer.wanted).items()}

    def _ending(self) -> bytes:
        if not self._shows_usage:
            return answers.DONE
        usage = answers.usage(self._answer.reply.stats)
        return self._chunks.last(usage=usage, **self._answer.extras) + answers.DONE


def _beside_all(wanted: ChatRequest | CompletionRequest) -> dict[str, Callable[[Stats], dict[str, Any]]]:
    """Counts that are wanted with every chunk of a stream."""
    options = wanted.stream_options
    found: dict[str, Callable[[Stats], dict[str, Any]]] = {}
    if options is not None and options.continuous_usage_stats:
        found["usage"] = answers.usage
    if isinstance(wanted, ChatRequest) and wanted.timings_per_token:
        found["timings"] = answers.timings
    return found


def _writer(answer: Answer) -> "ChatWriter | _TextWriter":
    wanted = answer.wanted
    return ChatWriter(answer, wanted) if isinstance(wanted, ChatRequest) else _TextWriter(answer, wanted)


class _TextWriter:
    """The echoed prompt first where it was asked for, then text, then the reason for the end."""

    def __init__(self, answer: Answer, wanted: CompletionRequest) -> None:
        self._answer = answer
        self._wanted = wanted
        self._logprobs: dict[int, answers.CompletionLogprobs] = {}
        self._has_echoed: set[int] = set()

    def events(self, chunks: answers.Chunks, piece: Piece, extra: dict[str, Any]) -> bytes:
        wanted, written = self._wanted, b""
        if piece.is_text and not (wanted.echo or wanted.logprobs is not None or wanted.return_token_ids):
            return chunks.text(piece.index, piece.text) if piece.text else b""
        if wanted.echo and piece.index not in self._has_echoed:
            self._has_echoed.add(piece.index)
            written += chunks.chunk(self._echo(piece))
        if piece.text or (piece.ids and (wanted.logprobs is not None or wanted.return_token_ids)):
            written += chunks.chunk(answers.text_choice(piece.index, piece.text, **self._details(piece)))
        if piece.finish is not None:
            written += chunks.chunk(answers.text_choice(piece.index, "", piece.finish, stop_reason=piece.stop), **extra)
        return written

    def _echo(self, piece: Piece) -> dict[str, Any]:
        ask = self._answer.asks[piece.index]
        choice = answers.text_choice(piece.index, ask.prompt_text)
        if self._wanted.logprobs is not None:
            choice["logprobs"] = self._lists(piece.index).of(piece.prompt_logprobs, first_id=ask.prompt[0])
        return choice

    def _details(self, piece: Piece) -> dict[str, Any]:
        wanted = self._wanted
        details: dict[str, Any] = {}
        if wanted.logprobs is not None:
            details["logprobs"] = self._lists(piece.index).of(piece.logprobs)
        if wanted.return_token_ids:
            details["token_ids"] = piece.ids
        return details

    def _lists(self, index: int) -> answers.CompletionLogprobs:
        return self._logprobs.setdefault(index, answers.CompletionLogprobs(self._answer.resident.text.tokenizer))
