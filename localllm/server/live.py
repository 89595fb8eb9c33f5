"""The live feed: what the engines do, at most ten times a second, for whoever watches. Never waits for a watcher."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from localllm.daemon.residency import Residency
from localllm.daemon.resident import Resident
from localllm.server.answers import KEEP_ALIVE, event
from localllm.server.http import EventStream
from localllm.server.manage import model_rows
from localllm.server.operations import Operation

FRAME_S = 0.1
FEED = ("text/event-stream", "`data:` lines of `{models, snapshots}`, at most ten a second, until either side ends.")
IDLE_S = 10.0


class Live:
    """`GET /localllm/v1/live`: events `{"models": [rows as in ps], "snapshots": {name: snapshot}}`.

    A snapshot is `wire.Snapshot` as JSON, its `pages` in base64, and is sent only when it changed.
    """

    def __init__(self, residency: Residency) -> None:
        self._residency = residency
        self._ending = asyncio.Event()

    def operations(self) -> Sequence[Operation]:
        return (Operation("GET", "/localllm/v1/live", self.live, "Watch the engines", "localllm", streams=(FEED,)),)

    async def live(self, request: Request) -> Response:
        return EventStream(self._frames())

    def end(self) -> None:
        """Close every feed: watchers must not keep a drain waiting."""
        self._ending.set()

    async def _frames(self) -> AsyncIterator[bytes]:
        changed = asyncio.Event()
        dirty: set[str] = {resident.entry.name for resident in self._residency.residents()}

        def note(resident: Resident) -> None:
            dirty.add(resident.entry.name)
            changed.set()

        unwatch = self._residency.watch(note)
        try:
            yield event(self._frame(dirty))
            while not self._ending.is_set():
                if not await self._either(changed):
                    yield KEEP_ALIVE
                    continue
                await asyncio.sleep(FRAME_S)
                names, dirty_now = set(dirty), dirty
                dirty_now.clear()
                changed.clear()
                yield event(self._frame(names))
        finally:
            unwatch()

    async def _either(self, changed: asyncio.Event) -> bool:
        """True when something changed or the feed ends, False when nothing happened for a while."""
        waits = {asyncio.create_task(changed.wait()), asyncio.create_task(self._ending.wait())}
        try:
            done, _ = await asyncio.wait(waits, timeout=IDLE_S, return_when=asyncio.FIRST_COMPLETED)
            return bool(done)
        finally:
            for wait in waits:
                wait.cancel()

    def _frame(self, names: set[str]) -> dict[str, Any]:
        snapshots = {
            resident.entry.name: resident.snapshot
            for resident in self._residency.residents()
            if resident.entry.name in names and resident.snapshot is not None
        }
        return {"models": model_rows(self._residency), "snapshots": snapshots}
