"""One small JSON file per installed model. Written whole or not at all; a damaged one never hides the others."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import msgspec

from localllm.errors import BadModelFile, StoreError
from localllm.store.blobs import open_regular, stamp_of, sync_folder, write_atomic
from localllm.store.entry import Entry, ModelFile
from localllm.store.names import Ref

VERSION = 1
MAX_BYTES = 16 << 20
"""A manifest holds a template, a licence and some messages; what is larger is none."""


class _Manifest(msgspec.Struct, frozen=True):
    version: int
    entry: Entry


class Manifests:
    """The manifests of one store. Paths below the store are written relative to it, so that a home can be moved."""

    def __init__(self, store_dir: Path) -> None:
        self.folder = store_dir / "manifests"
        self._root = str(store_dir) + os.sep
        self._decoder = msgspec.json.Decoder(_Manifest)

    def path_of(self, ref: Ref) -> Path:
        return self.folder / f"{ref.key}.json"

    def read_all(self) -> tuple[list[Entry], list[StoreError]]:
        """All entries, and one error for each file that cannot be read."""
        entries: list[Entry] = []
        errors: list[StoreError] = []
        for path in self._paths():
            try:
                entries.append(self._read(path))
            except FileNotFoundError:
                continue  # removed since the folder was read
            except StoreError as error:
                errors.append(error)
        return entries, errors

    def get(self, ref: Ref) -> Entry | None:
        """The entry of this name; StoreError when its manifest is damaged."""
        try:
            return self._read(self.path_of(ref))
        except FileNotFoundError:
            return None

    def put(self, ref: Ref, entry: Entry) -> Entry:
        """Stores the entry with its digest, replacing an older one as a whole."""
        entry = msgspec.structs.replace(entry, digest=digest_of(entry))
        kept = self._mapped(entry, self._relative)
        write_atomic(self.path_of(ref), msgspec.json.format(msgspec.json.encode(_Manifest(VERSION, kept)), indent=1))
        return entry

    def delete(self, ref: Ref) -> None:
        self.path_of(ref).unlink(missing_ok=True)
        if self.folder.is_dir():
            sync_folder(self.folder)

    def _paths(self) -> list[Path]:
        try:
            with os.scandir(self.folder) as found:
                return [
                    Path(item.path) for item in found if item.name.endswith(".json") and not item.name.startswith(".")
                ]
        except FileNotFoundError:
            return []

    def _read(self, path: Path) -> Entry:
        raw = _bytes_of(path)
        try:
            manifest = self._decoder.decode(raw)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise _damaged(path, str(error)) from None
        if manifest.version != VERSION:
            raise StoreError(
                f"the manifest {path} has version {manifest.version}, this localllm knows {VERSION}",
                hint="update localllm",
            )
        if problem := _nonsense_in(manifest.entry):
            raise _damaged(path, problem)
        return self._mapped(manifest.entry, self._absolute)

    def _mapped(self, entry: Entry, change: Callable[[str], str]) -> Entry:
        files = tuple(msgspec.structs.replace(file, path=change(file.path)) for file in entry.files)
        adapters = tuple(map(change, entry.adapters))
        return msgspec.structs.replace(entry, path=change(entry.path), files=files, adapters=adapters)

    def _relative(self, path: str) -> str:
        return path.removeprefix(self._root)

    def _absolute(self, path: str) -> str:
        return path if os.path.isabs(path) else self._root + path


def _bytes_of(path: Path) -> bytes:
    """FileNotFoundError where there is none; StoreError for what cannot be read or is no manifest."""
    try:
        with open_regular(path) as file:
            raw = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise StoreError(f"the manifest {path} cannot be read: {reason}", hint="see who owns it") from None
    except BadModelFile as error:
        raise StoreError(error.message, hint="move it away: it is no manifest of ours") from None
    if len(raw) > MAX_BYTES:
        raise _damaged(path, f"it has more than {MAX_BYTES} bytes")
    return raw


def _damaged(path: Path, why: str) -> StoreError:
    return StoreError(
        f"the manifest {path} is damaged: {why}", hint="`localllm rm` removes it; then pull the model again"
    )


def _nonsense_in(entry: Entry) -> str:
    """What is wrong with an entry whose fields have their types; "" where nothing is."""
    for path in (entry.path, *entry.adapters, *(file.path for file in entry.files)):
        if not path or "\0" in path:
            return f"{path!r} is no path"
        if not os.path.isabs(path) and ".." in Path(path).parts:
            return f"{path!r} leads out of the store"
    if not entry.name.isprintable() or not entry.name:
        return f"{entry.name!r} is no name"
    if not all({"role", "content"} <= set(message) for message in entry.messages):
        return "a message of it lacks its role or its content"
    return ""


def digest_of(entry: Entry) -> str:
    """64 hex digits over all that changes an answer: equal for copies, whatever their name, place and age."""
    files = tuple(map(_identity, entry.files))
    bare = msgspec.structs.replace(
        entry, name="", path="", digest="", modified=0.0, files=files, parent="", notes=(), receipt=None
    )
    # what was measured of a model changes none of its answers, and models had digests before there were receipts
    told = msgspec.json.encode(bare, order="deterministic").removesuffix(b',"receipt":null}') + b"}"
    return hashlib.sha256(told).hexdigest()


def _identity(file: ModelFile) -> ModelFile:
    """What makes a file the one it is: its checksum, or, where none is known, its place, size and time."""
    if file.sha256:
        return ModelFile(path=os.path.basename(file.path), size_bytes=file.size_bytes, sha256=file.sha256)
    try:
        stamp = stamp_of(file.path)
    except OSError:
        stamp = ""
    return ModelFile(path=file.path, size_bytes=file.size_bytes, stamp=stamp)
