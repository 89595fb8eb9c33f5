"""Drives a backend as an engine would, with scrambled pages that are reused as soon as a window has left them."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from localllm.engine.step import (
    NO_PAGE,
    NO_SLOT,
    NOTHING,
    Backend,
    MemoryOp,
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


@dataclass
class Held:
    """A sequence's memory: how far it is, a table per group, its slot."""

    tables: list[list[PageId]]
    slot: SlotId
    position: int = 0


@dataclass
class Walk:
    """Sequences are numbers; `step` takes for each its tokens and its want, and says what came back."""

    backend: Backend
    num_pages: int = 192
    num_slots: int = 8
    held: dict[int, Held] = field(default_factory=dict)
    step_id: int = 0

    def __post_init__(self) -> None:
        self.backend.allocate(self.num_pages, self.num_slots)
        self.free_pages = [PageId(int(p)) for p in np.random.default_rng(3).permutation(self.num_pages)]
        self.free_slots = [SlotId(s) for s in range(self.num_slots)]
        self.memory: list[MemoryOp] = []

    def step(self, *parts: tuple[int, Sequence[int], Want], memory: Sequence[MemoryOp] = ()) -> list[RowResult]:
        rows = tuple(self.row(seq, tokens, want) for seq, tokens, want in parts)
        return self.run(rows, memory)

    def run(self, rows: tuple[Row, ...], memory: Sequence[MemoryOp] = ()) -> list[RowResult]:
        plan = StepPlan(self.step_id, rows, (*self.memory, *memory))
        self.memory, self.step_id = [], self.step_id + 1
        result = run_step(self.backend, plan)
        assert result.step_id == plan.step_id
        assert [row.seq for row in result.rows] == [row.seq for row in rows]
        return list(result.rows)

    def row(self, seq: int, tokens: Sequence[int], want: Want = NOTHING, atomic: bool = False) -> Row:
        held = self.held.get(seq) or self.start(seq)
        end = held.position + len(tokens)
        for group, table in zip(self.backend.layout.groups, held.tables, strict=True):
            if group.window is not None:
                self.leave(table, held.position - group.window + 1)
            while len(table) * self.backend.layout.page_size < end:
                table.append(self.free_pages.pop())
        start, held.position = held.position, end
        return Row(SeqId(seq), tuple(tokens), start, tuple(map(tuple, held.tables)), want, held.slot, atomic=atomic)

    def start(self, seq: int) -> Held:
        slot = NO_SLOT
        if self.backend.layout.has_state:
            slot = self.free_slots.pop()
            self.memory.append(ZeroSlot(slot))
        self.held[seq] = Held([[] for _ in self.backend.layout.groups], slot)
        return self.held[seq]

    def leave(self, table: list[PageId], first_seen: int) -> None:
        """Pages below the window are another's from now on."""
        for index in range(min(max(first_seen, 0) // self.backend.layout.page_size, len(table))):
            if table[index] != NO_PAGE:
                self.free_pages.append(table[index])
                table[index] = NO_PAGE
