"""A backend without a model: the next token is a hash of the tokens it can see, read through the pages. Judges plans.

What is stored in a page is the token itself, so that any mix-up of pages, slots or positions changes the answer, and
most are refused outright with `PlanViolation`. Use it to test whatever stands above the seam.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from localllm.engine.sampling import answer_row, logit_positions, mix64
from localllm.engine.step import (
    NO_PAGE,
    NO_SLOT,
    SAMPLED_LAST,
    BackendInfo,
    CacheLayout,
    CheckpointId,
    CommitDraft,
    CopyPage,
    CopySlot,
    DropCheckpoint,
    KvGroup,
    MemoryOp,
    ResizePool,
    RestoreState,
    Row,
    RowResult,
    SaveState,
    SeqId,
    SlotId,
    StepPlan,
    StepResult,
    ZeroSlot,
)
from localllm.models.adapters import Adapter

Tokens = NDArray[np.int64]
HIDDEN = 8


class PlanViolation(AssertionError):
    """The engine broke the contract of the seam."""


def _demand(claim: bool, sentence: str) -> None:
    if not claim:
        raise PlanViolation(sentence)


@dataclass(frozen=True, slots=True)
class State:
    """A recurrent state: a running hash and the number of tokens in it."""

    value: int = 0
    num_tokens: int = 0

    def after(self, token: int) -> State:
        return State(mix64(self.value ^ token + 1), self.num_tokens + 1)


def fake_logits(
    visible: Sequence[Tokens], state: State | None, vocab_size: int, adapter: int = 0
) -> NDArray[np.float32]:
    """Logits float32 (vocab,) between -8 and 8 that depend on every visible token of every group, their order, the
    state and the adapter."""
    seed = adapter
    for group, tokens in enumerate(visible):
        places = np.arange(1, tokens.size + 1, dtype=np.uint64)
        mixed = _mix((tokens + 1).astype(np.uint64) + places * np.uint64(0x9E3779B97F4A7C15))
        seed = mix64(seed ^ int(mixed.sum(dtype=np.uint64)) ^ group)
    if state is not None:
        seed = mix64(seed ^ state.value)
    noise = _mix(np.arange(vocab_size, dtype=np.uint64) + np.uint64(seed))
    return ((noise >> np.uint64(40)).astype(np.float32) / np.float32(2**20) - 8).astype(np.float32)


def _applied(row: Row) -> int:
    """A number for the adapter of a row and its scale."""
    return row.adapter + int(row.adapter_scale * 1000) if row.adapter else 0


def _mix(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    words = (words ^ words >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ words >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return words ^ words >> np.uint64(31)


@dataclass(slots=True)
class _Cache:
    """What the pages hold: token, position and group of every entry; -1 where nothing was written."""

    tokens: Tokens
    positions: Tokens
    groups: Tokens

    @staticmethod
    def empty(num_pages: int, page_size: int) -> _Cache:
        return _Cache(*(np.full((num_pages, page_size), -1, np.int64) for _ in range(3)))

    def resized(self, num_pages: int) -> _Cache:
        bigger = _Cache.empty(num_pages, self.tokens.shape[1])
        kept = min(num_pages, len(self.tokens))
        for new, old in zip(bigger.arrays(), self.arrays(), strict=True):
            new[:kept] = old[:kept]
        return bigger

    def arrays(self) -> tuple[Tokens, Tokens, Tokens]:
        return self.tokens, self.positions, self.groups


@dataclass(slots=True)
class _Trace:
    """What is remembered of a sequence between steps: its last samples, and its states for rolling a draft back."""

    step_id: int
    slot: SlotId
    sampled: tuple[int, ...]
    states: list[State] = field(default_factory=list)


class FakeBackend:
    """Answers from a hash of what is visible, or from `answer(visible tokens of the first group)` where given.

    `windows` makes one KV group each. `seconds_per_step` lets collect take that long. With `overlaps` two steps may be
    under way. Every plan is checked; `plans` keeps the last ones.
    """

    def __init__(
        self,
        *,
        vocab_size: int = 256,
        page_size: int = 16,
        windows: Sequence[int | None] = (None,),
        has_state: bool = False,
        overlaps: bool = False,
        seconds_per_step: float = 0.0,
        answer: Callable[[Sequence[int]], int] | None = None,
        keep_plans: int = 64,
    ) -> None:
        groups = tuple(KvGroup(window, (layer,)) for layer, window in enumerate(windows))
        self.info = BackendInfo("fake", "no device", False, 1, 0, overlaps)
        self.layout = CacheLayout(page_size, groups, page_size * 8, 16 if has_state else 0)
        self.vocab_size = vocab_size
        self.plans: deque[StepPlan] = deque(maxlen=keep_plans)
        self.seconds_per_step = seconds_per_step
        self._answer = answer
        self._cache = _Cache.empty(0, page_size)
        self._slots: list[State | None] = []
        self._checkpoints: dict[CheckpointId, State] = {}
        self._traces: dict[SeqId, _Trace] = {}
        self._results: deque[StepResult] = deque()
        self._last_step = -1
        self.adapters: set[int] = set()
        self._num_adapters = 0
        self.is_closed = False

    # ---- the protocol

    def allocate(self, num_pages: int, num_slots: int) -> None:
        self._cache = _Cache.empty(num_pages, self.layout.page_size)
        self._slots = [None] * num_slots

    def add_adapter(self, adapter: Adapter) -> int:
        self._num_adapters += 1
        self.adapters.add(self._num_adapters)
        return self._num_adapters

    def drop_adapter(self, number: int) -> None:
        _demand(number in self.adapters, f"adapter {number} is not there")
        self.adapters.discard(number)

    def submit(self, plan: StepPlan) -> None:
        _demand(not self.is_closed, "the backend is closed")
        _demand(plan.step_id > self._last_step, "step ids must rise")
        _demand(len(self._results) < (2 if self.info.overlaps else 1), "too many steps are under way")
        self.plans.append(plan)
        for op in plan.memory:
            self._apply(op)
        self._check_plan(plan)
        rows = tuple(self._compute(plan.step_id, row) for row in plan.rows)
        self._last_step = plan.step_id
        self._results.append(StepResult(plan.step_id, rows, self.seconds_per_step))

    def collect(self) -> StepResult:
        _demand(bool(self._results), "nothing was submitted")
        if self.seconds_per_step:
            time.sleep(self.seconds_per_step)
        return self._results.popleft()

    def close(self) -> None:
        self.is_closed = True

    # ---- memory operations

    def _apply(self, op: MemoryOp) -> None:
        match op:
            case CopyPage(source, target):
                for array in self._cache.arrays():
                    array[target] = array[source]
            case CopySlot(source_slot, target_slot):
                self._slots[target_slot] = self._slots[source_slot]
            case ZeroSlot(slot):
                self._slots[slot] = State()
            case SaveState(slot, checkpoint):
                self._checkpoints[checkpoint] = self._state_in(slot)
            case RestoreState(checkpoint, slot):
                _demand(checkpoint in self._checkpoints, f"checkpoint {checkpoint} was never saved")
                self._slots[slot] = self._checkpoints[checkpoint]
            case DropCheckpoint(checkpoint):
                _demand(self._checkpoints.pop(checkpoint, None) is not None, f"checkpoint {checkpoint} is not kept")
            case CommitDraft(seq, num_accepted, num_drafted):
                self._roll_back(seq, num_drafted - num_accepted)
            case ResizePool(num_pages):
                self._cache = self._cache.resized(num_pages)

    def _state_in(self, slot: SlotId) -> State:
        state = self._slots[slot]
        _demand(state is not None, f"slot {slot} holds nothing")
        assert state is not None
        return state

    def _roll_back(self, seq: SeqId, num_rejected: int) -> None:
        trace = self._traces[seq]
        _demand(0 <= num_rejected < max(1, len(trace.sampled)), "more tokens are rejected than were drafted")
        trace.sampled = trace.sampled[: len(trace.sampled) - num_rejected]
        if trace.slot != NO_SLOT:
            self._slots[trace.slot] = trace.states[len(trace.states) - 1 - num_rejected]

    # ---- judging a plan

    def _check_plan(self, plan: StepPlan) -> None:
        _demand(bool(plan.rows), "a step without rows")
        _demand(len({row.seq for row in plan.rows}) == len(plan.rows), "a sequence has two rows in one step")
        slots = [row.slot for row in plan.rows if row.slot != NO_SLOT]
        _demand(len(set(slots)) == len(slots), "two sequences share a slot")
        for row in plan.rows:
            self._check_row(row)
        self._check_writers(plan)

    def _check_row(self, row: Row) -> None:
        end = row.start + len(row.token_ids)
        _demand(bool(row.token_ids) and row.start >= 0, "a row without tokens, or before the start")
        _demand(len(row.tables) == len(self.layout.groups), "a page table per group is needed")
        _demand((row.slot != NO_SLOT) == self.layout.has_state, "a slot is for models with state, and for all of them")
        _demand(not row.atomic or row.start == 0, "an atomic row starts at 0")
        _demand(row.adapter == 0 or row.adapter in self.adapters, f"adapter {row.adapter} is not there")
        for group, table in enumerate(row.tables):
            self._check_table(row, group, table, end)
        self._check_want(row)

    def _check_table(self, row: Row, group: int, table: Sequence[int], end: int) -> None:
        size, window = self.layout.page_size, self.layout.groups[group].window
        _demand(len(table) * size >= end, f"sequence {row.seq}: the page table ends before the row does")
        first = 0 if window is None else max(0, row.start - window + 1) // size
        for index, page in enumerate(table):
            if page == NO_PAGE:
                _demand(index < first, f"sequence {row.seq}: a page inside the window is missing")
            else:
                _demand(0 <= page < len(self._cache.tokens), f"sequence {row.seq}: page {page} does not exist")
        self._check_history(row, group, table)

    def _check_history(self, row: Row, group: int, table: Sequence[int]) -> None:
        """Every position before the row that it can see was written, for this group, at this place."""
        lowest = self._lowest_visible(group, row.start)
        places = np.arange(lowest, row.start)
        pages, offsets = self._locate(table, places)
        _demand(bool((self._cache.positions[pages, offsets] == places).all()), f"sequence {row.seq}: a gap in its past")
        _demand(bool((self._cache.groups[pages, offsets] == group).all()), f"sequence {row.seq}: another group's page")

    def _check_want(self, row: Row) -> None:
        want, num_tokens = row.want, len(row.token_ids)
        _demand(len(want.targets) <= num_tokens, "more targets than tokens")
        _demand(all(0 <= target < self.vocab_size for target in want.targets), "a target outside the vocabulary")
        if want.sample is None:
            return
        _demand(1 <= want.sample.num_positions <= num_tokens, "more positions to sample than tokens")
        edits = (want.sample.edits, *want.sample.draft_edits)
        _demand(all(len({e.token_id for e in line}) == len(line) for line in edits), "a token is edited twice")
        _demand(len(want.sample.draft_edits) in (0, want.sample.num_positions - 1), "edits for each draft, or for none")
        _demand(len(want.sample.masks) in (0, want.sample.num_positions), "one mask per position, or none")
        _demand(all(len(mask) * 8 >= self.vocab_size for mask in want.sample.masks), "a mask is too short")

    def _check_writers(self, plan: StepPlan) -> None:
        """No page that one row writes is in the table of another, and no page is in two groups."""
        writers: dict[int, SeqId] = {}
        users: dict[int, int] = {}
        for row in plan.rows:
            for group, table in enumerate(row.tables):
                for index in range(row.start // self.layout.page_size, self._last_page(row) + 1):
                    _demand(table[index] not in writers, f"page {table[index]} is written twice")
                    writers[table[index]] = row.seq
                for page in table:
                    _demand(page == NO_PAGE or users.setdefault(page, group) == group, f"page {page} is in two groups")
        for row in plan.rows:
            for table in row.tables:
                for page in table:
                    _demand(writers.get(page, row.seq) == row.seq, f"page {page} is written while another reads it")

    def _last_page(self, row: Row) -> int:
        return (row.start + len(row.token_ids) - 1) // self.layout.page_size

    # ---- computing

    def _compute(self, step_id: int, row: Row) -> RowResult:
        token_ids = self._resolved(step_id, row)
        self._write(row, token_ids)
        states = self._advance(row, token_ids)
        positions = logit_positions(row)
        logits = np.zeros((len(positions), self.vocab_size), np.float32)
        for line, index in enumerate(positions):
            logits[line] = self._logits(row, index, states)
        result = answer_row(row, logits, self._pooled(row))
        self._traces[row.seq] = _Trace(step_id, row.slot, result.sampled, states)
        return result

    def _resolved(self, step_id: int, row: Row) -> list[int]:
        if SAMPLED_LAST not in row.token_ids:
            _demand(all(0 <= token < self.vocab_size for token in row.token_ids), "a token outside the vocabulary")
            return list(row.token_ids)
        trace = self._traces.get(row.seq)
        _demand(trace is not None and trace.step_id == self._last_step, f"sequence {row.seq} was not in the last step")
        assert trace is not None
        _demand(bool(trace.sampled), f"sequence {row.seq} sampled nothing in the last step")
        return [trace.sampled[-1] if token == SAMPLED_LAST else token for token in row.token_ids]

    def _write(self, row: Row, token_ids: list[int]) -> None:
        places = np.arange(row.start, row.start + len(token_ids))
        for group, table in enumerate(row.tables):
            pages, offsets = self._locate(table, places)
            self._cache.tokens[pages, offsets] = token_ids
            self._cache.positions[pages, offsets] = places
            self._cache.groups[pages, offsets] = group

    def _advance(self, row: Row, token_ids: list[int]) -> list[State]:
        """The states after each token; the last one is kept in the slot."""
        if row.slot == NO_SLOT:
            return []
        states = [self._state_in(row.slot)]
        _demand(states[0].num_tokens == row.start, f"sequence {row.seq}: its state is of another position")
        for token in token_ids:
            states.append(states[-1].after(token))
        self._slots[row.slot] = states[-1]
        return states[1:]

    def _logits(self, row: Row, index: int, states: list[State]) -> NDArray[np.float32]:
        visible = self._visible(row, index)
        if self._answer is not None:
            chosen = np.zeros(self.vocab_size, np.float32)
            chosen[self._answer(visible[0].tolist())] = 8.0
            return chosen
        return fake_logits(visible, states[index] if states else None, self.vocab_size, _applied(row))

    def _visible(self, row: Row, index: int) -> list[Tokens]:
        """What the token at this index of the row sees in each group, read through the pages."""
        position = row.start + (len(row.token_ids) - 1 if row.atomic else index)
        tokens = []
        for group, table in enumerate(row.tables):
            lowest = 0 if row.atomic else self._lowest_visible(group, position)
            tokens.append(self._cache.tokens[self._locate(table, np.arange(lowest, position + 1))])
        return tokens

    def _lowest_visible(self, group: int, position: int) -> int:
        window = self.layout.groups[group].window
        return 0 if window is None else max(0, position - window + 1)

    def _locate(self, table: Sequence[int], places: Tokens) -> tuple[Tokens, Tokens]:
        return np.asarray(table, np.int64)[places // self.layout.page_size], places % self.layout.page_size

    def _pooled(self, row: Row) -> NDArray[np.float32] | None:
        """(HIDDEN,): the mean, first or last of vectors that each belong to a token and what it sees."""
        kind = row.want.pooled
        if kind is None:
            return None
        num_tokens = len(row.token_ids)
        chosen = {"mean": range(num_tokens), "first": range(1), "last": range(num_tokens - 1, num_tokens)}[kind]
        vectors = [fake_logits(self._visible(row, index), None, HIDDEN) for index in chosen]
        return np.asarray(np.stack(vectors).mean(axis=0), np.float32)
