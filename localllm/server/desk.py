"""Where the requests of every dialect become replies: a resident model, prompts in ids, sequences submitted."""

import contextlib
import functools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request

from localllm.daemon.journal import Journal, Record
from localllm.daemon.replies import Ask, Reply
from localllm.daemon.residency import Residency
from localllm.daemon.resident import Resident
from localllm.errors import Overloaded
from localllm.server.asks import wish_of
from localllm.server.callers import caller_of
from localllm.server.fields import Common
from localllm.settings import Settings
from localllm.store.entry import Entry

MakeAsks = Callable[[Any, Entry, Any, Settings, int], list[Ask]]
"""Of a request, its model, the model's text side, the settings and the size of the vocabulary; off the event loop."""


@dataclass(frozen=True, slots=True)
class Opened:
    """A reply under way and what it came from. `name` is the model's as the request has it."""

    name: str
    resident: Resident
    asks: list[Ask]
    reply: Reply


class Desk:
    """One for all dialects. `replies` holds every answer under way, for drains and counts."""

    def __init__(self, settings: Settings, residency: Residency, journal: Journal) -> None:
        self.settings = settings
        self.residency = residency
        self.journal = journal
        self.replies: set[Reply] = set()
        self.is_draining = False

    async def open(
        self, request: Request, stack: contextlib.AsyncExitStack, wanted: Common, make: MakeAsks, *, route: str = ""
    ) -> Opened:
        """Whatever is to be undone when the answer is over is put on the stack. Raises what keeps the request from
        being answered; call it within `attended`, so that a client who leaves ends it."""
        self.check_open()
        started = time.monotonic()
        name = wanted.model or self.settings.default_model
        record = self._record(request, stack, name, route)
        resident = await stack.enter_async_context(self.residency.using(name, wanted.keep_alive, wish_of(wanted)))
        load_s = time.monotonic() - started
        self._refuse_crowds(resident)
        vocab_size = resident.ready.vocab_size if resident.ready else 0
        work = functools.partial(make, wanted, resident.entry, resident.text, self.settings, vocab_size)
        asks = await self.residency.in_thread(work)
        reply = Reply.open(resident, asks, record, load_s=load_s)
        self.replies.add(reply)
        stack.callback(self.replies.discard, reply)
        stack.callback(reply.close)
        return Opened(name, resident, asks, reply)

    def check_open(self) -> None:
        if self.is_draining:
            raise Overloaded("the daemon is shutting down", hint="try again in a few seconds")

    def _record(self, request: Request, stack: contextlib.AsyncExitStack, name: str, route: str) -> Record:
        caller = caller_of(request)
        record = self.journal.open(route or request.url.path, name, caller.name)
        stack.callback(self.journal.close, record)
        return record

    def _refuse_crowds(self, resident: Resident) -> None:
        limit = self.settings.max_sequences + self.settings.max_queue
        if resident.num_streams >= limit:
            raise Overloaded(f"{resident.num_streams} requests already run or wait", hint="try again in a few seconds")
