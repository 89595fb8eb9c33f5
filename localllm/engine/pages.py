"""Pages of KV memory: who holds them, which are free, and which hold a known prefix. Knows no sequences, no tensors.

A page is free, cached (nobody holds it, but its content can still be found), owned, or shared. Full pages are found by
a chain of keyed hashes over the tokens before and in them; a hit is confirmed by comparing tokens, so neither a
collision nor a guess from outside can mix two conversations.
"""

from __future__ import annotations

import secrets
from array import array
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import NewType

from localllm.engine.step import PageId

ChainHash = NewType("ChainHash", bytes)
"""Names the content of a page together with everything before it."""

FREE, CACHED, OWNED, SHARED = 0, 1, 2, 3


@dataclass(frozen=True, slots=True)
class _Known:
    """What a findable page holds: `tokens` of one page in the group's layers, after the chain that ends in `chain`. It
    is the `index`-th of its chain, behind the page that ends in `parent` (or the root)."""

    group: int
    chain: ChainHash
    tokens: tuple[int, ...]
    parent: ChainHash | None = None
    index: int = 0


@dataclass(frozen=True, slots=True)
class Link:
    """One page of a chain, as one who looks on sees it. `page` None: nobody knows it any more."""

    page: PageId | None
    chain: ChainHash


class PagePool:
    """`num_pages` pages of `page_size` tokens with reference counts. A page serves one KV group at a time."""

    def __init__(self, num_pages: int, page_size: int, *, key: bytes | None = None) -> None:
        self.num_pages = num_pages
        self.page_size = page_size
        # a key per process: nobody outside can tell from timing or guessing which prefixes are cached
        self._key = key or secrets.token_bytes(32)
        self._references = [0] * num_pages
        self._free = [PageId(page) for page in reversed(range(num_pages))]
        self._cached: OrderedDict[PageId, None] = OrderedDict()  # least recently used first
        self._known: dict[PageId, _Known] = {}
        self._index: dict[tuple[int, ChainHash], PageId] = {}
        self._states = bytearray(num_pages)

    @property
    def num_available(self) -> int:
        """Pages that `allocate` can give: free ones and cached ones."""
        return len(self._free) + len(self._cached)

    def allocate(self) -> PageId:
        """A page with one reference; the least recently used cached page is forgotten when no free one is left.
        IndexError when `num_available` is 0: callers ask first."""
        page = self._free.pop() if self._free else self._evict_oldest()
        self._references[page] = 1
        self._states[page] = OWNED
        return page

    def share(self, page: PageId) -> None:
        """One more holder of a page that is held or cached."""
        count = self._references[page]
        if count == 0:
            del self._cached[page]
        self._references[page] = count + 1
        self._states[page] = OWNED if count == 0 else SHARED

    def release(self, page: PageId) -> None:
        """One holder less. After the last, a findable page stays cached and any other becomes free."""
        count = self._references[page] - 1
        assert count >= 0, f"page {page} was released more often than it was taken"
        self._references[page] = count
        if count:
            self._states[page] = OWNED if count == 1 else SHARED
        elif page in self._known:
            self._cached[page] = None
            self._states[page] = CACHED
        else:
            self._free.append(page)
            self._states[page] = FREE

    def root(self, salt: str, adapter: int, scale: float = 1.0) -> ChainHash:
        """The start of a chain. Different salts, adapters and scales of them never meet."""
        applied = f"{adapter}*{scale!r}" if adapter else "0"
        return ChainHash(self._hash(f"{applied}/{salt}".encode()))

    def extend(self, parent: ChainHash, tokens: Sequence[int]) -> ChainHash:
        """The chain after one more full page of tokens."""
        return ChainHash(self._hash(parent + array("q", tokens).tobytes()))

    def _hash(self, content: bytes) -> bytes:
        return blake2b(content, key=self._key, digest_size=16).digest()

    def register(
        self,
        page: PageId,
        group: int,
        chain: ChainHash,
        tokens: tuple[int, ...],
        parent: ChainHash | None = None,
        index: int = 0,
    ) -> None:
        """Make a full page findable, the `index`-th of its chain. Of two pages with the same content the first one
        stays the findable one."""
        if (group, chain) not in self._index and page not in self._known:
            self._index[group, chain] = page
            self._known[page] = _Known(group, chain, tokens, parent, index)

    def find(self, group: int, chain: ChainHash, tokens: tuple[int, ...]) -> PageId | None:
        """The page that holds these tokens after this chain, if one is known. Takes no reference."""
        page = self._index.get((group, chain))
        return page if page is not None and self._known[page].tokens == tokens else None

    def content(self, page: PageId) -> tuple[int, tuple[int, ...]] | None:
        """Which page of its chain it is, and its tokens, where others can find it."""
        known = self._known.get(page)
        return None if known is None else (known.index, known.tokens)

    def links(self, page: PageId, most: int) -> list[Link]:
        """A findable page and those before it, back towards the root, at most so many."""
        known = self._known.get(page)
        found: list[Link] = []
        while known is not None and len(found) < most:
            found.append(Link(self._index[known.group, known.chain], known.chain))
            parent = known.parent if known.index else None
            before = None if parent is None else self._index.get((known.group, parent))
            if parent is not None and before is None:
                found.append(Link(None, parent))
            known = None if before is None else self._known[before]
        return found[:most]

    def num_references(self, page: PageId) -> int:
        return self._references[page]

    def state(self, page: PageId) -> int:
        """FREE, CACHED, OWNED or SHARED."""
        return self._states[page]

    def is_idle(self, page: PageId) -> bool:
        return self._references[page] == 0

    def is_shared(self, page: PageId) -> bool:
        return self._references[page] > 1

    def count_shared(self, pages: Sequence[PageId]) -> int:
        """How many of these have more than one holder."""
        states = self._states
        return bytes([states[page] for page in pages]).count(SHARED)

    def page_bytes_map(self) -> bytes:
        """One byte per page: 0 free, 1 cached, 2 owned, 3 shared."""
        return bytes(self._states)

    def _evict_oldest(self) -> PageId:
        if not self._cached:
            raise IndexError("no page is available")
        page, _ = self._cached.popitem(last=False)
        known = self._known.pop(page)
        del self._index[known.group, known.chain]
        return page

    def check(self) -> None:
        """Every invariant of the pool, for tests and idle moments; AssertionError names the one that is broken."""
        held = {page for page, count in enumerate(self._references) if count}
        free, cached = set(self._free), set(self._cached)
        assert len(free) == len(self._free), "a page is twice in the free list"
        assert not (held & free or held & cached or free & cached), "a page is in two states"
        assert len(held) + len(free) + len(cached) == self.num_pages, "a page was lost"
        assert min(self._references, default=0) >= 0, "a reference count is negative"
        assert cached <= set(self._known), "a cached page cannot be found"
        assert not free & set(self._known), "a free page can be found"
        assert {(k.group, k.chain): page for page, k in self._known.items()} == self._index, "index and pages differ"
        assert all(state == self._expected_state(page) for page, state in enumerate(self._states)), "the map is wrong"

    def check_holders(self, held: Sequence[PageId]) -> None:
        """That `held`, one entry per holder, explains every reference count; AssertionError otherwise."""
        counts = [0] * self.num_pages
        for page in held:
            counts[page] += 1
        assert counts == self._references, "pages are held by nobody, or by somebody who does not know"

    def _expected_state(self, page: int) -> int:
        count = self._references[page]
        if count:
            return SHARED if count > 1 else OWNED
        return CACHED if page in self._cached else FREE
