"""The pages of one model over time: who holds each, since when, and what has just happened to it.

One byte a page, its `look`, says all that is drawn of it, so that a changed row is found by comparing bytes. Knows no
colours.
"""

from __future__ import annotations

import math
import sys
from array import array
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from localllm.tui.live.slots import NUM_SLOTS, OTHERS
from localllm.wire import SequenceView, Snapshot

FREE, CACHED, OWNED, SHARED = 0, 1, 2, 3
"""As the engine tells them."""

AGE_STEPS_S = (0.5, 2.0, 8.0, 30.0)
"""How long ago a page was written, where it begins to look older."""
NUM_AGES = len(AGE_STEPS_S) + 1
AGE_EVERY_S = 0.5
"""Pages grow older together: rows that change a little in every frame are painted in every frame."""
FREED_S = 1.0
PREEMPTED_S = 2.0

LOOK_FREE, LOOK_CACHED, LOOK_FREED, LOOK_PREEMPTED = 0, 1, 2, 3
LOOK_SHARED = 4
"""And one for each age; behind them those of held pages, by slot and age."""
LOOK_HELD = LOOK_SHARED + NUM_AGES
NUM_LOOKS = LOOK_HELD + (NUM_SLOTS + 1) * NUM_AGES

CHUNK = 128

LONG_AGO = -math.inf
"""When a page was written that was there before we looked."""


def held_look(slot: int, age: int) -> int:
    return LOOK_HELD + slot * NUM_AGES + age


def slot_of_look(look: int) -> int | None:
    """Whose held page looks like this; None for pages in other states."""
    return (look - LOOK_HELD) // NUM_AGES if look >= LOOK_HELD else None


def age_of_look(look: int) -> int:
    return 0 if look < LOOK_SHARED else (look - LOOK_SHARED) % NUM_AGES


@dataclass(frozen=True, slots=True)
class PageCounts:
    """`preempted` pages lost their owner within the last two seconds; they count as what they are now, too."""

    held: int = 0
    shared: int = 0
    cached: int = 0
    free: int = 0
    preempted: int = 0


@dataclass(frozen=True, slots=True)
class Holder:
    """A sequence that holds a page. `first` is the position of the page's first token, None where it is not known."""

    sequence_id: str
    first: int | None


class PageBoard:
    """`take` every snapshot; `age` in between. `slot_of` gives the slot of a sequence by its id."""

    def __init__(self, slot_of: Callable[[str], int]) -> None:
        self._slot_of = slot_of
        self._raw = b""
        self.reach = 0
        """Behind the last page that was ever in use since the model was loaded."""
        self.looks = bytearray()
        self._written: array[float] = array("d")
        self._holders: dict[int, list[str]] = {}
        self._views: dict[str, SequenceView] = {}
        self._lists: dict[str, list[int]] = {}
        self._marks: dict[int, tuple[int, float]] = {}
        self._ends: deque[tuple[float, int]] = deque()
        self._aging: list[deque[tuple[float, int]]] = [deque() for _ in AGE_STEPS_S]
        self._age_due = -math.inf

    def __len__(self) -> int:
        return len(self._raw)

    # ---- what changes it

    def take(self, snapshot: Snapshot, page_size: int, now: float) -> None:
        """What the engine says at the moment `now`."""
        is_new = len(snapshot.pages) != len(self._raw)
        if is_new:
            self._begin(len(snapshot.pages))
        before, self._raw = self._raw, snapshot.pages
        dirty = set() if is_new else _differing(before, snapshot.pages)
        lost = self._take_views(snapshot.sequences, dirty)
        if is_new:
            dirty.update(page for page, state in enumerate(snapshot.pages) if state)
            self._age_all()
        else:
            self._note_written(before, dirty, page_size, snapshot.sequences, now)
            self._mark_changes(before, dirty, lost, now)
        self._views = {view.request_id: view for view in snapshot.sequences}
        for page in dirty:
            if page < len(self._raw):
                self._look_again(page, now)
        self.reach = max(self.reach, len(self._raw.rstrip(bytes([FREE]))))
        self.age(now)

    def age(self, now: float) -> None:
        """Time went by: marks end and pages look older."""
        while self._ends and self._ends[0][0] <= now:
            _, page = self._ends.popleft()
            mark = self._marks.get(page)
            if mark is not None and mark[1] <= now:
                del self._marks[page]
                self._look_again(page, now)
        if now < self._age_due:
            return
        self._age_due = now + AGE_EVERY_S
        for step_s, waiting in zip(AGE_STEPS_S, self._aging, strict=True):
            while waiting and waiting[0][0] + step_s <= now:
                written, page = waiting.popleft()
                if self._written[page] == written:
                    self._look_again(page, now)

    def recolour(self, now: float) -> None:
        """Owners have other slots than before."""
        for page in self._holders:
            self._look_again(page, now)

    # ---- what is asked of it

    def counts(self) -> PageCounts:
        raw = self._raw
        preempted = sum(look == LOOK_PREEMPTED for look, _ in self._marks.values())
        return PageCounts(raw.count(OWNED), raw.count(SHARED), raw.count(CACHED), raw.count(FREE), preempted)

    def state(self, page: int) -> int:
        return self._raw[page]

    def references(self, page: int) -> int:
        """How many sequences hold it, as far as they are known."""
        return len(self._holders.get(page, ()))

    def written(self, page: int) -> float | None:
        """When it was last written; None where that was before we looked."""
        at = self._written[page]
        return None if at == LONG_AGO else at

    def holders(self, page: int, page_size: int) -> list[Holder]:
        return [Holder(name, self._first(name, page, page_size)) for name in self._holders.get(page, ())]

    def pages_of(self, sequence_id: str) -> Sequence[int]:
        return self._lists.get(sequence_id, ())

    def order_by_owner(self) -> list[int]:
        """All pages: shared ones first, then those of each owner, then the rest; within an owner as they lie."""
        return sorted(range(len(self.looks)), key=lambda page: _rank(self.looks[page]))

    # ---- inside

    def _begin(self, num_pages: int) -> None:
        self._raw = bytes(num_pages)
        self.reach, self._age_due = 0, -math.inf
        self.looks = bytearray(num_pages)
        self._written = array("d", [LONG_AGO]) * num_pages
        for each in (self._holders, self._views, self._lists, self._marks):
            each.clear()
        for waiting in (self._ends, *self._aging):
            waiting.clear()

    def _age_all(self) -> None:
        self._written = array("d", [LONG_AGO]) * len(self._raw)

    def _take_views(self, views: Iterable[SequenceView], dirty: set[int]) -> set[int]:
        """Brings the holders up to date; answers the pages that were lost to a preemption."""
        lost: set[int] = set()
        present = set()
        for view in views:
            present.add(view.request_id)
            old = self._views.get(view.request_id)
            if old is not None and old.pages == view.pages:
                continue
            gone = self._exchange(view, old, dirty)
            if old is not None and view.num_preemptions > old.num_preemptions:
                lost |= gone
        for name in [name for name in self._lists if name not in present]:
            self._drop(name, self._lists.pop(name), dirty)
        return lost

    def _exchange(self, view: SequenceView, old: SequenceView | None, dirty: set[int]) -> set[int]:
        """The sequence's list of pages becomes the new one; answers those it does not hold any more."""
        name, num_pages = view.request_id, len(self._raw)
        known = self._lists.setdefault(name, [])
        begun = len(old.pages) if old is not None and view.pages.startswith(old.pages) else 0
        # pages that do not exist can only be those of a feed that is wrong: they are not ours to draw
        pages = [page for page in _decoded(view.pages[begun:]) if page < num_pages]
        if begun:
            known += pages
            self._hold(name, pages, dirty)
            return set()
        self._lists[name] = pages
        self._drop(name, known, dirty)
        self._hold(name, pages, dirty)
        return set(known) - set(pages)

    def _hold(self, name: str, pages: Iterable[int], dirty: set[int]) -> None:
        for page in pages:
            self._holders.setdefault(page, []).append(name)
            dirty.add(page)

    def _drop(self, name: str, pages: Iterable[int], dirty: set[int]) -> None:
        for page in pages:
            dirty.add(page)
            holders = self._holders.get(page, [])
            if name in holders:
                holders.remove(name)
            if not holders:
                self._holders.pop(page, None)

    def _note_written(
        self, before: bytes, dirty: Iterable[int], page_size: int, views: Iterable[SequenceView], now: float
    ) -> None:
        for page in dirty:
            if self._raw[page] >= OWNED and before[page] == FREE:
                self._write(page, now)
        for view in views:
            old = self._views.get(view.request_id)
            start = old.num_computed if old is not None else view.num_computed
            if view.num_computed > start and page_size > 0:
                pages = self._lists[view.request_id]
                for page in pages[start // page_size : -(-view.num_computed // page_size)]:
                    self._write(page, now)

    def _write(self, page: int, now: float) -> None:
        if self._written[page] != now:
            self._written[page] = now
            self._aging_push(now, page)
            self._look_again(page, now)

    def _aging_push(self, now: float, page: int) -> None:
        for waiting in self._aging:
            waiting.append((now, page))

    def _mark_changes(self, before: bytes, dirty: Iterable[int], lost: set[int], now: float) -> None:
        for page in dirty:
            if page in lost:
                self._mark(page, LOOK_PREEMPTED, now + PREEMPTED_S)
            elif before[page] >= OWNED and self._raw[page] == FREE:
                self._mark(page, LOOK_FREED, now + FREED_S)
            elif self._raw[page] >= OWNED and self._marks.get(page, (0, 0.0))[0] == LOOK_FREED:
                del self._marks[page]

    def _mark(self, page: int, look: int, until: float) -> None:
        self._marks[page] = (look, until)
        self._ends.append((until, page))
        if len(self._ends) > 1 and self._ends[-2][0] > until:
            self._ends = deque(sorted(self._ends))

    def _look_again(self, page: int, now: float) -> None:
        self.looks[page] = self._look(page, now)

    def _look(self, page: int, now: float) -> int:
        mark = self._marks.get(page)
        if mark is not None:
            return mark[0]
        state = self._raw[page]
        if state == FREE:
            return LOOK_FREE
        if state == CACHED:
            return LOOK_CACHED
        age = self._age(page, now)
        if state == SHARED:
            return LOOK_SHARED + age
        holders = self._holders.get(page)
        return held_look(self._slot_of(holders[0]) if holders else OTHERS, age)

    def _age(self, page: int, now: float) -> int:
        written = self._written[page]
        for age, step_s in enumerate(AGE_STEPS_S):
            if written + step_s > now:  # as `age` compares them: a sum and a difference need not round alike
                return age
        return NUM_AGES - 1

    def _first(self, name: str, page: int, page_size: int) -> int | None:
        """A sequence with pages of several kinds of layers has more of them than its tokens fill."""
        pages, view = self._lists.get(name, []), self._views.get(name)
        if view is None or not page_size or page not in pages:
            return None
        most = -(-max(view.num_computed, view.num_prompt) // page_size) + 1
        return pages.index(page) * page_size if len(pages) <= most else None


def _decoded(packed: bytes) -> array[int]:
    """The numbers of pages, as `page_ids` of the feed has them, but all at once: a long list comes with every token."""
    pages = array("I", packed[: len(packed) // 4 * 4])
    if sys.byteorder == "big":
        pages.byteswap()
    return pages


def _differing(before: bytes, after: bytes) -> set[int]:
    found: set[int] = set()
    for start in range(0, len(after), CHUNK):  # mostly nothing differs
        old, new = before[start : start + CHUNK], after[start : start + CHUNK]
        if old != new:
            found.update(page for page, (was, now) in enumerate(zip(old, new, strict=True), start) if was != now)
    return found


def _rank(look: int) -> tuple[int, int]:
    if LOOK_SHARED <= look < LOOK_HELD:
        return 0, 0
    slot = slot_of_look(look)
    if slot is not None:
        return 1, slot
    return {LOOK_PREEMPTED: 2, LOOK_FREED: 4, LOOK_CACHED: 3}.get(look, 5), 0


def common_look(looks: bytes) -> int:
    """What stands for several pages in one cell: the most common state and owner; of equally many, a held one. Its age
    is that of the page in the middle."""
    groups = Counter(_group(look) for look in looks)
    best = max(groups, key=lambda group: (groups[group], group != LOOK_FREE, -group))
    members = [look for look in looks if _group(look) == best]
    return members[len(members) // 2]


def _group(look: int) -> int:
    return look if look < LOOK_SHARED else look - (look - LOOK_SHARED) % NUM_AGES
