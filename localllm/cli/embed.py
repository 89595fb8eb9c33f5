"""`localllm embed`: texts as vectors, from the daemon."""

from typing import Annotated, Any

import typer

from localllm.cli.connect import as_seen_by_daemon, started_client
from localllm.cli.invocation import Invocation
from localllm.cli.library import AsJson, Model
from localllm.cli.output import print_json, print_text
from localllm.cli.tokenize import read_text

NUM_SHOWN = 8


def embed(
    ctx: typer.Context,
    model: Model,
    texts: Annotated[
        list[str], typer.Argument(metavar="TEXT...", help="The texts; `-` reads stdin.", show_default=False)
    ],
    dimensions: Annotated[
        int | None, typer.Option(min=1, help="Keep so many numbers of each vector, scaled to length 1.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Turn texts into vectors of length 1. Of several texts it also shows how near each is to the first."""
    body: dict[str, Any] = {"model": as_seen_by_daemon(model), "input": [read_text(text) for text in texts]}
    if dimensions is not None:
        body["dimensions"] = dimensions
    vectors = started_client(Invocation.of(ctx).settings()).embed(body)
    if as_json:
        print_json({"model": model, "dimensions": len(vectors[0]), "embeddings": vectors})
        return
    print_text("\n".join(_line(vector, vectors[0], is_alone=len(vectors) == 1) for vector in vectors))


def _line(vector: list[float], first: list[float], *, is_alone: bool) -> str:
    """The first numbers of a vector, and its cosine with the first one where there are others."""
    numbers = " ".join(f"{number:8.4f}" for number in vector[:NUM_SHOWN])
    more = f" ... {len(vector)} numbers" if len(vector) > NUM_SHOWN else ""
    cosine = sum(a * b for a, b in zip(vector, first, strict=True))
    return f"{numbers}{more}" + ("" if is_alone else f"   cosine {cosine:.4f}")
