"""What happened to each request and when: the source of metrics, of the live feed's waterfalls, and of cancelling.

Nobody who watches can slow a request down: watchers are called in line and must only take notes.
"""

import time
import uuid
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from localllm.errors import Cancelled, LocalLLMError

EventName = Literal[
    "queued", "loading", "submitted", "admitted", "progress", "first_token", "preempted", "finished", "failed"
]
KEPT = 256
"""Requests that are over and can still be looked at."""


@dataclass(frozen=True, slots=True)
class Event:
    """`at` is in monotonic seconds. `data` says more: `cached` and `prompt` tokens of "admitted", `computed` of
    "progress", `completion` tokens and `reason` of "finished", `code` of "failed"."""

    name: EventName
    at: float
    data: Mapping[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class Record:
    """One request from its arrival on. `route` is its path, `caller` whose share it uses, `created` in seconds since
    the epoch."""

    id: str
    route: str
    model: str
    caller: str
    created: float
    events: list[Event] = field(default_factory=list)
    is_over: bool = False
    _journal: "Journal | None" = None
    _cancel: Callable[[LocalLLMError], None] | None = None

    def note(self, name: EventName, **data: Any) -> None:
        """One more event, now; nothing after the end."""
        if self.is_over:
            return
        event = Event(name, time.monotonic(), data)
        self.events.append(event)
        self.is_over = name in ("finished", "failed")
        if self._journal is not None:
            self._journal.tell(self, event)

    def on_cancel(self, cancel: Callable[[LocalLLMError], None]) -> None:
        """How to end it from outside: `cancel` gets the error that its reader will see."""
        self._cancel = cancel

    def cancel(self) -> bool:
        """Whether it could still be ended."""
        if self.is_over or self._cancel is None:
            return False
        self._cancel(Cancelled("the request was cancelled", hint="somebody asked for that"))
        return True


Watcher = Callable[[Record, Event], None]


class Journal:
    """Requests under way, and the last ones that are over, newest last."""

    def __init__(self) -> None:
        self.running: dict[str, Record] = {}
        self.recent: deque[Record] = deque(maxlen=KEPT)
        self._watchers: set[Watcher] = set()

    def open(self, route: str, model: str, caller: str = "", request_id: str = "") -> Record:
        """A new request, "queued" as of now. An id that is taken gets a suffix."""
        own = request_id or uuid.uuid4().hex
        if own in self.running:
            own = f"{own}-{uuid.uuid4().hex[:8]}"
        record = Record(own, route, model, caller, time.time())
        record._journal = self
        self.running[own] = record
        record.note("queued")
        return record

    def close(self, record: Record) -> None:
        """Nobody attends to it any more; one that has not finished has failed."""
        if not record.is_over:
            record.note("failed", code="client_gone")
        if self.running.pop(record.id, None) is not None:
            self.recent.append(record)

    def cancel(self, request_id: str) -> bool:
        """False for a request that is unknown or over."""
        record = self.running.get(request_id)
        return record is not None and record.cancel()

    def watch(self, watcher: Watcher) -> Callable[[], None]:
        """Call `watcher` with every event; the answer ends that."""
        self._watchers.add(watcher)
        return lambda: self._watchers.discard(watcher)

    def tell(self, record: Record, event: Event) -> None:
        for watcher in list(self._watchers):
            watcher(record, event)
