"""Where the requests of every dialect become replies: let in or refused, a resident model, prompts in ids, sequences
submitted, and an end to it all at the request's deadline."""

import asyncio
import contextlib
import functools
import math
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from starlette.requests import Request

from localllm.daemon.admission import Admission, Bounds, Ticket
from localllm.daemon.formats import settled
from localllm.daemon.grammars import Grammars
from localllm.daemon.incremental import begin
from localllm.daemon.journal import Journal, Record
from localllm.daemon.loras import Applied, Loras, parsed_loras
from localllm.daemon.quarantine import fingerprint_of, fingerprint_of_body
from localllm.daemon.replies import Ask, Begun, Reply
from localllm.daemon.residency import Residency, Wait, key_of
from localllm.daemon.resident import Resident
from localllm.errors import DeadlineExceeded, InvalidRequest, LocalLLMError, Overloaded, WorkerCrashed
from localllm.server.asks import wish_of
from localllm.server.callers import caller_of, program_of
from localllm.server.fields import MAX_TIMEOUT_S, Common
from localllm.server.http import read_object
from localllm.server.named import set_id, wanted_id
from localllm.server.patience import wait_of
from localllm.server.wanted_format import will_need_grammar
from localllm.settings import Settings
from localllm.store.entry import Entry

LOADING_S = 0.02
"""A model that is not there after this long is being loaded."""

MakeAsks = Callable[[Any, Entry, Any, Settings, int], list[Ask]]
"""Of a request, its model, the model's text side, the settings and the size of the vocabulary; off the event loop."""

BYTES_PER_TOKEN = 8
"""A body seldom has fewer bytes for each token of its prompt than this: whoever is refused by its length is refused
rightly, and before anybody has worked for it."""
ORDER_BYTES = 256
TIMEOUT_HEADER = "x-request-timeout"
PRIORITY_HEADER = "x-request-priority"
BATCH_PRIORITY = -10
PRIORITIES: Mapping[str, int] = {"batch": BATCH_PRIORITY, "flex": BATCH_PRIORITY, "interactive": 0, "priority": 10}


@dataclass(frozen=True, slots=True)
class Opened:
    """A reply under way and what it came from. `name` is the model's as the request has it; `evicted` are the models
    that had to go for it."""

    name: str
    resident: Resident
    asks: list[Ask]
    reply: Reply
    evicted: tuple[str, ...] = ()


class Leash:
    """One request under way, to be ended from outside at any moment: by its deadline, by a cancel, by a drain."""

    def __init__(self) -> None:
        self._error: LocalLLMError | None = None
        self._opening: asyncio.Timeout | None = None
        self._reply: Reply | None = None

    def pull(self, error: LocalLLMError) -> None:
        """End it with this error; nothing happens where it is over or was ended before."""
        if self._error is not None:
            return
        self._error = error
        if self._reply is not None:
            self._abort(self._reply, error)
        elif self._opening is not None:
            self._opening.reschedule(asyncio.get_running_loop().time())

    def hold(self, reply: Reply) -> None:
        """From here on it is the reply that ends; at once where it was pulled in this very turn of the loop, and the
        block would be left before its timeout comes."""
        self._reply = reply
        if self._error is not None:
            self._abort(reply, self._error)

    def _abort(self, reply: Reply, error: LocalLLMError) -> None:
        if reply.stats.finished is None:
            reply.abort(error)

    @contextlib.asynccontextmanager
    async def opening(self) -> AsyncIterator[None]:
        """The block raises what the leash was pulled with."""
        try:
            async with asyncio.timeout(None) as self._opening:
                yield
        except TimeoutError:
            raise self._error or TimeoutError from None


class Desk:
    """One for all dialects. `replies` holds every answer under way, `leashes` every request."""

    def __init__(self, settings: Settings, residency: Residency, journal: Journal) -> None:
        self.settings = settings
        self.residency = residency
        self.journal = journal
        self.grammars = Grammars()
        self.loras = Loras(parsed_loras(settings.lora))
        self.admission = Admission(Bounds.of(settings))
        self.replies: set[Reply] = set()
        self.leashes: set[Leash] = set()
        self.is_draining = False

    async def open(
        self, request: Request, stack: contextlib.AsyncExitStack, wanted: Common, make: MakeAsks, *, route: str = ""
    ) -> Opened:
        """Whatever is to be undone when the answer is over is put on the stack. Raises what keeps the request from
        being answered; call it within `attended`, so that a client who leaves ends it."""
        self.check_open()
        name = wanted.model or self.settings.default_model
        timeout_s = _timeout_s(request, wanted, self.settings)
        priority = _priority(request, wanted)
        record = self._record(request, stack, wanted, route, priority)
        with record.opening():
            ticket = self._admitted(request, stack)
            leash = self._leashed(stack, record, timeout_s)
            async with leash.opening():
                base, lora = self._lora(name, wanted)
                entry = _Entry(base, name, lora, record, ticket, leash, priority)
                return await self._opened(request, stack, wanted, make, entry)

    async def read(self, request: Request, *, but_orders: bool = False) -> dict[str, Any]:
        """The body of a request for an answer. Who would be refused whatever it says is refused before it is read, but
        not one so short that it may only order a model to come or to go, where a route takes orders."""
        if not (but_orders and _declared_bytes(request) <= ORDER_BYTES):
            self.check_room(caller_of(request).name, _declared_bytes(request))
        return await read_object(request)

    def check_room(self, caller: str, num_bytes: int) -> None:
        """What `open` would refuse at once, of a request whose body has so many bytes."""
        self.check_open()
        self.admission.check(caller, num_bytes // BYTES_PER_TOKEN)

    def check_open(self) -> None:
        if self.is_draining:
            raise Overloaded("the daemon is shutting down", hint="try again in a few seconds")

    def _lora(self, name: str, wanted: Common) -> tuple[str, Applied | None]:
        """The model's own name, and the adapter that a request names with it or beside it."""
        base, named = self.loras.split(name)
        if named is not None and wanted.lora is not None:
            raise InvalidRequest(
                f"the model {name} names an adapter already", hint="leave lora out, or ask for the model", param="lora"
            )
        return base, self.loras.chosen(wanted.lora) if named is None else Applied(named.path, named.scale)

    # ---- letting in

    def _record(
        self, request: Request, stack: contextlib.AsyncExitStack, wanted: Common, route: str, priority: int
    ) -> Record:
        name, request_id = wanted.model or self.settings.default_model, wanted_id(request, wanted.request_id)
        record = self.journal.open(
            route or request.url.path,
            name,
            caller_of(request).name,
            request_id,
            source=program_of(request),
            priority=wanted.priority or priority,
        )
        set_id(request, record.id)
        stack.callback(self.journal.close, record)
        return record

    def _admitted(self, request: Request, stack: contextlib.AsyncExitStack) -> Ticket:
        ticket = self.admission.enter(caller_of(request).name, _least_tokens(request))
        stack.callback(self.admission.leave, ticket)
        return ticket

    def _leashed(self, stack: contextlib.AsyncExitStack, record: Record, timeout_s: float) -> Leash:
        leash = Leash()
        self.leashes.add(leash)
        stack.callback(self.leashes.discard, leash)
        record.on_cancel(leash.pull)
        if timeout_s:
            error = DeadlineExceeded(
                f"the request was not answered within its {timeout_s:g} s", hint="allow more time, or ask for less"
            )
            timer = asyncio.get_running_loop().call_later(timeout_s, leash.pull, error)
            stack.callback(timer.cancel)
        return leash

    # ---- opening

    async def _opened(
        self, request: Request, stack: contextlib.AsyncExitStack, wanted: Common, make: MakeAsks, entry: "_Entry"
    ) -> Opened:
        started = time.monotonic()
        await self._refuse_known_poison(entry.name, wanted)
        wait = wait_of(request)
        if will_need_grammar(wanted):
            self.grammars.warm()  # beside the loading and the rendering
        asking: _Asking | None = None
        is_second = False
        while True:
            resident = await self._resident(stack, wanted, entry, wait)
            load_s = time.monotonic() - started
            try:
                if asking is None:
                    asking = await self._asking(request, resident, wanted, make, entry)
                reply = await self._submitted(stack, resident, asking, entry, load_s)
                return Opened(entry.asked, resident, asking.asks, reply, tuple(wait.evicted))
            except WorkerCrashed:  # stopped by hand before it was asked anything: once it may come again
                if is_second or not resident.was_stopped:
                    raise
                is_second = True

    async def _asking(
        self, request: Request, resident: Resident, wanted: Common, make: MakeAsks, entry: "_Entry"
    ) -> "_Asking":
        asks, fingerprints = await self._asks(resident, wanted, make)
        asks = await settled(asks, self.grammars)
        owner = caller_of(request).name or wanted.user or ""
        own = next(iter(resident.entry.adapters), "")
        lora = entry.lora or Applied(own)
        asks = [_placed(ask, entry.priority, owner, self.settings) for ask in asks]
        asks = [replace(ask, lora=lora.path, lora_scale=lora.scale) for ask in asks]
        self.admission.settle(entry.ticket, len(asks), _num_tokens(asks), is_certain=wait_of(request).is_told)
        return _Asking(asks, fingerprints)

    async def _submitted(
        self, stack: contextlib.AsyncExitStack, resident: Resident, asking: "_Asking", entry: "_Entry", load_s: float
    ) -> Reply:
        quarantine, key, fingerprints = self.residency.quarantine, key_of(resident.entry), asking.fingerprints
        async with contextlib.AsyncExitStack() as own:
            await own.enter_async_context(quarantine.running(key, fingerprints))
            begun = await self._begun(resident, asking.asks)
            reply = Reply.open(resident, asking.asks, entry.record, load_s=load_s, begun=begun)
            stack.push_async_exit(own.pop_all())
        entry.leash.hold(reply)
        entry.record.on_cancel(entry.leash.pull)
        self.replies.add(reply)
        stack.callback(self.replies.discard, reply)
        stack.callback(_clear_if_finished, reply, functools.partial(quarantine.clear, key, fingerprints))
        stack.callback(reply.close)
        return reply

    async def _resident(
        self, stack: contextlib.AsyncExitStack, wanted: Common, entry: "_Entry", wait: Wait
    ) -> Resident:
        using = self.residency.using(entry.name, wanted.keep_alive, wish_of(wanted), wait)
        note = functools.partial(entry.record.note, "loading", at=time.monotonic(), evicted=wait.evicted)
        noting = asyncio.get_running_loop().call_later(LOADING_S, note)
        try:
            resident = await stack.enter_async_context(using)
        finally:
            noting.cancel()
        entry.record.model = resident.entry.name
        return resident

    async def _asks(self, resident: Resident, wanted: Common, make: MakeAsks) -> tuple[list[Ask], list[str]]:
        """The sequences to run, and what the request is known by if they kill the worker."""
        vocab_size = resident.ready.vocab_size if resident.ready else 0
        text, settings = resident.text, self.settings

        def work() -> tuple[list[Ask], list[str]]:
            asks = make(wanted, resident.entry, text, settings, vocab_size)
            return asks, [fingerprint_of_body(wanted), fingerprint_of(asks)]

        return await self.residency.in_thread(work)

    async def _begun(self, resident: Resident, asks: list[Ask]) -> Sequence[Begun]:
        """Where answers were begun before, what reads them has to catch up, off the event loop."""
        if not any(ask.num_given for ask in asks):
            return ()
        text = resident.text
        return await self.residency.in_thread(lambda: [begin(text, ask) for ask in asks])

    async def _refuse_known_poison(self, name: str, wanted: Common) -> None:
        """Before its model is even loaded."""
        if not self.residency.quarantine.is_empty:
            entry = await self.residency.find(name)
            self.residency.quarantine.check(key_of(entry), fingerprint_of_body(wanted))


@dataclass(frozen=True, slots=True)
class _Asking:
    """The sequences to run, and what the request is known by if they kill the worker."""

    asks: list[Ask]
    fingerprints: list[str]


@dataclass(frozen=True, slots=True)
class _Entry:
    """A request that was let in. `asked` is the name it has for the model `name`, perhaps with an adapter."""

    name: str
    asked: str
    lora: Applied | None
    record: Record
    ticket: Ticket
    leash: Leash
    priority: int


def _least_tokens(request: Request) -> int:
    """That the prompt will have, going by the length of the body."""
    return _declared_bytes(request) // BYTES_PER_TOKEN


def _declared_bytes(request: Request) -> int:
    declared = request.headers.get("content-length", "0")
    return int(declared) if declared.isdecimal() else 0


def _clear_if_finished(reply: Reply, clear: Callable[[], None]) -> None:
    if reply.stats.finished is not None:
        clear()


def _num_tokens(asks: Sequence[Ask]) -> int:
    """Of all prompts; copies of one prompt share their pages and count once."""
    return sum(len(prompt) for prompt in {id(ask.prompt): ask.prompt for ask in asks}.values())


def _placed(ask: Ask, priority: int, owner: str, settings: Settings) -> Ask:
    """With its place in the queue, and no longer than the server allows."""
    ceiling = settings.max_tokens_ceiling
    if ceiling and ask.max_tokens is not None and ask.max_tokens > ceiling:
        raise InvalidRequest(
            f"an answer may have at most {ceiling} tokens here, not {ask.max_tokens}",
            hint="ask for fewer, or raise the setting max_tokens_ceiling",
            param="max_tokens",
        )
    limit = ceiling if ceiling and ask.max_tokens is None else ask.max_tokens
    return replace(ask, priority=ask.priority or priority, owner=owner or ask.owner, max_tokens=limit)


def _timeout_s(request: Request, wanted: Common, settings: Settings) -> float:
    """Seconds that the request may take: the least of what the body, the header and the settings say; 0: for ever."""
    named = [wanted.timeout_s, *_header_seconds(request), settings.request_timeout_s]
    return min((seconds for seconds in named if seconds), default=0.0)


def _header_seconds(request: Request) -> Iterator[float]:
    given = request.headers.get(TIMEOUT_HEADER)
    if given is None:
        return
    try:
        seconds = float(given)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds <= MAX_TIMEOUT_S:
        raise InvalidRequest(
            f"the header {TIMEOUT_HEADER} must hold seconds, more than 0 and at most {MAX_TIMEOUT_S}",
            param=TIMEOUT_HEADER,
        )
    yield seconds


def _priority(request: Request, wanted: Common) -> int:
    """Of requests that do not say a number themselves. Batch work gives way to everybody."""
    given = request.headers.get(PRIORITY_HEADER)
    if given is not None and given not in PRIORITIES:
        raise InvalidRequest(
            f"the header {PRIORITY_HEADER} must be one of {', '.join(PRIORITIES)}", param=PRIORITY_HEADER
        )
    return PRIORITIES.get(given or wanted.service_tier or "", 0)
