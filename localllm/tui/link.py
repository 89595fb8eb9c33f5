"""The connection to the daemon: calls in threads, the live feed, and what is known when there is no daemon.

One thread reads the feed. It comes back by itself after a restart; waiting grows from one second to eight.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, TypeVar

from localllm.errors import DaemonUnreachable, LocalLLMError

if TYPE_CHECKING:
    from localllm.client import Client
    from localllm.daemon.feed import Frame

T = TypeVar("T")
State = Literal["trying", "up", "down"]
FIRST_WAIT_S, LONGEST_WAIT_S = 1.0, 8.0
MAX_PENDING = 600
"""Frames that wait to be shown; a minute's worth."""


class Link:
    """Made and used on the event loop, but for the thread that reads."""

    def __init__(self, client: Client, start: Callable[[], Client] | None = None) -> None:
        self.client = client
        self._start = start
        self.state: State = "trying"
        self.error: LocalLLMError | None = None
        self.changed_at = self.heard_at = time.monotonic()
        """When the state changed, and when a frame came last."""
        self.next_try_at: float | None = None
        self.interval_s = 0.1
        self._frames: deque[Frame] = deque(maxlen=MAX_PENDING)
        self._frame_listeners: list[Callable[[Frame], None]] = []
        self._change_listeners: list[Callable[[], None]] = []
        self._is_planned = False
        self._delivered_at = 0.0
        self._is_closed = False
        self._wake = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._context = contextvars.Context()

    # ---- for screens

    async def ask(self, call: Callable[[Client], T]) -> T:
        """What the daemon answers. LocalLLMError; DaemonUnreachable also tells everybody that the link is down."""
        try:
            return await asyncio.to_thread(call, self.client)
        except DaemonUnreachable as error:
            if self.state == "up":
                self._became("down", error)
                self.try_now()
            raise

    def listen(self, on_frame: Callable[[Frame], None]) -> None:
        """Every frame of the live feed, in order, on the event loop."""
        self._frame_listeners.append(on_frame)

    def on_change(self, changed: Callable[[], None]) -> None:
        """Whenever `state` has changed."""
        self._change_listeners.append(changed)

    @property
    def can_start(self) -> bool:
        return self._start is not None

    @property
    def waits_s(self) -> int | None:
        """Whole seconds until the next try; None while connected or trying."""
        return None if self.next_try_at is None else max(0, round(self.next_try_at - time.monotonic()))

    def try_now(self) -> None:
        self._wake.set()

    async def start_daemon(self) -> None:
        """LocalLLMError when it does not start."""
        if self._start is not None:
            self.client = await asyncio.to_thread(self._start)
            self.try_now()

    # ---- life

    def open(self) -> None:
        """Begins to read the live feed, from inside the event loop."""
        self._loop = asyncio.get_running_loop()
        self._context = contextvars.copy_context()  # widgets find their application through it
        threading.Thread(target=self._read_for_ever, name="live feed", daemon=True).start()

    def close(self) -> None:
        self._is_closed = True
        self._wake.set()

    # ---- the thread

    def _read_for_ever(self) -> None:
        wait_s = FIRST_WAIT_S
        while not self._is_closed:
            try:
                for frame in self.client.live():
                    wait_s = FIRST_WAIT_S
                    if self._is_closed or not self._tell(self._arrived, frame):
                        return
                error: LocalLLMError = DaemonUnreachable("the daemon ended the live feed")
            except LocalLLMError as failure:
                error = failure
            if self._is_closed or not self._tell(self._lost, error, time.monotonic() + wait_s):
                return
            self._wake.wait(wait_s)
            self._wake.clear()
            wait_s = min(LONGEST_WAIT_S, wait_s * 2)
            if not self._tell(self._trying):
                return

    def _tell(self, what: Callable[..., None], *details: object) -> bool:
        """False when the application is gone."""
        try:
            assert self._loop is not None
            self._loop.call_soon_threadsafe(what, *details, context=self._context)
        except RuntimeError:  # the loop is closed
            return False
        return True

    # ---- on the event loop again

    def _arrived(self, frame: Frame) -> None:
        self.heard_at = time.monotonic()
        self.next_try_at = None
        if self.state != "up":
            self._became("up", None)
        self._frames.append(frame)
        wait_s = self._delivered_at + self.interval_s / 2 - self.heard_at
        if wait_s <= 0:
            self._deliver()
        elif not self._is_planned and self._loop is not None:
            self._is_planned = True
            self._loop.call_later(wait_s, self._deliver, context=self._context)

    def _deliver(self) -> None:
        """Frames that come together are delivered together."""
        self._is_planned, self._delivered_at = False, time.monotonic()
        while self._frames and not self._is_closed:
            frame = self._frames.popleft()
            for listener in self._frame_listeners:
                listener(frame)

    def _lost(self, error: LocalLLMError, next_try_at: float) -> None:
        self.next_try_at = next_try_at
        self._became("down", error)

    def _trying(self) -> None:
        self.next_try_at = None
        if self.state != "up":
            self._notify()

    def _became(self, state: State, error: LocalLLMError | None) -> None:
        was, self.state, self.error = self.state, state, error
        if was != state:
            self.changed_at = time.monotonic()
        self._notify()

    def _notify(self) -> None:
        for changed in [] if self._is_closed else self._change_listeners:
            changed()
