"""Pulls and quantizations as the daemon's own work: asked for once, they go on when whoever asked has left, until they
are paused.

A few run at once, the others wait. A pause ends the thread and keeps the partial file; going on is a new thread that
finds it. What was under way when the daemon ended is listed as paused by the next one.
"""

import asyncio
import contextlib
import logging
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable
from pathlib import Path

import msgspec

from localllm.daemon.shelf import OpenShelf, Shelf
from localllm.daemon.shelf_shapes import PullError, PullJob, PullState
from localllm.errors import LocalLLMError, ModelNotFound, Overloaded
from localllm.server.jobs import Job, Say
from localllm.store.blobs import discard_partial, write_atomic
from localllm.store.entry import PullEvent
from localllm.store.names import parse_ref

logger = logging.getLogger("localllm.server")

AT_ONCE = 3
MAX_LISTED = 64
SHOWN_WHEN_DONE_S = 60.0
RATE_OVER_S = 5.0
MAX_NOTICES = 8
MAX_FILE_BYTES = 2**20
WIND_DOWN_S = 30.0
"""So long a pull that was paused may take to notice, when it is to be cancelled."""


class Kept(msgspec.Struct, frozen=True):
    """A pull as a restart of the daemon finds it; `partials` are paths of files that have grown so far."""

    model: str
    done_bytes: int = 0
    total_bytes: int = 0
    partials: tuple[str, ...] = ()
    source: str = ""
    type: str = ""


class Progress:
    """How far a pull is: bytes that come over the network, and how fast they came in the last seconds. Noted in the
    thread that fetches, read on the event loop's."""

    def __init__(self) -> None:
        self._files: dict[str, PullEvent] = {}
        self._samples: deque[tuple[float, int]] = deque()
        self._lock = threading.Lock()
        self._is_unpacking = False

    def take_over(self, kept: Kept) -> None:
        """What an earlier daemon had fetched, until the first word of the work says it anew."""
        for number, partial in enumerate(kept.partials or ("",)):
            first = number == 0
            self._files[f"{number}"] = PullEvent(
                kind="progress",
                completed_bytes=kept.done_bytes if first else 0,
                total_bytes=kept.total_bytes if first else 0,
                partial=partial,
            )
        self._is_old = True

    _is_old = False

    def note(self, event: PullEvent, now: float) -> None:
        with self._lock:
            if self._is_old:
                self._files.clear()
                self._is_old = False
            if event.file not in self._files and self._files and not event.partial:
                self._is_unpacking = True  # a package is one download; whatever follows is taken out of it
                return
            self._files[event.file] = event
            self._samples.append((now, self._done()))
            while len(self._samples) > 2 and self._samples[0][0] < now - RATE_OVER_S:
                self._samples.popleft()

    def begin_again(self) -> None:
        """The next bytes come after a pause, which is no slowness."""
        with self._lock:
            self._samples.clear()
            self._is_unpacking = False

    def so_far(self, now: float) -> tuple[int, int, float, bool]:
        """Bytes done, bytes in all, bytes per second, and whether all of it is here."""
        with self._lock:
            done = self._done()
            total = sum(max(event.total_bytes, event.completed_bytes) for event in self._files.values())
            return done, total, self._rate(done, now), self._is_unpacking or 0 < total == done

    def partials(self) -> list[Path]:
        with self._lock:
            return [Path(event.partial) for event in self._files.values() if event.partial]

    def _done(self) -> int:
        return sum(event.completed_bytes for event in self._files.values())

    def _rate(self, done: int, now: float) -> float:
        if len(self._samples) < 2:
            return 0.0
        since, first = self._samples[0]
        return round(max(0, done - first) / max(now - since, 0.5), 1)


class Pull:
    """One model on its way. Belongs to the event loop's thread."""

    def __init__(self, model: str, key: str, source: str = "", type_: str = "") -> None:
        self.id = uuid.uuid4().hex[:12]
        self.model = model
        self.key = key
        self._source, self._type = source, type_
        self.state: PullState = "queued"
        self.ended_at = 0.0
        self._started = time.time()
        self._progress = Progress()
        self._said = ""
        self._notices: list[str] = []
        self._error: LocalLLMError | None = None
        self._job: Job | None = None
        self._listening: asyncio.Task[None] | None = None

    @property
    def is_over(self) -> bool:
        return self.state in ("done", "failed")

    @property
    def is_running(self) -> bool:
        return self.state in ("running", "checking")

    @classmethod
    def of(cls, kept: Kept) -> "Pull":
        """One that an earlier daemon began. UsageError where that kept nonsense."""
        pull = cls(kept.model, parse_ref(kept.model).key, kept.source, kept.type)
        pull.state = "paused"
        pull._progress.take_over(kept)
        return pull

    def kept(self) -> Kept:
        done, total, _, _ = self._progress.so_far(0.0)
        return Kept(self.model, done, total, tuple(map(str, self._progress.partials())), self._source, self._type)

    def shown(self) -> PullJob:
        error = self._error
        done, total, rate, is_whole = self._progress.so_far(time.monotonic())
        is_checking = self.state == "running" and is_whole
        return PullJob(
            id=self.id,
            model=self.model,
            kind="quantize" if self._source else "pull",
            source=self._source,
            type=self._type,
            state="checking" if is_checking else self.state,
            done_bytes=done,
            total_bytes=total,
            bytes_per_s=rate if self.state == "running" and not is_checking else 0.0,
            started=self._started,
            said=self._said,
            notices=tuple(self._notices),
            error=PullError(message=error.message, code=error.code, hint=error.hint) if error else None,
        )

    def run(self, open_shelf: OpenShelf, ended: Callable[[], None]) -> None:
        self.state, self._error = "running", None
        self._progress.begin_again()
        job = Job(lambda say: self._work(open_shelf(), self._heard(say)), lambda _: None)
        self._job = job
        job.start()
        self._listening = asyncio.create_task(self._listen(job, ended))

    def _work(self, shelf: Shelf, say: Say) -> None:
        if not self._source:
            shelf.pull(self.model, say)
            return
        from localllm.runtime.quantize import Order, way_of  # deferred: numpy and the formats come with it

        shelf.quantize(self._source, self.model, way_of(Order(self._type)), say)

    def _heard(self, say: Say) -> Say:
        """In the thread: progress is noted in full, before `say` passes over most of it, or ends the work."""

        def hear(event: PullEvent) -> None:
            if event.kind == "progress":
                self._progress.note(event, time.monotonic())
            say(event)

        return hear

    async def _listen(self, job: Job, ended: Callable[[], None]) -> None:
        """Its words, until it ends by itself; a pause or the end of the daemon cancels this."""
        error: LocalLLMError | None = None
        try:
            async for event in job.events():
                self._hear(event)
        except LocalLLMError as caught:
            error = caught
        if self._job is job and not job.is_abandoned:
            self._error, self.state = error, "failed" if error else "done"
            self.ended_at = time.monotonic()
            ended()

    def _hear(self, event: PullEvent) -> None:
        if event.kind == "warning":
            self._notices = [*self._notices, event.message][-MAX_NOTICES:]
        elif event.kind != "progress":
            self._said = event.message

    def halt(self, state: PullState) -> None:
        """The work stops at its next word. What was fetched stays."""
        self.state = state
        if self._job is not None:
            self._job.is_abandoned = True

    async def discard(self) -> None:
        """Deletes what was fetched, once nobody writes to it any more."""
        if self._listening is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(WIND_DOWN_S):
                    await asyncio.wait([self._listening])
        for path in self._progress.partials():
            with contextlib.suppress(OSError):  # a file that nobody may delete is told by the disk, not by us
                await asyncio.to_thread(discard_partial, path)


class Pulls:
    """All pulls of one daemon, in the order in which they were asked for."""

    def __init__(self, open_shelf: OpenShelf, path: Path) -> None:
        self._open_shelf = open_shelf
        self._path = path
        self._pulls: dict[str, Pull] = {pull.id: pull for pull in _read(path)}
        self._endings: set[asyncio.Task[None]] = set()

    def start(self, model: str) -> Pull:
        """The pull of this model: one that is under way, one that stopped and goes on, or a new one. UsageError for
        what can be no model's name, Overloaded when too many are listed."""
        return self._start(Pull(model.strip(), parse_ref(model).key))

    def quantize(self, source: str, type_: str, name: str) -> Pull:
        """The same for a model that is made of one that is here."""
        return self._start(Pull(name, parse_ref(name).key, source, type_))

    def _start(self, pull: Pull) -> Pull:
        key = pull.key
        found = next((pull for pull in self._pulls.values() if pull.key == key and pull.state != "done"), None)
        if found is not None:
            return self._again(found)
        self._forget_old()
        if len(self._pulls) >= MAX_LISTED:
            raise Overloaded(f"{len(self._pulls)} pulls are listed already", hint="wait for some, or cancel them")
        self._pulls[pull.id] = pull
        self._run_next()
        return pull

    def listed(self) -> list[PullJob]:
        self._forget_old()
        return [pull.shown() for pull in self._pulls.values()]

    def pause(self, pull_id: str) -> Pull:
        pull = self._found(pull_id)
        if not pull.is_over:
            pull.halt("paused")
            self._run_next()
        return pull

    def resume(self, pull_id: str) -> Pull:
        return self._again(self._found(pull_id))

    def cancel(self, pull_id: str) -> Pull:
        """Ends it, and deletes what it has fetched; one that is over is only listed no longer."""
        pull = self._found(pull_id)
        del self._pulls[pull_id]
        if pull.state != "done":
            pull.halt("paused")
            ending = asyncio.create_task(pull.discard())
            self._endings.add(ending)  # the event loop itself holds tasks only weakly
            ending.add_done_callback(self._endings.discard)
        self._run_next()
        return pull

    def close(self) -> None:
        """The daemon ends: what has been fetched waits for the next one."""
        for pull in self._pulls.values():
            if not pull.is_over:
                pull.halt("paused")
        self._save()

    def _save(self) -> None:
        """A home that cannot be written to forgets the list, and nothing that was fetched."""
        kept = [pull.kept() for pull in self._pulls.values() if pull.state != "done"]
        with contextlib.suppress(OSError, LocalLLMError):
            if kept or self._path.exists():
                write_atomic(self._path, msgspec.json.encode(kept))

    def _again(self, pull: Pull) -> Pull:
        if pull.state in ("paused", "failed"):
            pull.state = "queued"
            self._run_next()
        return pull

    def _run_next(self) -> None:
        free = AT_ONCE - sum(pull.is_running for pull in self._pulls.values())
        waiting = [pull for pull in self._pulls.values() if pull.state == "queued"]
        for pull in waiting[: max(0, free)]:
            pull.run(self._open_shelf, self._run_next)
        self._save()

    def _found(self, pull_id: str) -> Pull:
        if pull_id not in self._pulls:
            raise ModelNotFound(f"there is no pull {pull_id[:64]!r}", hint="`GET /localllm/v1/pulls` lists them")
        return self._pulls[pull_id]

    def _forget_old(self) -> None:
        oldest = time.monotonic() - SHOWN_WHEN_DONE_S
        for pull_id, pull in list(self._pulls.items()):
            if pull.state == "done" and pull.ended_at < oldest:
                del self._pulls[pull_id]


def _read(path: Path) -> list[Pull]:
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            return []
        kept = msgspec.json.decode(path.read_bytes(), type=list[Kept])
        return [Pull.of(each) for each in kept[:MAX_LISTED]]
    except FileNotFoundError:
        return []
    except (OSError, LocalLLMError, msgspec.MsgspecError) as error:
        logger.warning("%s cannot be read; pulls of the last daemon are not listed: %s", path, error)
        return []
