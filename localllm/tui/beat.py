"""A beat that follows news: what comes in and what is painted of it wake the process once, not each for itself."""

from __future__ import annotations

import asyncio
import contextvars
import time
from collections.abc import Callable

EARLY = 0.25
"""The part of its shortest time by which a beat may come early, so that news at just that pace is not put off."""


class Beat:
    """Calls when there is news, every `shortest_s` at most, and every `longest_s` without any. Made on the event loop;
    `failed` is told what goes wrong in a call."""

    def __init__(
        self, call: Callable[[], None], failed: Callable[[Exception], None], shortest_s: float, longest_s: float
    ) -> None:
        self._call, self._failed = call, failed
        self._shortest_s, self._longest_s = shortest_s, longest_s
        self._loop, self._context = asyncio.get_running_loop(), contextvars.copy_context()
        self._last = self._due = time.monotonic()
        self._planned: asyncio.TimerHandle | None = None
        self.resume()

    def resume(self) -> None:
        if self._planned is None:
            self._plan(time.monotonic() + self._longest_s)

    def pause(self) -> None:
        """Until `resume` there is none, whatever the news."""
        if self._planned is not None:
            self._planned.cancel()
        self._planned = None

    def news(self) -> None:
        """A beat now, or as soon as it may come."""
        if self._planned is None:
            return
        now, allowed = time.monotonic(), self._last + self._shortest_s
        if now >= allowed - EARLY * self._shortest_s:
            self._ring()
        elif allowed < self._due:
            self._plan(allowed)

    def _plan(self, at: float) -> None:
        if self._planned is not None:
            self._planned.cancel()
        self._due = at
        self._planned = self._loop.call_later(at - time.monotonic(), self._ring, context=self._context)

    def _ring(self) -> None:
        self._last = time.monotonic()
        self._plan(self._last + self._longest_s)
        try:
            self._call()
        except Exception as error:
            self._failed(error)
