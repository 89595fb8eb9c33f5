"""Adapters that a backend holds, and what of them a step's tokens ask for. Knows no device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from localllm.backends.batch import Batch
from localllm.engine.step import Row, StepPlan
from localllm.errors import InvalidRequest
from localllm.models.adapters import Adapter

Floats = NDArray[np.float32]
A = TypeVar("A")


class Numbered(Generic[A]):
    """Things by a number that never comes twice: what was computed with one of them must not pass for another's."""

    def __init__(self) -> None:
        self._next = 1
        self._kept: dict[int, A] = {}

    def add(self, thing: A) -> int:
        number, self._next = self._next, self._next + 1
        self._kept[number] = thing
        return number

    def drop(self, number: int) -> A | None:
        return self._kept.pop(number, None)

    def __getitem__(self, number: int) -> A:
        """InvalidRequest for one that is not there."""
        thing = self._kept.get(number)
        if thing is None:
            raise InvalidRequest(f"a row names the adapter {number}, which is not loaded")
        return thing

    def __len__(self) -> int:
        return len(self._kept)


def adapted(plan: StepPlan, batch: Batch) -> Iterator[tuple[Row, int, int]]:
    """Rows with an adapter that changes something, with the first and the end of their tokens."""
    bounds = batch.row_starts.tolist()
    for row, first, end in zip(plan.rows, bounds, bounds[1:], strict=False):
        if row.adapter and row.adapter_scale:
            yield row, first, end


@dataclass(frozen=True, slots=True)
class Pair(Generic[A]):
    """A part of an adapter on the device: a (rank, in), b (out, rank)."""

    a: A
    b: A
    rank: int
    scale: float


@dataclass(frozen=True, slots=True)
class Stack(Generic[A]):
    """All adapters of a step for one weight, side by side: y += ((x @ a.T) * factors) @ b.T, where `factors` (T, ranks)
    are 0 for the adapters of other tokens."""

    a: A
    b: A
    factors: A


class Stacks(Generic[A]):
    """Several adapters in a few large products, whatever their number: a device is slow at many small ones.

    `upload` brings an array to the device, `concatenate` joins some there along an axis.
    """

    def __init__(self, upload: Callable[[Floats], A], concatenate: Callable[[list[A], int], A]) -> None:
        self._upload, self._concatenate = upload, concatenate
        self._kept: Numbered[dict[str, Pair[A]]] = Numbered()
        self._tokens: list[tuple[int, float, int, int]] = []
        self._num_tokens = 0
        self._numbers: tuple[int, ...] = ()
        self._joined: dict[str, tuple[A, A]] = {}
        self._factors: dict[tuple[tuple[int, int, float], ...], A] = {}

    def add(self, adapter: Adapter) -> int:
        seen: dict[int, A] = {}  # parts of a fused matrix share their A
        pairs = {}
        for name, part in adapter.parts.items():
            if id(part.a) not in seen:
                seen[id(part.a)] = self._upload(part.a)
            pairs[name] = Pair(seen[id(part.a)], self._upload(part.b), part.rank, part.scale)
        return self._kept.add(pairs)

    def drop(self, number: int) -> None:
        self._kept.drop(number)
        if number in self._numbers:
            self._numbers, self._joined = (), {}

    def begin(self, plan: StepPlan, batch: Batch) -> None:
        """InvalidRequest where a row names an adapter that is not there."""
        self._tokens = [(row.adapter, row.adapter_scale, first, end) for row, first, end in adapted(plan, batch)]
        self._num_tokens = batch.num_tokens
        self._factors = {}
        numbers = tuple(sorted({number for number, *_ in self._tokens}))
        for number in numbers:
            self._kept[number]
        if numbers != self._numbers:
            self._numbers, self._joined = numbers, {}

    def of(self, name: str) -> Stack[A] | None:
        """What the step's adapters add to a weight; None: nothing."""
        if not self._tokens:
            return None
        found = [(number, pair) for number in self._numbers if (pair := self._kept[number].get(name)) is not None]
        if not found:
            return None
        if name not in self._joined:
            self._joined[name] = self._join([pair for _, pair in found])
        key = tuple((number, pair.rank, pair.scale) for number, pair in found)
        if key not in self._factors:
            self._factors[key] = self._upload(self._factors_of(key))
        return Stack(*self._joined[name], self._factors[key])

    def _join(self, pairs: list[Pair[A]]) -> tuple[A, A]:
        if len(pairs) == 1:
            return pairs[0].a, pairs[0].b
        return self._concatenate([pair.a for pair in pairs], 0), self._concatenate([pair.b for pair in pairs], 1)

    def _factors_of(self, key: tuple[tuple[int, int, float], ...]) -> Floats:
        """(T, all ranks)."""
        factors = np.zeros((self._num_tokens, sum(rank for _, rank, _ in key)), np.float32)
        place = 0
        for number, rank, scale in key:
            for of, wish, first, end in self._tokens:
                if of == number:
                    factors[first:end, place : place + rank] = scale * wish
            place += rank
        return factors
