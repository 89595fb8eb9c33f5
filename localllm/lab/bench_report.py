"""Figures of a load by the definitions of `vllm bench serve`, under its names: means, medians and percentiles in ms.

TTFT: from sending to the first event with content. E2EL: to the last one. TPOT: (E2EL - TTFT) / (tokens - 1), of
answers with more than one token. ITL: gaps between events with content, each of which may bring several tokens.
Goodput: answers a second that meet every goal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from localllm.lab.bench_load import Load, LoadPlan
from localllm.lab.bench_stream import Answer


@dataclass(frozen=True, slots=True)
class Timing:
    """One successful answer; times in seconds. `is_counted`: the server said how many tokens it gave; else an event
    counts as one."""

    num_input: int
    num_output: int
    is_counted: bool
    ttft: float
    e2el: float
    tpot: float | None
    itl: list[float]

    @staticmethod
    def of(answer: Answer, input_len: int) -> Timing:
        times, usage = answer.event_times, answer.usage
        num_output = usage.completion_tokens if usage else len(times)
        num_input = usage.prompt_tokens if usage else input_len
        ttft, e2el = times[0] - answer.sent, times[-1] - answer.sent
        tpot = (e2el - ttft) / (num_output - 1) if num_output > 1 else None
        gaps = [after - before for before, after in pairwise(times)]
        return Timing(num_input, num_output, usage is not None, ttft, e2el, tpot, gaps)

    def meets(self, goals: Mapping[str, float]) -> bool:
        """`goals` in milliseconds. An answer of one token has no TPOT, and misses none."""
        values = {"ttft": self.ttft, "tpot": self.tpot or 0.0, "e2el": self.e2el}
        return all(1000 * values[name] <= most for name, most in goals.items())


@dataclass(frozen=True, slots=True)
class Spread:
    """Mean, median, standard deviation (of all, not of a sample) and 99th percentile, in milliseconds."""

    mean: float = 0.0
    median: float = 0.0
    std: float = 0.0
    p99: float = 0.0

    @staticmethod
    def of(seconds: Sequence[float]) -> Spread:
        if not seconds:
            return Spread()
        values = np.asarray(seconds) * 1000.0
        return Spread(*map(float, (values.mean(), np.median(values), values.std(), np.percentile(values, 99))))


@dataclass(frozen=True, slots=True)
class Report:
    """A load in figures. Rates are a second; `goodput` None: no goals were set."""

    completed: int
    failed: int
    duration_s: float
    num_input: int
    num_output: int
    num_good: int | None
    is_counted: bool
    client_cpu_s: float
    spreads: Mapping[str, Spread]
    errors: tuple[str, ...] = field(default=())

    @property
    def request_throughput(self) -> float:
        return self._per_s(self.completed)

    @property
    def goodput(self) -> float | None:
        return None if self.num_good is None else self._per_s(self.num_good)

    @property
    def output_throughput(self) -> float:
        return self._per_s(self.num_output)

    @property
    def total_token_throughput(self) -> float:
        return self._per_s(self.num_input + self.num_output)

    def _per_s(self, count: int) -> float:
        return count / self.duration_s if self.duration_s > 0 else 0.0


def report(load: Load, plan: LoadPlan) -> Report:
    """The figures of the answers that succeeded; the others are counted, and each different error told once."""
    good = [answer for answer in load.answers if not answer.problem]
    errors = dict.fromkeys(answer.problem for answer in load.answers if answer.problem)
    timings = [Timing.of(answer, plan.prefix_len + plan.input_len) for answer in good]
    return Report(
        completed=len(timings),
        failed=len(load.answers) - len(timings),
        duration_s=load.duration_s,
        num_input=sum(timing.num_input for timing in timings),
        num_output=sum(timing.num_output for timing in timings),
        num_good=sum(timing.meets(plan.goodput) for timing in timings) if plan.goodput else None,
        is_counted=all(timing.is_counted for timing in timings),
        client_cpu_s=load.client_cpu_s,
        spreads={
            "ttft": Spread.of([timing.ttft for timing in timings]),
            "tpot": Spread.of([timing.tpot for timing in timings if timing.tpot is not None]),
            "itl": Spread.of([gap for timing in timings for gap in timing.itl]),
            "e2el": Spread.of([timing.e2el for timing in timings]),
        },
        errors=tuple(errors),
    )


def as_json(report: Report, plan: LoadPlan) -> dict[str, object]:
    """Under the names of `vllm bench serve --save-result`, with a few of ours."""
    rate = plan.request_rate
    return {
        "base_url": plan.address.url,
        "endpoint_type": plan.kind,
        "model": plan.model,
        "num_prompts": plan.num_prompts,
        "max_concurrency": plan.clients,
        "request_rate": "inf" if rate == float("inf") else rate,
        "input_len": plan.input_len,
        "output_len": plan.output_len,
        "prefix_len": plan.prefix_len,
        "seed": plan.seed,
        "duration": report.duration_s,
        "completed": report.completed,
        "failed": report.failed,
        "total_input_tokens": report.num_input,
        "total_output_tokens": report.num_output,
        "tokens_counted_by": "usage" if report.is_counted else "events",
        "request_throughput": report.request_throughput,
        "request_goodput": report.goodput,
        "output_throughput": report.output_throughput,
        "total_token_throughput": report.total_token_throughput,
        **{
            f"{figure}_{name}_ms": getattr(spread, figure)
            for name, spread in report.spreads.items()
            for figure in ("mean", "median", "std", "p99")
        },
        "client_cpu_s": report.client_cpu_s,
        "errors": list(report.errors),
    }
