"""What happened to each request and when: the source of metrics, of the live feed's waterfalls, and of cancelling.

Nobody who watches can slow a request down: watchers are called in line and must only take notes.
"""

import contextlib
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from localllm.errors import Cancelled, LocalLLMError

EventName = Literal[
    "queued",
    "loading",
    "submitted",
    "admitted",
    "progress",
    "first_token",
    "preempted",
    "resumed",
    "finished",
    "failed",
]
KEPT = 256
"""Requests that are over and can still be looked at."""
KEPT_REFUSED = 64
"""Likewise of those that never reached an engine: a flood of refusals must not wash away all others."""
MAX_EVENTS = 512
STALL_S = 0.25
"""A pause between two tokens that a reader notices."""
MAX_STALLS = 64
REPEATED: frozenset[EventName] = frozenset(("admitted", "progress", "preempted", "resumed"))
"""Events that one request may have many of: of a very long prompt only the first are kept."""
CLIENT_GONE = "client_gone"
SEPARATOR = "/"


@dataclass(frozen=True, slots=True)
class Event:
    """`at` is in monotonic seconds. "resumed" is the first word after "preempted". `data` says more: `cached` and
    `prompt` tokens of "admitted", `computed` of "progress", `completion` tokens and `reason` of "finished", `code` of
    "failed"."""

    name: EventName
    at: float
    data: Mapping[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class Record:
    """One request from its arrival on. `route` is its path, `model` the name in it and later the model's own, `caller`
    whose share it uses, `created` in seconds since the epoch, `num_tokens` how many were generated so far. `serial`
    counts requests since the daemon began, `source` is the program that sent it, as it calls itself, `priority` its own
    or that of its lane. `stalls` are pauses between tokens: when one ended (monotonic), and its length, in seconds."""

    id: str
    route: str
    model: str
    caller: str
    created: float
    serial: int = 0
    events: list[Event] = field(default_factory=list)
    num_tokens: int = 0
    is_over: bool = False
    source: str = ""
    priority: int = 0
    stalls: list[tuple[float, float]] = field(default_factory=list)
    _journal: "Journal | None" = None
    _cancel: Callable[[LocalLLMError], None] | None = None

    def note(self, name: EventName, *, at: float | None = None, **data: Any) -> None:
        """One more event, as of now or another moment; nothing after the end."""
        if self.is_over:
            return
        event = Event(name, time.monotonic() if at is None else at, data)
        self.is_over = name in ("finished", "failed")
        if name not in REPEATED or len(self.events) < MAX_EVENTS:
            self.events.append(event)
        if self._journal is not None:
            self._journal.tell(self, event)

    def note_tokens(self, count: int, since_s: float) -> None:
        """So many tokens of one sequence came, this long after the last ones (negative: they are the first). Called for
        every step, so it only counts, and remembers the long pauses."""
        self.num_tokens += count
        if since_s > STALL_S and len(self.stalls) < MAX_STALLS:
            self.stalls.append((time.monotonic(), since_s))
        if self._journal is not None:
            self._journal.tell_pace(self, count, since_s)

    def first(self, name: EventName) -> Event | None:
        return next((event for event in self.events if event.name == name), None)

    def wall_time(self, event: Event) -> float:
        """When it happened, in seconds since the epoch."""
        return self.created + event.at - self.events[0].at

    def sequence_id(self, index: int) -> str:
        """What the engine calls one of its sequences. Never the same twice, even where clients choose our ids."""
        return f"{self.id}{SEPARATOR}{self.serial}-{index}"

    # ---- ending it

    def on_cancel(self, cancel: Callable[[LocalLLMError], None]) -> None:
        """How to end it from outside: `cancel` gets the error that its reader will see."""
        self._cancel = cancel

    def cancel(self) -> bool:
        """Whether it could still be ended."""
        if self.is_over or self._cancel is None:
            return False
        self._cancel(Cancelled("the request was cancelled", hint="somebody asked for that"))
        return True

    def let_go(self) -> None:
        """Nobody can end it any more. What could would hold on to the answer, and to the model that gave it."""
        self._cancel = None

    @contextlib.contextmanager
    def opening(self) -> Iterator[None]:
        """Around what happens before there is a reply: an error is how the request ended."""
        try:
            yield
        except LocalLLMError as error:
            self.note("failed", code=error.code)
            raise


def record_id_of(sequence_id: str) -> str:
    """The request that a sequence of the engine belongs to."""
    return sequence_id.rpartition(SEPARATOR)[0]


Watcher = Callable[[Record, Event], None]
PaceWatcher = Callable[[Record, int, float], None]
"""Of a request, the number of tokens that came, and the seconds since the last ones of that sequence, or -1."""


class Journal:
    """Requests under way, and the last ones that are over; `refused` never reached an engine. Newest last."""

    def __init__(self) -> None:
        self.running: dict[str, Record] = {}
        self.recent: deque[Record] = deque(maxlen=KEPT)
        self.refused: deque[Record] = deque(maxlen=KEPT_REFUSED)
        self._watchers: set[Watcher] = set()
        self._pace_watchers: set[PaceWatcher] = set()
        self._num_opened = 0

    def open(
        self, route: str, model: str, caller: str = "", request_id: str = "", *, source: str = "", priority: int = 0
    ) -> Record:
        """A new request, "queued" as of now. An id that is taken gets a suffix."""
        own = request_id or uuid.uuid4().hex
        if own in self.running:
            own = f"{own}-{uuid.uuid4().hex[:8]}"
        self._num_opened += 1
        record = Record(own, route, model, caller, time.time(), self._num_opened, source=source, priority=priority)
        record._journal = self
        self.running[own] = record
        record.note("queued")
        return record

    def close(self, record: Record) -> None:
        """Nobody attends to it any more; one that has not finished has failed."""
        if not record.is_over:
            record.note("failed", code=CLIENT_GONE)
        record.let_go()
        if self.running.pop(record.id, None) is not None:
            (self.recent if record.first("submitted") else self.refused).append(record)

    def find(self, request_id: str) -> Record | None:
        """A request under way, or the last one of this id that is over and still known."""
        found = self.running.get(request_id)
        return found or next((record for record in self.over() if record.id == request_id), None)

    def over(self) -> list[Record]:
        """Those that are over and still known, the latest first."""
        return sorted((*self.recent, *self.refused), key=lambda record: record.created, reverse=True)

    def cancel(self, request_id: str) -> bool:
        """False for a request that is unknown or over."""
        record = self.running.get(request_id)
        return record is not None and record.cancel()

    def watch(self, watcher: Watcher) -> Callable[[], None]:
        """Call `watcher` with every event; the answer ends that."""
        self._watchers.add(watcher)
        return lambda: self._watchers.discard(watcher)

    def watch_pace(self, watcher: PaceWatcher) -> None:
        """Call `watcher` whenever tokens come: it may do no more than a little arithmetic."""
        self._pace_watchers.add(watcher)

    def tell(self, record: Record, event: Event) -> None:
        for watcher in list(self._watchers):
            watcher(record, event)

    def tell_pace(self, record: Record, count: int, since_s: float) -> None:
        for watcher in self._pace_watchers:
            watcher(record, count, since_s)
