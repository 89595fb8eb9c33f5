"""The live feed: what the engines do, at most ten times a second, for whoever watches. Never waits for a watcher.

Each watcher has a bounded list of events and one note of what changed; a slow one finds less in it, and is told how
much it missed. Workers say whose pages are whose only while somebody watches.
"""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from localllm import wire
from localllm.daemon.feed import Frame, ModelRow, Rates, RequestEvent
from localllm.daemon.journal import Event, Journal, Record
from localllm.daemon.residency import Residency
from localllm.daemon.resident import Resident
from localllm.errors import Overloaded
from localllm.server.answers import KEEP_ALIVE, event
from localllm.server.callers import Caller, caller_of
from localllm.server.http import EventStream
from localllm.server.manage import model_rows
from localllm.server.memory import Memory
from localllm.server.operations import Operation
from localllm.server.requests import event_of, may_see

FRAME_S = 0.1
IDLE_S = 10.0
MAX_EVENTS = 1024
"""That wait for one watcher."""
MAX_WATCHERS = 64
FEED = ("text/event-stream", "`data:` lines, each a frame: what changed, at most ten a second, until either side ends.")


class Live:
    """`GET /live`, also at `/localllm/v1/live`: frames as in daemon/feed.py."""

    def __init__(self, residency: Residency, journal: Journal) -> None:
        self._residency = residency
        self._journal = journal
        self._watchers: set[_Watcher] = set()
        self._rates: dict[str, tuple[wire.Snapshot, Rates]] = {}
        self._memory = Memory()
        self._is_over = False

    def operations(self) -> Sequence[Operation]:
        return (
            Operation("GET", "/live", self.live, "Watch the engines", "localllm", streams=(FEED,)),
            Operation(
                "GET", "/localllm/v1/live", self.live_here, "Watch the engines here", "localllm", streams=(FEED,)
            ),
        )

    async def live(self, request: Request) -> Response:
        if len(self._watchers) >= MAX_WATCHERS:
            raise Overloaded(f"{MAX_WATCHERS} programs watch already", hint="close one of them")
        return EventStream(self._frames(_Watcher(caller_of(request))))

    async def live_here(self, request: Request) -> Response:
        return await self.live(request)

    def end(self) -> None:
        """Close every feed: watchers must not keep a drain waiting."""
        self._is_over = True
        for watcher in self._watchers:
            watcher.changed.set()

    # ---- one watcher

    async def _frames(self, watcher: "_Watcher") -> AsyncIterator[bytes]:
        unwatch = (self._residency.watch(watcher.note_model), self._journal.watch(watcher.note_event))
        self._begin(watcher)
        try:
            while not self._is_over:
                sent = time.monotonic()
                yield event(self._frame(watcher))
                while not await watcher.news(IDLE_S) and not self._is_over:
                    yield KEEP_ALIVE
                await asyncio.sleep(max(0.0, sent + FRAME_S - time.monotonic()))
        finally:
            for end in unwatch:
                end()
            self._leave(watcher)

    def _begin(self, watcher: "_Watcher") -> None:
        """A newcomer hears of everything that is under way."""
        self._watchers.add(watcher)
        for record in self._journal.running.values():
            for happened in record.events:
                watcher.note_event(record, happened)
        for resident in self._residency.residents():
            watcher.note_model(resident)
            resident.set_watched(True)

    def _leave(self, watcher: "_Watcher") -> None:
        self._watchers.discard(watcher)
        if not self._watchers:
            self._rates.clear()
            for resident in self._residency.residents():
                resident.set_watched(False)

    def _frame(self, watcher: "_Watcher") -> Frame:
        names, events, dropped = watcher.take()
        snapshots: dict[str, wire.Snapshot] = {}
        most = {resident.entry.name: resident.load.max_sequences for resident in self._residency.residents()}
        for resident in self._residency.residents():
            resident.set_watched(True)  # also one that has become ready just now
            if resident.entry.name in names and resident.snapshot is not None:
                snapshots[resident.entry.name] = resident.snapshot
        return Frame(
            at=time.monotonic(),
            time=time.time(),
            models=[self._model_row(row, most) for row in model_rows(self._residency)],
            snapshots=snapshots,
            rates={name: self._rates_of(name, snapshot) for name, snapshot in snapshots.items()},
            events=events,
            dropped=dropped,
            machine=self._memory.machine(),
        )

    def _model_row(self, row: dict[str, Any], most: Mapping[str, int]) -> ModelRow:
        taken = self._memory.taken_by(row["pid"]) if row.get("pid") else 0
        return msgspec.convert(row | {"resident_bytes": taken, "max_sequences": most.get(row["name"], 0)}, ModelRow)

    def _rates_of(self, name: str, snapshot: wire.Snapshot) -> Rates:
        before, rates = self._rates.get(name, (snapshot, Rates()))
        if snapshot.time_s > before.time_s:
            rates = _between(before, snapshot)
        self._rates[name] = snapshot, rates
        return rates


class _Watcher:
    """What one reader has not been told yet."""

    def __init__(self, caller: Caller) -> None:
        self.changed = asyncio.Event()
        self._caller = caller
        self._names: set[str] = set()
        self._events: deque[RequestEvent] = deque(maxlen=MAX_EVENTS)
        self._num_noted = 0

    def note_model(self, resident: Resident) -> None:
        self._names.add(resident.entry.name)
        self.changed.set()

    def note_event(self, record: Record, happened: Event) -> None:
        if not may_see(self._caller, record):
            return
        self._events.append(event_of(record, happened))
        self._num_noted += 1
        self.changed.set()

    def take(self) -> tuple[set[str], list[RequestEvent], int]:
        """Names of models that changed, events, and how many events were lost."""
        names, self._names = self._names, set()
        events, num_noted = list(self._events), self._num_noted
        self._events.clear()
        self._num_noted = 0
        self.changed.clear()
        return names, events, num_noted - len(events)

    async def news(self, timeout_s: float) -> bool:
        """Whether something changed within the time."""
        try:
            async with asyncio.timeout(timeout_s):
                await self.changed.wait()
        except TimeoutError:
            return False
        return True


def _between(before: wire.Snapshot, after: wire.Snapshot) -> Rates:
    seconds = after.time_s - before.time_s
    return Rates(
        prompt_tokens_per_s=max(0, after.num_prompt_tokens - before.num_prompt_tokens) / seconds,
        generated_tokens_per_s=max(0, after.num_generated_tokens - before.num_generated_tokens) / seconds,
        steps_per_s=max(0, after.num_steps - before.num_steps) / seconds,
        cache_hits=after.num_cached_tokens / after.num_prompt_tokens if after.num_prompt_tokens else 0.0,
    )
