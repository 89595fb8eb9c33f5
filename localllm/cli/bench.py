"""`localllm bench` and `localllm bench serve`: how fast a model runs here, and how a server bears several clients."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from localllm.cli.human import size_text, table
from localllm.cli.invocation import Invocation
from localllm.cli.library import AsJson, Model
from localllm.cli.loading import Backend, Device, KvType, Quantize, target_of
from localllm.cli.output import print_json, print_text

if TYPE_CHECKING:
    from localllm.lab.bench_rows import Row
    from localllm.lab.bench_saved import Comparison

MIB = 2**20


def bench(
    ctx: typer.Context,
    model: Model,
    prompt: Annotated[
        str, typer.Option("-p", "--n-prompt", metavar="N,...", help="Tokens of a prompt; 0 leaves these rows out.")
    ] = "512",
    gen: Annotated[
        str, typer.Option("-n", "--n-gen", metavar="N,...", help="Tokens to generate; 0 leaves these rows out.")
    ] = "128",
    parallel: Annotated[
        str, typer.Option("--parallel", metavar="N,...", help="Sequences that run at the same time.")
    ] = "1",
    depth: Annotated[
        str, typer.Option("-d", "--n-depth", metavar="N,...", help="Tokens in the cache before the clock starts.")
    ] = "0",
    repetitions: Annotated[int, typer.Option("-r", "--repetitions", help="Timed runs of each row.")] = 5,
    threads: Annotated[
        str, typer.Option("-t", "--threads", metavar="N,...", help="Threads of the CPU; 0: as the settings say.")
    ] = "0",
    backend: Backend = None,
    device: Device = None,
    kv_type: KvType = None,
    quantize: Quantize = None,
    speculation: Annotated[
        str, typer.Option("--speculation", metavar="N", help="Guess tokens from the text: off, auto, 4, 8, 16 or 32.")
    ] = "off",
    save: Annotated[str | None, typer.Option("--save", metavar="NAME", help="Keep the run under this name.")] = None,
    compare: Annotated[
        str | None, typer.Option("--compare", metavar="NAME", help="Set the run beside a kept one.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure how fast a model reads and writes, in this process.

    Rows are named as llama-bench names them: pp512 is a prompt of 512 tokens, tg128 are 128 generated tokens, tg64 x8
    are 64 in each of 8 sequences at once, @ d2048 is behind 2048 tokens. Rates are tokens a second over all sequences.
    `localllm bench serve` measures a server.
    """
    from localllm.lab import bench_saved  # the engine comes with the lab
    from localllm.lab.bench import bench as run
    from localllm.lab.bench_rows import BenchPlan, numbers
    from localllm.runtime.presets import LoadWish

    invocation = Invocation.of(ctx)
    settings = invocation.settings(backend=backend, device=device, kv_type=kv_type, speculation=speculation)
    plan = BenchPlan(
        prompts=numbers("-p", prompt),
        generations=numbers("-n", gen),
        parallel=numbers("--parallel", parallel),
        depths=numbers("-d", depth),
        threads=numbers("-t", threads),
        repetitions=repetitions,
    ).checked()
    wish = LoadWish(quantize=target_of(quantize))
    saved = bench_saved.SavedRuns(settings.bench_dir)
    if save is not None:
        saved.path_of(save)  # a wrong name is told now, not after minutes of measuring
    old = saved.load(compare) if compare is not None else None
    with invocation.progress() as progress:
        rows = run(model, plan, settings=settings, wish=wish, progress=progress.status)
    comparison = bench_saved.compare(rows, old) if old is not None else None
    if save is not None:
        saved.save(save, rows)
    if as_json:
        print_json(_as_json(rows, comparison, compare))
    else:
        print_text(_as_table(rows) + (_beside(comparison, compare) if comparison else ""))


def _as_table(rows: "Sequence[Row]") -> str:
    header = ("model", "size", "params", "backend", "threads", "test", "t/s", "bandwidth")
    cells = [
        (
            f"{row.model} {row.quantization}".strip(),
            f"{row.size / MIB:.2f} MiB",
            f"{row.params / 1e6:.2f} M",
            row.backend,
            str(row.threads),
            row.test,
            f"{row.avg_ts:.2f} ± {row.stddev_ts:.2f}",
            "" if row.bandwidth_share is None else f"{row.bandwidth_share:.0%}",
        )
        for row in rows
    ]
    found = next((row.memory_bandwidth for row in rows if row.memory_bandwidth), None)
    notes = [f"{row.test}: {row.note}\n" for row in rows if row.note]
    if found and any(row.bandwidth_share is not None for row in rows):
        notes.append(f"bandwidth: the share of the {size_text(found)}/s that memory was measured to give\n")
    return table(header, cells) + "".join(notes)


def _beside(comparison: "Comparison", name: str | None) -> str:
    lines = [f"not the same as {name}: {difference}\n" for difference in comparison.differences]
    cells = [
        (
            pair.test,
            f"{pair.threads}",
            f"{pair.old_ts:.2f} ± {pair.old_stddev_ts:.2f}",
            f"{pair.new_ts:.2f} ± {pair.new_stddev_ts:.2f}",
            f"{pair.ratio:.3f}",
            pair.verdict,
        )
        for pair in comparison.pairs
    ]
    shown = table(("test", "threads", f"t/s in {name}", "t/s now", "now / then", ""), cells) if cells else ""
    told = "outside the noise: the means differ by more than two standard errors of their difference\n" if cells else ""
    return "\n" + "".join(lines) + shown + told


def _as_json(rows: "Sequence[Row]", comparison: "Comparison | None", name: str | None) -> list[dict[str, Any]]:
    import msgspec

    shown = [msgspec.structs.asdict(row) for row in rows]
    if comparison is None:
        return shown
    for one, row in zip(shown, rows, strict=True):
        pair = comparison.pair_of(row)
        one["compared"] = {
            "name": name,
            "differences": list(comparison.differences),
            **({} if pair is None else pair.as_json()),
        }
    return shown
