"""Commands on the models of this machine: list, cp, rm, where, verify. They work on the store; no daemon is started."""

import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from localllm.cli.failures import next_step, print_warning
from localllm.cli.human import age_text, size_text, table
from localllm.cli.invocation import Invocation
from localllm.cli.output import print_json, print_text
from localllm.errors import LocalLLMError, ModelNotFound, StoreError
from localllm.settings import Settings, load_settings

if TYPE_CHECKING:
    from localllm.store.entry import Entry, VerifyResult
    from localllm.store.library import Library


def complete_name(incomplete: str) -> list[str]:
    """Names for the shell's Tab key; none when the store cannot be read."""
    try:
        names = [entry.name for entry in open_library(load_settings()).entries()]
    except (LocalLLMError, OSError):
        return []
    return [name for name in names if name.startswith(incomplete)]


def complete_known_name(incomplete: str) -> list[str]:
    """As `complete_name`, of what could be pulled, too."""
    from localllm.store.catalog import Catalog  # the store: see below

    known = [entry.name for entry in Catalog.load().entries]
    return sorted({*complete_name(incomplete), *(name for name in known if name.startswith(incomplete))})


AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help="A name, a file or a folder.", show_default=False, autocompletion=complete_name
    ),
]
KnownModel = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help="A name, a file or a folder.", show_default=False, autocompletion=complete_known_name
    ),
]
SHOWN_DIGITS = 12  # of a digest
SHARED_SOURCES = ("ollama", "lmstudio", "huggingface")


def list_models(
    ctx: typer.Context,
    prefix: Annotated[
        str, typer.Argument(metavar="[PREFIX]", help="Only names that start so.", show_default=False)
    ] = "",
    as_json: AsJson = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print names only.")] = False,
) -> None:
    """List the models on this machine."""
    library = _library(ctx)
    newest_first = [entry for entry in library.entries() if entry.name.lower().startswith(prefix.lower())]
    if as_json:
        print_json([entry_fields(entry) for entry in newest_first])
    elif quiet:
        sys.stdout.writelines(f"{entry.name}\n" for entry in newest_first)
    else:
        print_text(list_table(newest_first, time.time()))
    for problem in library.damaged():
        print_warning(problem.message, next_step(problem))


def copy(ctx: typer.Context, source: Model, target: Annotated[str, typer.Argument(metavar="NEW_NAME")]) -> None:
    """Give a model a second name."""
    _library(ctx).copy(source, target)
    print_text(f"copied {source!r} to {target!r}")


def remove(
    ctx: typer.Context, models: Annotated[list[str], typer.Argument(metavar="MODEL...", help="Names of models.")]
) -> None:
    """Remove models: all that are named, or none. A loaded model is unloaded first; files that others use stay."""
    library, settings = _library(ctx), Invocation.of(ctx).settings()
    for name, model in {_name_of(library, model): model for model in models}.items():
        _unload(settings, name)
        library.remove(model)
        print_text(f"deleted {name!r}")


def named(models: Sequence[str] | None) -> Sequence[str | None]:
    """The names given; [None], which is all of ours, where none is. UsageError for an empty one: that is not all."""
    from localllm.store.names import parse_ref  # its sentence

    for model in models or ():
        if not model.strip():
            parse_ref(model)
    return models or [None]


def where(ctx: typer.Context, model: Model, as_json: AsJson = False) -> None:
    """Print the path of a model's file."""
    entry = _library(ctx).find(model)
    if as_json:
        print_json({"name": entry.name, "source": entry.source, "path": entry.path, "files": entry_paths(entry)})
    else:
        print_text("\n".join(entry_paths(entry)))


def verify(
    ctx: typer.Context,
    models: Annotated[
        list[str] | None, typer.Argument(metavar="[MODEL...]", help="Models to check; all of them when none is named.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check model files against their checksums. Ends with 1 when one of them is not as it should be."""
    library = _library(ctx)
    wanted = named(models)
    with Invocation.of(ctx).progress() as progress:
        results = [result for name in wanted for result in library.verify(name, progress.on_pull)]
    if as_json:
        print_json([_verify_fields(result) for result in results])
    else:
        print_text(table(["NAME", "FILE", "STATE"], [_verify_row(result) for result in results]))
    damaged = [] if models else library.damaged()
    for problem in damaged:
        print_warning(problem.message, next_step(problem))
    if damaged or not all(result.is_good for result in results):
        raise typer.Exit(1)


def entry_fields(entry: "Entry") -> dict[str, Any]:
    """The stable JSON form of a model: what `list --json` and `show --json` print."""
    return {
        "name": entry.name,
        "digest": entry.digest,
        "size_bytes": entry.size_bytes,
        "modified": iso_time(entry.modified),
        "source": entry.source,
        "path": entry.path,
        "architecture": entry.architecture,
        "parameters": entry.parameters,
        "quantization": entry.quantization,
        "context_length": entry.context_length,
        "embedding_length": entry.embedding_length,
        "capabilities": list(entry.capabilities),
        "license": first_line(entry.license),
    }


def list_table(entries: "Sequence[Entry]", now_s: float) -> str:
    """Ollama's columns; where a model comes from is added only when another program's store is read too."""
    header, with_source = ["NAME", "ID", "SIZE", "MODIFIED"], any(entry.source in SHARED_SOURCES for entry in entries)
    rows = [
        [entry.name, entry.digest[:SHOWN_DIGITS], size_text(entry.size_bytes), age_text(entry.modified, now_s)]
        + ([entry.source] if with_source else [])
        for entry in entries
    ]
    return table(header + (["SOURCE"] if with_source else []), rows)


def entry_paths(entry: "Entry") -> list[str]:
    return [file.path for file in entry.files] or [entry.path]


def iso_time(seconds: float) -> str | None:
    """UTC, to the second; None for a time that is not known."""
    return datetime.fromtimestamp(int(seconds), UTC).isoformat().replace("+00:00", "Z") if seconds else None


def first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "")


def open_library(settings: Settings) -> "Library":
    from localllm.store.library import Library  # the store costs more than the table around it

    return Library(settings)


def open_runnable_library(settings: Settings) -> "Library":
    """The store that refuses models this build cannot run: for whatever brings new models in."""
    from localllm.runtime.names import open_library as open_checked  # numpy and the formats

    return open_checked(settings)


def _library(ctx: typer.Context) -> "Library":
    return open_library(Invocation.of(ctx).settings())


def _name_of(library: "Library", model: str) -> str:
    """The full name of a model that can be removed; raises what keeps it from that."""
    name = model
    try:
        name = library.find(model).name
    except StoreError:
        return model  # its record is damaged: `rm` is the way to be rid of it
    except ModelNotFound:
        pass  # a tokenizer that came alone, or nothing
    try:
        removable = library.removable(model)
    except ModelNotFound as error:
        error.hint = "`localllm list` names the models that are here"
        raise
    return removable if name == model else name


def _unload(settings: Settings, name: str) -> None:
    """A model that is in memory keeps its file open; where that fails, the removal goes on and says so."""
    from localllm.cli.connect import running_client

    try:
        client = running_client(settings)
        if client and any(model.name == name for model in client.ps()):
            client.stop(name)
    except LocalLLMError as error:
        print_warning(f"unable to stop model {name!r}: {error}")


def _verify_fields(result: "VerifyResult") -> dict[str, Any]:
    return {
        "name": result.name,
        "path": result.path,
        "ok": result.is_good,
        "message": result.message,
        "size_bytes": result.size_bytes,
    }


def _verify_row(result: "VerifyResult") -> list[str]:
    return [result.name, Path(result.path).name, result.message or ("ok" if result.is_good else "damaged")]
