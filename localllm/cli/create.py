"""`localllm create`: a model of one's own from a Modelfile. The weights stay where they are."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from localllm.cli.files import bytes_of
from localllm.cli.invocation import Invocation
from localllm.cli.library import open_runnable_library
from localllm.cli.output import print_text
from localllm.errors import UsageError

if TYPE_CHECKING:
    from localllm.store.quantized import Quantizing


def create(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the new model.", show_default=False)],
    file: Annotated[Path, typer.Option("--file", "-f", help="The Modelfile; `-` reads stdin.")] = Path("Modelfile"),
    quantize: Annotated[
        str, typer.Option("--quantize", "-q", metavar="TYPE", help="Its weights in fewer bits, as in q4_k_m.")
    ] = "",
) -> None:
    """Make a model from a Modelfile. Relative paths in it are relative to its folder."""
    way = _way(quantize) if quantize else None
    from localllm.store.modelfile import parse_modelfile  # one command of many needs it

    is_stdin = str(file) == "-"
    try:
        modelfile = parse_modelfile(sys.stdin.buffer.read() if is_stdin else bytes_of(file, "name a Modelfile with -f"))
    except UsageError as error:
        error.hint = error.hint or "mend that line; `localllm show --modelfile MODEL` prints a Modelfile that works"
        raise
    invocation = Invocation.of(ctx)
    library = open_runnable_library(invocation.settings())
    with invocation.progress() as progress:
        entry = library.create(
            name, modelfile, Path.cwd() if is_stdin else file.absolute().parent, progress.on_pull, way=way
        )
    print_text(f"created {entry.name!r}")


def _way(text: str) -> "Quantizing":
    from localllm.runtime.quantize import Order, way_of  # numpy and the formats

    return way_of(Order(text))
