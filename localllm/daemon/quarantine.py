"""Requests that end the process they run in: found out, and not tried again.

Whoever ran when a worker died is a suspect. Suspects of one model run one at a time, beside others that are not: so the
next death shows whose fault it is, and a request that finishes is cleared. Nobody is blamed for having been in the same
batch once.
"""

import asyncio
import contextlib
import hashlib
import logging
import time
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Callable, Sequence

import msgspec

from localllm.daemon.replies import Ask
from localllm.errors import Quarantined

logger = logging.getLogger("localllm.daemon")

FATAL = 2
KEPT = 1024
SUSPECTED_S = 600.0


class Quarantine:
    """By model and fingerprint. `clock` counts seconds and never goes back."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._running: dict[str, Counter[str]] = {}
        self._suspects: dict[str, dict[str, _Suspicion]] = {}
        self._guilty: OrderedDict[tuple[str, str], str] = OrderedDict()  # with what to call it
        self._turns: dict[str, asyncio.Lock] = {}

    @property
    def is_empty(self) -> bool:
        return not self._guilty

    def check(self, model: str, fingerprint: str) -> None:
        """Quarantined where the request may not run."""
        if (model, fingerprint) in self._guilty:
            raise Quarantined(
                f"this request ended the process of the model {FATAL} times and is not tried again "
                f"(fingerprint {fingerprint})",
                hint="change the prompt or the sampling; `localllm stop MODEL` forgives it",
            )

    @contextlib.asynccontextmanager
    async def running(self, model: str, fingerprints: Sequence[str]) -> AsyncIterator[None]:
        """The block is the life of a request, known by several fingerprints; a suspect's begins when no other suspect
        of its model runs."""
        own = fingerprints[-1]
        async with contextlib.AsyncExitStack() as stack:
            if self._is_suspect(model, own):
                await stack.enter_async_context(self._turns.setdefault(model, asyncio.Lock()))
            for fingerprint in fingerprints:  # while it waited for its turn the truth may have come out
                self.check(model, fingerprint)
            running = self._running.setdefault(model, Counter())
            running.update(fingerprints)
            try:
                yield
            finally:
                running.subtract(fingerprints)
                self._running[model] = +running

    def clear(self, model: str, fingerprints: Sequence[str]) -> None:
        """It finished as it should."""
        for fingerprint in fingerprints:
            self._suspects.get(model, {}).pop(fingerprint, None)

    def note_death(self, model: str) -> None:
        """The worker died under whatever runs now."""
        present = set(self._running.get(model, ()))
        known = self._suspects.setdefault(model, {})
        again = {one for one in present if self._is_suspect(model, one)}
        for fingerprint in present:
            known[fingerprint] = (
                known[fingerprint].again(self._clock()) if fingerprint in again else _Suspicion(self._clock(), 1)
            )
        for fingerprint in again:
            if known[fingerprint].deaths >= FATAL:
                self._blame(model, fingerprint)

    def forgive(self, model: str) -> None:
        """Somebody unloaded the model on purpose: start from nothing."""
        self._suspects.pop(model, None)
        for key in [key for key in self._guilty if key[0] == model]:
            del self._guilty[key]

    def _is_suspect(self, model: str, fingerprint: str) -> bool:
        suspicion = self._suspects.get(model, {}).get(fingerprint)
        return suspicion is not None and self._clock() - suspicion.since < SUSPECTED_S

    def _blame(self, model: str, fingerprint: str) -> None:
        logger.error("a request that ended its worker %d times is not tried again: %s", FATAL, fingerprint)
        self._guilty[model, fingerprint] = fingerprint
        while len(self._guilty) > KEPT:
            self._guilty.popitem(last=False)


class _Suspicion(msgspec.Struct, frozen=True):
    """It was there at so many deaths, the first at `since`."""

    since: float
    deaths: int

    def again(self, now: float) -> "_Suspicion":
        return _Suspicion(self.since, self.deaths + 1)


def fingerprint_of(asks: Sequence[Ask]) -> str:
    """The same for requests that compute the same: prompts, sampling, constraints; not who asks, nor how urgently."""
    told = [(ask.prompt, ask.sampling, ask.max_tokens, ask.constraint, ask.thinking, ask.pooled) for ask in asks]
    return _digest(told)


def _digest(value: object) -> str:
    return hashlib.blake2b(msgspec.msgpack.encode(value), digest_size=8).hexdigest()


def fingerprint_of_body(wanted: msgspec.Struct) -> str:
    """Of a request before it is in ids, so that it can be told before its model is even loaded."""
    fields = {name: value for name, value in msgspec.structs.asdict(wanted).items() if name not in _BESIDE}
    return "body-" + _digest([type(wanted).__name__, fields])


_BESIDE = frozenset(("stream", "stream_options", "user", "metadata", "keep_alive", "timeout_s", "priority", "timings"))
