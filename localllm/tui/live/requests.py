"""Requests as the feed tells of them: one row each, from the first event until a second after the end.

Events may be missing, come twice, or belong to requests that were never announced; snapshots say what is really under
way. Times are the daemon's monotonic seconds.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal

from localllm.daemon.feed import RequestEvent
from localllm.safe_text import one_line
from localllm.wire import SequenceView

State = Literal["queued", "loading", "waiting", "prefill", "decode", "preempted", "done", "failed"]
OVER: frozenset[State] = frozenset(("done", "failed"))
LINGER_S = 1.0
"""A row keeps its place so long after its end, so that the eye can follow."""
ABSENT_S = 2.0
"""A request of which no snapshot speaks any more is over after so long."""
RATE_S = 2.0
"""What a request's tokens a second are counted over."""
STALL_S, STALL_TIMES = 0.5, 3.0
"""Without a new token for so long, and so many times longer than usual, there is a gap in the waterfall."""
MAX_EVENTS = 600
MAX_STALLS = 64
KEPT = 64
"""Requests that are over and can still be looked at."""
SEPARATOR = "/"
BATCH = "batch"
INTERACTIVE = "interactive"


@dataclass(slots=True)
class Request:
    """One request. `serial` is its short number; counts are in tokens, over all of its sequences. `place` is where it
    stands in the queue, from 1; 0: it is in none. `stalls` are spans without a new token."""

    id: str
    serial: int = 0
    source: str = ""
    route: str = ""
    model: str = ""
    priority: int = 0
    state: State = "queued"
    began: float = 0.0
    admitted: float | None = None
    first_token: float | None = None
    ended: float | None = None
    prompt: int | None = None
    cached: int | None = None
    computed: int = 0
    out: int = 0
    pages: int = 0
    place: int = 0
    reason: str = ""
    events: list[RequestEvent] = field(default_factory=list)
    stalls: list[tuple[float, float]] = field(default_factory=list)
    is_known: bool = True
    """Whether its beginning was told: what it waited for is known only then."""
    was_lost: bool = False
    """Whether its end was never told."""
    _absent: int = 0
    _absent_since: float = 0.0
    _moved: float = 0.0
    _pace_s: float = 0.0
    _counted: deque[tuple[float, int]] = field(default_factory=deque)

    @property
    def is_over(self) -> bool:
        return self.state in OVER

    @property
    def lane(self) -> str:
        return BATCH if self.priority < 0 else INTERACTIVE

    @property
    def name(self) -> str:
        """Short: its number, else the end of its id."""
        return str(self.serial) if self.serial else one_line(self.id)[-6:]

    @property
    def queued_s(self) -> float | None:
        """Until the engine first computed something of it."""
        return None if self.admitted is None or not self.is_known else max(0.0, self.admitted - self.began)

    @property
    def first_token_s(self) -> float | None:
        return None if self.first_token is None or not self.is_known else max(0.0, self.first_token - self.began)

    def age_s(self, now: float) -> float:
        return max(0.0, (self.ended if self.ended is not None else now) - self.began)

    def fraction(self) -> float:
        """How much of the prompt is computed, 0 to 1."""
        return min(1.0, self.computed / self.prompt) if self.prompt else 0.0

    def tokens_per_s(self) -> float | None:
        """Over the last two seconds of writing; of one that is over, its whole answer's."""
        if self.is_over:
            span_s = (self.ended or 0.0) - (self.first_token or 0.0)
            return (self.out - 1) / span_s if self.first_token is not None and self.out > 1 and span_s > 0 else None
        if self.state != "decode" or len(self._counted) < 2:
            return None
        (then, before), (now, after) = self._counted[0], self._counted[-1]
        return (after - before) / (now - then) if now > then and after > before else None

    # ---- what changes it

    def note(self, event: RequestEvent) -> None:
        """One event, in its order; one that was told before changes nothing."""
        if any(known.name == event.name and known.at == event.at for known in self.events) or self.is_over:
            return
        if len(self.events) < MAX_EVENTS:
            self.events.append(event)
        self.serial, self.priority = event.serial or self.serial, event.priority
        self.source = one_line(event.source) or self.source
        self.route, self.model = one_line(event.route) or self.route, one_line(event.model) or self.model
        _NOTES[event.name](self, event) if event.name in _NOTES else None

    def learn(self, event: RequestEvent) -> None:
        """One event of the past: it says when things happened, but not how they stand."""
        state = self.state
        self.note(event)
        if not self.is_over and state not in ("queued",):
            self.state = state
        self.events.sort(key=lambda each: each.at)

    def _on_queued(self, event: RequestEvent) -> None:
        self.began, self.is_known = event.at, True

    def _on_loading(self, event: RequestEvent) -> None:
        if self.state == "queued":
            self.state = "loading"

    def _on_submitted(self, event: RequestEvent) -> None:
        self.state = "waiting"

    def _on_admitted(self, event: RequestEvent) -> None:
        if self.admitted is None:
            self.admitted = event.at
        self.prompt = _whole(event.data, "prompt", self.prompt)
        # copies of one prompt are admitted one by one, but count once
        self.cached = max(self.cached or 0, _whole(event.data, "cached", 0) or 0)
        if self.state not in ("decode",):
            self.state = "prefill"

    def _on_progress(self, event: RequestEvent) -> None:
        self.computed = max(self.computed, _whole(event.data, "computed", 0) or 0)

    def _on_first_token(self, event: RequestEvent) -> None:
        self.first_token, self.state = event.at, "decode"
        self._moved = event.at

    def _on_preempted(self, event: RequestEvent) -> None:
        self.state = "preempted"

    def _on_resumed(self, event: RequestEvent) -> None:
        self.state = "decode" if self.first_token is not None else "prefill"
        self._moved = event.at

    def _on_finished(self, event: RequestEvent) -> None:
        self._finish("done", event, str(event.data.get("reason", "")))

    def _on_failed(self, event: RequestEvent) -> None:
        self._finish("failed", event, str(event.data.get("code", "")))

    def _finish(self, state: State, event: RequestEvent, reason: str) -> None:
        self.state, self.ended, self.reason, self.place = state, event.at, one_line(reason), 0
        self.out = _whole(event.data, "completion", self.out) or self.out
        self.prompt = _whole(event.data, "prompt", self.prompt)
        self.cached = _whole(event.data, "cached", self.cached)
        self.pages = 0

    def lose(self, now: float) -> None:
        """It is over, and nobody told how."""
        self.state, self.ended, self.reason, self.place, self.pages = "done", now, "", 0, 0
        self.was_lost = True

    def come_back(self) -> None:
        """It was lost too early."""
        self.state, self.ended, self.was_lost, self._absent = "waiting", None, False, 0

    def look(self, views: Sequence[SequenceView], now: float) -> None:
        """What a snapshot says of its sequences."""
        if self.is_over or not views:
            return
        self._absent = 0
        self.pages = sum(view.num_pages for view in views)
        self.computed = sum(min(view.num_computed, view.num_prompt) for view in views)
        self.prompt = sum(view.num_prompt for view in views) if self.prompt is None else self.prompt
        self._count(sum(view.num_generated for view in views), now)
        self.state = _state_of(views, self.state)

    def _count(self, out: int, now: float) -> None:
        # a snapshot is a little older than the events around it
        moved, self.out = out > self.out, max(self.out, out)
        if moved:
            span_s = now - self._moved
            if self._moved and self._pace_s and span_s > max(STALL_S, STALL_TIMES * self._pace_s):
                if len(self.stalls) < MAX_STALLS:
                    self.stalls.append((self._moved, now))
            elif self._moved:
                self._pace_s = span_s if not self._pace_s else 0.8 * self._pace_s + 0.2 * span_s
            self._moved = now
            self._counted.append((now, self.out))
        while len(self._counted) > 2 and now - self._counted[1][0] > RATE_S:
            self._counted.popleft()

    def miss(self, now: float) -> None:
        """A snapshot of its model does not speak of it."""
        if self.is_over or self.state in ("queued", "loading"):
            return
        self.pages, self.place = 0, 0
        self._absent_since = self._absent_since if self._absent else now
        self._absent += 1

    def found(self) -> None:
        self._absent = 0

    def is_forgotten(self, now: float) -> bool:
        """Whether it is in no snapshot any more. One alone may be older than the request."""
        return not self.is_over and self._absent > 1 and now - self._absent_since > ABSENT_S


_NOTES = {
    "queued": Request._on_queued,
    "loading": Request._on_loading,
    "submitted": Request._on_submitted,
    "admitted": Request._on_admitted,
    "progress": Request._on_progress,
    "first_token": Request._on_first_token,
    "preempted": Request._on_preempted,
    "resumed": Request._on_resumed,
    "finished": Request._on_finished,
    "failed": Request._on_failed,
}


def _whole(data: Any, name: str, otherwise: int | None) -> int | None:
    found = data.get(name)
    return found if isinstance(found, int) else otherwise


def _state_of(views: Sequence[SequenceView], before: State) -> State:
    running = [view for view in views if view.state == "running"]
    if not running:
        return "preempted" if any(view.num_preemptions for view in views) else "waiting"
    return "decode" if any(view.num_generated for view in running) or before == "decode" else "prefill"


@lru_cache(4096)
def record_of(sequence_id: str) -> tuple[str, int]:
    """The request that a sequence belongs to, and its number: `id/number-index`; 0 where the id says none."""
    owner, slash, rest = sequence_id.rpartition(SEPARATOR)
    number = rest.partition("-")[0]
    return (owner, int(number) if number.isascii() and number.isdecimal() else 0) if slash else (sequence_id, 0)


class Requests:
    """All requests that are under way or were a second ago, and the last KEPT that are over."""

    def __init__(self) -> None:
        self.rows: dict[str, Request] = {}
        self.over: OrderedDict[str, Request] = OrderedDict()

    def find(self, request_id: str) -> Request | None:
        return self.rows.get(request_id) or self.over.get(request_id)

    def note(self, event: RequestEvent) -> Request | None:
        """None for an event of a request that is over and gone."""
        if event.id not in self.rows and not self._revive(event.id):
            gone = self.over.get(event.id)
            if gone is not None and (event.at <= (gone.ended or 0.0) or event.name in ("finished", "failed")):
                return None
            is_beginning = event.name == "queued"
            self.rows[event.id] = Request(id=event.id, began=event.at, is_known=is_beginning)
        row = self.rows[event.id]
        row.note(event)
        return row

    def look(self, model: str, views: Iterable[SequenceView], now: float) -> None:
        """The sequences that one model has: the others of that model have none."""
        grouped: dict[str, list[SequenceView]] = {}
        places: dict[str, int] = {}
        shown = one_line(model)
        for view in views:
            owner, number = record_of(view.request_id)
            grouped.setdefault(owner, []).append(view)
            if view.state == "waiting":
                places.setdefault(owner, len(places) + 1)
            if owner not in self.rows and not self._revive(owner) and owner not in self.over:
                self.rows[owner] = Request(id=owner, serial=number, model=shown, began=now, is_known=False)
        for row in self.rows.values():
            if row.id in grouped:
                row.place = 0 if row.is_over else places.get(row.id, 0)
                row.look(grouped[row.id], now)
            elif row.model == shown:
                row.miss(now)

    def reconcile(self, running: Iterable[str], now: float) -> None:
        """Only these are under way: whatever else seems to be is over."""
        names = set(running)
        for row in self.rows.values():
            if row.id in names:
                row.found()
            elif not row.is_over:
                row.lose(now)

    def miss_all(self, model: str, now: float) -> None:
        """The model is gone, and what it computed with it."""
        for row in self.rows.values():
            if row.model == one_line(model) and not row.is_over and row.state not in ("queued", "loading"):
                row.lose(now)

    def sweep(self, now: float) -> None:
        """Takes rows away whose time is over."""
        for row in list(self.rows.values()):
            if row.is_forgotten(now):
                row.lose(now)
            if row.ended is not None and now - row.ended >= LINGER_S:
                self._retire(row)

    def _revive(self, request_id: str) -> bool:
        """One that was thought to be over is not."""
        row = self.over.get(request_id)
        if row is None or not row.was_lost:
            return False
        self.rows[request_id] = self.over.pop(request_id)
        row.come_back()
        return True

    def clear(self) -> None:
        self.rows.clear()
        self.over.clear()

    def _retire(self, row: Request) -> None:
        del self.rows[row.id]
        self.over[row.id] = row
        self.over.move_to_end(row.id)
        while len(self.over) > KEPT:
            self.over.popitem(last=False)
