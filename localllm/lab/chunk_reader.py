"""A loaded model that reads a text chunk after chunk, each from its start, and is asked of the second half only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from localllm import wire
from localllm.engine.limits import no_writer
from localllm.engine.step import (
    NO_SLOT,
    NOTHING,
    Backend,
    PageId,
    Row,
    RowResult,
    SeqId,
    SlotId,
    StepPlan,
    Want,
    ZeroSlot,
    run_step,
)
from localllm.runtime.load import backend_options, load_backend


def open_for_chunks(load: wire.Load, context: int) -> Backend:
    """A model's backend, for steps as long as a chunk of `context` tokens. InvalidRequest for an encoder."""
    options = replace(
        backend_options(load), max_tokens_per_step=max(context, load.token_budget), context_length=context
    )
    loaded = load_backend(Path(load.path), load.backend, options, quantize=load.quantize)
    if loaded.config.is_encoder:
        loaded.backend.close()
        raise no_writer()
    return loaded.backend


class ChunkReader:
    """Allocates the memory that a sequence of `context` tokens needs; every chunk is read into it anew."""

    def __init__(self, backend: Backend, context: int) -> None:
        self._backend = backend
        layout = backend.layout
        per_group = -(-context // layout.page_size)
        backend.allocate(per_group * len(layout.groups), 1 if layout.has_state else 0)
        self._tables = tuple(
            tuple(PageId(page) for page in range(g * per_group, (g + 1) * per_group)) for g in range(len(layout.groups))
        )
        self._slot = SlotId(0) if layout.has_state else NO_SLOT
        self._steps = 0

    def read(self, chunk: Sequence[int], want: Want) -> RowResult:
        """What is wanted of the tokens from the middle one to the last but one: `scored` are those behind them."""
        middle = len(chunk) // 2
        self.step(chunk[:middle], 0, NOTHING)
        return self.step(chunk[middle:-1], middle, want)

    def losses(self, chunk: Sequence[int]) -> list[float]:
        """Of the scored tokens, in nats."""
        result = self.read(chunk, Want(targets=tuple(scored(chunk))))
        return [-entry.logprob for entry in result.targets]

    def step(self, token_ids: Sequence[int], start: int, want: Want) -> RowResult:
        """The next tokens, of which `start` are read already; from 0 the last chunk is forgotten."""
        row = Row(SeqId(0), tuple(token_ids), start, self._tables, want, self._slot)
        fresh = (ZeroSlot(self._slot),) if start == 0 and self._slot != NO_SLOT else ()
        self._steps += 1
        return run_step(self._backend, StepPlan(self._steps, (row,), fresh)).rows[0]


def scored(chunk: Sequence[int]) -> Sequence[int]:
    """The tokens whose probabilities count: all behind the middle one."""
    return chunk[len(chunk) // 2 + 1 :]
