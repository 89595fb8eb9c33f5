"""Which models crashed, how often, and what follows: a pause before the next try, then a refusal."""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from localllm.errors import WorkerCrashed

WINDOW_S = 300.0
MAX_CRASHES = 3
BACKOFF_S = (0.0, 0.0, 1.0)
"""Seconds to wait before the start that follows no, one and two crashes within the window."""


@dataclass(frozen=True, slots=True)
class Wound:
    """A model whose worker died and has not been started since."""

    name: str
    reason: str
    crashed_s: float


class CrashLog:
    """Crashes of the last five minutes by model digest. `clock` counts seconds and never goes back."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._times: dict[str, deque[float]] = {}
        self._wounds: dict[str, Wound] = {}

    def record(self, digest: str, name: str, reason: str) -> None:
        self._times.setdefault(digest, deque(maxlen=MAX_CRASHES)).append(self._clock())
        self._wounds[digest] = Wound(name, reason, self._clock())

    def heal(self, digest: str) -> None:
        """The model runs again: health is green, the count stays."""
        self._wounds.pop(digest, None)

    def forgive(self, digest: str) -> None:
        """Somebody unloaded the model on purpose: start from nothing."""
        self._wounds.pop(digest, None)
        self._times.pop(digest, None)

    def wounds(self) -> list[Wound]:
        return list(self._wounds.values())

    def given_up(self) -> list[str]:
        """Names of models that are not tried again for now."""
        return [wound.name for digest, wound in self._wounds.items() if self._recent(digest) >= MAX_CRASHES]

    def pause_s(self, digest: str) -> float:
        """Seconds to wait before the next start. WorkerCrashed when the model crashed too often to be tried again."""
        count = self._recent(digest)
        if count >= MAX_CRASHES:
            wound = self._wounds.get(digest)
            raise WorkerCrashed(
                f"the model crashed {count} times within {WINDOW_S / 60:.0f} minutes and is not started again for now"
                + (f" (last: {wound.reason})" if wound else ""),
                hint="see `localllm daemon logs`; `localllm stop MODEL` allows a new try at once",
            )
        return BACKOFF_S[count]

    def _recent(self, digest: str) -> int:
        since = self._clock() - WINDOW_S
        return sum(crashed > since for crashed in self._times.get(digest, ()))
