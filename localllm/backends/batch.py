"""A step plan as flat arrays for a device, and taken logits as answers. Shared by every backend; knows no weights."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from localllm.engine.sampling import answer_row
from localllm.engine.step import (
    NO_PAGE,
    NO_SLOT,
    SAMPLED_LAST,
    CommitDraft,
    Mask,
    PageId,
    Row,
    RowResult,
    SampleWant,
    SeqId,
    StepPlan,
    Want,
)
from localllm.errors import BadLogits, LocalLLMError
from localllm.models.ops import Indices

Ints = NDArray[np.int32]
Floats = NDArray[np.float32]
K = TypeVar("K")
V = TypeVar("V")

NOT_USABLE = -1
NO_LOGITS: Floats = np.empty((0, 0), np.float32)

REMEMBERED_SEQUENCES = 4096
"""Sequences end without a word to the backend, so what they sampled last is kept for this many of them, newest last."""


@dataclass(frozen=True, slots=True)
class Batch:
    """T tokens of R rows, one row after another; N of the tokens have logits that somebody wants.

    `tables[g]` is (R, pages), padded with NO_PAGE. `taken` are token indices, rising; those of row r are
    `taken[taken_starts[r]:taken_starts[r + 1]]`. `needs_logits[n]` is False where the row wants no more of taken
    position n than the index of its largest logit. All arrays are C-contiguous int32 unless said otherwise.
    """

    token_ids: Ints  # (T,)
    positions: Ints  # (T,)
    row_of: Ints  # (T,)
    row_starts: Ints  # (R + 1,) first token of each row
    tables: tuple[Ints, ...]
    slots: Ints  # (R,), NO_SLOT where the row has none
    atomic: NDArray[np.bool_]  # (R,)
    taken: Ints  # (N,)
    taken_starts: Ints  # (R + 1,)
    needs_logits: NDArray[np.bool_]  # (N,)
    types: Ints  # (T,) which text of a pair a token is of: 0 or 1
    wants_hidden: bool
    """Some row wants a pooled vector: the final hidden states are needed."""
    only_argmax: bool
    """No logits have to come to the host."""

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    def indices(self, of: Indices) -> Ints:
        """(T,) rows of a table that the step's tokens take."""
        return {"tokens": self.token_ids, "positions": self.positions, "types": self.types}[of]

    @property
    def num_rows(self) -> int:
        return len(self.slots)


@dataclass(frozen=True, slots=True)
class _Steady:
    """What is the same in every step of R rows that compute and sample one token each; never written to."""

    counts: Ints  # (R + 1,)
    no_slots: Ints  # (R,)
    none: NDArray[np.bool_]  # (R,)
    types: Ints  # (R,)

    @classmethod
    def of(cls, num_rows: int) -> _Steady:
        no_slots = np.full(num_rows, NO_SLOT, np.int32)
        counts, types = np.arange(num_rows + 1, dtype=np.int32), np.zeros(num_rows, np.int32)
        return cls(counts, no_slots, np.zeros(num_rows, np.bool_), types)


class Flattener:
    """Turns plans into batches; remembers what each sequence sampled last, and the tables it has seen.

    Resolving SAMPLED_LAST needs the previous step's samples: a backend that overlaps steps flattens when a step
    starts, not when it is submitted.
    """

    def __init__(self, num_groups: int) -> None:
        self._num_groups = num_groups
        self._sampled: dict[SeqId, tuple[int, ...]] = {}
        self._tables: dict[tuple[SeqId, int], tuple[tuple[PageId, ...], Ints]] = {}
        self._steady: dict[int, _Steady] = {}

    def flatten(self, plan: StepPlan) -> Batch:
        """The plan's rows as arrays; they are not written to, and some are shared with other batches."""
        return (self._decoding(plan.rows) if plan.rows else None) or self._any(plan.rows)

    def _decoding(self, rows: tuple[Row, ...]) -> Batch | None:
        """The common step, in which every row computes a token and samples the next: nearly everything is known from
        steps like it. None for any other."""
        token_ids, positions, needs, slots = [], [], [], []
        for row in rows:
            want = row.want
            if len(row.token_ids) != 1 or row.atomic or want.sample is None or want.targets or want.pooled is not None:
                return None
            token_ids.append(row.token_ids[0] if row.token_ids[0] != SAMPLED_LAST else self._sampled[row.seq][-1])
            positions.append(row.start)
            needs.append(not wants_only_argmax(want))
            slots.append(row.slot)
        steady = self._steady.get(len(rows))
        if steady is None:
            steady = self._steady[len(rows)] = _Steady.of(len(rows))
            _trim(self._steady)
        only_argmax = True not in needs
        return Batch(
            token_ids=np.array(token_ids, np.int32),
            positions=np.array(positions, np.int32),
            row_of=steady.counts[:-1],
            row_starts=steady.counts,
            tables=tuple([self._table(rows, group) for group in range(self._num_groups)]),
            slots=steady.no_slots if max(slots) == NO_SLOT else np.array(slots, np.int32),
            atomic=steady.none,
            taken=steady.counts[:-1],
            taken_starts=steady.counts,
            needs_logits=steady.none if only_argmax else np.array(needs, np.bool_),
            types=steady.types,
            wants_hidden=False,
            only_argmax=only_argmax,
        )

    def _any(self, rows: tuple[Row, ...]) -> Batch:
        lengths = [len(row.token_ids) for row in rows]
        row_starts = _sums(lengths)
        row_of = np.repeat(np.arange(len(rows), dtype=np.int32), lengths)
        shifts = np.array([row.start for row in rows], np.int32) - row_starts[:-1]
        positions = np.add(shifts[row_of], np.arange(len(row_of), dtype=np.int32), dtype=np.int32)
        spans = [taken_span(row.want, length) for row, length in zip(rows, lengths, strict=True)]
        taken, needs = _taken(rows, row_starts, spans)
        return Batch(
            token_ids=np.array([*chain.from_iterable(map(self._token_ids, rows))], np.int32),
            positions=positions,
            row_of=row_of,
            row_starts=row_starts,
            tables=tuple(self._table(rows, group) for group in range(self._num_groups)),
            slots=np.array([row.slot for row in rows], np.int32),
            atomic=np.array([row.atomic for row in rows], np.bool_),
            taken=np.array(taken, np.int32),
            taken_starts=_sums([head + tail for head, tail in spans]),
            needs_logits=np.array(needs, np.bool_),
            types=_types(rows, row_of, positions),
            wants_hidden=any(row.want.pooled is not None for row in rows),
            only_argmax=True not in needs,
        )

    def remember(self, results: tuple[RowResult, ...]) -> None:
        """Keep what was sampled, for rows of the next step that name it SAMPLED_LAST."""
        for result in results:
            if result.sampled:
                self._sampled.pop(result.seq, None)  # so that the newest are last
                self._sampled[result.seq] = result.sampled
        _trim(self._sampled)

    def commit_draft(self, op: CommitDraft) -> None:
        """The token that counts as sampled last is the one after the accepted draft tokens."""
        sampled = self._sampled.get(op.seq, ())
        if op.num_accepted < len(sampled):
            self._sampled[op.seq] = sampled[: op.num_accepted + 1]

    def _token_ids(self, row: Row) -> tuple[int, ...]:
        if SAMPLED_LAST not in row.token_ids:
            return row.token_ids
        last = self._sampled[row.seq][-1]
        return tuple(last if token == SAMPLED_LAST else token for token in row.token_ids)

    def _table(self, rows: tuple[Row, ...], group: int) -> Ints:
        tables = [self._table_row(row.seq, group, row.tables[group]) for row in rows]
        if len(tables) == 1:
            return tables[0][None]
        matrix = np.full((len(rows), max(map(len, tables), default=0)), NO_PAGE, np.int32)
        for line, table in zip(matrix, tables, strict=True):
            line[: len(table)] = table
        return matrix

    def _table_row(self, seq: SeqId, group: int, pages: tuple[PageId, ...]) -> Ints:
        """The table as an array; seen tables are kept, as comparing is far cheaper than converting."""
        key = (seq, group)
        known = self._tables.get(key)
        if known is not None and (known[0] is pages or known[0] == pages):
            return known[1]
        array = np.array(pages, np.int32)
        self._tables.pop(key, None)
        self._tables[key] = (pages, array)
        _trim(self._tables)
        return array


def _types(rows: tuple[Row, ...], row_of: Ints, positions: Ints) -> Ints:
    seconds = [row.second_from for row in rows]
    if not any(seconds):
        return np.zeros(len(positions), np.int32)
    starts = np.array([start or np.iinfo(np.int32).max for start in seconds], np.int32)
    return (positions >= starts[row_of]).astype(np.int32)


def taken_span(want: Want, num_tokens: int) -> tuple[int, int]:
    """How many tokens at the head and at the tail of a row have wanted logits; the two do not overlap."""
    if want.logits == "all":
        return num_tokens, 0
    head = min(len(want.targets), num_tokens)
    tail = want.sample.num_positions if want.sample is not None else int(want.logits == "last")
    return head, min(tail, num_tokens - head)


def answer(
    plan: StepPlan,
    batch: Batch,
    logits: Floats | None,
    hidden: Floats | None = None,
    argmax: Ints | list[int] | None = None,
) -> tuple[RowResult, ...]:
    """Every row's want, from what the device computed.

    `logits` is (N, vocab) float32, of which only the positions in `batch.needs_logits` are read when `argmax` (N,) is
    given; it may be None when there are none. `hidden` is (T, hidden) float32, needed when `batch.wants_hidden`.
    `argmax`: the first index of the largest logit, NOT_USABLE where that is NaN or infinite.
    A row that cannot be answered carries its error.
    """
    best = argmax.tolist() if isinstance(argmax, np.ndarray) else argmax
    if best is not None and batch.only_argmax and batch.num_tokens == len(best) == len(plan.rows):
        return tuple([_chosen(row, [token]) for row, token in zip(plan.rows, best, strict=True)])
    starts, taken_starts = batch.row_starts.tolist(), batch.taken_starts.tolist()
    results = []
    for index, row in enumerate(plan.rows):
        first, end = taken_starts[index], taken_starts[index + 1]
        chosen = None if best is None else _by_argmax(row, best[first:end])
        if chosen is not None:
            results.append(chosen)
            continue
        pooled = None
        if row.want.pooled is not None and hidden is not None:
            pooled = pool(row.want.pooled, hidden[starts[index] : starts[index + 1]])
        results.append(answer_row(row, NO_LOGITS if logits is None else logits[first:end], pooled))
    return tuple(results)


def _by_argmax(row: Row, tokens: list[int]) -> RowResult | None:
    """The answer to a row that asks for no more, if its masks allow what the model says by itself; mostly they do."""
    if wants_only_argmax(row.want):
        return _chosen(row, tokens)
    sample = row.want.sample
    if sample is None or not is_greedy(sample) or _wants_more(row.want) or NOT_USABLE in tokens:
        return None
    try:
        is_allowed = all(map(_allows, sample.masks, tokens))
    except LocalLLMError:  # a mask that is not to be had: the row says so when it is sampled
        return None
    return _chosen(row, tokens) if is_allowed else None


def _allows(mask: Mask, token: int) -> bool:
    return bool(bytes(mask)[token >> 3] >> (token & 7) & 1)


def _chosen(row: Row, tokens: list[int]) -> RowResult:
    if NOT_USABLE in tokens:
        return RowResult(row.seq, error="the model computed no usable logits", error_code=BadLogits.code)
    return RowResult(row.seq, tuple(tokens))


def wants_only_argmax(want: Want) -> bool:
    """True for a row that wants plain greedy choices (or nothing at all), which need no logits on the host."""
    return not _wants_more(want) and (want.sample is None or (is_greedy(want.sample) and not want.sample.masks))


def _wants_more(want: Want) -> bool:
    """More than a sample."""
    return bool(want.targets) or any(part is not None for part in (want.logits, want.pooled, want.top_logprobs))


def is_greedy(sample: SampleWant) -> bool:
    """The largest logit that its masks allow."""
    return sample.params.temperature == 0 and not (sample.edits or sample.draft_edits)


def pool(kind: str, hidden: Floats) -> Floats:
    """One vector (hidden,) of a row's final hidden states (tokens, hidden)."""
    if kind == "mean":
        return np.asarray(hidden.mean(axis=0, dtype=np.float64), np.float32)
    return np.array(hidden[-1 if kind == "last" else 0], np.float32)


def _taken(rows: tuple[Row, ...], row_starts: Ints, spans: list[tuple[int, int]]) -> tuple[list[int], list[bool]]:
    taken: list[int] = []
    needs: list[bool] = []
    bounds = row_starts.tolist()
    for row, first, end, (head, tail) in zip(rows, bounds, bounds[1:], spans, strict=False):
        taken.extend(range(first, first + head))
        taken.extend(range(end - tail, end))
        needs.extend([not wants_only_argmax(row.want)] * (head + tail))
    return taken, needs


def _sums(counts: list[int]) -> Ints:
    """0, then the running sums."""
    sums = np.zeros(len(counts) + 1, np.int32)
    np.cumsum(counts, out=sums[1:])
    return sums


def _trim(kept: dict[K, V]) -> None:
    while len(kept) > REMEMBERED_SEQUENCES:
        del kept[next(iter(kept))]
