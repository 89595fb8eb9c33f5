"""One request's answer: its sequences, their tokens turned into text, and a mailbox that cannot grow without bound.

The reader takes what has gathered since it last looked; a slow reader gets fewer, larger pieces. Whoever closes a
reply early frees its pages within one engine step.
"""

import asyncio
import logging
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from localllm import wire
from localllm.daemon.failures import error_from
from localllm.daemon.incremental import DONE, TextCutter, ToolCall, begin
from localllm.daemon.journal import Record
from localllm.daemon.resident import Resident
from localllm.errors import ContextExceeded, LocalLLMError

if TYPE_CHECKING:
    from localllm.daemon.formats import Format
    from localllm.tokens.markup import MarkupSpec

logger = logging.getLogger("localllm.daemon")

Finish = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Ask:
    """One sequence to run, prompt already in ids. `stop` are strings, `stop_ids` tokens that end it, of which
    `stop_texts` were asked for by their text. `markup` says how the answer marks reasoning and tool calls,
    `keep_special` which special tokens those marks are. `format` is what `formats.settled` makes the `constraint` of.
    The last `num_given` ids of the prompt are the beginning of the answer; its text counts as said, unless it
    `shows_given`. `lora` is the path of an adapter."""

    prompt: list[int]
    sampling: wire.SamplingParams
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    stop_ids: tuple[int, ...] = ()
    stop_texts: Mapping[int, str] = field(default_factory=dict)
    include_stop: bool = False
    skip_special: bool = True
    top_logprobs: int | None = None
    prompt_logprobs: int | None = None
    priority: int = 0
    cache_salt: str = ""
    is_chat: bool = False
    markup: "MarkupSpec | None" = None
    keep_special: tuple[int, ...] = ()
    prompt_text: str = ""
    owner: str = ""
    format: "Format | None" = None
    constraint: wire.Constraint | None = None
    thinking: wire.ThinkingBudget | None = None
    pooled: wire.Pooled | None = None
    second_from: int = 0
    num_given: int = 0
    shows_given: bool = False
    lora: str = ""
    lora_scale: float = 1.0


@dataclass(slots=True)
class Piece:
    """What gathered for one sequence. Only `finish` is certain to come, once, with the last piece.

    `stop` is the string or token id that ended the sequence. `ids` holds every counted token, also those whose text is
    still held back. `tool_calls` are calls or parts of calls, see ToolCall. `num_computed` prompt tokens are done, of
    which `num_cached` were in the cache. `vector` is float32, little-endian. `are_reasoning` goes with `logprobs`:
    whether the token is one of reasoning, or of its tags.
    """

    index: int
    text: str = ""
    reasoning: str = ""
    tool_calls: list[ToolCall] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    logprobs: list[wire.TokenLogprobs] = field(default_factory=list)
    are_reasoning: list[bool] = field(default_factory=list)
    prompt_logprobs: list[wire.TokenLogprobs] = field(default_factory=list)
    started: bool = False
    finish: Finish | None = None
    stop: str | int | None = None
    num_computed: int = 0
    num_cached: int = 0
    vector: bytes = b""

    @property
    def is_text(self) -> bool:
        """Nothing but text, perhaps none yet."""
        return not (self.finish or self.reasoning or self.tool_calls)


@dataclass(slots=True)
class Stats:
    """Counts over all sequences of a reply, and the moments (monotonic seconds) that timings are made of. Of the prompt
    tokens, `given_tokens` are the beginning of the answer."""

    prompt_tokens: int = 0
    given_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    reasoning_tokens: int = 0
    load_s: float = 0.0
    submitted: float = 0.0
    started: float | None = None
    first_token: float | None = None
    finished: float | None = None


Begun = tuple[TextCutter, Piece]
"""What cuts the text of a sequence, and the text that its answer has already."""


class Reply:
    """An answer under way. `open` starts it; iterate with `gather` until `is_done`; always `close`."""

    def __init__(self, resident: Resident, record: Record, *, load_s: float = 0.0) -> None:
        self.stats = Stats(load_s=load_s)
        self.id = uuid.uuid4().hex
        self.record = record
        self.asks: Sequence[Ask] = ()
        self._resident = resident
        self._sequences: list[_Sequence] = []
        self._pending: dict[int, Piece] = {}
        self._error: LocalLLMError | None = None
        self._ready = asyncio.Event()
        self._listener: Callable[[], None] | None = None

    @classmethod
    def open(
        cls,
        resident: Resident,
        asks: Sequence[Ask],
        record: Record,
        *,
        load_s: float = 0.0,
        begun: Sequence[Begun] = (),
    ) -> "Reply":
        """Submit all sequences; sequence i has index i. Copies of one prompt are neighbours, the same list, and count
        once. The record hears what happens. `begun` are their cutters where that was done beforehand. ContextExceeded
        when a prompt is too long."""
        for ask in asks:
            _check_length(ask, resident.context_length)
        reply = cls(resident, record, load_s=load_s)
        reply.asks = asks
        record.on_cancel(reply.abort)
        record.note("submitted", sequences=len(asks), max_tokens=asks[0].max_tokens if asks else None)
        reply.stats.submitted = time.monotonic()
        different = {id(ask.prompt): ask for ask in asks}.values()
        reply.stats.prompt_tokens = sum(len(ask.prompt) for ask in different)
        reply.stats.given_tokens = sum(ask.num_given for ask in different)
        try:
            for index, ask in enumerate(asks):
                is_copy = index > 0 and ask.prompt is asks[index - 1].prompt
                reply._start(index, ask, begun[index] if begun else begin(resident.text, ask), not is_copy)
        except LocalLLMError:
            reply.close()
            raise
        return reply

    def _start(self, index: int, ask: Ask, begun: Begun, counts_prompt: bool) -> None:
        cutter, said = begun
        before = said if ask.shows_given else None
        sequence = _Sequence(self, ask, index, self.record.sequence_id(index), cutter, before, counts_prompt)
        self._sequences.append(sequence)
        self._resident.submit(_submit(sequence.request_id, ask), sequence)

    @property
    def is_done(self) -> bool:
        """Every sequence has finished well and every piece was taken: after a failure, `gather` and `take` raise."""
        return self._error is None and not self._pending and all(sequence.is_finished for sequence in self._sequences)

    @property
    def has_failed(self) -> bool:
        """What was said before may still wait to be taken."""
        return self._error is not None

    @property
    def context_length(self) -> int:
        return self._resident.context_length

    def num_generated(self, index: int) -> int | None:
        """Tokens of one sequence so far; None when it has ended."""
        sequence = self._sequences[index]
        return None if sequence.is_finished or self._error else sequence.num_tokens

    async def gather(self, timeout_s: float | None = None) -> list[Piece]:
        """What came since the last call, at most one piece per sequence; waits for something. Empty after the timeout.
        Raises what ended the reply early: WorkerCrashed, ContextExceeded and the like."""
        if not self._pending and self._error is None:
            try:
                async with asyncio.timeout(timeout_s):
                    await self._ready.wait()
            except TimeoutError:
                return []
        return self.take()

    def take(self) -> list[Piece]:
        """What has gathered, without waiting. Raises what ended the reply early once there is nothing left."""
        self._ready.clear()
        pieces, self._pending = list(self._pending.values()), {}
        if self._error is not None and not pieces:
            raise self._error
        if self._error is not None:
            self._ready.set()
        return pieces

    def listen(self, listener: Callable[[], None]) -> None:
        """Call this after every step that brought something, and when the reply fails; it must not raise."""
        self._listener = listener

    def flush(self) -> None:
        """The step is over: whoever listens may take what gathered."""
        if self._listener is not None and (self._pending or self._error is not None):
            self._listener()

    def close(self) -> None:
        """Cancel what still runs. Safe to call at any time, more than once."""
        for sequence in self._sequences:
            if not sequence.is_finished:
                self._resident.cancel(sequence.request_id)

    def abort(self, error: LocalLLMError) -> None:
        """End the reply from outside, as a drain does: the reader gets the error."""
        self.close()
        self.fail(error)

    # ---- called by sequences

    def fail(self, error: LocalLLMError) -> None:
        """What has ended well stays so."""
        if self._sequences and all(sequence.is_finished for sequence in self._sequences):
            return
        self.record.note("failed", code=error.code, **self._counts())
        self._error = self._error or error
        self._ready.set()
        self.flush()

    def pending(self, index: int) -> Piece:
        """The piece that gathers for this sequence; the reader is woken."""
        self._ready.set()
        piece = self._pending.get(index)
        if piece is None:
            piece = self._pending[index] = Piece(index)
        return piece

    def cancel(self, request_id: str) -> None:
        self._resident.cancel(request_id)

    def note_prefill(self, first_token: float) -> None:
        """How fast the prompt was read, where there was one."""
        stats = self.stats
        if len(self._sequences) == 1 and stats.started is not None:
            self._resident.note_prefill(stats.prompt_tokens - stats.cached_tokens, first_token - stats.started)

    def note_finish(self, reason: Finish) -> None:
        if all(sequence.is_finished for sequence in self._sequences):
            self.stats.finished = time.monotonic()
            self.record.note("finished", reason=reason, **self._counts())

    def _counts(self) -> dict[str, int]:
        stats = self.stats
        return {"prompt": stats.prompt_tokens, "cached": stats.cached_tokens, "completion": stats.completion_tokens}


class _Sequence:
    """A sink for one sequence: chunks in, text pieces out."""

    def __init__(
        self,
        reply: Reply,
        ask: Ask,
        index: int,
        request_id: str,
        cutter: TextCutter,
        before: Piece | None,
        counts_prompt: bool,
    ) -> None:
        self.request_id = request_id
        self._before = before
        self._counts_prompt = counts_prompt
        self.is_finished = False
        self._reply = reply
        self._ask = ask
        self._index = index
        self._cutter = cutter
        self.num_tokens = 0
        self._is_preempted = False
        self._num_new = 0
        self._last_token: float | None = None

    def feed(self, chunk: wire.TokenChunk) -> None:
        if chunk.preempted or self._is_preempted:
            self._note_preemption(chunk.preempted)
        if chunk.preempted:
            return
        if chunk.finish in ("error", "cancelled"):
            self.fail(_error_of(chunk))
            return
        piece = self._reply.pending(self._index)
        self._note_start(chunk, piece)
        if self._before is not None:
            self._show_before(self._before, piece)
        hit = self._take(chunk, piece)
        if hit is not None:
            self._finish(piece, "stop", hit)
            if chunk.finish is None:
                self._reply.cancel(self.request_id)
        elif chunk.finish is not None:
            hit = self._cutter.finish(piece)
            is_cut = chunk.finish == "length" and hit is None
            self._finish(piece, "length" if is_cut else "stop", self._end(chunk, piece) if hit is None else hit)

    def _end(self, chunk: wire.TokenChunk, piece: Piece) -> str | int | None:
        """The token that ended it, or its text where that was asked for."""
        text = None if chunk.stop_id is None else self._ask.stop_texts.get(chunk.stop_id)
        if text is not None and self._ask.include_stop:
            piece.text += text
        return chunk.stop_id if text is None else text

    def _show_before(self, before: Piece, piece: Piece) -> None:
        """What was given comes first, and counts for nothing."""
        self._before = None
        piece.text, piece.reasoning, piece.tool_calls = before.text, before.reasoning, before.tool_calls

    def _note_preemption(self, is_preempted: bool) -> None:
        self._is_preempted = is_preempted
        self._reply.record.note("preempted" if is_preempted else "resumed", sequence=self._index)

    def flush(self) -> None:
        self._note_pace()
        self._reply.flush()

    def _note_pace(self) -> None:
        """Once for all tokens that came together. The first of a sequence came after nothing."""
        if self._num_new:
            now = time.monotonic()
            since_s = -1.0 if self._last_token is None else now - self._last_token
            self._reply.record.note_tokens(self._num_new, since_s)
            self.num_tokens += self._num_new
            self._num_new, self._last_token = 0, now

    def fail(self, error: LocalLLMError) -> None:
        self._reply.fail(error)
        self.is_finished = True

    def _note_start(self, chunk: wire.TokenChunk, piece: Piece) -> None:
        stats = self._reply.stats
        piece.prompt_logprobs += chunk.prompt_logprobs
        piece.num_computed = max(piece.num_computed, chunk.num_computed)
        piece.vector += chunk.vector
        if chunk.started:
            piece.started = True
            piece.num_cached = chunk.num_cached
            if self._counts_prompt:
                stats.cached_tokens += chunk.num_cached
            admitted = min(stats.submitted + chunk.waited_s, time.monotonic())
            stats.started = stats.started or admitted
            self._reply.record.note("admitted", at=admitted, cached=chunk.num_cached, prompt=stats.prompt_tokens)
        if not chunk.ids and chunk.num_computed and chunk.finish is None:
            self._reply.record.note("progress", computed=chunk.num_computed)
        if chunk.ids and stats.first_token is None:
            stats.first_token = time.monotonic()
            self._reply.record.note("first_token")
            self._reply.note_prefill(stats.first_token)

    def _take(self, chunk: wire.TokenChunk, piece: Piece) -> str | None:
        """Cut the chunk's tokens into text, one by one, up to a stop string: the string that was hit, if any."""
        for position, token_id in enumerate(chunk.ids):
            piece.ids.append(token_id)
            self._num_new += 1
            self._reply.stats.completion_tokens += 1
            was_reasoning = self._cutter.is_reasoning
            hit = self._cutter.push(token_id, piece)
            if chunk.logprobs:
                piece.logprobs.append(chunk.logprobs[position])
                piece.are_reasoning.append(was_reasoning or self._cutter.is_reasoning)
            self._reply.stats.reasoning_tokens += was_reasoning
            if hit is not None:
                return hit
        return None

    def _finish(self, piece: Piece, reason: Finish, stop: str | int | None) -> None:
        self._note_pace()  # the last tokens came before the end
        piece.finish, piece.stop = reason, None if stop == DONE else stop
        self.is_finished = True
        self._reply.note_finish(reason)


def _check_length(ask: Ask, context_length: int) -> None:
    room_for_answer = 0 if ask.max_tokens == 0 else 1
    if len(ask.prompt) + room_for_answer > context_length:
        error = ContextExceeded(len(ask.prompt), context_length)
        error.param = "messages" if ask.is_chat else "prompt"
        raise error


def _submit(request_id: str, ask: Ask) -> wire.Submit:
    return wire.Submit(
        request_id=request_id,
        prompt=ask.prompt,
        sampling=ask.sampling,
        max_tokens=ask.max_tokens,
        stop_ids=list(ask.stop_ids),
        top_logprobs=ask.top_logprobs,
        prompt_logprobs=ask.prompt_logprobs,
        priority=ask.priority,
        cache_salt=ask.cache_salt,
        owner=ask.owner,
        constraint=ask.constraint,
        thinking=ask.thinking,
        pooled=ask.pooled,
        num_given=ask.num_given,
        second_from=ask.second_from,
        lora=ask.lora,
        lora_scale=ask.lora_scale,
    )


def _error_of(chunk: wire.TokenChunk) -> LocalLLMError:
    if chunk.finish == "cancelled":
        return LocalLLMError("the request was cancelled")
    return error_from(chunk.error_code, chunk.error or "the engine refused the request", chunk.error_hint)
