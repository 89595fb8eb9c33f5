"""What a step brings to the host: indices of largest logits, logits of the rows that need them, hidden states."""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from localllm.backends.batch import NOT_USABLE, Batch, answer
from localllm.engine.step import RowResult, StepPlan

Floats = NDArray[np.float32]
Ints = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Wanted:
    """Graphs of a step's answers; None where nobody asks."""

    argmax: mx.array | None  # (N,) int32
    logits: mx.array | None  # float32, only those of `batch.needs_logits`
    hidden: mx.array | None  # (T, hidden) float32

    def arrays(self) -> list[mx.array]:
        return [each for each in (self.argmax, self.logits, self.hidden) if each is not None]


def wanted(batch: Batch, logits: mx.array | None, hidden: mx.array | None) -> Wanted:
    if logits is None or not len(batch.taken):
        return Wanted(None, None, hidden)
    needed = None
    if batch.needs_logits.all():
        needed = logits
    elif not batch.only_argmax:
        needed = logits[mx.array(np.flatnonzero(batch.needs_logits).astype(np.int32))]
    return Wanted(None if batch.needs_logits.all() else usable_argmax(logits), needed, hidden)


def usable_argmax(logits: mx.array) -> mx.array:
    """The first index of the largest logit of each line, NOT_USABLE where that is NaN or infinite."""
    is_usable = mx.isfinite(logits.max(axis=-1)) & ~mx.isnan(logits).any(axis=-1)
    return mx.where(is_usable, mx.argmax(logits, axis=-1).astype(mx.int32), NOT_USABLE)


def answered(plan: StepPlan, batch: Batch, found: Wanted) -> tuple[RowResult, ...]:
    """Every row's answer; waits for the step."""
    argmax: Ints | None = None if found.argmax is None else np.array(found.argmax)
    hidden: Floats | None = None if found.hidden is None else np.array(found.hidden)
    return answer(plan, batch, _spread(batch, found.logits), hidden, argmax)


def _spread(batch: Batch, logits: mx.array | None) -> Floats | None:
    """(N, vocab): each line in its place, others stay unset as nobody reads them."""
    if logits is None:
        return None
    lines: Floats = np.array(logits)
    if len(lines) == len(batch.taken):
        return lines
    spread = np.empty((len(batch.taken), lines.shape[1]), np.float32)
    spread[batch.needs_logits] = lines
    return spread
