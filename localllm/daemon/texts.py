"""Text sides of models that are not loaded: for whoever only wants to count. At most one is kept, and not for long."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING

from localllm.daemon.residency import Residency, key_of
from localllm.store.entry import Entry

if TYPE_CHECKING:
    from localllm.runtime.load import TextSide

KEPT_S = 60.0


class Texts:
    """Belongs to the event loop's thread. `load` is slow and runs in the residency's threads."""

    def __init__(self, residency: Residency, load: "Callable[[Entry], TextSide]", kept_s: float = KEPT_S) -> None:
        self._residency = residency
        self._load = load
        self._kept_s = kept_s
        self._turn = asyncio.Lock()
        self._key = ""
        self._loading: asyncio.Future[TextSide] | None = None
        self._timer: asyncio.TimerHandle | None = None

    @contextlib.asynccontextmanager
    async def using(self, entry: Entry) -> "AsyncIterator[TextSide]":
        """The model's text side; one at a time. BadModelFile and the like where it cannot be read."""
        async with self._turn:
            self._cancel_timer()
            try:
                yield await asyncio.shield(self._current(entry))  # who loses patience must not lose the text side
            finally:
                self._timer = asyncio.get_running_loop().call_later(self._kept_s, self.close)

    def _current(self, entry: Entry) -> "asyncio.Future[TextSide]":
        key = key_of(entry)
        if self._loading is None or key != self._key or _has_failed(self._loading):
            self.close()
            self._key = key
            self._loading = asyncio.ensure_future(self._residency.in_thread(lambda: self._load(entry)))
        return self._loading

    def close(self) -> None:
        """Forget what is kept; its template's process ends, at the latest when it has been loaded."""
        self._cancel_timer()
        loading, self._loading = self._loading, None
        if loading is not None and loading.done():
            _put_away(loading)
        elif loading is not None:
            loading.add_done_callback(_put_away)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _has_failed(loading: "asyncio.Future[TextSide]") -> bool:
    return loading.done() and (loading.cancelled() or loading.exception() is not None)


def _put_away(loading: "asyncio.Future[TextSide]") -> None:
    if not _has_failed(loading):
        loading.result().template.close()
