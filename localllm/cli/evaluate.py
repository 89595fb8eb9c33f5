"""`localllm eval ppl`: perplexity of a model on a text file. Loads the model in this process; starts no daemon."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from localllm.cli.invocation import Invocation
from localllm.cli.library import AsJson, Model
from localllm.cli.loading import Backend, Device, KvType, Quantize, Threads, target_of
from localllm.cli.output import print_json, print_text
from localllm.errors import UsageError

if TYPE_CHECKING:
    from localllm.lab.perplexity import Perplexity


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

        text = _text_of(file)
        result = perplexity(model, text, context=context, settings=settings, wish=wish, progress=on_chunk)
    if as_json:
        print_json(_fields(model, result))
    else:
        print_text(
            f"perplexity {result.perplexity:.4f} ± {result.error:.4f} over {result.tokens} tokens "
            f"({result.chunks} chunks of {result.context}, backend {result.backend})"
        )


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise UsageError(f"{path} is not a text file in UTF-8") from None
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {(error.strerror or str(error)).lower()}") from None


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
