"""Who runs next. Knows pages and counts; knows no tensors, and no phases: only tokens computed and tokens wanted.

Order of service is a rank fixed when a sequence is added: a level of priority is worth `AGING_STEPS` steps of waiting,
within a level the first come is first. Whoever ranks highest can take the memory of all others, so somebody always
gets on, and nobody is passed by for ever.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Mapping

from localllm.engine.memory import Hit, Memory
from localllm.engine.sequence import Sequence
from localllm.engine.step import CommitDraft, MemoryOp, Row, StepPlan

Drafts = Mapping[Sequence, tuple[int, ...]]
"""Guesses of the tokens that some sequences will go on with."""
NO_DRAFTS: Drafts = {}

AGING_STEPS = 64
MAX_PRIORITY = 1000


def rank_at(priority: int, step: int) -> int:
    """Rank of a sequence added at this step; the difference to any other never changes while both wait."""
    return max(-MAX_PRIORITY, min(MAX_PRIORITY, priority)) * AGING_STEPS - step


def _order(sequence: Sequence) -> tuple[int, int]:
    rank, tie = sequence.rank
    return -rank, -tie


class Scheduler:
    """Waiting and running sequences, each in order of rank; `plan` turns them into the next step."""

    def __init__(self, memory: Memory, *, token_budget: int, max_sequences: int) -> None:
        self.memory = memory
        self.token_budget = token_budget
        self.max_sequences = max_sequences
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self.num_preemptions = 0
        self.preempted: list[Sequence] = []
        """Those that lost their memory, for whoever tells their readers to take."""
        self.now_s = 0.0
        """When the step being planned was begun, by the clock of whoever calls."""
        self._chosen: dict[Sequence, int] = {}  # tokens that each computes in the step being planned
        self._budget = 0
        self._starts: list[MemoryOp] = []
        self._settled: list[CommitDraft] = []
        self._preempted = False
        self._blocked: tuple[Sequence, int, int] | None = None

    def add(self, sequence: Sequence) -> None:
        insort(self.waiting, sequence, key=_order)

    def remove(self, sequence: Sequence) -> None:
        """Forget it and give its memory back at once. What is computed for it on the device right now may still write
        to these pages, but steps happen in order, so any new owner writes later."""
        (self.running if sequence.holding is not None else self.waiting).remove(sequence)
        self.memory.release(sequence)

    def settle(self, sequence: Sequence, num_standing: int) -> None:
        """Of what was drafted for it in the last step so many tokens stand; the backend hears of it with the next."""
        self._settled.append(sequence.settle(num_standing))

    def start_again(self, sequence: Sequence) -> None:
        """Compute a running sequence anew, from its first token."""
        self._preempt(sequence)

    def plan(self, step_id: int, drafts: Drafts = NO_DRAFTS) -> tuple[StepPlan, list[Sequence]] | None:
        """The next step and the sequences of its rows; None when nothing can be planned before a result comes in.
        `drafts` ride along where a sequence computes its last known token, and budget and memory are left."""
        self._chosen, self._budget, self._starts, self._preempted = {}, self.token_budget, [], False
        self._grow_running()
        self._admit_waiting()
        if not self._chosen:
            return None
        for sequence, drafted in drafts.items():
            self._append_draft(sequence, drafted)
        sequences = list(self._chosen)
        memory = [*self._settled, *self._starts, *self._saves(sequences)]
        self._settled = []
        rows = tuple(self._rows())
        for sequence in sequences:
            self.memory.learn(sequence)
        return StepPlan(step_id, rows, tuple(memory)), sequences

    def _rows(self) -> list[Row]:
        return [sequence.row(num_tokens) for sequence, num_tokens in self._chosen.items()]

    def _saves(self, sequences: list[Sequence]) -> list[MemoryOp]:
        if not self.memory.has_state:
            return []
        return [op for op in map(self.memory.save_state, sequences) if op is not None]

    # ---- running sequences

    def _grow_running(self) -> None:
        """Single tokens first, so that a long prompt delays nobody's next token, then chunks."""
        chunks = []
        for sequence in tuple(self.running):
            gap = sequence.gap
            if gap == 1:
                self._grow(sequence, 1)
            elif gap:
                chunks.append(sequence)
        for sequence in chunks:
            self._grow(sequence, sequence.gap)

    def _grow(self, sequence: Sequence, gap: int) -> None:
        """Plan as many tokens of the gap as budget and memory allow, taking memory from the lowest ranks if need be."""
        wanted = self._within_budget(sequence, gap)
        while wanted and sequence.holding is not None:
            room = self.memory.room_for(sequence, wanted)
            if room == wanted or (room > 0 and not sequence.atomic):
                self.memory.grow(sequence, room)
                self._chosen[sequence] = room
                self._budget -= room
                return
            self._preempt(self.running[-1])

    def _within_budget(self, sequence: Sequence, gap: int) -> int:
        if sequence.atomic:
            # it cannot be cut: it may exceed the budget, but only as the one prompt of its step
            return gap if gap <= self._budget or all(n == 1 for n in self._chosen.values()) else 0
        wanted = min(gap, self._budget)
        return self.memory.cut_for_state(sequence, wanted) if wanted > 1 else wanted

    def _append_draft(self, sequence: Sequence, drafted: tuple[int, ...]) -> None:
        """Last of all, with what is left: a draft takes nothing from anybody."""
        if self._chosen.get(sequence) != 1 or sequence.gap != 1:
            return
        room = min(len(drafted), sequence.room_for_draft, self._budget)
        if room > 0:
            room = self.memory.room_for(sequence, 1 + room) - 1
        if room > 0:
            self.memory.grow(sequence, 1 + room)
            sequence.drafted = drafted[:room]
            self._chosen[sequence] = 1 + room
            self._budget -= room

    def _preempt(self, victim: Sequence) -> None:
        """Take its memory away; it will be computed again when there is room."""
        self._budget += self._chosen.pop(victim, 0)
        self.running.remove(victim)
        self.memory.release(victim)
        victim.restart()
        insort(self.waiting, victim, key=_order)
        self.num_preemptions += 1
        self.preempted.append(victim)
        # nobody more is admitted in this step: memory is short, and a sample of the victim may still be out
        self._preempted = True

    # ---- waiting sequences

    def _admit_waiting(self) -> None:
        """In order of rank and without skipping, so that a large request is not passed by for ever."""
        while self.waiting and self._budget > 0 and not self._preempted:
            sequence = self.waiting[0]
            if self._blocked == self._moment(sequence):
                return
            hit = self.memory.lookup(sequence)
            while not self._fits(sequence, hit):
                if not self._gives_way(sequence):
                    self._blocked = self._moment(sequence)
                    return
                self._preempt(self.running[-1])
            if not self._start(sequence, hit):
                return

    def _moment(self, sequence: Sequence) -> tuple[Sequence, int, int]:
        """As long as this stays the same, a sequence that did not fit does not fit."""
        return sequence, self.memory.pool.num_available, len(self.running)

    def _fits(self, sequence: Sequence, hit: Hit | None) -> bool:
        """Whether all that is known of it fits at once, with a page in each group to spare for every running one."""
        if not self.running:
            return True
        if len(self.running) >= self.max_sequences:
            return False
        needed = self.memory.pages_for(len(sequence.ids), self.token_budget)
        taken = max(0, needed - self.memory.num_found(hit)) + self.memory.num_idle(hit)
        spare = self.memory.pages_for(1, 1) * len(self.running)
        return taken + spare <= self.memory.pool.num_available

    def _gives_way(self, sequence: Sequence) -> bool:
        """Whether the last running one ranks lower. Only a newcomer of a higher class can outrank who runs already."""
        return self.running[-1].rank < sequence.rank

    def _start(self, sequence: Sequence, hit: Hit | None) -> bool:
        assert not sequence.num_pending, "it was preempted, and the sample of its former life is still out"
        self.waiting.remove(sequence)
        self.memory.attach(sequence, hit)
        insort(self.running, sequence, key=_order)
        start = self.memory.start_state(sequence, hit)
        self._grow(sequence, sequence.gap)
        if sequence not in self._chosen:
            self._undo_start(sequence)
            return False
        if start is not None:
            self._starts.append(start)
        if not sequence.is_started:
            sequence.num_cached = sequence.num_computed
            sequence.admitted_s = self.now_s
        return True

    def _undo_start(self, sequence: Sequence) -> None:
        """No budget was left for it after all, or it was taken back already."""
        if sequence.holding is None:
            return
        self.running.remove(sequence)
        self.memory.release(sequence)
        sequence.num_computed = 0
        insort(self.waiting, sequence, key=_order)
