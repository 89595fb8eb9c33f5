"""Which models are loaded: found by name, started on demand, kept a while, evicted when room is needed.

One worker per model digest. A model with running requests is never evicted, and nobody is evicted in vain; requests
for a model that is still loading wait together.
"""

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from localllm import wire
from localllm.daemon.crashes import CrashLog
from localllm.daemon.fitting import bytes_to_load
from localllm.daemon.heap import give_back_memory
from localllm.daemon.keepalive import FOREVER, keep_alive_seconds
from localllm.daemon.memory_plan import Holder, Plan, gigabytes, needed_bytes, plan
from localllm.daemon.quarantine import Quarantine
from localllm.daemon.resident import Resident
from localllm.daemon.sources import Sources
from localllm.errors import NotEnoughMemory, Overloaded, UnsupportedModel
from localllm.runtime.presets import NO_WISH, LoadWish, load_order
from localllm.settings import Settings
from localllm.store.entry import Entry
from localllm.store.names import parse_ref

logger = logging.getLogger("localllm.daemon")
T = TypeVar("T")

ROOM_WAIT_S = 60.0
LOOK_EVERY_S = 1.0
KEPT_EVICTIONS = 32
GIVE_BACK_S = 1.0


@dataclass(frozen=True, slots=True)
class Eviction:
    """A model that had to go. `at` is in seconds since the epoch."""

    name: str
    why: str
    at: float


@dataclass(slots=True)
class Wait:
    """What keeps a request from its model, and what was done for it. `is_told`: its client was promised an answer."""

    words: str = ""
    resident: Resident | None = None
    evicted: list[str] = field(default_factory=list)
    is_told: bool = False

    @property
    def text(self) -> str | None:
        """For people: "loading weights 43 %"; None when nothing keeps it any more."""
        if self.resident is None or self.resident.state != "loading":
            return self.words or None
        return _in_words(self.resident.progress)


def _in_words(progress: wire.Progress | None) -> str:
    if progress is None:
        return "starting the model"
    if not progress.total_bytes:
        return progress.stage
    return f"{progress.stage} {100 * progress.done_bytes // progress.total_bytes} %"


class Residency:
    """The loaded models of one daemon. All methods belong to the event loop's thread."""

    def __init__(self, settings: Settings, sources: Sources) -> None:
        self._settings = settings
        self._sources = sources
        self._residents: dict[str, Resident] = {}
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._expires_s: dict[str, float] = {}
        self._lives: set[asyncio.Task[None]] = set()
        self._placing = asyncio.Lock()
        self._changed = asyncio.Event()
        self._watchers: set[Callable[[Resident], None]] = set()
        self._pool = ThreadPoolExecutor(max_workers=2, thread_name_prefix="text")
        self._store = ThreadPoolExecutor(max_workers=1, thread_name_prefix="store")  # a name must not wait for texts
        self._num_waiting = 0
        self._is_closed = False
        self.crashes = CrashLog(sources.clock)
        self.quarantine = Quarantine(sources.clock)
        self.evictions: deque[Eviction] = deque(maxlen=KEPT_EVICTIONS)

    def warm_up(self) -> None:
        """Do in the background what the first request would have to wait for."""
        self._pool.submit(self._sources.warm_up)

    # ---- for requests

    @contextlib.asynccontextmanager
    async def using(
        self,
        name: str,
        keep_alive: str | float | None = None,
        wish: LoadWish = NO_WISH,
        wait: Wait | None = None,
    ) -> AsyncIterator[Resident]:
        """The model, ready, and not to be evicted while the block runs; one that is open in another way than wished
        is loaded again. `wait` is told what it waits for. Raises ModelNotFound, NotEnoughMemory, BadModelFile,
        UnsupportedModel, WorkerCrashed, Overloaded."""
        wish = wish.checked()
        keep_alive_s = None if keep_alive is None else keep_alive_seconds(keep_alive)
        wait = Wait() if wait is None else wait
        entry = await self.find(name)
        resident = await self._hold(entry, wish, wait)
        key = key_of(entry)
        if keep_alive_s is not None:
            resident.keep_alive_s = keep_alive_s
        wait.resident, wait.words = resident, ""
        try:
            await resident.wait_ready()
            yield resident
        finally:
            self._release(key, resident)

    async def find(self, name: str) -> Entry:
        return await self._in_store(partial(self._sources.library.find, name))

    async def entries(self) -> list[Entry]:
        return await self._in_store(lambda: list(self._sources.library.entries()))

    async def _in_store(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._store, work)

    async def in_thread(self, work: Callable[[], T]) -> T:
        """Run what takes long (templates, tokenizing, the store) off the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)

    # ---- for the managing API

    def residents(self) -> list[Resident]:
        return list(self._residents.values())

    def expires_in_s(self, resident: Resident) -> float | None:
        """Seconds until an idle model is unloaded; None: for ever."""
        key = key_of(resident.entry)
        if resident.num_users or key not in self._timers:
            kept = self._kept_s(resident)
            return None if kept == FOREVER else kept
        return max(0.0, self._expires_s[key] - self._sources.clock())

    async def stop(self, name: str) -> bool:
        """Unload the model, running requests or not; False when it was not loaded."""
        names = (name, parse_ref(name).display)
        named = (resident.entry for resident in self._residents.values() if resident.entry.name in names)
        entry = next(named, None) or await self.find(name)  # a loaded model may have left the store meanwhile
        self.crashes.forgive(key_of(entry))
        self.quarantine.forgive(key_of(entry))
        resident = self._residents.get(key_of(entry))
        if resident is None:
            return False
        await resident.stop()
        return True

    def watch(self, watcher: Callable[[Resident], None]) -> Callable[[], None]:
        """Call `watcher` on every change of a model; the answer ends that."""
        self._watchers.add(watcher)
        return lambda: self._watchers.discard(watcher)

    async def close(self) -> None:
        """Unload everything, and load nothing more."""
        self._is_closed = True
        await asyncio.gather(*(resident.stop() for resident in self.residents()))
        for life in list(self._lives):
            await life
        for pool in (self._pool, self._store):
            pool.shutdown(wait=False, cancel_futures=True)

    def holders(self) -> list[Holder]:
        """What is loaded, as plans of memory see it."""
        return [
            Holder(each.entry.name, _held_bytes(each), not each.num_users, each.last_used)
            for each in self._residents.values()
        ]

    def available_memory_bytes(self) -> int:
        """What a new model could have without any of them leaving."""
        return self._sources.available_memory_bytes()

    def memory_bytes(self) -> int:
        """What the machine has."""
        return self._sources.total_memory_bytes()

    # ---- starting and evicting

    async def _hold(self, entry: Entry, wish: LoadWish, wait: Wait) -> Resident:
        resident = self._residents.get(key_of(entry))
        if resident is None or resident.state in ("stopping", "failed") or not resident.fits(wish):
            resident = await self._placed(entry, wish, wait)
        resident.num_users += 1
        self._cancel_timer(key_of(entry))
        return resident

    async def _placed(self, entry: Entry, wish: LoadWish, wait: Wait) -> Resident:
        if self._num_waiting >= max(1, self._settings.max_queue):  # whoever brings the model waits for nobody
            raise Overloaded("too many requests wait for a model", hint="try again in a few seconds")
        self._num_waiting += 1
        wait.words = "waiting for another model to load"
        deadline = self._sources.clock() + ROOM_WAIT_S
        try:
            while True:
                try:
                    async with self._placing:
                        return await self._current(entry, wish, wait) or await self._start(entry, wish, wait)
                except _Busy as busy:  # waited for outside of the lock: others may need no room
                    await self._wait_for_room(busy, deadline, wait)
        finally:
            self._num_waiting -= 1

    async def _current(self, entry: Entry, wish: LoadWish, wait: Wait) -> Resident | None:
        """The loaded model if it is open as wished; otherwise it has been unloaded when this returns. _Busy where it
        is in use as it is."""
        resident = self._residents.get(key_of(entry))
        if resident is not None and resident.state not in ("stopping", "failed") and not resident.fits(wish):
            if resident.num_users:  # while it loads nobody knows what `auto` will become: it may fit in the end
                wait.words = f"waiting for the answers of {entry.name} as it is open now"
                raise _Busy(f"{entry.name} is busy on its present backend", "try again when its answers are done")
            await self._refuse_missing(wish)
            await self._evict(resident, "it is wanted on another backend, or quantized otherwise", wait)
            return None
        if resident is not None and resident.state in ("stopping", "failed"):
            wait.words = f"waiting for {entry.name} to be unloaded"
            await resident.gone.wait()
            return None
        return resident

    async def _refuse_missing(self, wish: LoadWish) -> None:
        """A wish for what is not installed must not cost others the model that they use."""
        if wish.backend is not None and (
            problem := await self.in_thread(partial(self._sources.backend_problem, wish.backend))
        ):
            raise UnsupportedModel(
                problem, hint="`localllm doctor` says what to install; or choose another one", param="backend"
            )

    async def _start(self, entry: Entry, wish: LoadWish, wait: Wait) -> Resident:
        wait.words = f"waiting for a place for {entry.name}"
        pause_s = self.crashes.pause_s(key_of(entry))
        load = load_order(entry, self._settings, wish)
        await self._make_room(entry, load, wait)
        await asyncio.sleep(pause_s)
        if self._is_closed:
            raise Overloaded("the daemon is shutting down", hint="try again in a few seconds")
        resident = Resident(
            entry,
            load,
            self._sources.load_text,
            check=self._sources.check_files,
            command=self._sources.worker_command,
            changed=self._note_change,
            started=self._sources.clock(),
        )
        logger.info("loading %s from %s", entry.name, entry.path)
        self._residents[key_of(entry)] = resident
        self._keep(asyncio.create_task(self._live(resident)))
        return resident

    def _keep(self, task: asyncio.Task[None]) -> None:
        self._lives.add(task)  # the event loop itself holds tasks only weakly
        task.add_done_callback(self._lives.discard)

    async def _live(self, resident: Resident) -> None:
        await resident.live()
        key = key_of(resident.entry)
        if resident.crashed and resident.error is not None:
            self.crashes.record(key, resident.entry.name, resident.error.message)
        if self._residents.get(key) is resident:
            del self._residents[key]
            self._cancel_timer(key)
        logger.info("%s is unloaded (%s)", resident.entry.name, resident.state)
        self._notify()
        # a moment later nobody who waited for it holds on to it
        asyncio.get_running_loop().call_later(GIVE_BACK_S, self._give_back)

    def _give_back(self) -> None:
        if not self._is_closed:
            self._pool.submit(give_back_memory)

    async def _make_room(self, entry: Entry, load: wire.Load, wait: Wait) -> None:
        """Unload idle models, least recently used first, until the new one may come. _Busy where those that would have
        to go are in use, NotEnoughMemory when it fits in no case: then nobody goes."""
        needed = await self.in_thread(partial(bytes_to_load, entry, load))
        self._memory_plan(entry, needed)
        while len(self._residents) >= max(1, self._settings.max_loaded_models):
            await self._evict_one(f"{entry.name} needs its place", "all loaded models are busy", wait)
        while (made := self._memory_plan(entry, needed)).outcome != "fits":
            busy = f"{entry.name} has no room beside busy models: {made.numbers}"
            if made.outcome != "evict":
                raise _Busy(busy)
            await self._evict_one(f"{entry.name} needs its memory", busy, wait)

    async def _evict_one(self, why: str, busy: str, wait: Wait) -> None:
        idle = self._idlest()
        if idle is None:
            raise _Busy(busy)
        await self._evict(idle, why, wait)

    async def _wait_for_room(self, busy: "_Busy", deadline: float, wait: Wait) -> None:
        """Whoever was promised an answer waits as long as it takes."""
        left_s = deadline - self._sources.clock()
        if left_s < 0 and not wait.is_told:
            raise Overloaded(busy.why, hint=busy.hint)
        await self._wait_for_change(max(left_s, LOOK_EVERY_S))

    def _memory_plan(self, entry: Entry, needed: int) -> Plan:
        made = plan(needed, self.available_memory_bytes(), self.holders())
        if made.outcome == "never":
            raise NotEnoughMemory(
                f"{entry.name} needs about {gigabytes(needed)} of memory; {gigabytes(made.available)} is free"
                + (f", and unloading idle models would free {gigabytes(made.evictable)}" if made.evictable else ""),
                hint="take a smaller model or a smaller quantization of it, or close other programs",
            )
        return made

    def _idlest(self) -> Resident | None:
        idle = [resident for resident in self._residents.values() if not resident.num_users]
        return min(idle, key=lambda resident: resident.last_used, default=None)

    async def _evict(self, resident: Resident, why: str, wait: Wait) -> None:
        name = resident.entry.name
        logger.info("unloading %s: %s", name, why)
        wait.words = f"unloading {name}"
        wait.evicted.append(name)
        self.evictions.append(Eviction(name, why, time.time()))
        await resident.stop()
        self._residents.pop(key_of(resident.entry), None)

    # ---- leaving

    def _release(self, key: str, resident: Resident) -> None:
        resident.num_users -= 1
        resident.last_used = self._sources.clock()
        if resident.num_users == 0 and self._residents.get(key) is resident:
            self._set_timer(key, resident)
        self._notify()

    def _kept_s(self, resident: Resident) -> float:
        """What the last request said that said anything, while the model is loaded."""
        kept = resident.keep_alive_s
        return keep_alive_seconds(self._settings.keep_alive) if kept is None else kept

    def _set_timer(self, key: str, resident: Resident) -> None:
        self._cancel_timer(key)
        kept_s = self._kept_s(resident)
        if kept_s != FOREVER:
            self._expires_s[key] = self._sources.clock() + kept_s
            self._timers[key] = asyncio.get_running_loop().call_later(kept_s, self._expire, key, resident)

    def _cancel_timer(self, key: str) -> None:
        timer = self._timers.pop(key, None)
        if timer is not None:
            timer.cancel()

    def _expire(self, key: str, resident: Resident) -> None:
        self._timers.pop(key, None)
        if resident.num_users == 0 and self._residents.get(key) is resident:
            self._keep(asyncio.create_task(_stop_if_idle(resident)))

    # ---- telling others

    def _note_change(self, resident: Resident) -> None:
        if resident.state == "ready":
            self.crashes.heal(key_of(resident.entry))
        elif resident.state == "failed" and resident.crashed and not resident.is_mourned:
            resident.is_mourned = True
            self.quarantine.note_death(key_of(resident.entry))
        for watcher in list(self._watchers):
            watcher(resident)

    def _notify(self) -> None:
        """Wake whoever waits for room."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def _wait_for_change(self, timeout_s: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, timeout_s)):
                await self._changed.wait()


class _Busy(Exception):
    """Nothing can be done before an answer of somebody else is over."""

    def __init__(self, why: str, hint: str = "try again later, or raise max_loaded_models") -> None:
        super().__init__(why)
        self.why, self.hint = why, hint


async def _stop_if_idle(resident: Resident) -> None:
    """Somebody may have come for it since its time was up."""
    if resident.num_users == 0:
        await resident.stop()


def _held_bytes(resident: Resident) -> int:
    """What comes free when it goes; KV pages that were never used cost nothing, so they do not count."""
    weights = resident.ready.weight_bytes if resident.ready else 0
    return weights or needed_bytes(resident.entry, resident.load)


def key_of(entry: Entry) -> str:
    """What makes two names the same model: its digest, or its path where none is known."""
    return entry.digest or str(entry.path)
