"""Where the time of one request goes: spans on one axis, a sentence that says why it is slow, and one thing to try."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from localllm.tui.live.requests import BATCH, Request
from localllm.tui.live.state import LiveState, ModelState
from localllm.tui.words import count, plural, rate, seconds

Phase = Literal["queued", "load", "cached", "prefill", "preempted", "decode"]
Span = tuple[float, float]
"""From and to, in seconds since the request arrived."""

WORTH_S = 0.1
WORTH_SHARE = 0.25
"""A phase that took less than both is not why anything is slow."""
SLOW_SHARE = 0.6
"""Of the best speed that was seen of this model: below, writing is slow."""
MANY = 4


@dataclass(frozen=True, slots=True)
class Band:
    """One row. `tokens` of a phase that took no time but gave them: what was cached."""

    phase: Phase
    spans: tuple[Span, ...]
    tokens: int | None = None

    @property
    def total_s(self) -> float:
        return sum(end - start for start, end in self.spans)


@dataclass(frozen=True, slots=True)
class Verdict:
    """`lead` is said first and louder; `advice` is one thing to try, as a pair of what and more; empty: nothing."""

    lead: str
    rest: str = ""
    advice: str = ""
    is_slow: bool = True


@dataclass(frozen=True, slots=True)
class Waterfall:
    """Of the request of this short name. `batch` is how many ran beside it, as so many columns over the whole time."""

    name: str
    total_s: float
    is_over: bool
    bands: tuple[Band, ...]
    verdict: Verdict
    batch: tuple[float | None, ...] = ()
    batch_now: int | None = None


def waterfall(state: LiveState, request: Request, columns: int) -> Waterfall:
    """As of now; `columns` of the batch's size."""
    bands = tuple(bands_of(request, state.now))
    model = state.model_of(request)
    end = request.ended if request.ended is not None else state.now
    batch = model.rings["batch"].between(request.began, end, columns) if model is not None else []
    newest = model.newest("batch") if model is not None else None
    return Waterfall(
        name=request.name,
        total_s=request.age_s(state.now),
        is_over=request.is_over,
        bands=bands,
        verdict=verdict(request, bands, _others(state, request), model, state.now),
        batch=tuple(batch),
        batch_now=None if newest is None else int(newest),
    )


# ---- spans


def bands_of(request: Request, now: float) -> Iterable[Band]:
    """Those that there are, in their order; a request that was not seen from its beginning has what was seen."""
    marks = _Marks.of(request, now)
    preempted = marks.preempted
    end = request.age_s(now)
    yield Band("queued", _within(end, _without(marks.queued, preempted)))
    if marks.load:
        yield Band("load", _within(end, marks.load))
    if request.cached and marks.admitted is not None:
        yield Band("cached", ((marks.admitted, marks.admitted),), request.cached)
    yield Band("prefill", _within(end, _without(marks.chunks, preempted)))
    if preempted:
        yield Band("preempted", _within(end, preempted))
    yield Band("decode", _within(end, _without(marks.decode, [*preempted, *marks.stalls])))


@dataclass(frozen=True, slots=True)
class _Marks:
    queued: list[Span]
    load: list[Span]
    admitted: float | None
    chunks: list[Span]
    preempted: list[Span]
    decode: list[Span]
    stalls: list[Span]

    @classmethod
    def of(cls, request: Request, now: float) -> _Marks:
        end = request.age_s(now)
        at: dict[str, float] = {}
        for event in request.events:
            at.setdefault(event.name, min(end, max(0.0, event.at - request.began)))
        submitted, loading, first = at.get("submitted", end), at.get("loading"), at.get("first_token")
        admitted = at.get("admitted")
        if admitted is None and not request.is_known:
            admitted = 0.0
        queued = [(0.0, loading), (submitted, admitted)] if loading is not None else [(0.0, admitted)]
        progress = [event.at - request.began for event in request.events if event.name == "progress"]
        edges = [] if admitted is None else [admitted, *progress, end if first is None else first]
        edges = [min(end, max(0.0, edge)) for edge in edges]
        return cls(
            queued=[(start, end if stop is None else stop) for start, stop in queued],
            load=[(loading, submitted)] if loading is not None else [],
            admitted=admitted,
            chunks=list(pairwise(edges)),
            preempted=_preempted(request, end),
            decode=[(first, end)] if first is not None else [],
            stalls=[(start - request.began, stop - request.began) for start, stop in request.stalls],
        )


def _preempted(request: Request, end: float) -> list[Span]:
    spans: list[Span] = []
    since: float | None = None
    for event in request.events:
        at = min(end, max(0.0, event.at - request.began))
        if event.name == "preempted" and since is None:
            since = at
        elif event.name == "resumed" and since is not None:
            spans.append((since, at))
            since = None
    return spans if since is None else [*spans, (since, end)]


def _without(spans: Iterable[Span], holes: Iterable[Span]) -> list[Span]:
    left = list(spans)
    for low, high in holes:
        left = [part for span in left for part in _cut(span, low, high)]
    return left


def _cut(span: Span, low: float, high: float) -> list[Span]:
    start, end = span
    if high <= start or low >= end:
        return [span]
    return [part for part in ((start, low), (high, end)) if part[0] < part[1]]


def _within(end: float, spans: Iterable[Span]) -> tuple[Span, ...]:
    """Without those of no length, and what lies beyond the end."""
    cut = ((max(0.0, start), min(end, stop)) for start, stop in spans)
    return tuple((start, stop) for start, stop in cut if stop > start)


# ---- why


def verdict(
    request: Request, bands: Sequence[Band], others: Sequence[Request], model: ModelState | None, now: float
) -> Verdict:
    """By the phase that took most."""
    total_s = request.age_s(now)
    spans = {band.phase: band.total_s for band in bands if band.phase not in ("decode", "cached")}
    worst = max(spans, key=lambda phase: spans[phase], default=None)
    if worst is not None and spans[worst] > max(WORTH_S, WORTH_SHARE * total_s):
        took_s = spans[worst]
        if worst == "queued":
            return _waited(request, took_s, others, model, now)
        return {"load": _loaded, "prefill": _read, "preempted": _lost}[worst](request, took_s)
    return _wrote(request, others, model)


def _waited(
    request: Request, took_s: float, others: Sequence[Request], model: ModelState | None, now: float
) -> Verdict:
    verb = "It waits" if request.admitted is None and not request.is_over else "It waited"
    lead = f"{verb} {seconds(took_s)}:"
    until = request.admitted if request.admitted is not None else request.ended if request.ended is not None else now
    busy = _prefilling(others, request.began, until)
    most = model.row.max_sequences if model is not None else 0
    running = model.snapshot.num_running if model is not None and model.snapshot is not None else 0
    if busy is not None:
        doing = "was prefilling" if request.admitted is not None else "is prefilling"
        rest = f"{busy.name} {doing} {count(busy.prompt)} tokens in the same batch."
        return Verdict(lead, rest, "priority: interactive" if request.lane == BATCH else "a smaller token_budget")
    if most and running >= most:
        return Verdict(lead, f"{plural(running, 'request')} ran, and no more may.", "a larger max_sequences")
    if running:
        return Verdict(lead, f"the pages were held by {plural(running, 'other')}.", "a larger kv_pages")
    return Verdict(lead, "its prompt was turned into tokens.", "")


def _prefilling(others: Sequence[Request], start: float, end: float) -> Request | None:
    """Who computed most of a prompt in that time."""
    best, most_s = None, 0.05
    for other in others:
        if other.admitted is None:
            continue
        stop = other.first_token if other.first_token is not None else end
        shared_s = min(end, stop) - max(start, other.admitted)
        if shared_s > most_s and other.prompt:
            best, most_s = other, shared_s
    return best


def _loaded(request: Request, took_s: float) -> Verdict:
    return Verdict(f"It waited {seconds(took_s)}", "for its model to load.", "keep_alive: 1h keeps it loaded")


def _read(request: Request, took_s: float) -> Verdict:
    prompt, cached = request.prompt or 0, request.cached or 0
    fresh = max(0, prompt - cached)
    rest = f"{count(cached)} of {count(prompt)} were cached." if cached else "nothing of it was cached."
    advice = "an unchanged beginning is read from the cache" if cached * 2 < prompt else "a shorter prompt"
    return Verdict(f"Reading {plural(fresh, 'token')} took {seconds(took_s)}:", rest, advice)


def _lost(request: Request, took_s: float) -> Verdict:
    times = sum(event.name == "preempted" for event in request.events)
    often = {1: "once", 2: "twice"}.get(times, f"{times} times")
    lead = f"It lost its pages {often}, for {seconds(took_s)}:"
    return Verdict(lead, "others needed them.", "a larger kv_pages, or fewer requests at once")


def _wrote(request: Request, others: Sequence[Request], model: ModelState | None) -> Verdict:
    speed = request.tokens_per_s()
    if speed is None:
        return Verdict("Nothing holds it up.", is_slow=False)
    rates = [found for other in others if (found := other.tokens_per_s()) is not None and other.model == request.model]
    best = max([speed, *rates])
    running = model.newest("batch") if model is not None else None
    if speed < SLOW_SHARE * best and running is not None and running >= MANY:
        lead = f"It writes {rate(speed)} tok/s:"
        return Verdict(lead, f"{plural(int(running), 'request')} share each step.", "fewer requests at once")
    return Verdict(f"Nothing: {rate(speed)} tok/s is the normal speed.", is_slow=False)


def _others(state: LiveState, request: Request) -> list[Request]:
    found = [*state.requests.rows.values(), *state.requests.over.values()]
    return [other for other in found if other.id != request.id and other.model == request.model]
