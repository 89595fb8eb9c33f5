"""Deleting what only we use: never a file that another manifest of ours names, never one that we did not bring."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from localllm.errors import StoreError
from localllm.store.entry import Entry, ModelFile


def delete_unneeded(entry: Entry, rest: tuple[list[Entry], list[StoreError]], store_dir: Path) -> None:
    """`rest` is what the store still holds. With a damaged manifest in it nobody knows what that needs: all stay."""
    others, damaged = rest
    if damaged:
        return
    needed = {os.path.realpath(file.path) for other in others for file in other.files}
    for file in entry.files:
        if file.is_ours and os.path.realpath(file.path) not in needed:
            _delete(file, store_dir)


def _delete(file: ModelFile, store_dir: Path) -> None:
    path = Path(file.path)
    blob = Path(os.path.realpath(path))
    if path.is_dir():  # whoever put it there in the place of ours
        return
    try:
        path.unlink(missing_ok=True)
        if blob != path and not _is_linked(blob, path):
            blob.unlink(missing_ok=True)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise StoreError(
            f"the model is forgotten, but {path} stays: {reason}", hint="see who owns it, and delete it by hand"
        ) from None
    _remove_empty_folders(path.parent, store_dir / "files")


def _is_linked(blob: Path, pointer: Path) -> bool:
    """Whether another snapshot of the Hugging Face cache still points at the blob."""
    snapshots = next((folder for folder in pointer.parents if folder.name == "snapshots"), None)
    if snapshots is None:
        return True
    return any(link.is_symlink() and os.path.realpath(link) == str(blob) for link in snapshots.rglob("*"))


def _remove_empty_folders(folder: Path, files_dir: Path) -> None:
    with contextlib.suppress(OSError):  # the first folder that is not empty ends it
        while folder != files_dir and ("snapshots" in folder.parts or folder.is_relative_to(files_dir)):
            folder.rmdir()
            folder = folder.parent
