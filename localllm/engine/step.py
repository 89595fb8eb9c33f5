"""The seam between engine and backend: plain data down, plain data up. No tensor of the device crosses it.

The engine builds a `StepPlan`, the backend answers with a `StepResult`. There is no phase flag: a row computes tokens
and wants something, or nothing, of their logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NewType, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from localllm.models.adapters import Adapter
from localllm.wire import SamplingParams, TokenLogprobs

SeqId = NewType("SeqId", int)
PageId = NewType("PageId", int)
SlotId = NewType("SlotId", int)
CheckpointId = NewType("CheckpointId", int)

SAMPLED_LAST = -1
"""A token id in a row: what this sequence sampled in the previous step, still known to the backend only."""
NO_PAGE = PageId(-1)
"""A page-table entry whose page has left the group's window and was freed."""
NO_SLOT = SlotId(-1)


@dataclass(frozen=True, slots=True)
class KvGroup:
    """Layers that share a page table. `window`: how many last tokens a query sees, itself included; None: all."""

    window: int | None
    layers: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class CacheLayout:
    """What a sequence's memory is made of. Every group has room for the same number of layers, so any page serves any
    group: one pool, one id space. `page_bytes` is the size of one page over the layers of a group."""

    page_size: int
    groups: tuple[KvGroup, ...]
    page_bytes: int
    state_bytes: int = 0

    @property
    def has_state(self) -> bool:
        return self.state_bytes > 0


@dataclass(frozen=True, slots=True)
class LogitEdit:
    """One token's logit changed before temperature: first the repetition penalty (a positive logit is divided by it, a
    negative one multiplied), then `add`. A ban is `add=-inf`. A row names a token at most once."""

    token_id: int
    add: float = 0.0
    penalty: float = 1.0


@runtime_checkable
class Mask(Protocol):
    """Allowed tokens: bit i of byte i // 8 allows token i. Bytes, or what becomes bytes when they are read: that may
    wait, and raises LocalLLMError where there is no mask to be had."""

    def __len__(self) -> int: ...

    def __bytes__(self) -> bytes: ...


@dataclass(frozen=True, slots=True)
class SampleWant:
    """Choose one token after each of the last `num_positions` tokens of the row (more than one: draft checking).

    `counter` numbers the first of these among the sequence's generated tokens: with the seed it fixes the random
    number, whatever the batch. `masks`: one per position, or none.
    `draft_edits`: the edits of the second position and those after it, where they differ from `edits`; else empty.
    """

    params: SamplingParams
    seed: int
    counter: int
    num_positions: int = 1
    edits: tuple[LogitEdit, ...] = ()
    masks: tuple[Mask, ...] = ()
    draft_edits: tuple[tuple[LogitEdit, ...], ...] = ()

    def edits_at(self, position_index: int) -> tuple[LogitEdit, ...]:
        return self.draft_edits[position_index - 1] if position_index and self.draft_edits else self.edits


@dataclass(frozen=True, slots=True)
class Want:
    """What a row asks of its logits; everything off is an unfinished chunk.

    `top_logprobs`: with each sample the log-probabilities of the k best, of the sample, and the entropy. `targets`:
    score these ids, target i after token i of the row (as many as the row has tokens, or fewer from its start); each
    comes with `target_top` best alternatives. `pooled` and `logits` return float32 arrays: (hidden,) and
    (positions, vocab), for tests, embeddings and calibration.
    """

    sample: SampleWant | None = None
    top_logprobs: int | None = None
    targets: tuple[int, ...] = ()
    target_top: int = 0
    pooled: Literal["mean", "last", "first"] | None = None
    logits: Literal["last", "all"] | None = None


NOTHING = Want()


@dataclass(frozen=True, slots=True)
class Row:
    """A sequence's part of one step: compute `token_ids` at positions `start`, `start + 1`, ...

    `tables[g]` maps page index (position // page_size) to page for KV group g. `atomic` rows are computed in one
    step, see themselves in both directions and share no prefix. Tokens at positions from `second_from` on are of the
    second text of a pair; 0: there is only one. `adapter` is a number that `add_adapter` gave, 0: none; what it adds is
    multiplied by `adapter_scale`.
    """

    seq: SeqId
    token_ids: tuple[int, ...]
    start: int
    tables: tuple[tuple[PageId, ...], ...]
    want: Want = NOTHING
    slot: SlotId = NO_SLOT
    adapter: int = 0
    atomic: bool = False
    second_from: int = 0
    adapter_scale: float = 1.0


@dataclass(frozen=True, slots=True)
class CopyPage:
    source: PageId
    target: PageId


@dataclass(frozen=True, slots=True)
class CopySlot:
    source: SlotId
    target: SlotId


@dataclass(frozen=True, slots=True)
class ZeroSlot:
    slot: SlotId


@dataclass(frozen=True, slots=True)
class SaveState:
    """Keep a copy of the slot under a checkpoint id; an existing checkpoint of that id is overwritten."""

    slot: SlotId
    checkpoint: CheckpointId


@dataclass(frozen=True, slots=True)
class RestoreState:
    checkpoint: CheckpointId
    slot: SlotId


@dataclass(frozen=True, slots=True)
class DropCheckpoint:
    checkpoint: CheckpointId


@dataclass(frozen=True, slots=True)
class CommitDraft:
    """Of the last drafted tokens of a sequence the first `num_accepted` stand; recurrent state rolls back to there."""

    seq: SeqId
    num_accepted: int
    num_drafted: int


@dataclass(frozen=True, slots=True)
class ResizePool:
    """Change the number of pages; pages at and above the new number hold nothing that is still in use."""

    num_pages: int


MemoryOp = CopyPage | CopySlot | ZeroSlot | SaveState | RestoreState | DropCheckpoint | CommitDraft | ResizePool


@dataclass(frozen=True, slots=True)
class StepPlan:
    """Memory operations happen first, in order; then all rows are computed."""

    step_id: int
    rows: tuple[Row, ...]
    memory: tuple[MemoryOp, ...] = ()

    @property
    def num_tokens(self) -> int:
        return sum(len(row.token_ids) for row in self.rows)


@dataclass(frozen=True, slots=True)
class RowResult:
    """The answer to one row's want; empty fields were not asked for. `logprobs[i]` belongs to `sampled[i]`.

    A row that could not be answered (no token allowed, logits that are no numbers) has `error` and `error_code`, and
    the rest of the step stands.
    """

    seq: SeqId
    sampled: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] = ()
    targets: tuple[TokenLogprobs, ...] = ()
    pooled: NDArray[np.float32] | None = None
    logits: NDArray[np.float32] | None = None
    error: str = ""
    error_code: str = ""


@dataclass(frozen=True, slots=True)
class StepResult:
    """Rows in the plan's order. `seconds` is the time the device needed."""

    step_id: int
    rows: tuple[RowResult, ...]
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class BackendInfo:
    """What doctor, `ps` and the dashboard say of a loaded backend."""

    name: str
    device: str
    native: bool
    threads: int
    weight_bytes: int
    overlaps: bool = False
    """True where submit returns before the step is done, so that the engine may plan one step ahead."""
    notes: tuple[str, ...] = field(default=())
    free_bytes: int | None = None
    """Memory of the device that is left for pages once the weights are loaded; None: it is the system's memory."""
    same_in_any_step: bool = False
    """True where the logits after a token are the same bits, whatever else is computed in its row and its step."""


class Backend(Protocol):
    """One model on one device, owned by one thread. Weights are loaded when it is made."""

    info: BackendInfo
    layout: CacheLayout
    vocab_size: int

    def allocate(self, num_pages: int, num_slots: int) -> None:
        """Make the pools; called once, before the first step. NotEnoughMemory when they do not fit."""

    def add_adapter(self, adapter: Adapter) -> int:
        """Rows may name its number, 1 or more, from now on; no number comes twice. UnsupportedModel for a matrix that
        this backend cannot add to, NotEnoughMemory."""

    def drop_adapter(self, number: int) -> None:
        """No row names it any more, and no step with it is under way: give its memory back."""

    def submit(self, plan: StepPlan) -> None:
        """Start a step. Steps are computed in the order they were submitted."""

    def collect(self) -> StepResult:
        """The result of the oldest step not yet collected; waits for it."""

    def close(self) -> None:
        """Give everything back; no call follows."""


def run_step(backend: Backend, plan: StepPlan) -> StepResult:
    """Submit and collect at once, where nothing is to be overlapped."""
    backend.submit(plan)
    return backend.collect()


def plain_row(
    seq: int, token_ids: Sequence[int], start: int, pages: Sequence[int], want: Want = NOTHING, *, num_groups: int = 1
) -> Row:
    """A row whose groups all use the same page indices: for tests, evaluation and calibration."""
    table = tuple(PageId(page) for page in pages)
    return Row(SeqId(seq), tuple(token_ids), start, (table,) * num_groups, want)
