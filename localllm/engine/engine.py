"""Add, abort, step, snapshot: requests in, chunks of tokens out. Owns one backend and is owned by one thread."""

from __future__ import annotations

import secrets
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from localllm.engine.adapters import AdapterShelf, ReadAdapter
from localllm.engine.digest import Digest
from localllm.engine.guides import Guide, Guides, is_guided, mask_of
from localllm.engine.limits import Limits, check_kind, no_writer
from localllm.engine.looking import answer_to
from localllm.engine.memory import Memory
from localllm.engine.scheduler import NO_DRAFTS, Drafts, Scheduler, rank_at
from localllm.engine.sequence import Sequence as Running
from localllm.engine.speculative import Drafter
from localllm.engine.step import Backend, RowResult, StepPlan, StepResult, Want
from localllm.engine.views import Counters, row_views, snapshot
from localllm.engine.whole import Head, behind, joined, pooling_of
from localllm.errors import InvalidRequest, LocalLLMError
from localllm.wire import Answer, Pooled, Question, RowView, Snapshot, Submit, TokenChunk

_GUIDE_WAIT_S = 0.02


@dataclass(frozen=True, slots=True)
class _InFlight:
    """A submitted step: its sequences, up to where each will be computed, and which life of the sequence it is."""

    sequences: list[Running]
    ends: list[int]
    lives: list[int]
    plan: StepPlan


class Engine:
    """Runs sequences on a backend. `clock` gives seconds and only ever rises.

    `num_pages` pages of `page_size` tokens (the layout's), at most `token_budget` tokens a step and `max_sequences`
    sequences at a time. `drafter` guesses tokens to be checked, where the backend does not overlap steps: a guess can
    only be made once the last token is known. `is_encoder`: sequences are computed whole, in one step, and only give
    vectors. `head`: what becomes of these. `guides` bound what sequences say, where a Submit asks for it.
    `read_adapter` opens the adapters that sequences name.
    NotEnoughMemory when the backend cannot hold the pool.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        context_length: int,
        num_pages: int,
        page_size: int = 16,
        token_budget: int = 512,
        max_sequences: int = 256,
        clock: Callable[[], float] = time.monotonic,
        prefix_cache: bool = True,
        num_slots: int | None = None,
        num_checkpoints: int = 16,
        drafter: Drafter | None = None,
        guides: Guides | None = None,
        is_encoder: bool = False,
        head: Head | None = None,
        read_adapter: ReadAdapter | None = None,
    ) -> None:
        layout = backend.layout
        if page_size != layout.page_size:
            raise ValueError(f"the backend has pages of {layout.page_size} tokens, not {page_size}")
        num_slots = min(max_sequences, num_slots or max_sequences) if layout.has_state else 0
        backend.allocate(num_pages, num_slots)
        self.context_length = context_length
        self.counters = Counters()
        self.memory = Memory(layout, num_pages, num_slots, num_checkpoints=num_checkpoints, prefix_cache=prefix_cache)
        self.scheduler = Scheduler(self.memory, token_budget=token_budget, max_sequences=num_slots or max_sequences)
        self._backend = backend
        self._clock = clock
        self._depth = 2 if backend.info.overlaps else 1
        self.drafter = drafter
        self._in_flight: deque[_InFlight] = deque()
        self._last_step: _InFlight | None = None
        self._sequences: dict[str, Running] = {}
        self._guides = guides
        self.adapters = AdapterShelf(backend, read_adapter)
        self.is_encoder = is_encoder
        self._head = head
        self._judges = head is not None and head.judges
        self._digest = Digest(self.scheduler, self.counters, head)
        self._unguided: dict[Running, Future[Guide]] = {}  # they start when their guides are there
        self._num_added = 0
        self._num_planned = 0
        self._held_back: list[TokenChunk] = []
        self.limits = Limits(
            context_length=context_length,
            vocab_size=backend.vocab_size,
            longest=self.memory.longest_sequence(context_length),
            longest_atomic=self.memory.longest_sequence(context_length, atomic=True),
        )

    # ---- requests

    def add(self, submit: Submit) -> None:
        """Queue a sequence. InvalidRequest names a bad field; ContextExceeded and NotEnoughMemory mean that it could
        never run, however long it waited."""
        if is_guided(submit) and self._guides is None:
            raise InvalidRequest("this engine follows no constraints", param="constraint")
        check_kind(submit.pooled, judges=self._judges, is_encoder=self.is_encoder)
        limit = self.limits.end_of(submit)
        seed = submit.sampling.seed
        whole = None if submit.pooled is None else Want(pooled=pooling_of(self._head, submit.pooled))
        self._queue(submit, limit=limit, seed=secrets.randbits(63) if seed is None else seed, whole=whole)

    def abort(self, request_id: str) -> bool:
        """Forget a sequence; its pages are free at once. False when it is not known (any more). Nothing more is said
        of it: no chunk follows."""
        sequence = self._sequences.get(request_id)
        if sequence is None:
            return False
        self._drop(sequence)
        self._held_back = [chunk for chunk in self._held_back if chunk.request_id != request_id]
        return True

    def _queue(
        self, submit: Submit, *, limit: int, seed: int, whole: Want | None = None, atomic: bool = False
    ) -> Running:
        if submit.request_id in self._sequences:
            raise InvalidRequest(f"request id {submit.request_id!r} is already running", param="request_id")
        self._num_added += 1
        rank = rank_at(submit.priority, self._num_planned)
        is_atomic = atomic or self.is_encoder
        sequence = Running(self._num_added, submit, limit=limit, seed=seed, rank=rank, whole=whole, atomic=is_atomic)
        if submit.sampling.allowed_token_ids:
            sequence.allowed = mask_of(submit.sampling.allowed_token_ids, self._backend.vocab_size)
        sequence.adapter = self.adapters.hold(submit.lora)
        self._sequences[submit.request_id] = sequence
        sequence.added_s = self._clock()
        if self._guides is not None and sequence.generates and is_guided(submit):
            self._unguided[sequence] = self._guides.open(submit)
        else:
            self.scheduler.add(sequence)
        return sequence

    # ---- steps

    @property
    def has_work(self) -> bool:
        """Whether `step` has something to do."""
        return bool(self._sequences or self._in_flight or self._held_back)

    def step(self) -> list[TokenChunk]:
        """Plan, submit and collect one step (with a backend that overlaps, one is planned ahead). Returns what it gave
        each sequence; an empty list when there was no work."""
        chunks, self._held_back = self._held_back, []
        chunks.extend(self._step())
        return chunks

    def _step(self) -> list[TokenChunk]:
        self._start_guided()
        self._fill()
        if not self._in_flight:
            assert len(self._sequences) == len(self._unguided), "sequences are left, but none of them can run"
            wait(self._unguided.values(), _GUIDE_WAIT_S, FIRST_COMPLETED)
            return []
        done = self._in_flight.popleft()
        result = self._backend.collect()
        self._count_step(done, result)
        answers = zip(done.sequences, done.ends, done.lives, result.rows, strict=True)
        return self._losses() + [chunk for answer in answers if (chunk := self._take(*answer)) is not None]

    def _losses(self) -> list[TokenChunk]:
        """A word to those that were preempted."""
        lost = self.scheduler.preempted
        if not lost:
            return []
        self.scheduler.preempted = []
        told = (sequence for sequence in lost if sequence.is_started and not sequence.is_finished)
        return [TokenChunk(sequence.request_id, preempted=True) for sequence in told]

    def _start_guided(self) -> None:
        """Those whose guides are there by now get in line; for those that cannot have one that was all."""
        for sequence, guide in [item for item in self._unguided.items() if item[1].done()]:
            try:
                sequence.follow(guide.result())
            except LocalLLMError as error:
                self._held_back.append(self._digest.failed(sequence, error))
                self._drop(sequence)
            else:
                del self._unguided[sequence]
                self.scheduler.add(sequence)

    def _fill(self) -> None:
        if not self._in_flight:
            self.adapters.settle()
        while len(self._in_flight) < self._depth:
            self.scheduler.now_s = self._clock()
            planned = self.scheduler.plan(self._num_planned, self._drafts())
            if planned is None:
                return
            plan, sequences = planned
            self._num_planned += 1
            if self._guides is not None:
                self._guides.compute()
            self._backend.submit(plan)
            ends = [sequence.num_computed for sequence in sequences]
            lives = [sequence.num_preemptions for sequence in sequences]
            self._in_flight.append(_InFlight(sequences, ends, lives, plan))

    def _drafts(self) -> Drafts:
        if self.drafter is None or self._depth > 1:
            return NO_DRAFTS
        return self.drafter.propose(self.scheduler.running)

    def _count_step(self, done: _InFlight, result: StepResult) -> None:
        self.counters.count_step(done.plan.num_tokens, result.seconds)
        self._last_step = done
        if self.drafter is not None:
            self.drafter.note(done.plan, result.seconds)

    def _take(self, sequence: Running, end: int, life: int, row: RowResult) -> TokenChunk | None:
        """What there is to say of a row's answer. A sequence that ended while this row was under way has no use for
        it: the token is dropped and not counted."""
        if sequence.is_finished:
            return None
        try:
            return self._digest.chunk_of(sequence, end, life, row)
        finally:
            if sequence.is_finished:
                self._drop(sequence)

    def _drop(self, sequence: Running) -> None:
        sequence.is_finished = True
        self.adapters.release(sequence.lora)
        del self._sequences[sequence.request_id]
        guide = self._unguided.pop(sequence, None)
        if guide is None:
            self.scheduler.remove(sequence)
        else:
            guide.cancel()

    # ---- whole answers: embeddings, evaluation, calibration

    def run_rows(
        self,
        prompts: Sequence[Sequence[int]],
        want: Want,
        *,
        atomic: bool = False,
        seconds: Sequence[int] = (),
        lora: str = "",
    ) -> list[RowResult]:
        """Compute prompts as the scheduler finds room, and return of each what `want` asks: `pooled` vector (hidden,),
        `logits` ("last" or "all") and, with `targets` non-empty, scores of each prompt's own next tokens.

        Long prompts are cut as any other and their parts joined; `atomic` ones (bidirectional encoders) are not. Other
        sequences go on meanwhile; their chunks come with the next `step`. Errors as of `add`, or the row's own.
        """
        if self.is_encoder and (want.targets or want.logits is not None):
            raise no_writer()
        for prompt in prompts:
            self.limits.check_prompt(prompt, num_more=0, atomic=atomic or self.is_encoder)
        starts = seconds or [0] * len(prompts)
        pairs = zip(prompts, starts, strict=True)
        sequences = [self._queue_whole(prompt, want, atomic, start, lora) for prompt, start in pairs]
        try:
            while any(not sequence.is_finished for sequence in sequences):
                self._held_back.extend(self._step())
        finally:
            for sequence in sequences:
                if not sequence.is_finished:
                    self._drop(sequence)
        return [joined(sequence.parts, want) for sequence in sequences]

    def pool(self, prompts: Sequence[Sequence[int]], kind: Pooled, seconds: Sequence[int] = ()) -> NDArray[np.float32]:
        """Pooled vectors of the prompts as the model's head leaves them, float32 (prompts, hidden); of `rank` the
        logits of pairs, (prompts, 1). `seconds`: where in each prompt a second text begins. Errors as of `run_rows`."""
        check_kind(kind, judges=self._judges, is_encoder=self.is_encoder)
        answers = self.run_rows(prompts, Want(pooled=pooling_of(self._head, kind)), seconds=seconds)
        return np.stack([behind(self._head, answer) for answer in answers])

    def _queue_whole(self, prompt: Sequence[int], want: Want, atomic: bool, second_from: int, lora: str) -> Running:
        name = f"rows/{self._num_added + 1}"
        submit = Submit(request_id=name, prompt=list(prompt), max_tokens=0, second_from=second_from, lora=lora)
        own = replace(want, sample=None, targets=tuple(prompt[1:]) if want.targets else ())
        sequence = self._queue(submit, limit=len(prompt), seed=0, whole=own, atomic=atomic)
        sequence.is_awaited = True
        return sequence

    # ---- looking in

    def snapshot(self, *, detailed: bool = False) -> Snapshot:
        """A byte per page, the counters and every sequence, as plain data; in detail with the owners of pages and the
        rows of the last step."""
        rows: list[RowView] = []
        if detailed and self._last_step is not None:
            rows = row_views(self._last_step.sequences, self._last_step.plan)
        return snapshot(self.scheduler, self.counters, self._clock(), rows, with_pages=detailed)

    def answer(self, question: Question) -> Answer:
        """What is cached, or what a page holds. Asking changes nothing."""
        return answer_to(question, self.memory, self._sequences.values(), self.adapters.number_of)

    def check(self) -> None:
        """Every invariant of pages and their holders, for tests and idle moments; AssertionError names a broken one."""
        self.memory.check(list(self._sequences.values()))

    def close(self) -> None:
        """Forget all sequences and give the backend back; no call follows."""
        for sequence in list(self._sequences.values()):
            self._drop(sequence)
        while self._in_flight:
            self._in_flight.popleft()
            self._backend.collect()
        self._backend.close()
