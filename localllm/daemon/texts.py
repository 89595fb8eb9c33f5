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
        self._text: TextSide | None = None
        self._timer: asyncio.TimerHandle | None = None

    @contextlib.asynccontextmanager
    async def using(self, entry: Entry) -> "AsyncIterator[TextSide]":
        """The model's text side; one at a time. BadModelFile and the like where it cannot be read."""
        async with self._turn:
            self._cancel_timer()
            try:
                yield await self._current(entry)
            finally:
                self._timer = asyncio.get_running_loop().call_later(self._kept_s, self.close)

    async def _current(self, entry: Entry) -> "TextSide":
        key = key_of(entry)
        if self._text is None or key != self._key:
            self.close()
            self._text = await self._residency.in_thread(lambda: self._load(entry))
            self._key = key
        return self._text

    def close(self) -> None:
        """Forget what is kept; its template's process ends."""
        self._cancel_timer()
        if self._text is not None:
            self._text.template.close()
            self._text = None

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
