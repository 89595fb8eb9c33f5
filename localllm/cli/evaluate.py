"""`localllm eval`: a model measured on a text, alone or against another. Loads models in this process; no daemon."""

import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from localllm.cli.files import text_of
from localllm.cli.human import size_text
from localllm.cli.invocation import Invocation
from localllm.cli.library import AsJson, Model
from localllm.cli.loading import Backend, Device, KvType, Quantize, Threads, target_of
from localllm.cli.output import print_json, print_text

if TYPE_CHECKING:
    from localllm.lab.divergence import Divergence
    from localllm.lab.perplexity import Perplexity
    from localllm.lab.sides import Side


def ppl(
    ctx: typer.Context,
    model: Model,
    file: Annotated[Path, typer.Option("--file", "-f", help="A text file in UTF-8.", show_default=False)],
    context: Annotated[int, typer.Option(help="Tokens in a chunk; the second half of each is scored.")] = 512,
    backend: Backend = None,
    device: Device = None,
    kv_type: KvType = None,
    threads: Threads = None,
    quantize: Quantize = None,
    as_json: AsJson = False,
) -> None:
    """Measure the perplexity of a text, by llama.cpp's method."""
    from localllm.lab.perplexity import perplexity  # loads the engine
    from localllm.runtime.presets import LoadWish

    invocation = Invocation.of(ctx)
    settings = invocation.settings(backend=backend, device=device, kv_type=kv_type, threads=threads)
    wish = LoadWish(quantize=target_of(quantize))
    with invocation.progress() as progress:

        def on_chunk(done: int, total: int, value: float) -> None:
            progress.status(f"chunk {done} of {total}: perplexity {value:.4f}")

        text = text_of(file)
        result = perplexity(model, text, context=context, settings=settings, wish=wish, progress=on_chunk)
    if as_json:
        print_json(_fields(model, result))
    else:
        print_text(
            f"perplexity {result.perplexity:.4f} ± {result.error:.4f} over {result.tokens} tokens "
            f"({_chunks(result.chunks)} of {result.context}, backend {result.backend})"
        )


def kl(
    ctx: typer.Context,
    model: Model,
    against: Annotated[
        str, typer.Option("--against", "-a", metavar="BASE", help="The model it was made from.", show_default=False)
    ],
    file: Annotated[
        Path | None,
        typer.Option("--file", "-f", help="A text file in UTF-8.", show_default="the text that comes with localllm"),
    ] = None,
    context: Annotated[int, typer.Option(help="Tokens in a chunk; the second half of each is compared.")] = 512,
    chunks: Annotated[int, typer.Option(min=0, help="How many chunks at most; 0: all.")] = 0,
    keep: Annotated[bool, typer.Option("--keep", help="Put the figures into the model's receipt.")] = False,
    backend: Backend = None,
    device: Device = None,
    kv_type: KvType = None,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Measure how far a model is from the one that it was made from."""
    from localllm.lab.calibrate import default_text
    from localllm.lab.divergence import divergence  # loads the engine

    invocation = Invocation.of(ctx)
    settings = invocation.settings(backend=backend, device=device, kv_type=kv_type, threads=threads)
    with invocation.progress() as progress:

        def on_chunk(done: int, total: int, mean: float) -> None:
            said = "of the base" if math.isnan(mean) else f"mean divergence {mean:.5f}"
            progress.status(f"chunk {done} of {total}: {said}")

        text = default_text() if file is None else text_of(file)
        found = divergence(
            model, against, text, context=context, settings=settings, max_chunks=chunks, progress=on_chunk
        )
    if keep:
        from localllm.cli.quantize_keep import keep_divergence  # few evaluations are kept

        keep_divergence(settings, model, found, against, "localllm's own text" if file is None else file.name)
    if as_json:
        print_json(asdict(found))
    else:
        print_text("\n".join(_lines(found)))


def _lines(found: "Divergence") -> list[str]:
    errors = found.weights
    lines = [
        f"mean KL       {found.kl_mean:.6f} ± {found.kl_error:.6f} nats over {found.tokens} tokens "
        f"({_chunks(found.chunks)} of {found.context})",
        f"median, p99   {found.kl_median:.6f}, {found.kl_p99:.6f}; largest {found.kl_max:.4f}",
        f"same top      {100 * found.same_top:.2f} % of the tokens",
        f"perplexity    {found.model.perplexity:.4f} ± {found.model.error:.4f}, of the base "
        f"{found.base.perplexity:.4f} ± {found.base.error:.4f}: {found.ratio:.4f} ± {found.ratio_error:.4f} times",
        _side_line("model", found.model),
        _side_line("base", found.base),
    ]
    if errors.layers:
        lines.append(f"weights       relative error {errors.all:.5f}; the worst:")
        lines += [f"    {worst.error:.5f}  {worst.type:<7} {worst.name}" for worst in errors.worst]
    else:
        lines.append("weights       have other shapes than those of the base: not compared")
    return lines


def _chunks(number: int) -> str:
    return "1 chunk" if number == 1 else f"{number} chunks"


def _side_line(label: str, side: "Side") -> str:
    speeds = f"reads {side.speeds.prompt:.1f}, writes {side.speeds.decode:.1f} tokens/s"
    return f"{label:<13} {side.model}: {size_text(side.size_bytes)}, {speeds} on {side.backend}"


def _fields(model: str, result: "Perplexity") -> dict[str, Any]:
    return {
        "model": model,
        "perplexity": result.perplexity,
        "error": result.error,
        "tokens": result.tokens,
        "chunks": result.chunks,
        "context": result.context,
        "negative_log_likelihood": result.negative_log_likelihood,
        "backend": result.backend,
    }
