"""Where one request's time went and who else was at it: spans to draw, the batch around it, and why it was slow.

All of it is worked out from the journal when somebody asks; a request that nobody looks at pays nothing for this.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import msgspec

from localllm.daemon.journal import Record

SpanKind = Literal["load", "queued", "prefill", "preempted", "decode"]
NORMAL_S = 0.25
"""Who waited less than this was not slow, whatever the largest part of it was."""
CROWDED = 1.5
MAX_POINTS = 512


class Span(msgspec.Struct):
    """Seconds since the arrival. `tokens`: computed by this chunk of a prefill, or written by a decode so far."""

    kind: SpanKind
    start_s: float
    end_s: float
    tokens: int = 0


class BatchPoint(msgspec.Struct):
    """From `at_s` on, seconds since the arrival, so many sequences of the model were running."""

    at_s: float
    size: int


class Neighbour(msgspec.Struct, kw_only=True):
    """Another request in the same batch, from `start_s` to `end_s`; it read its prompt until `read_s`. Seconds since
    the arrival of the one that is looked at, and perhaps before it. `id` is null where it is somebody else's."""

    id: str | None
    serial: int
    source: str
    start_s: float
    read_s: float
    end_s: float
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int


class Stall(msgspec.Struct):
    """For so many seconds up to `at_s` no token came, though some had come before."""

    at_s: float
    seconds: float


class Waterfall(msgspec.Struct):
    """A request to draw. `why` is the verdict in a sentence, `advice` one thing to try, empty where there is none."""

    spans: list[Span]
    batch: list[BatchPoint]
    neighbours: list[Neighbour]
    stalls: list[Stall]
    cached_tokens: int
    why: str
    advice: str


def waterfall_of(record: Record, others: Iterable[Record], may_see: Callable[[Record], bool]) -> Waterfall:
    """`others` are all that the journal knows; those of other models do not count."""
    arrived, end = record.events[0].at, _end_of(record)
    beside = [each for each in others if each is not record and each.model == record.model and _overlaps(each, record)]
    spans = list(_spans(record, end))
    near = [_neighbour(each, arrived, may_see(each)) for each in beside]
    admitted = record.first("admitted")
    batch = _batch([record, *beside], arrived, end)
    verdict = _Verdict(record, spans, near, batch)
    return Waterfall(
        spans=spans,
        batch=batch,
        neighbours=sorted(near, key=lambda each: each.start_s),
        stalls=[Stall(at - arrived, seconds) for at, seconds in record.stalls],
        cached_tokens=admitted.data["cached"] if admitted else 0,
        why=verdict.sentence(),
        advice=verdict.advice(),
    )


def _end_of(record: Record) -> float:
    return record.events[-1].at if record.is_over else time.monotonic()


def _overlaps(other: Record, record: Record) -> bool:
    admitted = other.first("admitted")
    return admitted is not None and admitted.at < _end_of(record) and _end_of(other) > record.events[0].at


# ---- spans


def _spans(record: Record, end: float) -> Iterator[Span]:
    arrived = record.events[0].at
    submitted, admitted, first = (record.first(name) for name in ("submitted", "admitted", "first_token"))
    marks: list[tuple[SpanKind, float, float]] = [("load", arrived, submitted.at if submitted else end)]
    if submitted:
        marks.append(("queued", submitted.at, admitted.at if admitted else end))
    yield from (Span(kind, since - arrived, until - arrived) for kind, since, until in marks if until > since)
    if admitted:
        yield from _prefill(record, admitted.at, first.at if first else end)
    yield from _preempted(record, end)
    if first:
        yield Span("decode", first.at - arrived, end - arrived, record.num_tokens)


def _prefill(record: Record, since: float, until: float) -> Iterator[Span]:
    """One span for each chunk that was told of, and one for the last."""
    arrived, admitted = record.events[0].at, record.first("admitted")
    known = admitted.data["cached"] if admitted else 0
    total = admitted.data["prompt"] if admitted else 0
    steps = [(each.at, each.data["computed"]) for each in record.events if each.name == "progress"]
    for at, computed in [*((at, done) for at, done in steps if at < until), (until, total)]:
        if computed > known:
            yield Span("prefill", since - arrived, at - arrived, computed - known)
            since, known = at, computed


def _preempted(record: Record, end: float) -> Iterator[Span]:
    arrived, lost = record.events[0].at, dict[int, float]()
    for event in record.events:
        if event.name == "preempted":
            lost[event.data.get("sequence", 0)] = event.at
        elif event.name == "resumed" and (since := lost.pop(event.data.get("sequence", 0), None)) is not None:
            yield Span("preempted", since - arrived, event.at - arrived)
    yield from (Span("preempted", since - arrived, end - arrived) for since in lost.values())


# ---- the batch


def _neighbour(other: Record, arrived: float, is_shown: bool) -> Neighbour:
    admitted, first = other.first("admitted"), other.first("first_token")
    assert admitted is not None
    end = _end_of(other)
    return Neighbour(
        id=other.id if is_shown else None,
        serial=other.serial if is_shown else 0,
        source=other.source if is_shown else "",
        start_s=admitted.at - arrived,
        read_s=(first.at if first else end) - arrived,
        end_s=end - arrived,
        prompt_tokens=admitted.data["prompt"],
        cached_tokens=admitted.data["cached"],
        completion_tokens=other.num_tokens,
    )


def _batch(records: Iterable[Record], arrived: float, end: float) -> list[BatchPoint]:
    """How many sequences ran, from the arrival on; a point for each change."""
    changes = sorted(change for record in records for change in _changes(record))
    size, points = 0, [BatchPoint(0.0, 0)]
    for at, change in changes:
        size += change
        if at <= arrived:
            points[0].size = size
        elif at < end and len(points) < MAX_POINTS:
            points.append(BatchPoint(at - arrived, size))
    return points


def _changes(record: Record) -> Iterator[tuple[float, int]]:
    running = 0
    for event in record.events:
        change = {"admitted": 1, "resumed": 1, "preempted": -1}.get(event.name, 0)
        if event.name in ("finished", "failed"):
            change = -running
        running += change
        if change:
            yield event.at, change


# ---- the verdict


@dataclass(frozen=True, slots=True)
class _Verdict:
    record: Record
    spans: list[Span]
    neighbours: list[Neighbour]
    batch: list[BatchPoint]

    def _seconds(self, kind: SpanKind) -> float:
        return sum(span.end_s - span.start_s for span in self.spans if span.kind == kind)

    def _largest(self) -> SpanKind | None:
        """Where most of the time went, if that was much; writing takes what it takes, unless others slow it down."""
        shares = {kind: self._seconds(kind) for kind in ("load", "queued", "prefill", "preempted")}
        if self._mean_batch() > CROWDED:
            shares["decode"] = self._seconds("decode") * (1 - 1 / self._mean_batch())
        kind = max(shares, key=shares.__getitem__)
        return kind if shares[kind] >= NORMAL_S else None  # type: ignore[return-value]  # the keys are kinds

    def _mean_batch(self) -> float:
        """While it wrote."""
        decode = next((span for span in self.spans if span.kind == "decode"), None)
        if decode is None or decode.end_s <= decode.start_s:
            return 0.0
        ends = [point.at_s for point in self.batch[1:]] + [decode.end_s]
        total = 0.0
        for point, until in zip(self.batch, ends, strict=True):
            total += point.size * max(0.0, min(until, decode.end_s) - max(point.at_s, decode.start_s))
        return total / (decode.end_s - decode.start_s)

    def _blamed(self) -> Neighbour | None:
        """Who read its prompt for the longest part of the wait."""
        wait = next((span for span in self.spans if span.kind == "queued"), None)
        if wait is None:
            return None
        shares = {
            place: min(each.read_s, wait.end_s) - max(each.start_s, wait.start_s)
            for place, each in enumerate(self.neighbours)
        }
        place = max(shares, key=shares.__getitem__, default=None)
        return None if place is None or shares[place] <= 0 else self.neighbours[place]

    def sentence(self) -> str:
        kind = self._largest()
        seconds = _seconds(self._seconds(kind)) if kind else ""
        match kind:
            case "load":
                is_loading = self.record.first("loading") is not None
                return (
                    f"It waited {seconds} for {'the model to load' if is_loading else 'its prompt to become tokens'}."
                )
            case "queued":
                return f"It waited {seconds}{self._whom_for()}."
            case "prefill":
                return f"Reading its prompt took {seconds}: {self._read()}."
            case "preempted":
                return f"It gave its memory to others and waited {seconds} to have it back."
            case "decode":
                return f"It wrote beside {_others(self._mean_batch())}, which share each step: {self._rate()}."
        return f"Nothing held it up{': ' + rate if (rate := self._rate()) else ''}."

    def _whom_for(self) -> str:
        blamed = self._blamed()
        if blamed is None:
            return " in the queue" if not self.neighbours else f": {_others(len(self.neighbours) + 1)} were running"
        name = str(blamed.serial) if blamed.serial else "another request"
        count = blamed.prompt_tokens - blamed.cached_tokens
        return f": {name} was prefilling {count:,} tokens in the same batch"

    def _read(self) -> str:
        admitted = self.record.first("admitted")
        prompt, cached = (admitted.data["prompt"], admitted.data["cached"]) if admitted else (0, 0)
        return (
            f"{prompt - cached:,} tokens, and {cached:,} were cached" if cached else f"{prompt:,} tokens, none cached"
        )

    def _rate(self) -> str:
        seconds, behind_first = self._seconds("decode"), self.record.num_tokens - 1  # the first one ends the reading
        return f"{behind_first / seconds:.1f} tokens a second" if seconds and behind_first > 0 else ""

    def advice(self) -> str:
        kind = self._largest()
        return _ADVICE.get(kind, "") if kind else ""


_ADVICE: dict[SpanKind, str] = {
    "load": "Keep the model loaded: send keep_alive, or raise the setting keep_alive.",
    "queued": "Send what is urgent with the header x-request-priority: priority, and long jobs with batch.",
    "prefill": "Keep the beginning of prompts as it is: what was read before is cached.",
    "preempted": "Give the model more pages with the setting kv_pages, or run fewer requests at a time.",
    "decode": "Run fewer requests at a time with the setting max_sequences, if one of them matters more.",
}


def _seconds(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.2f} s"


def _others(size: float) -> str:
    count = max(1, round(size) - 1)
    return "another request" if count == 1 else f"{count} others"
