"""A half-written file and the list of its finished parts, so that a killed run loses one part at most.

A part counts as finished when the journal names it and its bytes have the digest that stands there.
"""

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import msgspec

from localllm.errors import StoreError
from localllm.formats.gguf_write import sync_folder

_CHUNK_BYTES = 1 << 24


class JournalEntry(msgspec.Struct, frozen=True):
    """A finished part; `of_what` tells what it was made with beside the job's own key."""

    name: str
    offset: int
    size_bytes: int
    digest: str
    of_what: str = ""


class _Front(msgspec.Struct, frozen=True):
    job: str
    size_bytes: int


class Journal:
    """Writes the parts of one file. `open` it; then `finish` gives the file its name, `discard` leaves nothing."""

    def __init__(self, path: Path, file: BinaryIO, lines: BinaryIO, kept: dict[str, JournalEntry]) -> None:
        self._path = path
        self._file = file
        self._lines = lines
        self._kept = kept

    @classmethod
    @contextmanager
    def open(cls, path: Path, job: str, size_bytes: int) -> "Iterator[Journal]":
        """Go on with what a run of the same `job` left, or begin anew. StoreError while another process writes it."""
        with open(_journal_path(path), "a+b") as lines:
            _lock(lines, path)
            front = _Front(job, size_bytes)
            entries = _entries(lines, front)
            with open(partial_path(path), "r+b" if entries and partial_path(path).exists() else "w+b") as file:
                kept = {entry.name: entry for entry in entries if _is_there(file, entry)}
                _start(lines, front, kept)
                file.truncate(size_bytes)
                yield cls(path, file, lines, kept)

    @property
    def kept_bytes(self) -> int:
        """Of the parts that an earlier run has finished."""
        return sum(entry.size_bytes for entry in self._kept.values())

    @property
    def num_kept(self) -> int:
        """Of the parts that an earlier run has finished, how many there are."""
        return len(self._kept)

    def has(self, name: str, of_what: str = "") -> bool:
        """Whether an earlier run has finished the part, made with the same."""
        entry = self._kept.get(name)
        return entry is not None and entry.of_what == of_what

    def write_at(self, offset: int, data: bytes | memoryview) -> None:
        self._file.seek(offset)
        self._file.write(data)

    def add(self, entry: JournalEntry) -> None:
        """The part is written; it counts from now on."""
        self._file.flush()
        _append(self._lines, entry)

    def flush(self) -> None:
        """What was written can be read."""
        self._file.flush()

    def finish(self) -> None:
        """Everything is written: the file gets its name once it is on the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())
        os.replace(partial_path(self._path), self._path)
        sync_folder(self._path.parent)
        _journal_path(self._path).unlink(missing_ok=True)

    def discard(self) -> None:
        partial_path(self._path).unlink(missing_ok=True)
        _journal_path(self._path).unlink(missing_ok=True)


def partial_path(path: Path) -> Path:
    return path.with_name(f".{path.name}.partial")


def _journal_path(path: Path) -> Path:
    return path.with_name(f".{path.name}.journal")


def _lock(lines: BinaryIO, path: Path) -> None:
    try:
        fcntl.flock(lines, fcntl.LOCK_EX | fcntl.LOCK_NB)
        is_mine = os.path.samestat(os.fstat(lines.fileno()), _journal_path(path).stat())
    except (BlockingIOError, FileNotFoundError):
        is_mine = False  # taken, or just finished by somebody else
    if not is_mine:
        raise StoreError(f"another process is writing {path}", hint="wait until it is done, or name another file")


def _entries(lines: BinaryIO, front: _Front) -> list[JournalEntry]:
    """Of the same job; a line that a kill cut short ends the list."""
    lines.seek(0)
    first, *rest = lines.read().split(b"\n")[:-1] or [b""]
    try:
        if msgspec.json.decode(first, type=_Front) != front:
            return []
        return [msgspec.json.decode(line, type=JournalEntry) for line in rest]
    except msgspec.DecodeError:
        return []


def _is_there(file: BinaryIO, entry: JournalEntry) -> bool:
    digest, left = hashlib.sha256(), entry.size_bytes
    file.seek(entry.offset)
    while left and (chunk := file.read(min(left, _CHUNK_BYTES))):
        digest.update(chunk)
        left -= len(chunk)
    return not left and digest.hexdigest() == entry.digest


def _start(lines: BinaryIO, front: _Front, kept: dict[str, JournalEntry]) -> None:
    """Only what was found in order stands in the journal from here on."""
    lines.truncate(0)
    _append(lines, front)
    for entry in kept.values():
        _append(lines, entry)


def _append(lines: BinaryIO, item: msgspec.Struct) -> None:
    lines.write(msgspec.json.encode(item) + b"\n")
    lines.flush()
