"""Where the recurrent state of a prompt is kept: at page boundaries up to which later prompts are likely to agree.

A prefix is shared only where its state was kept, and a state may be as large as thousands of tokens of keys and values:
so not at every boundary, but before the last token, where turns of a chat end, where prompts were seen to part, and
now and then in a long text.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Collection, Sequence

LONG_RUN_PAGES = 64
"""A run of so many pages without a mark gets one."""
LEAST_SHARED_PAGES = 2
"""A common beginning of fewer pages is not worth a state and a step of its own."""
MOST_PARTINGS = 8
"""A sequence stops at so many boundaries for the sake of others."""


class Marks:
    """Page boundaries of one sequence's prompt, rising; each is a number of full pages."""

    def __init__(self, ids: Sequence[int], turn_ends: Collection[int], page_size: int, capacity: int) -> None:
        """`turn_ends`: the token ids that end a turn. `capacity`: states that can be kept at all."""
        self._page_size = page_size
        self._num_partings = 0
        last = (len(ids) - 1) // page_size
        ends = [index for index, token in enumerate(ids) if token in turn_ends] if turn_ends else []
        # the first turn is what many chats begin with; the last ones are where the next prompt goes on or parts
        wanted = {last, *((index + 1) // page_size for index in (*ends[:1], *ends[-2:]))}
        self._pages = sorted(pages for pages in wanted if 0 < pages <= last)
        self._fill(max(0, capacity // 4 - len(self._pages)))

    def _fill(self, room: int) -> None:
        """At most `room` marks more, where runs are long; the same boundaries whatever the length of the prompt."""
        last = self._pages[-1] if self._pages else 0
        run = LONG_RUN_PAGES
        while room and last // run > room:
            run *= 2
        for pages in range(run, last if room else 0, run):
            if pages not in self._pages:
                insort(self._pages, pages)

    def add_parting(self, num_pages: int) -> bool:
        """Another prompt is the same up to here. False where that is not worth it, or too many have said so."""
        if num_pages in self._pages:
            return True
        if num_pages < LEAST_SHARED_PAGES or self._num_partings == MOST_PARTINGS:
            return False
        self._num_partings += 1
        insort(self._pages, num_pages)
        return True

    def __contains__(self, num_tokens: int) -> bool:
        return not num_tokens % self._page_size and num_tokens // self._page_size in self._pages

    def next_after(self, num_tokens: int) -> int | None:
        """The next marked number of tokens beyond this one."""
        index = bisect_right(self._pages, num_tokens // self._page_size)
        return self._pages[index] * self._page_size if index < len(self._pages) else None
