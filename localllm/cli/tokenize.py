"""`localllm tokenize`: a text as tokens, through one tokenizer or several. Opens tokenizers only; starts no daemon."""

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from localllm.cli.human import table
from localllm.cli.invocation import Invocation
from localllm.cli.library import AsJson, complete_name
from localllm.cli.output import print_json, print_text
from localllm.cli.tokenize_views import Look, compared, listed, stepped, taken_apart
from localllm.errors import LocalLLMError, UsageError

if TYPE_CHECKING:
    from localllm import told
    from localllm.tokens.explainer import Explainer

MAX_SIDE_BY_SIDE = 4
ALL = 1 << 30


def tokenize(
    ctx: typer.Context,
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL", help="A name, a file or a folder.", show_default=False, autocompletion=complete_name
        ),
    ] = None,
    text: Annotated[
        str | None, typer.Argument(metavar="TEXT", help="The text; `-` reads stdin.", show_default=False)
    ] = None,
    others: Annotated[
        list[str] | None,
        typer.Option(
            "--model", "-m", metavar="NAME", help="Another tokenizer beside it; may be repeated.",
            autocompletion=complete_name,
        ),
    ] = None,
    as_json: AsJson = False,
    merges: Annotated[bool, typer.Option("--merges", help="Show how each word becomes tokens, step by step.")] = False,
    template: Annotated[
        bool, typer.Option("--template", help="Show the text as a message in the model's chat template.")
    ] = False,
    special: Annotated[
        bool, typer.Option("--special/--no-special", help="Add the tokens a prompt begins or ends with.")
    ] = True,
    parse_special: Annotated[
        bool, typer.Option("--parse-special", help="Read <|markers|> in the text as special tokens.")
    ] = False,
    show_list: Annotated[bool, typer.Option("--list", help="List the tokenizers there are, and no tokens.")] = False,
) -> None:  # fmt: skip
    """Show how a model splits a text into tokens."""
    invocation = Invocation.of(ctx)
    if show_list:
        _list_tokenizers(invocation, as_json)
        return
    if model is None or text is None:
        raise UsageError("name a model and a text", hint='e.g. localllm tokenize smollm2:135m "Hello"')
    names = [model, *(others or [])]
    if len(names) > MAX_SIDE_BY_SIDE:
        raise UsageError(
            f"{len(names)} tokenizers were named, and {MAX_SIDE_BY_SIDE} can be shown side by side",
            hint="leave some of them out",
        )
    asked = [_explainer(name) for name in names]
    said = read_text(text)
    look = Look(invocation.has_color(sys.stdout))
    if template:
        views = [_template_view(each, said) for each in asked]
        _show(as_json, [_plain(view) for view in views], "\n".join(taken_apart(view, look) for view in views), look)
    elif merges:
        traces = [trace for each in asked for trace in each.traces(said, parse_special=parse_special)]
        _show(as_json, [_plain(trace) for trace in traces], "\n".join(stepped(trace, look) for trace in traces), look)
    else:
        _show_tokens(asked, said, as_json=as_json, special=special, parse_special=parse_special, look=look)


def read_text(text: str) -> str:
    """The argument itself, or all of stdin for `-`."""
    return sys.stdin.buffer.read().decode("utf-8", "replace") if text == "-" else text


def _show_tokens(
    asked: "Sequence[Explainer]", text: str, *, as_json: bool, special: bool, parse_special: bool, look: Look
) -> None:
    from localllm.tokens.explainer import explanation  # numpy and tokenizers

    found = explanation(asked, text, add_special=special, parse_special=parse_special, most=ALL)
    for split in found.tokenizers:
        if split.problem and len(asked) == 1:
            raise UsageError(split.problem)
    rows = [_fields(split, found, each) for split, each in zip(found.tokenizers, asked, strict=True)]
    if len(rows) == 1:
        _show(as_json, rows[0], listed(found, look), look)
    else:
        agreed = found.tokenizers[0].num_agreed
        _show(as_json, {"tokenizers": rows, "agreed_cuts": agreed}, compared(found, look), look)


def _fields(split: "told.SplitText", found: "told.Explanation", explainer: "Explainer") -> dict[str, Any]:
    """The stable JSON form of a text's tokens."""
    return {
        "model": split.model,
        "kind": split.kind,
        "count": split.count,
        "characters": found.num_chars,
        "bytes": found.num_bytes,
        "characters_per_token": round(found.num_chars / split.count, 3) if split.count else None,
        "tokens": [token.id for token in split.tokens],
        "pieces": [explainer.tokenizer.piece(token.id) for token in split.tokens],
        "spans": [[token.start, token.end] for token in split.tokens],
        "hex": [token.bytes for token in split.tokens],
        **({"problem": split.problem} if split.problem else {}),
    }


def _explainer(name: str) -> "Explainer":
    from localllm.runtime.tokenizer import Tokenizer  # numpy and tokenizers
    from localllm.tokens.explainer import Explainer

    return Explainer(Tokenizer.load(name), name)


def _template_view(explainer: "Explainer", text: str) -> "told.TemplateView":
    from localllm.runtime.names import find_entry  # numpy and tokenizers
    from localllm.tokens.chat import made_up
    from localllm.tokens.template_view import template_view

    tokenizer = explainer.tokenizer
    try:
        source = find_entry(explainer.name).jinja_template
    except LocalLLMError:  # a tokenizer without a model
        source = None
    note = "" if source or tokenizer.built.chat_templates else made_up(tokenizer.built.texts)[1]

    def render(chat: Sequence[Mapping[str, Any]], opening: bool) -> str:
        return tokenizer.apply_chat_template(chat, chat_template=source, add_generation_prompt=opening)

    messages = [{"role": "user", "content": text}]
    return template_view(tokenizer, explainer.name, messages, render, add_generation_prompt=True, note=note)


def _list_tokenizers(invocation: Invocation, as_json: bool) -> None:
    from localllm.daemon.tokenizers import Tokenizers, load_tokenizer  # numpy and tokenizers
    from localllm.runtime.names import open_library

    library = open_library(invocation.settings())
    rows = Tokenizers(library, load_tokenizer, lambda: library).rows(library.entries())
    if as_json:
        print_json([_plain(row) for row in rows])
        return
    states = {(True, True): "a model's", (False, True): "here", (False, False): "to pull"}
    cells = [[row.name, row.kind, states[row.is_model, row.is_here], row.license] for row in rows]
    print_text(table(["NAME", "KIND", "STATE", "LICENSE"], cells))


def _show(as_json: bool, value: Any, text: str, look: Look) -> None:
    """`text` is made of visible pieces and of our own colours only."""
    if as_json:
        print_json(value)
    elif look.has_color:
        sys.stdout.write(text if text.endswith("\n") else text + "\n")
    else:
        print_text(text)


def _plain(record: Any) -> Any:
    import msgspec  # what is told is made of it

    return msgspec.to_builtins(record)
