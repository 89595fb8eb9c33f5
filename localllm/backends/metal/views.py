"""Where the tokens of a step are read and written, as index arrays: computed once per step, used by every layer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from localllm.backends.batch import Batch
from localllm.backends.metal.border import inside
from localllm.errors import InvalidRequest

Ints = NDArray[np.int32]
SHORTEST_CONTEXT = 256
"""Rows that see fewer tokens than this are padded to one length without a second thought."""
VALUES_AT_ONCE = 1 << 28
"""So many cached numbers of a layer are gathered at once, for all rows together."""


@dataclass(frozen=True, slots=True)
class Span:
    """B rows of about one size, padded to n tokens that see s tokens; padding repeats the row's last token."""

    tokens: mx.array  # (B, n) tokens of the step
    seen: mx.array  # (B, s) tokens of the pool
    mask: mx.array | None  # (B, 1, n, s); None: all is seen


@dataclass(frozen=True, slots=True)
class KvView:
    """`written` (T,): where the pool takes the step's tokens. `back` (T,): their places in the outputs of all spans,
    one after another; None where spans have the order of the step."""

    written: mx.array
    spans: tuple[Span, ...]
    back: mx.array | None


@dataclass(frozen=True, slots=True)
class ConvView:
    """Among rows' states (R * (kernel - 1)) followed by the step's T inputs: `taps` (T, kernel), what each token sees,
    oldest first; `last` (R, kernel - 1), the next states."""

    taps: mx.array
    last: mx.array


@dataclass(frozen=True, slots=True)
class AlikeView:
    """Rows (G,) of one length each with their tokens (G, n), and where the step's tokens are among all of those, one
    after another (T,)."""

    parts: tuple[tuple[Ints, mx.array], ...]
    back: mx.array


@dataclass(frozen=True, slots=True)
class Pages:
    """The page tables of a group's rows, (R, pages), in a pool of `num_pages`; a token caches `width` numbers in it."""

    table: Ints
    page_size: int
    num_pages: int
    width: int

    def places(self, rows: Ints, positions: Ints) -> Ints:
        """Tokens of the pool for positions (B, s) of rows (B,). InvalidRequest where a page is not there."""
        indices = positions // self.page_size
        if indices.max() >= self.table.shape[1]:
            raise InvalidRequest(f"the last page of a row is {indices.max()}, its table has {self.table.shape[1]}")
        pages = self.table[rows[:, None], indices]
        inside("the page that a row needs", pages, self.num_pages)
        places: Ints = pages * np.int32(self.page_size) + positions % self.page_size
        return places


def kv_view(batch: Batch, pages: Pages, window: int | None, causal: bool) -> KvView:
    """For layers with these page tables, this window and direction."""
    written = pages.places(batch.row_of, batch.positions[:, None])[:, 0]
    spans, order = [], []
    for rows in _alike(batch, window, VALUES_AT_ONCE // pages.width):
        tokens, own = _padded_tokens(batch, rows)
        spans.append(_span(batch, rows, tokens, pages, window, causal))
        order.append(np.where(own, tokens, -1).ravel())
    return KvView(mx.array(written), tuple(spans), _back(np.concatenate(order), batch.num_tokens))


def conv_view(batch: Batch, kernel: int) -> ConvView:
    """For convolutions over `kernel` tokens."""
    starts, row_of = batch.row_starts, batch.row_of
    offsets = np.arange(batch.num_tokens, dtype=np.int32) - starts[row_of]
    taps = _line_places(batch, kernel, row_of[:, None], offsets[:, None] + np.arange(kernel))
    rows = np.arange(batch.num_rows)[:, None]
    last = _line_places(batch, kernel, rows, np.diff(starts)[:, None] + np.arange(kernel - 1))
    return ConvView(mx.array(taps), mx.array(last))


def alike_view(batch: Batch) -> AlikeView:
    """For recurrences: rows of one length go through their tokens together."""
    lengths = np.diff(batch.row_starts)
    parts, order = [], []
    for length in np.unique(lengths):
        rows = np.flatnonzero(lengths == length).astype(np.int32)
        tokens = batch.row_starts[:-1][rows, None] + np.arange(length, dtype=np.int32)
        parts.append((rows, mx.array(tokens)))
        order.append(tokens.ravel())
    return AlikeView(tuple(parts), mx.array(np.argsort(np.concatenate(order)).astype(np.int32)))


def line_of(batch: Batch, kernel: int, row: int) -> mx.array:
    """Where a row's state and its inputs are, one after the other: (kernel - 1 + its tokens,)."""
    num_tokens = batch.row_starts[row + 1] - batch.row_starts[row]
    return mx.array(_line_places(batch, kernel, np.array(row), np.arange(kernel - 1 + num_tokens)))


def _line_places(batch: Batch, kernel: int, rows: NDArray[Any], steps: NDArray[Any]) -> Ints:
    """Of step i of a row's line: its state while i < kernel - 1, then its inputs."""
    past = kernel - 1
    inputs = batch.num_rows * past + batch.row_starts[rows] + steps - past
    places: Ints = np.where(steps < past, rows * past + steps, inputs).astype(np.int32)
    return places


def _alike(batch: Batch, window: int | None, at_once: int) -> Iterator[Ints]:
    """Rows in sets that differ by less than a factor of two in what they compute and in what they see.

    A set sees no more than `at_once` tokens, padding included, or is one row.
    """
    lengths = np.diff(batch.row_starts)
    last = batch.positions[batch.row_starts[1:] - 1]
    seen = np.maximum(_num_seen(last, lengths, window), SHORTEST_CONTEXT)
    sizes = np.stack([_bit_length(lengths), _bit_length(seen)], axis=1)
    _, which = np.unique(sizes, axis=0, return_inverse=True)
    for index in range(which.max() + 1):
        rows = np.flatnonzero(which.ravel() == index).astype(np.int32)
        step = max(1, at_once // int(seen[rows].max()))
        yield from (rows[first : first + step] for first in range(0, len(rows), step))


def _bit_length(counts: Ints) -> Ints:
    """Of the next power of two."""
    return np.ceil(np.log2(counts)).astype(np.int32)


def _num_seen(last: Ints, lengths: Ints, window: int | None) -> Ints:
    """How many tokens rows see, from the first that their first token sees to their last."""
    return last + 1 if window is None else np.minimum(last + 1, lengths + np.int32(window - 1))


def _padded_tokens(batch: Batch, rows: Ints) -> tuple[Ints, NDArray[np.bool_]]:
    """Token indices (B, n), the last repeated, and which are no repetition."""
    lengths = np.diff(batch.row_starts)[rows][:, None]
    steps = np.arange(lengths.max(), dtype=np.int32)
    return batch.row_starts[rows][:, None] + np.minimum(steps, lengths - 1), steps < lengths


def _span(batch: Batch, rows: Ints, tokens: Ints, pages: Pages, window: int | None, causal: bool) -> Span:
    positions = batch.positions[tokens]
    lengths = np.diff(batch.row_starts)[rows]
    last = positions[:, -1]
    counts = _num_seen(last, lengths, window)
    steps = np.arange(counts.max(), dtype=np.int32)
    # padding repeats what the row sees anyway: numbers of other sequences, usable or not, stay out of the sums
    seen = np.minimum((last + 1 - counts)[:, None] + steps, last[:, None])
    mask = None
    if len(tokens[0]) > 1 or (counts != counts[0]).any():
        both_ways = batch.atomic[rows] | (not causal)
        mask = _mask(positions, seen, steps < counts[:, None], both_ways, window)
    return Span(mx.array(tokens), mx.array(pages.places(rows, seen)), mask)


def _mask(
    positions: Ints, seen: Ints, is_there: NDArray[np.bool_], both_ways: NDArray[np.bool_], window: int | None
) -> mx.array:
    """(B, 1, n, s): whether a token sees another. On the device, as it may be large."""
    distance = mx.array(positions)[:, None, :, None] - mx.array(seen)[:, None, None, :]
    mask = mx.array(is_there)[:, None, None] & (mx.array(both_ways)[:, None, None, None] | (distance >= 0))
    return mask if window is None else mask & (mx.abs(distance) < window)


def _back(order: Ints, num_tokens: int) -> mx.array | None:
    """`order`: the step's token in each place of the spans' outputs, -1 for padding."""
    places = np.flatnonzero(order >= 0).astype(np.int32)
    if len(order) == num_tokens and (order[1:] > order[:-1]).all():
        return None
    back = np.empty(num_tokens, np.int32)
    back[order[places]] = places
    return mx.array(back)
