"""What a row's answer means for its sequence: tokens that stand, whether it ends, and the chunk that says so."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from localllm.engine.scheduler import Scheduler
from localllm.engine.sequence import Sequence as Running
from localllm.engine.speculative import num_standing
from localllm.engine.step import RowResult, Want
from localllm.engine.views import Counters
from localllm.engine.whole import Head, behind, joined
from localllm.errors import LocalLLMError, NothingAllowed
from localllm.wire import FinishReason, TokenChunk


class Digest:
    """Marks a sequence that ends as finished; the engine takes it out. `head`: what becomes of pooled vectors."""

    def __init__(self, scheduler: Scheduler, counters: Counters, head: Head | None) -> None:
        self._scheduler = scheduler
        self._counters = counters
        self._head = head

    def chunk_of(self, sequence: Running, end: int, life: int, row: RowResult) -> TokenChunk | None:
        """None when there is nothing to say. `end`: up to where the sequence is computed with this row; `life`: how
        often it had been preempted when the row was planned."""
        if sequence.whole is not None:
            return self._take_part(sequence, sequence.whole, end, life, row)
        if sequence.drafted:
            if row.error:
                self._do_without_drafts(sequence)
                return None
            row = self._settle(sequence, row)
            end = sequence.num_computed
        if row.error:
            return self._end_early(sequence, row)
        try:
            return self._generate(sequence, end, row)
        except LocalLLMError as error:
            return self.failed(sequence, error)

    def _settle(self, sequence: Running, row: RowResult) -> RowResult:
        """Keep what the model said after the last known token and after each draft token that it said itself."""
        num_right = num_standing(sequence.drafted, row.sampled)
        self._counters.num_drafts += 1
        self._counters.num_drafted_tokens += len(sequence.drafted)
        self._counters.num_accepted_tokens += num_right
        self._scheduler.settle(sequence, num_right)
        return replace(row, sampled=row.sampled[: num_right + 1], logprobs=row.logprobs[: num_right + 1])

    def _do_without_drafts(self, sequence: Running) -> None:
        """A row fails as a whole, and perhaps only a wrong guess made it fail: compute it again without any."""
        sequence.may_draft = False
        sequence.num_pending -= 1
        sequence.settle(0)  # nothing for the backend to commit: its row gave no tokens, and all of it comes again
        self._scheduler.start_again(sequence)

    def _generate(self, sequence: Running, end: int, row: RowResult) -> TokenChunk | None:
        scored = list(row.targets)
        if scored:
            first = min(end, sequence.num_prompt - 1) - len(scored)
            scored = scored[max(0, sequence.num_scored - first) :]  # the rest was said before a preemption
            sequence.num_scored += len(scored)
        ids, finish, stop_id = self._accept(sequence, end, row)
        if not ids and not scored and finish is None and end <= sequence.num_reported:
            return None
        sequence.num_reported = max(sequence.num_reported, end)
        was_started = sequence.is_started
        chunk = TokenChunk(
            sequence.request_id,
            ids,
            list(row.logprobs[: len(ids)]),
            scored,
            *self._start_of(sequence),
            sequence.num_reported,
            finish,
            stop_id,
            waited_s=0.0 if was_started else sequence.waited_s,
        )
        sequence.is_finished = finish is not None
        return chunk

    def _accept(self, sequence: Running, end: int, row: RowResult) -> tuple[list[int], FinishReason | None, int | None]:
        """Tokens that stand, and whether and why the sequence ends with this row."""
        if not row.sampled:
            is_done = not sequence.generates and end == sequence.num_prompt
            return [], "length" if is_done else None, None
        sequence.num_pending -= 1
        for place, token in enumerate(row.sampled):
            if token in sequence.stop_ids:
                return list(row.sampled[:place]), "stop", token
            sequence.accept(token)
            self._counters.num_generated_tokens += 1
            if sequence.guide is not None and sequence.guide.is_finished:
                return list(row.sampled[: place + 1]), "stop", None
        return list(row.sampled), "length" if len(sequence.ids) >= sequence.limit else None, None

    def _start_of(self, sequence: Running) -> tuple[bool, int]:
        """Whether this is the first that is said of the sequence, and then its cached tokens."""
        if sequence.is_started:
            return False, 0
        sequence.is_started = True
        self._counters.num_prompt_tokens += sequence.num_prompt
        self._counters.num_cached_tokens += sequence.num_cached
        return True, sequence.num_cached

    def _end_early(self, sequence: Running, row: RowResult) -> TokenChunk:
        """A row without a token is an error, unless nothing was left to say: at least so many tokens were wanted
        (min_tokens), but the grammar has come to its end."""
        if row.error_code != NothingAllowed.code or sequence.guide is None or not sequence.guide.may_end:
            return self._fail(sequence, row)
        started, num_cached = self._start_of(sequence)
        sequence.is_finished = True
        return TokenChunk(sequence.request_id, started=started, num_cached=num_cached, finish="stop")

    def failed(self, sequence: Running, error: LocalLLMError) -> TokenChunk:
        """The end of a sequence that cannot go on."""
        return self._fail(sequence, RowResult(sequence.seq_id, error=error.message, error_code=error.code))

    def _fail(self, sequence: Running, row: RowResult) -> TokenChunk:
        started, num_cached = self._start_of(sequence)
        sequence.is_finished = True
        return TokenChunk(
            sequence.request_id,
            started=started,
            num_cached=num_cached,
            finish="error",
            error_code=row.error_code or LocalLLMError.code,
            error=row.error,
        )

    def _take_part(self, sequence: Running, want: Want, end: int, life: int, row: RowResult) -> TokenChunk | None:
        """One more part of a whole answer. Only a submitted sequence has something to tell: how far it is, and with the
        last part the vector."""
        if life != sequence.num_preemptions:
            return None  # it will be computed again
        sequence.parts.append((end, row))
        is_last = end == sequence.num_prompt
        if sequence.is_awaited:
            sequence.is_finished = is_last or bool(row.error)
            return None
        if row.error:
            return self._fail(sequence, row)
        if not is_last and end <= sequence.num_reported:
            return None
        sequence.num_reported = max(sequence.num_reported, end)
        waited_s = 0.0 if sequence.is_started else sequence.waited_s
        started, num_cached = self._start_of(sequence)
        sequence.is_finished = is_last
        return TokenChunk(
            sequence.request_id,
            started=started,
            num_cached=num_cached,
            num_computed=sequence.num_reported,
            waited_s=waited_s,
            finish="length" if is_last else None,
            vector=_vector_bytes(behind(self._head, joined(sequence.parts, want))) if is_last else b"",
        )


def _vector_bytes(vector: NDArray[np.float32]) -> bytes:
    """As it travels: little-endian float32."""
    return vector.astype("<f4").tobytes()
