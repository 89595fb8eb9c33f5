"""`localllm fit`: whether a model has room on this machine, before it is pulled or loaded. Reads headers only."""

from typing import TYPE_CHECKING, Annotated

import typer

from localllm.cli.human import aligned
from localllm.cli.invocation import Invocation
from localllm.cli.library import AsJson, KnownModel, open_library
from localllm.cli.output import print_json, print_text
from localllm.errors import ModelNotFound

if TYPE_CHECKING:
    from localllm.daemon.fitting import Cost
    from localllm.daemon.shelf_shapes import ModelFit
    from localllm.store.entry import Entry
    from localllm.store.library import Library


def fit(
    ctx: typer.Context,
    model: KnownModel,
    context: Annotated[int, typer.Option(min=1, help="Tokens that one chat is to have.")] = 4096,
    parallel: Annotated[int, typer.Option(min=1, help="Chats that are to run at the same time.")] = 1,
    as_json: AsJson = False,
) -> None:
    """Say whether a model has room on this machine, and for how many tokens."""
    from localllm.daemon.fitting import cost_of_file, cost_of_size, fit_of
    from localllm.daemon.listing import weights_in
    from localllm.runtime.machine_memory import available_memory_bytes, total_memory_bytes
    from localllm.runtime.presets import load_order

    settings = Invocation.of(ctx).settings()
    library = open_library(settings)
    try:
        entry = library.find(model)
    except ModelNotFound as missing:
        entry = _known(library, model, missing)
    load = load_order(entry, settings)
    cost = cost_of_file(entry, load) if entry.path else cost_of_size(entry, load, weights_in(entry.parameters))
    found = fit_of(entry.name, cost, load, available_memory_bytes(), (), total_memory_bytes())
    most = cost.context_length or context
    is_cut, context = context > most, min(context, most)
    wanted = context * parallel
    has_room = found.verdict != "too large" and found.tokens >= wanted
    if as_json:
        print_json(
            {"model": found.model, "verdict": found.verdict, "fits": has_room, "is_estimate": found.is_estimate,
             "weight_bytes": found.weight_bytes, "work_bytes": found.work_bytes, "page_bytes": found.page_bytes,
             "page_size": found.page_size, "kv_bytes": kv_bytes(cost, context, parallel), "tokens": found.tokens,
             "resident_bytes": cost.resident_bytes(context, parallel), "room_bytes": found.room_bytes,
             "memory_bytes": found.memory_bytes, "sentence": found.sentence}
        )  # fmt: skip
    else:
        note = f"{found.model} takes no more than {most:,} tokens: that is what is counted.\n" if is_cut else ""
        print_text(
            aligned(rows(found, cost, context, parallel)) + note + sentence(found, wanted, parallel, has_room=has_room)
        )


def _known(library: "Library", model: str, missing: ModelNotFound) -> "Entry":
    """A model of the catalog; what the library says where a path leads to nothing."""
    from localllm.daemon.listing import entry_of
    from localllm.store.names import looks_like_path

    if looks_like_path(model):
        raise missing
    try:
        return entry_of(library, model)
    except ModelNotFound as error:
        error.hint = "`localllm search WORDS` lists what is known; any other model has to be pulled first"
        raise


def kv_bytes(cost: "Cost", context: int, parallel: int) -> int:
    """Of the pages that so many chats of so many tokens fill."""
    return cost.held_pages(context) * cost.page_bytes * parallel


def rows(found: "ModelFit", cost: "Cost", context: int, parallel: int) -> list[list[str]]:
    about = "about " if found.is_estimate else ""
    chats = f"{context:,} tokens" + (f" for each of {parallel} chats" if parallel > 1 else "")
    return [
        ["model", found.model],
        ["weights", about + size(found.weight_bytes)],
        ["work", about + size(found.work_bytes)],
        ["page", f"{found.page_size} tokens, {about}{size(found.page_bytes)}"],
        ["context", f"{chats}: {about}{size(kv_bytes(cost, context, parallel))}"],
        ["resident", f"{about}{size(cost.resident_bytes(context, parallel))} once {_they(parallel)} full"],
        ["memory", f"{size(found.room_bytes)} of {size(found.memory_bytes)} can be had"],
    ]


def _they(parallel: int) -> str:
    return "that chat is" if parallel == 1 else "those chats are"


def sentence(found: "ModelFit", wanted: int, parallel: int, *, has_room: bool) -> str:
    """The verdict, and what would fit where this does not."""
    if found.verdict == "too large" or has_room:
        return f"{found.sentence}\n"
    least = found.tokens // parallel // 256 * 256
    if least:
        return f"{found.sentence}\nThat is less than {wanted:,}: --context {least} fits.\n"
    return f"{found.sentence}\nThat is less than {wanted:,}: take a smaller quantization, or fewer chats.\n"


def size(num_bytes: int) -> str:
    """Two digits behind the point: small models and pages are to differ."""
    return f"{num_bytes / 1e9:.2f} GB" if num_bytes >= 1e8 else f"{num_bytes / 1e6:.2f} MB"
