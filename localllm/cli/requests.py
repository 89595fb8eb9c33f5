"""`localllm ps --requests` and `cancel`: what the running daemon is answering. Neither starts a daemon."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from localllm.cli.connect import running_client
from localllm.cli.human import duration_text, with_sentences
from localllm.cli.invocation import Invocation
from localllm.cli.output import print_json, print_text, terminal_columns
from localllm.errors import DaemonUnreachable, UsageError

if TYPE_CHECKING:
    from localllm.client import Client, RequestRow

SHOWN_CHARS = 12
OVER = ("finished", "failed")


def list_requests(client: "Client | None", prefix: str, as_json: bool) -> None:
    """Those of models whose names start so."""
    found = [row for row in client.requests() if row.model.startswith(prefix)] if client else []
    if as_json:
        print_json([_fields(row) for row in found])
    else:
        print_text(requests_table(found))


def requests_table(rows: "list[RequestRow]") -> str:
    shown = [
        [
            row.id[:SHOWN_CHARS],
            row.model,
            row.state,
            duration_text(row.age_s),
            str(row.prompt_tokens),
            str(row.completion_tokens),
            row.verdict,
        ]
        for row in rows
    ]
    header = ["ID", "MODEL", "STATE", "TIME", "PROMPT", "ANSWER", "WHERE THE TIME WENT"]
    return with_sentences([header, *shown], terminal_columns())


def cancel(
    ctx: typer.Context,
    request_id: Annotated[str, typer.Argument(metavar="ID", help="Its id, or how that begins.")],
) -> None:
    """End a request that is under way. Whoever waits for its answer gets an error; `ps --requests` lists them."""
    client = running_client(Invocation.of(ctx).settings())
    if client is None:
        raise DaemonUnreachable(
            "no daemon runs, so no request is under way", hint="`localllm ps --requests` lists them"
        )
    found = _meant(client, request_id)
    if not client.cancel(found):
        raise UsageError(f"the request {found} was over already", hint="`localllm ps --requests` says how it went")


def _meant(client: "Client", text: str) -> str:
    """The whole id of the one request under way that begins so; the text itself where none does."""
    if not text:
        raise UsageError("the id is empty", hint="`localllm ps --requests` lists the requests under way")
    ids = [row.id for row in client.requests() if row.state not in OVER and row.id.startswith(text)]
    if len(ids) > 1 and text not in ids:
        raise UsageError(f"{len(ids)} requests begin with {text!r}", hint="give more of the id")
    return text if text in ids or not ids else ids[0]


def _fields(row: "RequestRow") -> dict[str, Any]:
    import msgspec  # already loaded by the client

    fields: dict[str, Any] = msgspec.to_builtins(row)
    return fields
