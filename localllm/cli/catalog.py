"""`localllm search`, `outdated` and `update`: what there is to pull, and what has a newer version."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from localllm.cli.failures import unwinding
from localllm.cli.human import size_text, table
from localllm.cli.invocation import Invocation
from localllm.cli.library import AsJson, named, open_runnable_library
from localllm.cli.output import print_json, print_text

if TYPE_CHECKING:
    from localllm.store.entry import SearchHit, UpdateCheck


def search(
    ctx: typer.Context,
    query: Annotated[
        list[str] | None, typer.Argument(metavar="[WORD...]", help="Words to look for.", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Search the catalog and the hub. Without words it lists the catalog."""
    invocation = Invocation.of(ctx)
    with invocation.progress(delay_s=0.3) as progress:
        progress.status("searching")
        hits = open_runnable_library(invocation.settings()).search(" ".join(query or []), progress.on_pull)
    if as_json:
        print_json([_plain(hit) for hit in hits])
    else:
        print_text(search_table(hits))


def outdated(ctx: typer.Context, as_json: AsJson = False) -> None:
    """List the models whose source has a newer version."""
    invocation = Invocation.of(ctx)
    with invocation.progress(delay_s=0.3) as progress:
        progress.status("asking the sources")
        checks = open_runnable_library(invocation.settings()).outdated(progress.on_pull)
    if as_json:
        print_json([_plain(check) for check in checks])
    else:
        print_text(outdated_table(checks))


def update(
    ctx: typer.Context,
    models: Annotated[
        list[str] | None,
        typer.Argument(metavar="[MODEL...]", help="Models to update; all of them when none is named."),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
) -> None:
    """Pull newer versions of models."""
    invocation = Invocation.of(ctx)
    library = open_runnable_library(invocation.settings())
    wanted = named(models)
    with invocation.progress(is_quiet=quiet) as progress, unwinding():
        changed = [entry for model in wanted for entry in library.update(model, progress.on_pull)]
    print_text("\n".join(f"updated {entry.name!r}" for entry in changed) or "everything is up to date")


def search_table(hits: "Sequence[SearchHit]") -> str:
    rows = [
        [
            hit.name,
            hit.parameters,
            size_text(hit.size_bytes) if hit.size_bytes else "",
            hit.license,
            "here" if hit.is_here else "cannot run here" if hit.refusal else "",
        ]
        for hit in hits
    ]
    return table(["NAME", "PARAMETERS", "SIZE", "LICENSE", "STATE"], rows)


def outdated_table(checks: "Sequence[UpdateCheck]") -> str:
    """Only what has something newer, and what nobody can tell about."""
    rows = [[check.name, check.current, check.newest, check.message] for check in checks if _is_news(check)]
    return table(["NAME", "CURRENT", "NEWEST", "NOTE"], rows)


def _is_news(check: "UpdateCheck") -> bool:
    return check.is_outdated or bool(check.message)


def _plain(record: Any) -> dict[str, Any]:
    import msgspec  # the store has loaded it

    fields: dict[str, Any] = msgspec.to_builtins(record)
    return fields
