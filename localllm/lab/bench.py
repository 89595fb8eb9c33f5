"""Benchmarks of a model in this process: the engine that a worker would run, timed as its callers see it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from localllm import wire
from localllm.backends.layout import cache_layout, layer_values
from localllm.engine.step import CacheLayout
from localllm.lab.bench_bandwidth import memory_bandwidth
from localllm.lab.bench_measure import Sample, Stopwatch
from localllm.lab.bench_rows import BenchPlan, Row, Work, mean_and_deviation
from localllm.lab.bench_traffic import Weights, kv_read_bytes
from localllm.models.config import ModelConfig
from localllm.runtime.load import load_engine
from localllm.runtime.names import find_entry
from localllm.runtime.open_model import open_model
from localllm.runtime.presets import NO_WISH, LoadWish, load_order
from localllm.settings import Settings

Progress = Callable[[str], None]
"""Called with what is being done now, in words."""
_KV_TYPES = {2.0: "f16", 4.0: "f32"}


def ignore_progress(what: str) -> None:
    """For callers that show nothing."""


def bench(
    model: str,
    plan: BenchPlan,
    *,
    settings: Settings,
    wish: LoadWish = NO_WISH,
    progress: Progress = ignore_progress,
) -> list[Row]:
    """Measure a model (name, file or folder). UsageError for a plan that makes no sense or does not fit the model."""
    plan.checked()
    entry = find_entry(model, settings)
    rows: list[Row] = []
    for threads in dict.fromkeys(plan.threads):
        load = load_order(entry, replace(settings, threads=threads or settings.threads), wish)
        name = Path(entry.path).name if entry.source == "path" else entry.name
        rows += _bench_loaded(name, entry.quantization, load, plan, progress)
    return rows


@dataclass(frozen=True, slots=True)
class Bench:
    """One loaded model, and everything that its rows share. `bandwidth` in bytes a second; None: not of this device."""

    model: str
    quantization: str
    ready: wire.Ready
    speculation: str
    kv_type: str
    weights: Weights
    layout: CacheLayout
    bandwidth: float | None


def _bench_loaded(model: str, quantization: str, load: wire.Load, plan: BenchPlan, progress: Progress) -> list[Row]:
    progress("loading the model")
    opened = open_model(Path(load.path), load.quantize)
    engine, ready = load_engine(load)
    try:
        stopwatch = Stopwatch(engine)
        works = list(plan.works())
        for work in works:
            stopwatch.check(work)
        bandwidth = None
        if ready.device.startswith("cpu"):
            progress("measuring the memory")
            bandwidth = memory_bandwidth(max(ready.threads, 1)) or None
        layout = layout_of(opened.config, ready)
        kept = load.kv_type if load.kv_type != "auto" else kv_type_of(layout, opened.config)
        weights = Weights.of(opened.source, opened.config)
        shared = Bench(model, load.quantize or quantization, ready, load.speculation, kept, weights, layout, bandwidth)
        return [row_of(shared, work, list(_samples(stopwatch, work, plan.repetitions, progress))) for work in works]
    finally:
        engine.close()


def _samples(stopwatch: Stopwatch, work: Work, repetitions: int, progress: Progress) -> Iterator[Sample]:
    progress(f"{work.name}: warming up")
    stopwatch.time(work)
    for number in range(repetitions):
        progress(f"{work.name}: {number + 1} of {repetitions}")
        yield stopwatch.time(work)


def row_of(shared: Bench, work: Work, samples: list[Sample]) -> Row:
    """The row of one work. What a step reads is told only where a step gives each sequence one token."""
    rates = [sample.rate for sample in samples]
    mean, deviation = mean_and_deviation(rates)
    read = read_bytes(shared, work) if work.n_gen and shared.speculation == "off" else None
    share = read * mean / work.n_parallel / shared.bandwidth if read is not None and shared.bandwidth else None
    return Row(
        model=shared.model,
        size=shared.weights.size_bytes,
        params=shared.weights.num_params,
        quantization=shared.quantization,
        backend=shared.ready.backend,
        device=shared.ready.device,
        threads=shared.ready.threads,
        kv_type=shared.kv_type,
        speculation=shared.speculation,
        test=work.name,
        n_prompt=work.n_prompt,
        n_gen=work.n_gen,
        n_parallel=work.n_parallel,
        n_depth=work.n_depth,
        avg_ts=mean,
        stddev_ts=deviation,
        samples_ts=rates,
        read_bytes=read,
        memory_bandwidth=shared.bandwidth,
        bandwidth_share=share,
        note=_note(work, samples, shared.layout.page_size),
    )


def read_bytes(shared: Bench, work: Work) -> int:
    """What a step reads that decodes one token of each sequence: weights once, caches one by one."""
    cache = kv_read_bytes(shared.layout, work.n_depth, work.n_gen) + shared.layout.state_bytes
    return int(shared.weights.read_bytes(work.n_parallel) + work.n_parallel * cache)


def _note(work: Work, samples: list[Sample], page_size: int) -> str:
    """A prompt's depth is kept by whole pages; where less was kept, the row says so."""
    extra = max(sample.num_tokens for sample in samples) - work.num_tokens
    if not work.n_prompt or extra <= 2 * page_size * work.n_parallel:
        return ""
    return f"{extra} tokens of the depth were not in the cache, and computed in the timed part"


def layout_of(config: ModelConfig, ready: wire.Ready) -> CacheLayout:
    """The layout of a loaded model's cache."""
    return replace(cache_layout(config, ready.page_size), page_bytes=ready.kv_bytes // max(1, ready.num_pages))


def kv_type_of(layout: CacheLayout, config: ModelConfig) -> str:
    """The name of the type that keys and values are kept in, by its size."""
    room = max((len(group.layers) for group in layout.groups), default=0)
    numbers = room * layer_values(config) * layout.page_size
    size = layout.page_bytes / numbers if numbers else 0.0
    return _KV_TYPES.get(size, f"{size * 8:g} bits" if size else "none")
