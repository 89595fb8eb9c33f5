"""Where a request's time went: seconds per phase, and one sentence for people."""

import time
from itertools import pairwise

import msgspec

from localllm.daemon.journal import CLIENT_GONE, Event, Record

WORTH_SAYING_S = 0.05


class Phases(msgspec.Struct):
    """Seconds from arrival to submission (the model's loading and the prompt's tokens), in the engine's queue, until
    the first token, and from then on; and in all. Those that a request has not reached, or skipped, are 0."""

    load_s: float = 0.0
    queue_s: float = 0.0
    read_s: float = 0.0
    write_s: float = 0.0
    total_s: float = 0.0


def phases_of(record: Record) -> Phases:
    """Up to now, for one that is under way."""
    arrived = record.events[0].at
    end = record.events[-1].at if record.is_over else time.monotonic()
    events = [record.first(name) for name in ("submitted", "admitted", "first_token")]
    marks = [arrived, *(event.at for event in events if event is not None), end]
    load_s, queue_s, read_s, write_s, *_ = [*(b - a for a, b in pairwise(marks)), 0.0, 0.0, 0.0]
    return Phases(load_s, queue_s, read_s, write_s, end - arrived)


def verdict(record: Record) -> str:
    """For example: Waited 1.2 s for the model to load, read 40 tokens (16 of them cached) in 0.1 s, and wrote 9 tokens
    in 0.3 s (27 a second: those behind the first); it ended by itself."""
    said = [*_waits(record), *_work(record)]
    ending = _ending(record)
    text = _joined(said) if said else "nothing has happened to it yet" if not record.is_over else "it came to nothing"
    return f"{text[0].upper()}{text[1:]}; {ending}."


def _waits(record: Record) -> list[str]:
    phases = phases_of(record)
    said = []
    if record.first("loading") is not None:
        said.append(f"waited {_seconds(phases.load_s)} for the model to load")
    elif phases.load_s > WORTH_SAYING_S:
        said.append(f"took {_seconds(phases.load_s)} to become tokens")
    if phases.queue_s > WORTH_SAYING_S:
        said.append(f"waited {_seconds(phases.queue_s)} in the queue")
    preempted = sum(event.name == "preempted" for event in record.events)
    if preempted:
        said.append(f"gave its memory to others {_times(preempted)}")
    return said


def _work(record: Record) -> list[str]:
    admitted, phases = record.first("admitted"), phases_of(record)
    if admitted is None:
        return []
    num_cached = admitted.data["cached"]
    cached = f" ({num_cached} of them cached)" if num_cached else ""
    said = [f"read {_tokens(admitted.data['prompt'])}{cached} in {_seconds(phases.read_s)}"]
    if record.num_tokens:
        behind_first = record.num_tokens - 1  # the first one ends the reading
        is_told = behind_first and phases.write_s > WORTH_SAYING_S
        rate = f" ({behind_first / phases.write_s:.0f} a second)" if is_told else ""
        said.append(f"wrote {_tokens(record.num_tokens)} in {_seconds(phases.write_s)}{rate}")
    return said


def _ending(record: Record) -> str:
    if not record.is_over:
        return "it is under way"
    last: Event = record.events[-1]
    if last.name == "finished":
        return "it reached its limit" if last.data["reason"] == "length" else "it ended by itself"
    if last.data["code"] == CLIENT_GONE:
        return "its client left"
    return f"it failed ({last.data['code']})"


def _joined(said: list[str]) -> str:
    return said[0] if len(said) == 1 else f"{', '.join(said[:-1])} and {said[-1]}"


def _seconds(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def _tokens(count: int) -> str:
    return f"{count} token" if count == 1 else f"{count} tokens"


def _times(count: int) -> str:
    return {1: "once", 2: "twice"}.get(count, f"{count} times")
