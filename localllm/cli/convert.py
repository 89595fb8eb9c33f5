"""`localllm convert`: a folder of safetensors to one GGUF file. Works on files; starts no daemon."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from localllm.cli.human import size_text
from localllm.cli.invocation import Invocation
from localllm.cli.library import Model
from localllm.cli.output import print_text


def convert(
    ctx: typer.Context,
    model: Model,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", "--outfile", help="The file to write.", show_default="NAME-TYPE.gguf"),
    ] = None,
    kind: Annotated[
        str,
        typer.Option(
            "--type", "-t", "--outtype", help="Type of the matrices: f32, f16, bf16, or auto to keep what is there."
        ),
    ] = "auto",
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it exists.")] = False,
) -> None:
    """Write a model in safetensors as one GGUF file, with tokenizer and chat template."""
    from localllm.quantize.convert import float_type  # loads numpy
    from localllm.runtime.convert import convert_model, output_path  # loads numpy and tokenizers
    from localllm.runtime.names import model_path

    invocation = Invocation.of(ctx)
    target = float_type(kind)
    path = model_path(model, invocation.settings())
    written = output or output_path(path, target)
    with leaving_tidily(), invocation.progress() as progress:

        def on_tensor(name: str, done_bytes: int, total_bytes: int) -> None:
            progress.update(f"writing {written.name}", done_bytes, total_bytes)

        progress.status("reading the tokenizer")
        convert_model(path, written, target, replaces=force, progress=on_tensor)
    print_text(f"{written} ({size_text(written.stat().st_size)})")


@contextmanager
def leaving_tidily() -> Iterator[None]:
    """Whoever closes the terminal or ends this process finds no half-written file either."""
    numbers = (signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, _leave) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def _leave(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)
