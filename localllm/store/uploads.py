"""Files that others send for models of their own: kept by digest until a model takes them over, then forgotten here.

The name of a file is its digest and nothing else of what was sent; no path of a stranger is ever joined to ours.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO

import msgspec

from localllm.errors import InvalidRequest
from localllm.formats.sniff import sniff
from localllm.store.blobs import FreeBytes, check_space, disk_errors, free_bytes, stamp_of, sync_folder
from localllm.store.details import refuse_unsafe
from localllm.store.entry import Entry, ModelFile

MAX_UPLOAD_BYTES = 1 << 40
MAX_FILES = 1024
KEPT_S = 7 * 86400.0
"""So long a file waits for a model to take it."""
SPACE_CHECK_BYTES = 64 << 20

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}")


def checked_digest(digest: str) -> str:
    """The 64 hex digits. InvalidRequest for anything but `sha256:` and those."""
    if not _DIGEST.fullmatch(digest):
        raise InvalidRequest("a digest is sha256: and 64 hex digits in lower case", param="digest")
    return digest.removeprefix("sha256:")


class Uploads:
    """The files of one store that wait for a model."""

    def __init__(self, store_dir: Path, free: FreeBytes = free_bytes) -> None:
        self.folder = store_dir / "uploads"
        self._files_dir = store_dir / "files"
        self._free = free

    def find(self, digest: str, entries: Iterable[Entry]) -> Path | None:
        """The file of this digest: one that waits, or one that a model of ours holds."""
        digits = checked_digest(digest)
        held = (file.path for entry in entries for file in entry.files if file.is_ours and file.sha256 == digits)
        places = [self._place(digits), *map(Path, held)]
        return next((path for path in places if path.is_file() and not path.is_symlink()), None)

    def receive(self, digest: str, size_bytes: int = 0) -> Upload:
        """A file to write. DiskFull at once where `size_bytes` (0: unknown) would not fit."""
        digits = checked_digest(digest)
        if size_bytes > MAX_UPLOAD_BYTES:
            raise InvalidRequest(f"a file may have {MAX_UPLOAD_BYTES >> 30} GiB", param="digest")
        self.folder.mkdir(parents=True, exist_ok=True)
        self._forget_old()
        check_space(self.folder, size_bytes, self._free)
        return Upload(self._place(digits), digits, self._free)

    def gather(self, files: Mapping[str, str], entries: Iterable[Entry]) -> Gathered:
        """The files under the names of a model folder, taking no room of their own. InvalidRequest names a wrong name,
        a digest that was never sent, or a file that could run code."""
        if not 0 < len(files) <= MAX_FILES:
            raise InvalidRequest(f"files may hold 1 to {MAX_FILES} files", param="files")
        known, sources = list(entries), {}
        for name, digest in files.items():
            if not _NAME.fullmatch(name) or ".." in name:
                raise InvalidRequest(f"files names {name[:100]!r}, which is no plain file name", param="files")
            refuse_unsafe(Path(name))
            source = self.find(digest, known)
            if source is None:
                raise InvalidRequest(f'blob "{digest}" not found', hint="send it to /api/blobs first", param="files")
            sources[_suffixed(name, source)] = (source, digest.removeprefix("sha256:"))
        listing = "\n".join(f"{name} {digits}" for name, (_, digits) in sorted(sources.items()))
        folder = self._files_dir / hashlib.sha256(listing.encode()).hexdigest()
        folder.mkdir(parents=True, exist_ok=True)
        for name, (source, _) in sources.items():
            _link(source, folder / name)
        sync_folder(folder)
        return Gathered(folder, {str(folder / name): digits for name, (_, digits) in sources.items()})

    def forget(self, digests: Iterable[str]) -> None:
        """A model has them now."""
        for digits in digests:
            self._place(digits).unlink(missing_ok=True)

    def _place(self, digits: str) -> Path:
        return self.folder / f"sha256-{digits}"

    def _forget_old(self) -> None:
        for path in self.folder.iterdir():
            with contextlib.suppress(OSError):
                if path.stat().st_mtime < time.time() - KEPT_S:
                    path.unlink()


class Upload:
    """A file that arrives. `commit` checks its digest and puts it in place; otherwise it is gone with the block."""

    def __init__(self, target: Path, digits: str, free: FreeBytes) -> None:
        self._target = target
        self._digits = digits
        self._free = free
        self._part = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
        self._hash = hashlib.sha256()
        self._written = self._checked = 0
        self._file: IO[bytes] | None = None

    def __enter__(self) -> Upload:
        with disk_errors(self._part):
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            self._file = os.fdopen(os.open(self._part, flags, 0o644), "wb")
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):  # a full disk must not hide the error that is on its way
                self._file.close()
        self._part.unlink(missing_ok=True)

    def write(self, chunk: bytes) -> None:
        """DiskFull before the disk is; InvalidRequest beyond any model's size."""
        assert self._file is not None, "used outside its with block"
        self._written += len(chunk)
        if self._written > MAX_UPLOAD_BYTES:
            raise InvalidRequest(f"a file may have {MAX_UPLOAD_BYTES >> 30} GiB", param="digest")
        if self._written - self._checked >= SPACE_CHECK_BYTES:
            self._checked = self._written
            check_space(self._part.parent, 0, self._free)
        with disk_errors(self._part):
            self._file.write(chunk)
        self._hash.update(chunk)

    def commit(self) -> None:
        """InvalidRequest, and no file, when it is not what its digest says."""
        assert self._file is not None, "used outside its with block"
        found = self._hash.hexdigest()
        if found != self._digits:
            raise InvalidRequest(
                f'digest mismatch, expected "sha256:{self._digits}", got "sha256:{found}"', param="digest"
            )
        with disk_errors(self._part):
            self._file.flush()
            os.fsync(self._file.fileno())
            os.replace(self._part, self._target)
            sync_folder(self._target.parent)


class Gathered:
    """A folder of files that were sent, and the digests of its paths."""

    def __init__(self, folder: Path, digests: Mapping[str, str]) -> None:
        self.folder = folder
        self.digests = digests

    @property
    def starts(self) -> tuple[str, ...]:
        """What a Modelfile's FROM lines would name: GGUF files, or else the folder."""
        ggufs = sorted(path for path in self.digests if path.endswith(".gguf"))
        return tuple(ggufs) or (str(self.folder),)

    def taken(self, entry: Entry) -> Entry:
        """The entry with these files as ours."""
        return msgspec.structs.replace(entry, files=tuple(map(self._ours, entry.files)))

    def discard(self, kept: Iterable[Entry]) -> None:
        """Remove what no model of ours names."""
        needed = {file.path for entry in kept for file in entry.files}
        for path in self.digests:
            if path not in needed:
                Path(path).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # it may hold what another model needs
            self.folder.rmdir()

    def _ours(self, file: ModelFile) -> ModelFile:
        digits = self.digests.get(file.path)
        if digits is None:
            return file
        return msgspec.structs.replace(file, sha256=digits, stamp=stamp_of(file.path), is_ours=True)


def _suffixed(name: str, source: Path) -> str:
    """Whatever others call a GGUF file, here its name says so."""
    return name if name.lower().endswith(".gguf") or sniff(source) != "gguf" else f"{name}.gguf"


def _link(source: Path, target: Path) -> None:
    """A second name; a copy where the file system has no such thing."""
    if target.exists():
        return
    with disk_errors(target):
        try:
            os.link(source, target)
        except FileExistsError:
            return
        except OSError:
            shutil.copyfile(source, target)
