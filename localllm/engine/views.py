"""The engine as the dashboard sees it: counters and one byte per page. Only reads."""

from __future__ import annotations

import sys
from array import array
from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from localllm.engine.pages import PagePool
from localllm.engine.scheduler import Scheduler
from localllm.engine.sequence import Sequence
from localllm.engine.step import PageId, Row, StepPlan
from localllm.wire import STEP_TOKEN_BOUNDS, RowKind, RowView, SequenceView, Snapshot

State = Literal["waiting", "running"]


@dataclass(slots=True)
class Counters:
    """They rise for ever, except `last_step_s` (seconds on the device) and `last_step_tokens`."""

    num_steps: int = 0
    num_step_tokens: int = 0
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    num_generated_tokens: int = 0
    num_drafts: int = 0
    num_drafted_tokens: int = 0
    num_accepted_tokens: int = 0
    last_step_s: float = 0.0
    last_step_tokens: int = 0
    step_sizes: list[int] = field(default_factory=lambda: [0] * (len(STEP_TOKEN_BOUNDS) + 1))

    def count_step(self, num_tokens: int, seconds: float) -> None:
        self.num_steps += 1
        self.num_step_tokens += num_tokens
        self.step_sizes[bisect_left(STEP_TOKEN_BOUNDS, num_tokens)] += 1
        self.last_step_tokens = num_tokens
        self.last_step_s = seconds


def snapshot(
    scheduler: Scheduler, counters: Counters, time_s: float, rows: list[RowView], *, with_pages: bool
) -> Snapshot:
    """Everything at this moment, as plain data; with pages, whose pages are whose."""
    pool = scheduler.memory.pool
    running = [_view(sequence, "running", pool, with_pages) for sequence in scheduler.running]
    waiting = [_view(sequence, "waiting", pool, with_pages) for sequence in scheduler.waiting]
    return Snapshot(
        time_s=time_s,
        pages=pool.page_bytes_map(),
        num_waiting=len(waiting),
        num_running=len(running),
        num_steps=counters.num_steps,
        num_prompt_tokens=counters.num_prompt_tokens,
        num_cached_tokens=counters.num_cached_tokens,
        num_generated_tokens=counters.num_generated_tokens,
        num_drafts=counters.num_drafts,
        num_drafted_tokens=counters.num_drafted_tokens,
        num_accepted_tokens=counters.num_accepted_tokens,
        num_preemptions=scheduler.num_preemptions,
        last_step_s=counters.last_step_s,
        last_step_tokens=counters.last_step_tokens,
        num_step_tokens=counters.num_step_tokens,
        num_slots=scheduler.memory.states.num_slots,
        num_slots_used=scheduler.memory.states.num_used,
        num_states_kept=scheduler.memory.states.kept.num_kept,
        step_sizes=counters.step_sizes.copy(),
        sequences=running + waiting,
        rows=rows,
    )


def _view(sequence: Sequence, state: State, pool: PagePool, with_pages: bool) -> SequenceView:
    pages = sequence.holding.pages() if sequence.holding else []
    return SequenceView(
        request_id=sequence.request_id,
        state=state,
        num_prompt=sequence.num_prompt,
        num_computed=sequence.num_computed,
        num_generated=sequence.num_generated,
        num_pages=len(pages),
        num_shared_pages=pool.count_shared(pages),
        num_preemptions=sequence.num_preemptions,
        pages=_packed(pages) if with_pages else b"",
    )


def _packed(pages: Iterable[PageId]) -> bytes:
    """uint32, little-endian."""
    packed = array("I", pages)
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tobytes()


def row_views(sequences: Iterable[Sequence], plan: StepPlan) -> list[RowView]:
    """What a step computed, and for whom."""
    return [
        RowView(sequence.request_id, row.start, len(row.token_ids), _kind(sequence, row))
        for sequence, row in zip(sequences, plan.rows, strict=True)
    ]


def _kind(sequence: Sequence, row: Row) -> RowKind:
    sample = row.want.sample
    if sample is not None and sample.num_positions > 1:
        return "draft"
    return "decode" if row.start >= sequence.num_prompt and len(row.token_ids) == 1 else "chunk"
