"""`localllm tokenize`: a text as a model's tokens. Opens the tokenizer only; starts no daemon."""

import sys
from typing import Annotated

import typer

from localllm.cli.human import table
from localllm.cli.library import AsJson, Model
from localllm.cli.output import print_json, print_text


def tokenize(
    model: Model,
    text: Annotated[str, typer.Argument(metavar="TEXT", help="The text; `-` reads stdin.", show_default=False)],
    as_json: AsJson = False,
    special: Annotated[
        bool, typer.Option("--special/--no-special", help="Add the tokens a prompt begins or ends with.")
    ] = True,
    parse_special: Annotated[
        bool, typer.Option("--parse-special", help="Read <|markers|> in the text as special tokens.")
    ] = False,
) -> None:
    """Show how a model splits a text into tokens."""
    from localllm.runtime.tokenizer import Tokenizer  # numpy and tokenizers

    tokenizer = Tokenizer.load(model)
    ids = tokenizer.encode(read_text(text), add_special=special, parse_special=parse_special)
    pieces = [tokenizer.piece(token_id) for token_id in ids]
    if as_json:
        print_json({"model": model, "count": len(ids), "tokens": ids, "pieces": pieces})
    else:
        rows = [[str(token_id), repr(piece)] for token_id, piece in zip(ids, pieces, strict=True)]
        print_text(table(["ID", "PIECE"], rows))


def read_text(text: str) -> str:
    """The argument itself, or all of stdin for `-`."""
    return sys.stdin.buffer.read().decode("utf-8", "replace") if text == "-" else text
