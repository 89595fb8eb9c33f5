"""The last minute of a figure, one sample each tenth of a second. Times are the daemon's monotonic seconds."""

from __future__ import annotations

from collections import deque
from itertools import pairwise

SAMPLE_S = 0.1
NUM_SAMPLES = 600
CARRIED = 10
"""Samples that may be missing before there is a gap: what did not change is not told."""


class Ring:
    """At most NUM_SAMPLES values, the newest last; None where nothing was known."""

    def __init__(self) -> None:
        self._values: deque[float | None] = deque(maxlen=NUM_SAMPLES)
        self._place: int | None = None

    def push(self, at: float, value: float | None) -> None:
        """The value as of then. A second one of the same tenth replaces the first; one from the past is ignored."""
        place = _place(at)
        if self._place is None:
            self._values.append(value)
        elif place == self._place:
            self._values[-1] = value
        elif place > self._place:
            self._fill(place - self._place - 1)
            self._values.append(value)
        else:
            return
        self._place = place

    def _fill(self, missing: int) -> None:
        between = self._values[-1] if missing <= CARRIED else None
        self._values.extend([between] * min(missing, NUM_SAMPLES))

    def __len__(self) -> int:
        return len(self._values)

    @property
    def newest(self) -> float | None:
        return self._values[-1] if self._values else None

    def values(self) -> list[float | None]:
        return list(self._values)

    def columns(self, count: int, size: int) -> list[float | None]:
        """So many columns, the newest last, of `size` samples each: their mean, None where nothing is known. A column
        keeps its samples until it leaves at the left, so that nothing shimmers."""
        if self._place is None:
            return [None] * count
        oldest, values = self._place - len(self._values) + 1, list(self._values)
        last = self._place // size
        starts = [(last - count + 1 + each) * size - oldest for each in range(count)]
        return [_mean(values[max(0, start) : max(0, start + size)]) for start in starts]

    def between(self, start: float, end: float, count: int) -> list[float | None]:
        """Columns of the time from `start` to `end`; None where nothing is known (any more)."""
        if self._place is None or count <= 0:
            return [None] * max(0, count)
        oldest, values = self._place - len(self._values) + 1, list(self._values)
        edges = [_place(start + (end - start) * each / count) - oldest for each in range(count + 1)]
        return [_mean(values[max(0, low) : max(0, high, low + 1)]) for low, high in pairwise(edges)]

    def highest(self) -> float:
        return max((value for value in self._values if value is not None), default=0.0)

    def clear(self) -> None:
        self._values.clear()
        self._place = None


def _place(at: float) -> int:
    return int(at / SAMPLE_S + 1e-6)  # 1.4 is the fourteenth, however it is rounded


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def percentile(values: list[float], share: float) -> float | None:
    """The nearest rank; None of nothing."""
    if not values:
        return None
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
