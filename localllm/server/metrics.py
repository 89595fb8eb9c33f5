"""`/metrics` for Prometheus: vLLM's names with our prefix, and what we know besides.

Everything is counted elsewhere as it happens; here it is only written down, when somebody asks.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from starlette.requests import Request
from starlette.responses import Response

from localllm.daemon.engine_counts import COUNTERS, EngineCounts
from localllm.daemon.resident import Resident
from localllm.daemon.tallies import SERIES, Histogram, Tallies
from localllm.errors import InvalidRequest
from localllm.server.desk import Desk
from localllm.server.memory import Memory
from localllm.server.named import Answered
from localllm.server.operations import Operation
from localllm.wire import STEP_TOKEN_BOUNDS

if TYPE_CHECKING:
    from prometheus_client.core import Metric

PREFIX = "localllm"
PREFIXES = (PREFIX, "vllm")
TEXT = (("text/plain", "Prometheus' text format."),)
MODEL = ["model_name"]
PREFIX_QUERY = (("prefix", "vllm: the names that dashboards made for vLLM look for."),)


class Metrics:
    """Counters start with the daemon, and go on when a model is unloaded and loaded again."""

    def __init__(self, desk: Desk, tallies: Tallies, answered: Answered) -> None:
        self._desk = desk
        self._residency = desk.residency
        self._tallies = tallies
        self._answered = answered
        self._counts = EngineCounts(desk.residency)
        self._memory = Memory()

    def operations(self) -> Sequence[Operation]:
        return (
            Operation(
                "GET", "/metrics", self.metrics, "Tell the metrics", "daemon", streams=TEXT, query=PREFIX_QUERY,
            ),
        )  # fmt: skip

    async def metrics(self, request: Request) -> Response:
        from prometheus_client import exposition  # deferred: most daemons are never asked

        prefix = request.query_params.get("prefix", PREFIX)
        if prefix not in PREFIXES:
            raise InvalidRequest(f"prefix must be one of {', '.join(PREFIXES)}", param="prefix")
        text = exposition.generate_latest(_Registry(self, prefix))
        return Response(text, media_type=exposition.CONTENT_TYPE_PLAIN_0_0_4)

    def collect(self, prefix: str) -> Iterator["Metric"]:
        """All metrics as of now."""
        write = _Writer(prefix)
        yield from self._gauges(write)
        yield from self._engines(write)
        yield from self._requests(write)
        yield from self._daemon(write)

    # ---- what engines do

    def _gauges(self, write: "_Writer") -> Iterator["Metric"]:
        ready = [resident for resident in self._residency.residents() if resident.state == "ready"]
        shots = [(resident.entry.name, resident.snapshot) for resident in ready if resident.snapshot is not None]
        running = {name: float(shot.num_running) for name, shot in shots}
        waiting = {name: float(shot.num_waiting) for name, shot in shots}
        usage = {name: _held(shot.pages) / max(1, len(shot.pages)) for name, shot in shots}
        yield write.gauge("num_requests_running", "sequences that run", running)
        yield write.gauge("num_requests_waiting", "sequences that wait in the engine", waiting)
        yield write.gauge("kv_cache_usage_perc", "the part of the pages that is in use, 0 to 1", usage)
        states = {name: shot.num_slots_used / shot.num_slots for name, shot in shots if shot.num_slots}
        yield write.gauge("state_slots_usage_perc", "the part of the slots of recurrent state in use, 0 to 1", states)
        kept = {name: float(shot.num_states_kept) for name, shot in shots if shot.num_slots}
        yield write.gauge("states_kept", "recurrent states kept for prompts that begin alike", kept)
        yield write.cache_config(ready)

    def _engines(self, write: "_Writer") -> Iterator["Metric"]:
        by_model = self._counts.by_model()
        for name, (field, text) in COUNTERS.items():
            yield write.counter(name, text, {model: counts[field] for model, counts in by_model.items()})
        bounds = tuple(map(float, STEP_TOKEN_BOUNDS))
        steps = {
            model: Histogram(bounds, counts.step_sizes, counts["num_step_tokens"]) for model, counts in by_model.items()
        }
        yield write.histogram("iteration_tokens_total", "tokens computed in a step", steps)
        yield write.counter("model_loads", "times that a model became ready", self._counts.loads)
        yield write.counter("model_evictions", "times that a model gave way to another", self._counts.evictions)
        yield write.counter("worker_crashes", "ends of workers that nobody wanted", self._counts.crashes)

    # ---- what requests came to

    def _requests(self, write: "_Writer") -> Iterator["Metric"]:
        tallies = self._tallies.by_model
        prompts = dict.fromkeys(self._counts.by_model(), 0)
        prompts |= {model: tally.prompt_tokens for model, tally in tallies.items()}
        yield write.counter("prompt_tokens", "tokens of prompts, those of several choices once", prompts)
        ended = [((model, how), n) for model, tally in tallies.items() for how, n in tally.ended.items()]
        yield write.labelled("request_success", "requests by how they ended", [*MODEL, "finished_reason"], ended)
        for name, (_, text) in SERIES.items():
            yield write.histogram(name, text, {model: tally.series[name] for model, tally in tallies.items()})

    # ---- the daemon itself

    def _daemon(self, write: "_Writer") -> Iterator["Metric"]:
        by_route = [((path, method, str(code)), n) for (path, method, code), n in self._answered.by_route.items()]
        yield write.labelled("http_requests", "answers", ["route", "method", "status"], by_route)
        refusals = [((code,), n) for code, n in self._answered.refusals.items()]
        yield write.labelled("refusals", "answers that are errors, by code", ["code"], refusals)
        yield write.plain("open_streams", "answers under way", len(self._desk.replies))
        admission = self._desk.admission
        yield write.plain("requests_under_way", "sequences that were let in", admission.num_requests)
        yield write.plain("tokens_under_way", "prompt tokens that were let in", admission.num_tokens)
        workers = {resident.entry.name: resident.pid for resident in self._residency.residents() if resident.pid}
        taken = {name: float(self._memory.taken_by(pid)) for name, pid in workers.items()}
        yield write.gauge("worker_memory_bytes", "resident memory of a model's process", taken)
        yield write.plain("daemon_memory_bytes", "resident memory of the daemon's process", self._memory.taken_by(None))


class _Registry:
    """What prometheus_client writes down: a registry of one collector, for one prefix."""

    def __init__(self, metrics: Metrics, prefix: str) -> None:
        self._metrics = metrics
        self._prefix = prefix

    def collect(self) -> Iterator["Metric"]:
        return self._metrics.collect(self._prefix)


class _Writer:
    """Metric families with a prefix. Keys of `values` are models."""

    def __init__(self, prefix: str) -> None:
        from prometheus_client import core  # deferred, as above

        self._core = core
        self._prefix = prefix

    def _named(self, name: str) -> str:
        return f"{self._prefix}:{name}"

    def gauge(self, name: str, text: str, values: dict[str, float]) -> "Metric":
        family = self._core.GaugeMetricFamily(self._named(name), text, labels=MODEL)
        for model, value in values.items():
            family.add_metric([model], value)
        return family

    def plain(self, name: str, text: str, value: float) -> "Metric":
        return self._core.GaugeMetricFamily(self._named(name), text, value=value)

    def counter(self, name: str, text: str, values: dict[str, int]) -> "Metric":
        return self.labelled(name, text, MODEL, [((model,), value) for model, value in values.items()])

    def labelled(
        self, name: str, text: str, labels: list[str], values: Iterable[tuple[Sequence[str], int]]
    ) -> "Metric":
        family = self._core.CounterMetricFamily(self._named(name), text, labels=labels)
        for names, value in values:
            family.add_metric(list(names), value)
        return family

    def histogram(self, name: str, text: str, values: dict[str, Histogram]) -> "Metric":
        family = self._core.HistogramMetricFamily(self._named(name), text, labels=MODEL)
        for model, histogram in values.items():
            family.add_metric([model], _buckets(histogram), histogram.total)
        return family

    def cache_config(self, residents: list[Resident]) -> "Metric":
        labels = [*MODEL, "block_size", "num_gpu_blocks", "cache_dtype", "enable_prefix_caching"]
        family = self._core.InfoMetricFamily(self._named("cache_config"), "pages of each model", labels=labels)
        for resident in residents:
            ready = resident.ready
            if ready is not None:
                values = (resident.entry.name, ready.page_size, ready.num_pages, resident.load.kv_type, True)
                family.add_metric([str(value) for value in values], {})
        return family


def _held(pages: bytes) -> int:
    return pages.count(2) + pages.count(3)


def _buckets(histogram: Histogram) -> list[tuple[str, float]]:
    """Prometheus counts everything up to a bound."""
    sofar, buckets = 0, []
    for bound, count in zip((*histogram.bounds, float("inf")), histogram.counts, strict=True):
        sofar += count
        buckets.append(("+Inf" if bound == float("inf") else str(bound), float(sofar)))
    return buckets
