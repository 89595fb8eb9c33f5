"""`localllm pull`: a model from its source into the store, with progress on stderr. Starts no daemon."""

from typing import TYPE_CHECKING, Annotated

import typer

from localllm.cli.failures import unwinding
from localllm.cli.invocation import Invocation
from localllm.cli.library import KnownModel, open_runnable_library

if TYPE_CHECKING:
    from localllm.settings import Settings
    from localllm.store.entry import Entry


def pull(
    ctx: typer.Context,
    model: KnownModel,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
) -> None:
    """Download a model. A download that was stopped goes on where it was."""
    invocation = Invocation.of(ctx)
    pull_model(invocation, invocation.settings(), model, is_quiet=quiet)


def pull_model(
    invocation: Invocation, settings: "Settings", model: str, *, is_quiet: bool = False, to_run: bool = False
) -> "Entry":
    """Pulls with progress; errors of the store pass through. `to_run`: a tokenizer alone will not do."""
    from localllm.store.names import looks_like_path  # the store: see above

    library = open_runnable_library(settings)
    if to_run:
        library.refuse_tokenizer(model)
    with invocation.progress(is_quiet=is_quiet) as progress, unwinding():
        try:
            entry = library.pull(model, progress.on_pull)
        except KeyboardInterrupt:
            progress.say("stopped; the same command goes on from here")
            raise
        if looks_like_path(model) and not to_run:
            progress.say(f"{entry.path} is here already: nothing to pull")
        return entry
