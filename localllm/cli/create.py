"""`localllm create`: a model of one's own from a Modelfile. The weights stay where they are."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from localllm.cli.failures import print_warning
from localllm.cli.invocation import Invocation
from localllm.cli.library import open_runnable_library
from localllm.cli.output import print_text


def create(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the new model.", show_default=False)],
    file: Annotated[Path, typer.Option("--file", "-f", help="The Modelfile; `-` reads stdin.")] = Path("Modelfile"),
) -> None:
    """Make a model from a Modelfile."""
    from localllm.store.modelfile import parse_modelfile, read_modelfile  # one command of many needs it

    is_stdin = str(file) == "-"
    modelfile = parse_modelfile(sys.stdin.read()) if is_stdin else read_modelfile(file)
    for warning in modelfile.warnings:
        print_warning(warning)
    entry = open_runnable_library(Invocation.of(ctx).settings()).create(name, modelfile)
    print_text(f"created {entry.name!r}")
