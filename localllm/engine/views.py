"""The engine as the dashboard sees it: counters and one byte per page. Only reads."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from localllm.engine.pages import PagePool
from localllm.engine.scheduler import Scheduler
from localllm.engine.sequence import Sequence
from localllm.wire import SequenceView, Snapshot


@dataclass(slots=True)
class Counters:
    """They rise for ever, except `last_step_s` (seconds on the device) and `last_step_tokens`."""

    num_steps: int = 0
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    num_generated_tokens: int = 0
    num_drafted_tokens: int = 0
    num_accepted_tokens: int = 0
    last_step_s: float = 0.0
    last_step_tokens: int = 0


def snapshot(scheduler: Scheduler, counters: Counters, time_s: float) -> Snapshot:
    """Everything at this moment, as plain data."""
    pool = scheduler.memory.pool
    return Snapshot(
        time_s=time_s,
        pages=pool.page_bytes_map(),
        num_waiting=len(scheduler.waiting),
        num_running=len(scheduler.running),
        num_steps=counters.num_steps,
        num_prompt_tokens=counters.num_prompt_tokens,
        num_cached_tokens=counters.num_cached_tokens,
        num_generated_tokens=counters.num_generated_tokens,
        num_drafted_tokens=counters.num_drafted_tokens,
        num_accepted_tokens=counters.num_accepted_tokens,
        num_preemptions=scheduler.num_preemptions,
        last_step_s=counters.last_step_s,
        last_step_tokens=counters.last_step_tokens,
        sequences=[*_views(scheduler.running, "running", pool), *_views(scheduler.waiting, "waiting", pool)],
    )


def _views(sequences: Iterable[Sequence], state: Literal["waiting", "running"], pool: PagePool) -> list[SequenceView]:
    return [_view(sequence, state, pool) for sequence in sequences]


def _view(sequence: Sequence, state: Literal["waiting", "running"], pool: PagePool) -> SequenceView:
    pages = sequence.holding.pages() if sequence.holding else []
    return SequenceView(
        request_id=sequence.request_id,
        state=state,
        num_prompt=sequence.num_prompt,
        num_computed=sequence.num_computed,
        num_generated=sequence.num_generated,
        num_pages=len(pages),
        num_shared_pages=sum(pool.is_shared(page) for page in pages),
        num_preemptions=sequence.num_preemptions,
    )
