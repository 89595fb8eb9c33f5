"""Who runs next. Knows pages and counts; knows no tensors, and no phases: only tokens computed and tokens wanted.

Order of service is a rank fixed when a sequence is added: a level of priority is worth `AGING_STEPS` steps of waiting,
within a level the first come is first. Whoever ranks highest can take the memory of all others, so somebody always
gets on, and nobody is passed by for ever. Who is admitted next of a level is the first of the owner who has had least.
A sequence waits for another that is about to compute a prefix of it, so that copies of one prompt compute it once.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Mapping

from localllm.engine.memory import Memory
from localllm.engine.prefixes import Hit
from localllm.engine.sequence import Sequence
from localllm.engine.shares import Shares
from localllm.engine.step import CommitDraft, MemoryOp, Row, StepPlan

Drafts = Mapping[Sequence, tuple[int, ...]]
"""Guesses of the tokens that some sequences will go on with."""
NO_DRAFTS: Drafts = {}

AGING_STEPS = 64
MAX_PRIORITY = 1000
MOST_PASSED = 64
"""So many that wait for a prefix are passed by in a step; whoever comes behind waits with them."""


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
        self._shares: dict[int, Shares] = {}
        self._elders: list[Sequence] = []  # running ones that still compute their prompts

    def add(self, sequence: Sequence) -> None:
        if self.memory.has_state:
            for elder in self.running:
                self.memory.mark_parting(sequence, elder)
        insort(self.waiting, sequence, key=_order)
        self._shares.setdefault(sequence.priority, Shares()).join(sequence.owner)

    def remove(self, sequence: Sequence) -> None:
        """Forget it and give its memory back at once. What is computed for it on the device right now may still write
        to these pages, but steps happen in order, so any new owner writes later."""
        (self.running if sequence.holding is not None else self.waiting).remove(sequence)
        self.memory.release(sequence)
        shares = self._shares[sequence.priority]
        shares.leave(sequence.owner)
        if not shares.num_owners:
            del self._shares[sequence.priority]

    def settle(self, sequence: Sequence, num_standing: int) -> None:
        """Of what was drafted for it in the last step so many tokens stand; the backend hears of it with the next."""
        self._settled.append(sequence.settle(num_standing))
        self._charge(sequence, num_standing)

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
            self.memory.prefixes.learn(sequence)
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
                self._charge(sequence, room)
                return
            self._preempt(self.running[-1])

    def _charge(self, sequence: Sequence, num_tokens: int) -> None:
        self._shares[sequence.priority].charge(sequence.owner, num_tokens)

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
        num_chosen = self._chosen.pop(victim, 0)
        self._budget += num_chosen
        self._charge(victim, -num_chosen)
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
        """The one whose turn it is, without skipping, so that a large request is not passed by for ever. Only those who
        wait for a prefix let others pass."""
        if not self.waiting:
            return
        self._elders = [sequence for sequence in self.running if sequence.num_computed < sequence.num_prompt]
        passed: set[Sequence] = set()
        while self._budget > 0 and not self._preempted:
            sequence = self._next(passed)
            if sequence is None or self._blocked == self._moment(sequence):
                return
            if self._awaits_prefix(sequence):
                passed.add(sequence)
                continue
            hit = self.memory.prefixes.lookup(sequence)
            while not self._fits(sequence, hit):
                if not self._gives_way(sequence):
                    self._blocked = self._moment(sequence)
                    return
                self._preempt(self.running[-1])
            if not self._start(sequence, hit):
                return

    def _next(self, passed: set[Sequence]) -> Sequence | None:
        """The highest rank, but among its equals the first of the owner who has had least. One that is first by its age
        alone, before others of a higher class, has waited long enough."""
        if len(passed) > MOST_PASSED:
            return None
        able = (sequence for sequence in self.waiting if sequence not in passed)
        head = next(able, None)
        if head is None or self._shares[head.priority].num_owners == 1:
            return head
        firsts = {head.owner: head}
        for sequence in able:
            if sequence.priority > head.priority:
                return head
            if sequence.priority == head.priority:
                firsts.setdefault(sequence.owner, sequence)
        shares = self._shares[head.priority]
        return min(firsts.values(), key=lambda sequence: shares.spent(sequence.owner))

    def _awaits_prefix(self, sequence: Sequence) -> bool:
        """Never for one of a lower class, which others may hold up."""
        return any(
            elder.priority >= sequence.priority and self.memory.awaits(sequence, elder) for elder in self._elders
        )

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
        taken = max(0, needed - self.memory.prefixes.num_found(hit)) + self.memory.prefixes.num_idle(hit)
        spare = self.memory.pages_for(1, 1) * len(self.running)
        return taken + spare <= self.memory.pool.num_available

    def _gives_way(self, sequence: Sequence) -> bool:
        """Whether the last running one is of a lower class, and has not waited so long that it ranks higher all the
        same."""
        last = self.running[-1]
        return last.priority < sequence.priority and last.rank < sequence.rank

    def _start(self, sequence: Sequence, hit: Hit | None) -> bool:
        assert not sequence.num_pending, "it was preempted, and the sample of its former life is still out"
        self.waiting.remove(sequence)
        starts = self.memory.attach(sequence, hit, self.running)
        insort(self.running, sequence, key=_order)
        if self.memory.has_state:
            for younger in self.waiting[:MOST_PASSED]:
                self.memory.mark_parting(younger, sequence)
        self._grow(sequence, sequence.gap)
        if sequence not in self._chosen:
            self._undo_start(sequence)
            return False
        self._starts += starts
        self._elders.append(sequence)
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
