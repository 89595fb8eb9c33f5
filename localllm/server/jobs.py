"""Long work of the store in threads of their own: pulls and creations, watched by everyone who asked for the same.

When the last watcher leaves, the work stops at its next word; what a pull has fetched by then is kept for the next.
"""

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator

from localllm.daemon.failures import as_ours
from localllm.errors import LocalLLMError, Overloaded
from localllm.store.entry import PullEvent

MAX_JOBS = 8
MAX_EVENTS = 512
PROGRESS_EVERY_S = 0.1

Say = Callable[[PullEvent], None]
Work = Callable[[Say], object]


class Abandoned(Exception):
    """Nobody waits for this work any more; raised inside of it."""


class Jobs:
    """The work under way, by what it is. All methods belong to the event loop's thread."""

    def __init__(self) -> None:
        self._running: dict[str, Job] = {}

    def join(self, key: str, work: Work) -> "Job":
        """The work of this key that is under way, or a new one. Overloaded when too much is."""
        found = self._running.get(key)
        if found is not None and not found.is_abandoned:
            return found
        if len(self._running) >= MAX_JOBS:
            raise Overloaded(f"{len(self._running)} models are on their way already", hint="wait for one of them")
        job = Job(work, lambda ended: self._forget(key, ended))
        self._running[key] = job
        job.start()
        return job

    def _forget(self, key: str, job: "Job") -> None:
        if self._running.get(key) is job:
            del self._running[key]


class Job:
    """One piece of work. `watch` it from start to end; everyone who watches sees all of it."""

    def __init__(self, work: Work, ended: Callable[["Job"], None]) -> None:
        self.is_abandoned = False
        self._work = work
        self._ended = ended
        self._loop = asyncio.get_running_loop()
        self._events: list[PullEvent] = []
        self._progress: dict[str, PullEvent] = {}
        self._changed = asyncio.Event()
        self._is_done = False
        self._error: LocalLLMError | None = None
        self._num_watchers = 0
        self._last_said: dict[str, float] = {}

    def start(self) -> None:
        # a daemon thread: a download that hangs must not keep the process from ending
        threading.Thread(target=self._run, name="store-job", daemon=True).start()

    # ---- in the thread

    def _run(self) -> None:
        error: LocalLLMError | None = None
        try:
            self._work(self._say)
        except Abandoned:
            error = LocalLLMError("nobody waited for it any more")
        except BaseException as caught:
            error = as_ours(caught)
        with contextlib.suppress(RuntimeError):  # the loop may be gone: then nobody listens
            self._loop.call_soon_threadsafe(self._end, error)

    def _say(self, event: PullEvent) -> None:
        if self.is_abandoned:
            raise Abandoned
        if event.kind == "progress" and not self._is_time_for(event):
            return
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._note, event)

    def _is_time_for(self, event: PullEvent) -> bool:
        now, is_last = time.monotonic(), event.completed_bytes == event.total_bytes
        if not is_last and now - self._last_said.get(event.file, 0.0) < PROGRESS_EVERY_S:
            return False
        self._last_said[event.file] = now
        return True

    # ---- on the loop

    def _note(self, event: PullEvent) -> None:
        if event.kind == "progress":
            self._progress[event.file] = event
        elif len(self._events) < MAX_EVENTS:
            self._events.append(event)
        self._wake()

    def _end(self, error: LocalLLMError | None) -> None:
        self._is_done, self._error = True, error
        self._ended(self)
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def begun(self, timeout_s: float) -> None:
        """Wait for its first word, but not for long. Raises what it failed with until then."""
        if not (self._is_done or self._events or self._progress):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await self._changed.wait()
        if self._error is not None:
            raise self._error

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """While the block runs somebody waits for the end."""
        self._num_watchers += 1
        try:
            yield
        finally:
            self._num_watchers -= 1
            if not self._num_watchers and not self._is_done:
                self.is_abandoned = True

    async def events(self) -> AsyncIterator[PullEvent]:
        """All that is said, and of each file's progress the newest. Raises what the work failed with."""
        num_seen, seen = 0, dict[str, PullEvent]()
        while True:
            changed, is_done = self._changed, self._is_done
            for event in self._events[num_seen:]:
                num_seen += 1
                yield event
            for file, event in list(self._progress.items()):
                if seen.get(file) is not event:
                    seen[file] = event
                    yield event
            if is_done:
                break
            await changed.wait()
        if self._error is not None:
            raise self._error
