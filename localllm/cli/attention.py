"""`localllm attention`: which tokens each token of a text looked at. Computes on the reference backend; no daemon."""

import os
import shutil
import sys
from pathlib import Path
from typing import Annotated

import typer

from localllm.cli.files import check_target, write_text
from localllm.cli.invocation import Invocation
from localllm.cli.library import AsJson, Model
from localllm.cli.output import print_json, print_text
from localllm.cli.tokenize import read_text
from localllm.errors import UsageError

ENDINGS = (".png", ".svg", ".html")


def attention(
    ctx: typer.Context,
    model: Model,
    text: Annotated[str, typer.Argument(metavar="TEXT", help="The text; `-` reads stdin.", show_default=False)],
    layer: Annotated[int | None, typer.Option(min=0, help="One layer; else the last is shown, a file has all.")] = None,
    head: Annotated[int | None, typer.Option(min=0, help="One head of it; else the mean of all.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write a picture (.png, .svg) or a page (.html).")] = None,
    as_json: AsJson = False,
) -> None:
    """Show which tokens each token of a text looks at."""
    if out is not None and out.suffix.lower() not in ENDINGS:
        raise UsageError(f"{out} has no known ending", hint=f"endings: {', '.join(ENDINGS)}")
    if head is not None and layer is None:
        raise UsageError("--head needs --layer", hint="for example --layer 0 --head 3")
    if out is not None:
        check_target(out)
    said = read_text(text)
    if not said:
        raise UsageError("there is no text", hint='give one: localllm attention MODEL "The cat sat"')
    from localllm.lab import attention_pictures  # numpy and the model
    from localllm.runtime.attention import attention_of
    from localllm.runtime.names import find_entry
    from localllm.runtime.tokenizer import Tokenizer

    entry = find_entry(model, Invocation.of(ctx).settings())
    tokenizer = Tokenizer.load(model)
    ids = tokenizer.encode(said)
    maps = attention_of(Path(entry.path), ids)
    pieces = [tokenizer.piece(token_id) for token_id in ids]
    shown = maps.names[-1] if layer is None else layer
    if as_json:
        weights = maps.of(shown, head).round(6).tolist()
        print_json({"model": model, "tokens": ids, "pieces": pieces, "layer": shown, "head": head, "weights": weights})
    elif out is None:
        is_plain = os.environ.get("TERM") == "linux" or "utf" not in (sys.stdout.encoding or "").lower()
        what = f"layer {shown}, " + ("mean of all heads" if head is None else f"head {head}")
        width = shutil.get_terminal_size().columns
        rows = attention_pictures.shades(maps.of(shown, head), _readable(pieces), width, is_plain=is_plain)
        print_text("\n".join([what, *rows]))
    elif out.suffix.lower() == ".html":
        write_text(out, attention_pictures.page(maps, pieces, f"Attention of {model}"))
    else:
        attention_pictures.picture(maps, _readable(pieces), out, layer, head)
    if out is not None:
        print_text(f"wrote {out}")


def _readable(pieces: list[str]) -> list[str]:
    return [piece.replace(" ", "·").replace("\n", "↵").replace("\t", "→") or "·" for piece in pieces]
