"""Numbers about requests, counted as they happen: plain additions, so that they can be right without costing anything.

What is exported of them, and under which names, is the business of whoever reads them.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from localllm.daemon.journal import CLIENT_GONE, Event, Journal, Record
from localllm.errors import Cancelled

# vLLM's bounds, in seconds or tokens
TTFT = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0,
    640.0, 2560.0,
)  # fmt: skip
PER_TOKEN = (
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
)  # fmt: skip
LATENCY = (
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0,
    1920.0, 7680.0,
)  # fmt: skip
TOKENS = tuple(float(step * 10**power) for power in range(6) for step in (1, 2, 5))
COUNTS = (1.0, 2.0, 5.0, 10.0, 20.0)
ABORTS = (CLIENT_GONE, Cancelled.code)


@dataclass(slots=True)
class Histogram:
    """`counts[i]` observations up to `bounds[i]` and above the bound before; the last count is of all that is more."""

    bounds: Sequence[float]
    counts: list[int] = field(default_factory=list)
    total: float = 0.0

    def __post_init__(self) -> None:
        self.counts = self.counts or [0] * (len(self.bounds) + 1)

    def observe(self, value: float, count: int = 1) -> None:
        self.counts[bisect_left(self.bounds, value)] += count
        self.total += value * count


SERIES: Mapping[str, tuple[Sequence[float], str]] = {
    "time_to_first_token_seconds": (TTFT, "from a request's arrival to its first token, loading included"),
    "inter_token_latency_seconds": (PER_TOKEN, "between a sequence's tokens"),
    "request_time_per_output_token_seconds": (PER_TOKEN, "per token after the first, of each request"),
    "e2e_request_latency_seconds": (LATENCY, "from a request's arrival to its end"),
    "request_load_time_seconds": (LATENCY, "until the model was ready and the prompt in tokens"),
    "request_queue_time_seconds": (LATENCY, "in the engine's queue"),
    "request_prefill_time_seconds": (LATENCY, "from admission to the first token"),
    "request_decode_time_seconds": (LATENCY, "from the first token to the end"),
    "request_inference_time_seconds": (LATENCY, "from admission to the end"),
    "request_prompt_tokens": (TOKENS, "tokens of the prompt"),
    "request_generation_tokens": (TOKENS, "tokens of the answer"),
    "request_params_n": (COUNTS, "sequences of a request"),
    "request_params_max_tokens": (TOKENS, "the limit that a request sets, where it sets one"),
}
"""What is observed of every request: bounds, and what it is."""


class Tally:
    """What the requests of one model came to; `ended` counts them by how they ended. `prompt_tokens` are those of the
    requests that came to an engine, counted as in their `usage`: once for all choices of a prompt."""

    def __init__(self) -> None:
        self.series = {name: Histogram(bounds) for name, (bounds, _) in SERIES.items()}
        self.ended: Counter[str] = Counter()
        self.prompt_tokens = 0
        self.inter_token = self.series["inter_token_latency_seconds"]

    def observe(self, name: str, value: float) -> None:
        self.series[name].observe(value)


class Tallies:
    """By model, of all requests that a journal hears of."""

    def __init__(self, journal: Journal) -> None:
        self.by_model: dict[str, Tally] = {}
        journal.watch(self._note)
        journal.watch_pace(self._pace)

    def _of(self, record: Record) -> Tally:
        found = self.by_model.get(record.model)
        if found is None:
            found = self.by_model[record.model] = Tally()
        return found

    def _pace(self, record: Record, count: int, since_s: float) -> None:
        """Tokens that came together share the time since the last ones; those beside a first token took none."""
        if since_s >= 0:
            self._of(record).inter_token.observe(since_s / count, count)
        elif count > 1:
            self._of(record).inter_token.observe(0.0, count - 1)

    def _note(self, record: Record, event: Event) -> None:
        if event.name == "first_token":
            self._of(record).observe("time_to_first_token_seconds", event.at - record.events[0].at)
        elif event.name == "submitted":
            self._note_parameters(record, event)
        elif event.name == "admitted":
            if record.first("admitted") is event:  # each of several sequences is admitted, and tells of all prompts
                self._of(record).prompt_tokens += event.data["prompt"]
        elif event.name in ("finished", "failed") and record.first("submitted") is not None:
            self._note_end(record, event)

    def _note_parameters(self, record: Record, event: Event) -> None:
        tally = self._of(record)
        tally.observe("request_params_n", event.data["sequences"])
        if event.data["max_tokens"] is not None:
            tally.observe("request_params_max_tokens", event.data["max_tokens"])

    def _note_end(self, record: Record, event: Event) -> None:
        tally = self._of(record)
        tally.ended[_how(event)] += 1
        tally.observe("e2e_request_latency_seconds", event.at - record.events[0].at)
        if event.name == "finished":
            tally.observe("request_prompt_tokens", event.data["prompt"])
            tally.observe("request_generation_tokens", event.data["completion"])
        submitted, admitted, first = (record.first(name) for name in ("submitted", "admitted", "first_token"))
        if submitted is not None:
            tally.observe("request_load_time_seconds", submitted.at - record.events[0].at)
        if submitted is None or admitted is None:
            return
        tally.observe("request_queue_time_seconds", admitted.at - submitted.at)
        tally.observe("request_inference_time_seconds", event.at - admitted.at)
        if first is not None:
            tally.observe("request_prefill_time_seconds", first.at - admitted.at)
            tally.observe("request_decode_time_seconds", event.at - first.at)
            self._note_rate(tally, event, event.at - first.at)

    def _note_rate(self, tally: Tally, event: Event, decode_s: float) -> None:
        """Of requests that ended well; with several choices, of all their tokens."""
        num_more = event.data.get("completion", 0) - 1
        if event.name == "finished" and num_more > 0:
            tally.observe("request_time_per_output_token_seconds", decode_s / num_more)


def _how(event: Event) -> str:
    """vLLM's words: stop, length, abort, error."""
    if event.name == "finished":
        return str(event.data["reason"])
    return "abort" if event.data["code"] in ABORTS else "error"
