"""`localllm imatrix`: which columns of a model's weights count, found on a text. Needs no daemon."""

from pathlib import Path
from typing import Annotated

import typer

from localllm.cli.files import check_target, text_of
from localllm.cli.human import size_text
from localllm.cli.invocation import Invocation
from localllm.cli.library import AsJson, Model
from localllm.cli.output import print_json, print_text
from localllm.errors import UsageError

MAX_CONTEXT = 1 << 16


def imatrix(
    ctx: typer.Context,
    model: Model,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The file to write.", show_default="NAME.imatrix.gguf")
    ] = None,
    text: Annotated[
        Path | None,
        typer.Option("--text", "-f", help="A text file in UTF-8.", show_default="the text that comes with localllm"),
    ] = None,
    context: Annotated[int, typer.Option("--context", "-c", min=16, max=MAX_CONTEXT, help="Tokens in a chunk.")] = 512,
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it exists.")] = False,
    as_json: AsJson = False,
) -> None:
    """Find out on a text which columns of a model's weights count. `localllm quantize --imatrix` goes by it."""
    from localllm.lab.calibrate import collect_importance, default_text, reading_of  # numpy and the model
    from localllm.quantize.imatrix import write_imatrix
    from localllm.runtime.names import model_path

    invocation = Invocation.of(ctx)
    path = model_path(model, invocation.settings())
    written = output or Path.cwd() / f"{(path if path.is_dir() else path.with_suffix('')).name}.imatrix.gguf"
    check_target(written)
    if written.exists() and not force:
        raise UsageError(f"{written} is there already", hint="name another file with -o, or allow it with --force")
    with invocation.progress() as progress:
        words, name = (default_text(), "localllm's own text") if text is None else (text_of(text), text.name)
        reading = reading_of(path, words, name, context)
        tokens = sum(map(len, reading.chunks))

        def tell(done: int, total: int) -> None:
            progress.status(f"weight {done} of {total} has met {tokens} tokens")

        progress.status("reading the weights")
        matrix = collect_importance(path, reading, tell)
        write_imatrix(written, matrix)
    if as_json:
        sizes = {"weights": len(matrix.entries), "tokens": tokens, "chunks": matrix.num_chunks}
        print_json({"file": str(written), "model": model, "text": name, **sizes})
    else:
        print_text(f"{written} ({size_text(written.stat().st_size)}): {len(matrix.entries)} weights, {tokens} tokens")
