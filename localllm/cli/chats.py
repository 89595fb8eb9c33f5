"""`localllm chats`: the conversations that are kept. Works on their file; no daemon is started."""

import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from localllm.cli.files import bytes_of, write_text
from localllm.cli.human import age_text, clipped, table
from localllm.cli.invocation import Invocation
from localllm.cli.keeping import opened_history
from localllm.cli.library import AsJson
from localllm.cli.output import print_json, print_text
from localllm.errors import UsageError
from localllm.history import Chat, History
from localllm.history.document import from_json, keep
from localllm.history.exports import exported

TITLE_COLUMNS = 50
Which = Annotated[str, typer.Argument(metavar="CHAT", help="A number, or words of the title.", show_default=False)]


def list_chats(
    ctx: typer.Context,
    num: Annotated[int, typer.Option("--num", "-n", help="How many at most; 0: all.", min=0)] = 0,
    as_json: AsJson = False,
) -> None:
    """List the chats that are kept, the one used last first."""
    history = _history(ctx)
    chats = history.chats(num or -1)
    if as_json:
        print_json([chat_fields(history, chat) for chat in chats])
    else:
        print_text(chats_table(history, chats, time.time()))


def search(
    ctx: typer.Context,
    words: Annotated[list[str], typer.Argument(metavar="WORDS...", help="What was said.", show_default=False)],
    as_json: AsJson = False,
) -> None:
    """List the chats in which these words were said."""
    hits = _history(ctx).search(" ".join(words))
    if as_json:
        print_json([{"id": hit.chat_id, "title": hit.title, "snippet": hit.snippet} for hit in hits])
    else:
        rows = [(str(hit.chat_id), clipped(hit.title, TITLE_COLUMNS), clipped(hit.snippet, 80)) for hit in hits]
        print_text(table(("ID", "TITLE", "SAID"), rows))


def export(
    ctx: typer.Context,
    which: Which,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File to write; else stdout.", show_default=False)
    ] = None,
    kind: Annotated[
        str,
        typer.Option("--format", "-f", help="md, json or html; else what the file's name says.", show_default=False),
    ] = "",
) -> None:
    """Write a chat as Markdown, JSON or HTML. JSON has all branches, and `chats import` reads it."""
    history = _history(ctx)
    named = output.suffix.lstrip(".").lower() if output else ""
    text = exported(history, history.find(which).id, kind or named or "md")
    if output is None:
        sys.stdout.write(text)
        return
    write_text(output, text)


def import_chats(
    ctx: typer.Context,
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Exported chats.", show_default=False)],
) -> None:
    """Keep chats that were exported as JSON."""
    history = _history(ctx)
    hint = "name a file that `localllm chats export -f json` wrote"
    for document in [from_json(bytes_of(file, hint)) for file in files]:  # all or none
        chat = keep(history, document)
        print_text(f"kept {chat.title!r} as chat {chat.id}")


def rename(ctx: typer.Context, which: Which, title: Annotated[str, typer.Argument(metavar="TITLE")]) -> None:
    """Give a chat another title."""
    if not title.strip():
        raise UsageError("the title is empty", hint="give the chat a title to find it by")
    history = _history(ctx)
    chat = history.find(which)
    history.change_chat(chat.id, title=title)
    print_text(f"renamed chat {chat.id} to {title!r}")


def remove(
    ctx: typer.Context,
    numbers: Annotated[list[int], typer.Argument(metavar="ID...", help="Numbers of chats.", show_default=False)],
) -> None:
    """Remove chats, with all their branches."""
    history = _history(ctx)
    for chat in [history.chat(number) for number in dict.fromkeys(numbers)]:  # all or none
        history.remove_chat(chat.id)
        print_text(f"deleted {chat.title!r}")


def chat_fields(history: History, chat: Chat) -> dict[str, object]:
    return {
        "id": chat.id,
        "title": chat.title,
        "model": chat.model,
        "messages": history.num_messages(chat.id),
        "created": chat.created,
        "updated": chat.updated,
    }


def chats_table(history: History, chats: list[Chat], now_s: float) -> str:
    rows = [
        (
            str(chat.id),
            clipped(chat.title, TITLE_COLUMNS),
            chat.model,
            str(history.num_messages(chat.id)),
            age_text(chat.updated, now_s),
        )
        for chat in chats
    ]
    return table(("ID", "TITLE", "MODEL", "MESSAGES", "USED"), rows)


def _history(ctx: typer.Context) -> History:
    return opened_history(Invocation.of(ctx).settings())
