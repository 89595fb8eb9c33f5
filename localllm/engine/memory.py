"""A sequence's memory: page tables per KV group, a state slot, and the prefix it can share. Knows no order of service.

Windowed groups give back pages that no later token can see. What is shared is known to prefixes.py, where recurrent
state is kept to marks.py.
"""

from __future__ import annotations

from collections.abc import Iterable

from localllm.engine.marks import Marks
from localllm.engine.pages import PagePool
from localllm.engine.prefixes import Hit, Prefixes
from localllm.engine.sequence import Holding, Sequence
from localllm.engine.states import StatePool
from localllm.engine.step import NO_PAGE, CacheLayout, CopyPage, MemoryOp


class Memory:
    """Pages and states of all sequences of one engine."""

    def __init__(
        self,
        layout: CacheLayout,
        num_pages: int,
        num_slots: int,
        *,
        num_checkpoints: int = 16,
        prefix_cache: bool = True,
    ) -> None:
        self.pool = PagePool(num_pages, layout.page_size)
        self.page_size = layout.page_size
        self.has_state = layout.has_state
        self._windows = [group.window for group in layout.groups]
        self._num_groups = len(layout.groups)
        self._trims = any(window is not None for window in self._windows)
        self.states = StatePool(num_slots, num_checkpoints if prefix_cache and layout.has_state else 0)
        self.prefixes = Prefixes(layout, self.pool, self.states, prefix_cache)

    # ---- how much

    def pages_for(self, num_tokens: int, step_tokens: int) -> int:
        """Pages that a sequence of this length holds at most, when a step computes up to `step_tokens` of it."""
        full = -(-num_tokens // self.page_size)
        return sum(full if w is None else min(full, self._window_pages(w, step_tokens)) for w in self._windows)

    def _window_pages(self, window: int, step_tokens: int) -> int:
        # the queries of a step see window - 1 tokens before the first of them; n tokens touch at most this many pages
        return -(-(window + step_tokens - 2) // self.page_size) + 1

    def longest_sequence(self, context_length: int, *, atomic: bool = False) -> int:
        """The length up to which one sequence fits into the whole pool."""
        low, high = 0, context_length
        while low < high:
            middle = (low + high + 1) // 2
            fits = self.pages_for(middle, middle if atomic else 1) <= self.pool.num_pages
            low, high = (middle, high) if fits else (low, middle - 1)
        return low

    def room_for(self, sequence: Sequence, num_tokens: int) -> int:
        """How many of `num_tokens` more tokens the sequence's pages and the available ones can hold."""
        holding = sequence.holding
        assert holding is not None
        start = sequence.num_computed
        capacity = holding.num_entries * self.page_size
        if start + num_tokens <= capacity or not self._num_groups:
            return num_tokens
        if self._trims:
            self._trim(sequence, holding)
        capacity += self.pool.num_available // self._num_groups * self.page_size
        return min(num_tokens, capacity - start)

    # ---- taking and giving back

    def attach(self, sequence: Sequence, hit: Hit | None, running: Iterable[Sequence] = ()) -> list[MemoryOp]:
        """Give the sequence its slot and the pages of the hit, and a copy of the last page of a running one that has
        computed the same prompt; it goes on after them. Returns what is to be done before its first row."""
        holding = sequence.holding = Holding([[] for _ in self._windows], self.prefixes.chain_of(sequence))
        holding.num_trimmed = [0] * self._num_groups
        if hit is not None:
            self._share(sequence, holding, hit)
        if self.has_state:
            holding.marks = self._marks(sequence)
            holding.slot, start = self.states.take(None if hit is None else hit.checkpoint)
            return [start]
        twin = self._twin(sequence, running)
        return self._copy_last_page(sequence, holding, twin) if twin else []

    def _share(self, sequence: Sequence, holding: Holding, hit: Hit) -> None:
        holding.tables = [list(table) for table in hit.tables]
        holding.num_trimmed = [table.count(NO_PAGE) for table in hit.tables]
        for page in holding.pages():
            self.pool.share(page)
        holding.num_registered = hit.num_pages
        sequence.num_computed = hit.num_pages * self.page_size

    def _copy_last_page(self, sequence: Sequence, holding: Holding, twin: Holding) -> list[MemoryOp]:
        """All but the last token is computed with that; the last one must give logits."""
        index = holding.num_entries
        copies: list[MemoryOp] = []
        for table, source in zip(holding.tables, twin.tables, strict=True):
            table.append(self.pool.allocate())
            copies.append(CopyPage(source[index], table[index]))
        holding.touch()
        sequence.num_computed = len(sequence.ids) - 1
        return copies

    def grow(self, sequence: Sequence, num_tokens: int) -> None:
        """Take the pages for `num_tokens` more tokens; `room_for` said that they are there."""
        holding = sequence.holding
        assert holding is not None
        missing = -(-(sequence.num_computed + num_tokens) // self.page_size) - holding.num_entries
        if missing <= 0 or not self._num_groups:
            return
        for table in holding.tables:
            table.extend([self.pool.allocate() for _ in range(missing)])
        holding.touch()

    def release(self, sequence: Sequence) -> None:
        """Give everything back. The last pages go first, so that a cached prefix loses its end before its start."""
        holding = sequence.holding
        if holding is None:
            return
        self.prefixes.learn(sequence)
        for page in reversed(holding.pages()):
            self.pool.release(page)
        self.states.give_back(holding.slot)
        sequence.holding = None

    def _trim(self, sequence: Sequence, holding: Holding) -> None:
        """Give back the pages that have left every later token's window."""
        for group, window in enumerate(self._windows):
            if window is None:
                continue
            table = holding.tables[group]
            first_needed = max(0, sequence.num_computed - window + 1) // self.page_size
            done = holding.num_trimmed[group]
            if first_needed <= done:
                continue
            for index in range(done, first_needed):
                self.pool.release(table[index])
                table[index] = NO_PAGE
            holding.num_trimmed[group] = first_needed
            holding.touch()

    # ---- copies of one prompt

    def awaits(self, sequence: Sequence, elder: Sequence) -> bool:
        """Whether the elder is about to compute something that the sequence can have from it: the next page, the state,
        or, where both have the same prompt, the rest of that."""
        holding = elder.holding
        if holding is None or not (self.prefixes.may_share(sequence) and elder.shares_prefix):
            return False
        if self.has_state:
            return self.mark_parting(sequence, elder)
        num_pages = holding.num_registered + 1
        if num_pages * self.page_size < min(len(sequence.ids), len(elder.ids) + 1):
            return self.prefixes.begin_alike(sequence, elder, num_pages)
        return elder.num_computed < len(sequence.ids) - 1 and self.prefixes.are_copies(sequence, elder)

    def mark_parting(self, sequence: Sequence, elder: Sequence) -> bool:
        """Have the elder keep its state where the two prompts part. False where it has passed that, or need not."""
        holding = elder.holding
        if holding is None or holding.marks is None or not (sequence.shares_prefix and elder.shares_prefix):
            return False
        num_pages = self.prefixes.num_common(sequence, elder)
        if elder.num_computed > num_pages * self.page_size:
            return False
        if num_pages and self.states.kept.find(elder.chain[num_pages]) is not None:
            return False
        return holding.marks.add_parting(num_pages)

    def _twin(self, sequence: Sequence, running: Iterable[Sequence]) -> Holding | None:
        """What a running sequence holds that has computed all but the last token, where that is more than the shared
        pages."""
        end = len(sequence.ids) - 1
        index = end // self.page_size
        if not (self.prefixes.may_share(sequence) and self._num_groups) or end == sequence.num_computed:
            return None
        if sequence.num_computed != index * self.page_size:
            return None
        for elder in running:
            holding = elder.holding
            if holding is None or elder.num_computed < end or elder.atomic:
                continue
            if self.prefixes.are_copies(sequence, elder) and all(table[index] != NO_PAGE for table in holding.tables):
                return holding
        return None

    # ---- the state

    def _marks(self, sequence: Sequence) -> Marks | None:
        """None where nobody could use what would be kept."""
        capacity = self.states.kept.capacity
        if not capacity or sequence.atomic:
            return None
        marks = Marks(sequence.ids, sequence.stop_ids, self.page_size, capacity)
        marks.add_parting(sequence.num_known_pages)  # another prompt came by there: a third may, too
        return marks

    def cut_for_state(self, sequence: Sequence, num_tokens: int) -> int:
        """A chunk of a prompt ends at the next mark, or else at a page boundary where it can: the boundaries between
        chunks are the same ones whoever else is in the step."""
        holding = sequence.holding
        start = sequence.num_computed
        if holding is None or holding.marks is None:
            return num_tokens
        mark = holding.marks.next_after(start)
        if mark is not None and mark <= start + num_tokens:
            return mark - start
        last = min(start + num_tokens, len(sequence.ids) - 1) // self.page_size * self.page_size
        return last - start if last > start else num_tokens

    def save_state(self, sequence: Sequence) -> MemoryOp | None:
        """Keep the state that the sequence has before its next row, when that is at a mark. While it generates, every
        page boundary is one; there it replaces its own last checkpoint, so that a long answer does not push out
        everything else."""
        holding, num_computed = sequence.holding, sequence.num_computed
        if holding is None or holding.marks is None or not num_computed or num_computed > len(sequence.ids):
            return None
        generates = num_computed >= sequence.num_prompt
        if num_computed % self.page_size or not (generates or num_computed in holding.marks):
            return None
        self.prefixes.extend(sequence, holding.chain, num_computed // self.page_size)
        chain = holding.chain[num_computed // self.page_size]
        if self.states.kept.find(chain) is None and holding.checkpointed is not None:
            self.states.kept.forget(holding.checkpointed)
        saved = self.states.save(holding.slot, chain)
        if saved is not None:
            holding.checkpointed = chain if generates else None
        return saved

    # ---- for tests and the dashboard

    def check(self, sequences: list[Sequence]) -> None:
        """The pool's invariants, and that exactly these sequences hold its pages."""
        self.pool.check()
        self.states.check([sequence.holding.slot for sequence in sequences if sequence.holding])
        held = [page for sequence in sequences if sequence.holding for page in sequence.holding.pages()]
        self.pool.check_holders(held)
