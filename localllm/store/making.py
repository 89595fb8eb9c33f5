"""Models of one's own on a shelf: made from a Modelfile, quantized, copied, or from files that were sent."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

import msgspec

from localllm.errors import StoreError
from localllm.store.entry import NEIGHBOURS, Entry
from localllm.store.modelfile import Modelfile
from localllm.store.names import Ref
from localllm.store.plan import Say
from localllm.store.shelf import Shelf

if TYPE_CHECKING:
    from localllm.store.library import Library
    from localllm.store.quantized import Quantizing
    from localllm.store.uploads import Gathered


def commit_made(shelf: Shelf, ref: Ref, entry: Entry, say: Say) -> Entry:
    """In the place of an older one, whose files go when they were sent here and nothing else of ours needs them."""
    with shelf.locked(ref, say):
        refuse_to_orphan(shelf, ref, entry)
        old = shelf.manifests.get(ref)
        made = shelf.commit(ref, entry)
        if old is not None:
            shelf.discard(old)
        return made


def refuse_to_orphan(shelf: Shelf, ref: Ref, new: Entry) -> None:
    """A name is not taken from a model whose download nothing else of ours would hold on to."""
    old = shelf.manifests.get(ref)
    if old is None or old.source == "path":  # what was sent, and not fetched, its sender has
        return
    others = [entry for entry in shelf.own_entries() if entry.name != old.name]
    held = {file.path for entry in (new, *others) for file in entry.files}
    if any(file.is_ours and file.path not in held for file in old.files):
        raise StoreError(
            f"{old.name} is here, with a download of its own",
            hint=f"choose another name, or remove it first: localllm rm {old.name}",
        )


def rounded(shelf: Shelf, entry: Entry, way: Quantizing | None, say: Say, of: str = "") -> Entry:
    """The entry with weights in the `way` that is given, if any. `of`: what it is made from, where its name is new."""
    if way is None:
        return entry
    from localllm.store.quantized import quantized  # deferred: few models are

    source = msgspec.structs.replace(entry, name=of or entry.name)
    made = quantized(source, way, shelf.settings.store_dir, shelf.free, say)
    return msgspec.structs.replace(made, name=entry.name)


def renamed(entry: Entry, ref: Ref) -> Entry:
    """The same files under a name of ours; a neighbour's stay the neighbour's."""
    source = "path" if entry.source in NEIGHBOURS else entry.source
    return msgspec.structs.replace(entry, name=ref.display, source=source, modified=time.time())


def make_from_uploads(
    library: Library, ref: Ref, modelfile: Modelfile, files: Mapping[str, str], say: Say, way: Quantizing | None
) -> Entry:
    """`files`, names with digests of what was sent, stand in for the FROM lines and become the model's own."""
    from localllm.store.create import derived_entry  # deferred: opens files, which `list` never does

    gathered = library.uploads.gather(files, library.own_entries())
    try:
        started = dataclasses.replace(modelfile, from_=gathered.starts)
        entry = gathered.taken(derived_entry(library, ref.display, started, gathered.folder, say))
        entry = msgspec.structs.replace(rounded(library, entry, way, say, entry.parent), parent="")
        return commit_made(library, ref, entry, say)
    finally:
        _forget_uploads(library, gathered)


def _forget_uploads(library: Library, gathered: Gathered) -> None:
    """What a model took over is its own from here on; the rest goes, or waits for another try."""
    with library.store_lock():
        kept = library.own_entries()
        gathered.discard(kept)
        held = {file.path for entry in kept for file in entry.files}
        library.uploads.forget(digits for path, digits in gathered.digests.items() if path in held)
