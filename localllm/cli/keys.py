"""`localllm keys`: API keys for those who ask this home's daemon. A key is shown once; the file keeps its hash."""

import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from localllm.cli.human import age_text, table
from localllm.cli.invocation import Invocation
from localllm.cli.library import AsJson
from localllm.cli.output import print_json, print_text
from localllm.errors import UsageError

if TYPE_CHECKING:
    from localllm.daemon.keys import Key, KeyFile


def create(
    ctx: typer.Context,
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="What to call it, and whose it is.")] = None,
    scope: Annotated[
        list[str] | None,
        typer.Option(help="inference (asking models) or manage (loading, pulling, removing); may be given twice."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make an API key and show it, once. From the first key on, the daemon asks everybody for one."""
    from localllm.daemon.keys import SCOPES  # few commands need keys

    for each in scope or []:
        if each not in SCOPES:
            raise UsageError(f"{each!r} is no scope", hint=f"scopes are {' and '.join(SCOPES)}")
    scopes = [each for each in SCOPES if each in (scope or ["inference"])]
    file = _file(ctx)
    name = name or _free_name(file)
    secret = file.create(name, scopes)
    try:
        _show(name, secret, scopes, as_json=as_json)
    except OSError:
        file.revoke(name)  # nobody has seen it, and nobody will
        raise
    if not as_json and not Invocation.of(ctx).is_quiet:
        sys.stderr.write(f"This is the key {name!r}, for {' and '.join(scopes)}. It is not shown again.\n")


def _show(name: str, secret: str, scopes: Sequence[str], *, as_json: bool) -> None:
    if as_json:
        print_json({"name": name, "key": secret, "scopes": scopes})
    else:
        print_text(secret)
    sys.stdout.flush()


def list_keys(ctx: typer.Context, as_json: AsJson = False) -> None:
    """List the keys by name, with what they are for and when they were used."""
    keys = _file(ctx).all()
    if as_json:
        print_json([_fields(key) for key in keys])
    else:
        print_text(table(["NAME", "SCOPES", "CREATED", "LAST USED"], [_row(key, time.time()) for key in keys]))


def revoke(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the key.", show_default=False)],
) -> None:
    """Make a key worthless, at once."""
    file = _file(ctx)
    file.revoke(name)
    print_text(f"revoked {name!r}")
    settings = Invocation.of(ctx).settings()
    if not file.all() and not settings.api_keys and not Invocation.of(ctx).is_quiet:
        sys.stderr.write("No key is left: on this machine the daemon asks for none.\n")


def _file(ctx: typer.Context) -> "KeyFile":
    from localllm.daemon.keys import KeyFile  # as above

    return KeyFile(Invocation.of(ctx).settings().keys_file)


def _free_name(file: "KeyFile") -> str:
    names = {key.name for key in file.all()}
    return next(name for number in range(1, len(names) + 2) if (name := f"key-{number}") not in names)


def _fields(key: "Key") -> dict[str, Any]:
    return {"name": key.name, "scopes": list(key.scopes), "created": key.created, "last_used": key.last_used}


def _row(key: "Key", now: float) -> list[str]:
    return [key.name, ", ".join(key.scopes), age_text(key.created, now), age_text(key.last_used or 0.0, now)]
