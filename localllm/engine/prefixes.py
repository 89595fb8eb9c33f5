"""What is known of the beginnings of texts: chains of full pages, and how much of a sequence can be had from them.

Windowed groups need only the last window's pages for a hit. Models with recurrent state share a prefix only where a
checkpoint of the state was kept, at a page boundary.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from localllm.engine.pages import ChainHash, PagePool
from localllm.engine.sequence import Sequence
from localllm.engine.states import StatePool
from localllm.engine.step import NO_PAGE, CacheLayout, CheckpointId, PageId

REMEMBERED_BOUNDARIES = 1 << 16
"""Models without attention have no pages to tell how far a prompt is known: their boundaries are kept instead."""


@dataclass(frozen=True, slots=True)
class Hit:
    """A prefix that need not be computed: pages per group (NO_PAGE before the window), and the state after them."""

    num_pages: int
    tables: tuple[tuple[PageId, ...], ...]
    checkpoint: CheckpointId | None = None


class Prefixes:
    """`is_kept` False: nobody shares anything. A page is known by the chain of all pages before it, which begins with
    the sequence's salt and adapter."""

    def __init__(self, layout: CacheLayout, pool: PagePool, states: StatePool, is_kept: bool) -> None:
        self._pool = pool
        self._states = states
        self._page_size = layout.page_size
        self._has_state = layout.has_state
        self._windows = [group.window for group in layout.groups]
        self._num_groups = len(layout.groups)
        self._trims = any(window is not None for window in self._windows)
        self._is_kept = is_kept
        self._passed: OrderedDict[ChainHash, None] = OrderedDict()  # boundaries that prompts without pages came by

    def may_share(self, sequence: Sequence) -> bool:
        """Whether the sequence reads what others have computed."""
        return self._is_kept and sequence.shares_prefix

    def learn(self, sequence: Sequence) -> None:
        """Make the full pages of known tokens findable, from the next plan on."""
        holding = sequence.holding
        if holding is None or not self._is_kept or sequence.atomic:
            return
        num_full = min(sequence.num_computed, len(sequence.ids)) // self._page_size
        if num_full <= holding.num_registered:
            return
        self.extend(sequence, holding.chain, num_full)
        if not self._num_groups:
            self._remember(holding.chain[holding.num_registered + 1 : num_full + 1])
        for index in range(holding.num_registered, num_full):
            tokens = self._page_tokens(sequence, index)
            for group, table in enumerate(holding.tables):
                if table[index] != NO_PAGE:
                    chain, parent = holding.chain[index + 1], holding.chain[index]
                    self._pool.register(table[index], group, chain, tokens, parent, index)
        holding.num_registered = num_full

    def _remember(self, passed: list[ChainHash]) -> None:
        for chain in passed:
            self._passed[chain] = None
        while len(self._passed) > REMEMBERED_BOUNDARIES:
            self._passed.popitem(last=False)

    def lookup(self, sequence: Sequence) -> Hit | None:
        """The longest known prefix, at least one token short: the last token is always recomputed, because a full hit
        would leave no logits."""
        hit, sequence.num_known_pages = self._match(sequence)
        if hit is not None and hit.checkpoint is not None:
            self._states.kept.use(sequence.chain[hit.num_pages])
        return hit

    def probe(self, sequence: Sequence) -> Hit | None:
        """What `lookup` would find, for one who only asks: nothing counts as used."""
        return self._match(sequence)[0]

    def _match(self, sequence: Sequence) -> tuple[Hit | None, int]:
        """The longest prefix that can be had, and how many pages are known at all: more, where no state was kept."""
        if not self.may_share(sequence):
            return None, 0
        chain = self.chain_of(sequence)
        most = (len(sequence.ids) - 1) // self._page_size
        found: list[list[PageId]] = [[] for _ in self._windows]
        for index in range(most):
            self.extend(sequence, chain, index + 1)
            if not self._find_page(sequence, chain[index + 1], index, found):
                most = index
                break
        return self._longest(chain, found, most), most

    def _find_page(self, sequence: Sequence, chain: ChainHash, index: int, found: list[list[PageId]]) -> bool:
        """Note what each group knows of one page; false where a group that sees everything does not know it."""
        if not self._num_groups:
            return chain in self._passed
        tokens = self._page_tokens(sequence, index)
        for group, window in enumerate(self._windows):
            page = self._pool.find(group, chain, tokens)
            if page is None and window is None:
                return False
            found[group].append(NO_PAGE if page is None else page)
        return True

    def _longest(self, chain: list[ChainHash], found: list[list[PageId]], most: int) -> Hit | None:
        for num_pages in range(most, 0, -1):
            checkpoint = self._states.kept.find(chain[num_pages]) if self._has_state else None
            if self._has_state and checkpoint is None:
                continue
            firsts = [self._first_seen(window, num_pages) for window in self._windows]
            seen = [pages[first:num_pages] for pages, first in zip(found, firsts, strict=True)]
            if self._trims and any(NO_PAGE in pages for pages in seen):
                continue  # a group with a window does not know a page inside it
            tables = tuple((NO_PAGE,) * first + tuple(pages) for first, pages in zip(firsts, seen, strict=True))
            return Hit(num_pages, tables, checkpoint)
        return None

    def _first_seen(self, window: int | None, num_pages: int) -> int:
        """The first page that the token after `num_pages` full pages can see."""
        return 0 if window is None else max(0, num_pages * self._page_size - window + 1) // self._page_size

    def num_found(self, hit: Hit | None) -> int:
        """Pages of the hit, each counted once per group."""
        return sum(page != NO_PAGE for table in hit.tables for page in table) if hit else 0

    def num_idle(self, hit: Hit | None) -> int:
        """Pages of the hit that nobody holds: sharing them makes them unavailable."""
        if hit is None:
            return 0
        return sum(page != NO_PAGE and self._pool.is_idle(page) for table in hit.tables for page in table)

    def chain_of(self, sequence: Sequence) -> list[ChainHash]:
        """Its root, and a hash for each full page that it was extended by."""
        if not sequence.chain:
            sequence.chain.append(self._pool.root(sequence.cache_salt, sequence.adapter, sequence.adapter_scale))
        return sequence.chain

    def extend(self, sequence: Sequence, chain: list[ChainHash], num_pages: int) -> None:
        """So that the chain has the sequence's first `num_pages` pages."""
        while len(chain) <= num_pages:
            chain.append(self._pool.extend(chain[-1], self._page_tokens(sequence, len(chain) - 1)))

    def _page_tokens(self, sequence: Sequence, index: int) -> tuple[int, ...]:
        return tuple(sequence.ids[index * self._page_size : (index + 1) * self._page_size])

    def num_common(self, sequence: Sequence, elder: Sequence) -> int:
        """Full pages that both prompts begin with, a token of each left over."""
        low, high = 0, (min(len(sequence.ids), elder.num_prompt) - 1) // self._page_size
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.begin_alike(sequence, elder, middle) else (low, middle - 1)
        return low

    def begin_alike(self, sequence: Sequence, elder: Sequence, num_pages: int) -> bool:
        """Whether they share at least one page, so many, and the sequence has a token more."""
        if not 0 < num_pages <= (len(sequence.ids) - 1) // self._page_size:
            return False
        chains = [self.chain_of(each) for each in (sequence, elder)]
        for each, chain in zip((sequence, elder), chains, strict=True):
            self.extend(each, chain, num_pages)
        return chains[0][num_pages] == chains[1][num_pages]

    def are_copies(self, sequence: Sequence, elder: Sequence) -> bool:
        """Whether the elder has every token but perhaps the last, in the same chain."""
        end = len(sequence.ids) - 1
        num_pages = end // self._page_size
        tail = slice(num_pages * self._page_size, end)
        if len(elder.ids) < end or sequence.ids[tail] != elder.ids[tail]:
            return False
        if num_pages:
            return self.begin_alike(sequence, elder, num_pages)
        return self.chain_of(sequence)[0] == self.chain_of(elder)[0]
