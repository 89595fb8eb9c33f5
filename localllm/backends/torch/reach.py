"""Where the tokens of a step are written and what they see, per KV group, as tensors padded to rows of one length."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from localllm.backends.batch import Batch
from localllm.errors import InvalidRequest

Ints = NDArray[np.int32]
VALUES_AT_ONCE = 1 << 27
"""How many cached numbers of one layer are read at once, for all rows of a part together."""


@dataclass(frozen=True, slots=True)
class Span:
    """R rows: how many tokens each has, the position of its first and of its last."""

    counts: Ints
    firsts: Ints
    lasts: Ints

    @classmethod
    def of(cls, batch: Batch) -> Span:
        counts = np.diff(batch.row_starts)
        if len(counts) and counts.min() <= 0:
            raise InvalidRequest("a row has no tokens")
        return cls(counts, batch.positions[batch.row_starts[:-1]], batch.positions[batch.row_starts[1:] - 1])


class Seen:
    """G rows of n tokens each, and S = P * page_size places that they may see, the same number for each."""

    def __init__(
        self,
        *,
        tokens: Tensor,
        pages: Tensor,
        positions: Tensor,
        places: Tensor,
        atomic: Tensor,
        lasts: Tensor,
        window: int | None,
    ) -> None:
        self.tokens = tokens  # (G, n) indices of the step's tokens
        self.pages = pages  # (G, P) pages of the pool
        self._positions = positions  # (G, n)
        self._places = places  # (G, S) the position that lies there
        self._atomic = atomic  # (G, 1) 1 where the row sees itself in both directions
        self._lasts = lasts  # (G, 1) the last position of the row
        self._window = window

    def hidden(self, is_causal: bool) -> Tensor:
        """(G, n, S): true where a token does not see a place."""
        return self._causal if is_causal else self._both_ways

    @cached_property
    def _distance(self) -> Tensor:
        return self._positions[:, :, None] - self._places[:, None]

    @cached_property
    def _both_ways(self) -> Tensor:
        unwritten = (self._places > self._lasts)[:, None]
        if self._window is None:
            return unwritten.expand(self._distance.shape)
        return unwritten | (self._distance.abs() >= self._window)

    @cached_property
    def _causal(self) -> Tensor:
        return self._both_ways | ((self._distance < 0) & (self._atomic == 0)[:, None])


@dataclass(frozen=True, slots=True)
class Reach:
    """One KV group in one step. `begun` are pages that get their first token; pages are those of the pool."""

    pages: Tensor  # (T,)
    offsets: Tensor  # (T,)
    begun: Tensor
    parts: tuple[Seen, ...]


@dataclass(frozen=True, slots=True)
class Pool:
    """The pool as it is in this step. `token_values`: cached numbers of a token in one layer."""

    page_size: int
    num_pages: int
    token_values: int
    device: torch.device


def reach(batch: Batch, span: Span, table: Ints, window: int | None, pool: Pool) -> Reach:
    """`table` (R, pages) and `window` are those of the group. InvalidRequest where a row needs a page that does not
    exist."""
    first_seen = np.zeros_like(span.firsts) if window is None else np.maximum(span.firsts - window + 1, 0)
    first_page = first_seen // pool.page_size
    counts = span.lasts // pool.page_size - first_page + 1
    parts = tuple(
        _part(batch, span, rows, table, first_page[rows], counts[rows], window, pool)
        for rows in _alike(span, counts, pool.token_values * pool.page_size)
    )
    own = batch.positions // pool.page_size
    pages = _looked_up(table, batch.row_of, own, np.ones(own.shape, np.bool_), pool.num_pages)
    offsets = batch.positions % pool.page_size
    begun = uploaded(pages[offsets == 0], pool.device)
    return Reach(uploaded(pages, pool.device), uploaded(offsets, pool.device), begun, parts)


def _part(
    batch: Batch, span: Span, rows: Ints, table: Ints, first_page: Ints, counts: Ints, window: int | None, pool: Pool
) -> Seen:
    """Rows of one length; `first_page` and `counts` say which of their pages they see."""
    indices = _runs(first_page, int(counts.max()))
    needed = indices < (first_page + counts)[:, None]
    pages = _looked_up(table, rows[:, None], np.where(needed, indices, 0), needed, pool.num_pages)
    tokens = _runs(batch.row_starts[rows], int(span.counts[rows[0]]))
    places = _runs((indices * pool.page_size).reshape(-1), pool.page_size).reshape(len(rows), -1)
    return Seen(
        tokens=uploaded(tokens, pool.device),
        pages=uploaded(pages, pool.device),
        positions=uploaded(batch.positions[tokens], pool.device),
        places=uploaded(places, pool.device),
        atomic=uploaded(batch.atomic[rows, None], pool.device),
        lasts=uploaded(span.lasts[rows, None], pool.device),
        window=window,
    )


def _runs(firsts: Ints, count: int) -> Ints:
    """(n,) to (n, count): each and those that follow it."""
    return np.add(firsts[:, None], np.arange(count, dtype=np.int32), dtype=np.int32)


def _looked_up(table: Ints, rows: Ints, indices: Ints, needed: NDArray[np.bool_], num_pages: int) -> Ints:
    """Pages of the pool, the empty one where none is needed."""
    if table.shape[1] == 0 or int(indices.max(initial=0)) >= table.shape[1]:
        raise InvalidRequest(f"the last page of a row is {int(indices.max(initial=0))}, its table has {table.shape[1]}")
    pages: Ints = np.where(needed, table[rows, indices] + 1, 0)
    wrong = needed & ((pages < 1) | (pages > num_pages))
    if wrong.any():
        raise InvalidRequest(f"the page that a row needs is {int(pages[wrong][0]) - 1}, there are {num_pages}")
    return pages


def _alike(span: Span, num_pages: Ints, page_values: int) -> Iterator[Ints]:
    """Rows with as many tokens each, and as many pages up to a factor of two: short rows must not pay for long ones."""
    sizes = np.ceil(np.log2(num_pages)).astype(np.int32)
    for count, size in sorted(set(zip(span.counts.tolist(), sizes.tolist(), strict=True))):
        rows = np.flatnonzero((span.counts == count) & (sizes == size)).astype(np.int32)
        at_once = max(1, VALUES_AT_ONCE // (page_values << size))
        for first in range(0, len(rows), at_once):
            yield rows[first : first + at_once]


def uploaded(array: NDArray[np.integer] | NDArray[np.bool_], device: torch.device) -> Tensor:
    """Indices, as torch wants them."""
    return torch.from_numpy(array.astype(np.int64)).to(device)
