"""`localllm ps` and `stop`: what the running daemon holds in memory. Neither starts a daemon."""

import sys
import time
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from localllm.cli.connect import as_seen_by_daemon, running_client
from localllm.cli.human import duration_text, size_text, table
from localllm.cli.invocation import Invocation
from localllm.cli.library import SHOWN_DIGITS, AsJson, Model, iso_time
from localllm.cli.output import print_json, print_text
from localllm.errors import ModelNotFound

if TYPE_CHECKING:
    from localllm.client import Client, LoadedModel

WATCH_S = 1.0
CLEAR = "\x1b[H\x1b[2J"
FOREVER_S = 20 * 365.25 * 86400


def ps(
    ctx: typer.Context,
    prefix: Annotated[
        str, typer.Argument(metavar="[PREFIX]", help="Only names that start so.", show_default=False)
    ] = "",
    as_json: AsJson = False,
    requests: Annotated[
        bool, typer.Option("--requests", help="Requests instead of models: those under way, and the last ones.")
    ] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Again every second, until Ctrl-C.")] = False,
) -> None:
    """List the models that are loaded, the one that stays longest first."""
    client = running_client(Invocation.of(ctx).settings())
    show = _list_models
    if requests:
        from localllm.cli.requests import list_requests  # seldom asked for

        show = list_requests
    show(client, prefix, as_json)
    while watch:
        sys.stdout.flush()
        time.sleep(WATCH_S)
        if sys.stdout.isatty():
            sys.stdout.write(CLEAR)
        show(client, prefix, as_json)


def _list_models(client: "Client | None", prefix: str, as_json: bool) -> None:
    found = [model for model in client.ps() if model.name.startswith(prefix)] if client else []
    now_s = time.time()
    found.sort(key=lambda model: -expiry_s(model))
    if as_json:
        print_json([_fields(model) for model in found])
    else:
        print_text(ps_table(found, now_s))


def stop(ctx: typer.Context, model: Model) -> None:
    """Unload a model. Its memory is free when this returns."""
    client = running_client(Invocation.of(ctx).settings())
    try:
        was_loaded = client.stop(as_seen_by_daemon(model)) if client else False
    except ModelNotFound:
        was_loaded = False
    if not was_loaded:
        hint = "`localllm ps` lists what is loaded" if client else "no daemon runs, so no model is loaded"
        raise ModelNotFound(f'couldn\'t find model "{model}" to stop', hint=hint)


def ps_table(models: "list[LoadedModel]", now_s: float) -> str:
    rows = [
        [
            model.name,
            model.digest.removeprefix("sha256:")[:SHOWN_DIGITS],
            size_text(model.size_bytes),
            model.processor,
            backend_text(model),
            str(model.context_length),
            until_text(model, now_s),
        ]
        for model in models
    ]
    return table(["NAME", "ID", "SIZE", "PROCESSOR", "BACKEND", "CONTEXT", "UNTIL"], rows)


def backend_text(model: "LoadedModel") -> str:
    """The backend, its device where the name does not say it, and the rounding that was asked for."""
    kind = model.device.partition(" ")[0]
    device = f" {kind}" if kind and kind != model.backend else ""
    return f"{model.backend}{device}" + (f", {model.quantize}" if model.quantize else "")


def until_text(model: "LoadedModel", now_s: float) -> str:
    """When an idle model is unloaded, in words."""
    if model.state == "loading":
        return f"Loading {100 * model.progress.fraction:.0f}%" if model.progress else "Loading..."
    left_s = expiry_s(model) - now_s
    if left_s <= 0:
        return "Stopping..."
    return "Forever" if left_s > FOREVER_S else f"{duration_text(left_s)} from now"


def expiry_s(model: "LoadedModel") -> float:
    """Seconds since the epoch; infinite where the daemon names no time."""
    if isinstance(model.expires_at, str) and model.expires_at:
        return datetime.fromisoformat(model.expires_at).timestamp()
    return float(model.expires_at) if model.expires_at else float("inf")


def _fields(model: "LoadedModel") -> dict[str, Any]:
    import msgspec  # already loaded by the client

    fields: dict[str, Any] = msgspec.to_builtins(model)
    until_s = expiry_s(model)
    return {**fields, "expires_at": None if until_s == float("inf") else iso_time(until_s)}
