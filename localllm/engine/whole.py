"""Joins the answers to the chunks of one prompt into the answer to the whole: scores, logits, pooled vectors; and what
a head makes of these."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from localllm.engine.step import RowResult, Want
from localllm.errors import BadLogits, LocalLLMError
from localllm.wire import Pooled, Pooling


class Head(Protocol):
    """Layers over a pooled vector, float32. `judges`: what comes out is the logit of a pair of texts."""

    @property
    def judges(self) -> bool: ...

    @property
    def pooling(self) -> Pooling:
        """Whose vector it wants."""

    def __call__(self, pooled: NDArray[np.float32]) -> NDArray[np.float32]: ...


def pooling_of(head: Head | None, pooled: Pooled) -> Pooling:
    """Which vector is taken of a text: that of `rank` is the head's to say."""
    if pooled != "rank":
        return pooled
    assert head is not None, "checked"
    return head.pooling


def behind(head: Head | None, answer: RowResult) -> NDArray[np.float32]:
    """A pooled vector as the model's head leaves it."""
    assert answer.pooled is not None
    return answer.pooled if head is None else head(answer.pooled)


def joined(parts: Sequence[tuple[int, RowResult]], want: Want) -> RowResult:
    """One result from parts in order, each with the position after its last token. The first error is raised."""
    for _, part in parts:
        if part.error:
            raise (BadLogits if part.error_code == BadLogits.code else LocalLLMError)(part.error)
    last = parts[-1][1]
    logits = [part.logits for _, part in parts if part.logits is not None]
    return RowResult(
        last.seq,
        targets=tuple(score for _, part in parts for score in part.targets),
        pooled=_pooled(parts, want),
        logits=np.concatenate(logits) if logits else None,
    )


def _pooled(parts: Sequence[tuple[int, RowResult]], want: Want) -> NDArray[np.float32] | None:
    """The vector of the first or last part, or the mean of all weighted by their tokens."""
    if want.pooled is None:
        return None
    start, total, sums = 0, parts[-1][0], np.zeros(1, np.float64)
    vectors = [(end, part.pooled) for end, part in parts if part.pooled is not None]
    if want.pooled != "mean":
        return vectors[0][1]
    for end, vector in vectors:
        sums = sums + vector * np.float64(end - start)
        start = end
    return np.asarray(sums / total, np.float32)
