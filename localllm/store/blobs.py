"""Files of our own on disk: written beside their place, hashed on the way, moved when whole, locked per model."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import msgspec

from localllm.errors import BadModelFile, DiskFull, DownloadError

CHUNK_BYTES = 1 << 20
CHECKPOINT_BYTES = 8 << 20  # a killed download loses at most this much
SPARE_BYTES = 64 << 20  # left free on the disk: logs and manifests must still be written

FreeBytes = Callable[[Path], int]


class PartState(msgspec.Struct, frozen=True):
    """What is known about a `.partial` file: how many bytes of it are on disk, and of which version of what."""

    done_bytes: int
    total_bytes: int
    etag: str
    origin: str


def free_bytes(folder: Path) -> int:
    """Bytes free for us on the disk that holds `folder`, which need not exist yet."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def check_space(folder: Path, needed_bytes: int, free: FreeBytes = free_bytes, moved_by: str = "LOCALLLM_HOME") -> None:
    """DiskFull, with both numbers, when `needed_bytes` would not fit with some spare. `moved_by`: the variable that
    says where the folder is."""
    available = free(folder)
    if needed_bytes + SPARE_BYTES > available:
        raise DiskFull(
            f"{gigabytes(needed_bytes)} are needed in {folder}, {gigabytes(available)} are free",
            hint=f"free some space, or choose a folder on another disk with {moved_by}",
        )


def bytes_to_come(target: Path, size_bytes: int) -> int:
    """What the disk must still give for `target`: nothing when it is there, less when a stopped download holds room."""
    if target.is_file():
        return 0
    try:
        held = target.with_name(target.name + ".partial").stat().st_blocks * 512
    except OSError:
        held = 0
    return max(0, size_bytes - held)


def gigabytes(size_bytes: int) -> str:
    return f"{size_bytes / 1e9:.2f} GB" if size_bytes >= 1e7 else f"{size_bytes / 1e6:.2f} MB"


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """A full disk, met while writing, becomes DiskFull; what is already there stays for the next try."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise DiskFull(f"the disk filled up while writing {path}", hint="free some space and try again") from None


def sync_folder(folder: Path) -> None:
    """A rename is on disk only when its folder is."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomic(path: Path, content: bytes) -> None:
    """Replaces `path` as a whole: readers see the old content or the new, also after a crash."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with disk_errors(path):
        try:
            with open(temporary, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
            sync_folder(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def model_lock(folder: Path, key: str, on_wait: Callable[[], None] | None = None) -> Iterator[None]:
    """One process at a time works on a model. The kernel drops the lock with its holder: a left file is harmless."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / f"{key}.lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if on_wait is not None:
                on_wait()
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


class PartialFile:
    """A file that grows beside its final place (`NAME.partial`) and survives a kill.

    `written` bytes are in it, and hashed. `commit` checks size and sha256 and moves it into place; leaving the `with`
    block without that keeps it for the next try. Sizes are bytes. `label`: what people call it, where its name on disk
    says nothing.
    """

    def __init__(self, target: Path, *, total_bytes: int, etag: str = "", origin: str = "", label: str = "") -> None:
        self.target = target
        self.label = label or target.name
        self.path = target.with_name(target.name + ".partial")
        self.state_path = target.with_name(target.name + ".partial.json")
        self.total_bytes = total_bytes
        self.etag = etag
        self.origin = origin
        self.written = 0
        self._checkpointed = 0
        self._hash = hashlib.sha256()
        self._file: IO[bytes] | None = None

    def __enter__(self) -> PartialFile:
        self.target.parent.mkdir(parents=True, exist_ok=True)
        with disk_errors(self.path):
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
            self._file = os.fdopen(descriptor, "r+b")
            try:
                self._rehash(self._bytes_to_keep())
                self._reserve()
            except BaseException:
                self._close()
                raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):  # a full disk must not hide the error that is on its way
                self._checkpoint()
            self._close()

    def write(self, chunk: bytes) -> None:
        if self.total_bytes and self.written + len(chunk) > self.total_bytes:
            raise DownloadError(f"{self.label} has more than the {self.total_bytes} bytes it should have")
        with disk_errors(self.path):
            self._open.write(chunk)
            self._hash.update(chunk)
            self.written += len(chunk)
            if self.written - self._checkpointed >= CHECKPOINT_BYTES:
                self._checkpoint()

    def restart(self) -> None:
        """Forgets what is there: the source has another version, or does not serve ranges."""
        self._open.seek(0)
        self.written = self._checkpointed = 0
        self._hash = hashlib.sha256()

    def commit(self, sha256: str = "") -> str:
        """Moves the whole file into place and returns its sha256. DownloadError, and no file, when it is not right."""
        if self.total_bytes and self.written != self.total_bytes:
            raise DownloadError(
                f"{self.label} stopped after {self.written} of {self.total_bytes} bytes",
                hint="pull again to go on",
            )
        found = self._hash.hexdigest()
        if sha256 and found != sha256:
            self.discard()
            raise DownloadError(
                f"{self.label} does not verify: its sha256 is {found}, not {sha256}",
                hint="pull again; if it happens twice, the source is damaged",
            )
        self._install()
        return found

    def discard(self) -> None:
        self._close()
        for path in (self.path, self.state_path):
            path.unlink(missing_ok=True)

    @property
    def _open(self) -> IO[bytes]:
        assert self._file is not None, "used outside its with block"
        return self._file

    def _install(self) -> None:
        with disk_errors(self.path):
            self._open.truncate(self.written)
            self._open.flush()
            os.fsync(self._open.fileno())
            os.replace(self.path, self.target)
            sync_folder(self.target.parent)
        self.state_path.unlink(missing_ok=True)
        self._close()

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _bytes_to_keep(self) -> int:
        if not self.etag:  # nobody can say whether the rest would belong to the same version
            return 0
        try:
            state = msgspec.json.decode(self.state_path.read_bytes(), type=PartState)
        except (OSError, msgspec.DecodeError):
            return 0
        same = (state.total_bytes, state.etag, state.origin) == (self.total_bytes, self.etag, self.origin)
        on_disk = os.fstat(self._open.fileno()).st_size
        return state.done_bytes if same and 0 <= state.done_bytes <= on_disk else 0

    def _rehash(self, keep_bytes: int) -> None:
        # hashing again reads from disk at gigabytes per second; a hash state cannot be saved
        while self.written < keep_bytes:
            chunk = self._open.read(min(CHUNK_BYTES, keep_bytes - self.written))
            if not chunk:
                break
            self._hash.update(chunk)
            self.written += len(chunk)
        self._checkpointed = self.written
        self._open.seek(self.written)

    def _reserve(self) -> None:
        """Takes the room now, so that a full disk shows before the first byte is fetched."""
        if not self.total_bytes or not hasattr(os, "posix_fallocate"):  # macOS has none
            return
        try:
            os.posix_fallocate(self._open.fileno(), 0, self.total_bytes)
        except OSError as error:  # some file systems cannot: then a full disk shows later
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
                raise

    def _checkpoint(self) -> None:
        # data before state: a state never promises bytes that a crash could lose
        self._open.flush()
        os.fsync(self._open.fileno())
        state = PartState(self.written, self.total_bytes, self.etag, self.origin)
        write_atomic(self.state_path, msgspec.json.encode(state))
        self._checkpointed = self.written


def discard_partial(path: Path) -> None:
    """Deletes what a stopped download, or a stopped quantization, left; `path` is that of its `.partial` file: no other
    is touched."""
    if path.suffix != ".partial":
        return
    for left in (path, path.with_name(path.name + ".json"), path.with_suffix(".journal")):
        left.unlink(missing_ok=True)


def stamp_of(path: Path | str) -> str:
    """Size, time and inode: changes whenever the content might have."""
    info = os.stat(path)
    return f"{info.st_size}-{info.st_mtime_ns}-{info.st_ino}"


def sha256_of(path: Path | str, on_bytes: Callable[[int], Any] = lambda _: None) -> str:
    """The file's sha256 in hex; `on_bytes` gets the number of bytes of each read. BadModelFile for a device or pipe."""
    digest = hashlib.sha256()
    buffer = bytearray(CHUNK_BYTES)
    with open_regular(path) as file:
        while count := file.readinto(buffer):  # type: ignore[attr-defined]  # raw files have it
            digest.update(memoryview(buffer)[:count])
            on_bytes(count)
    return digest.hexdigest()


def open_regular(path: Path | str) -> IO[bytes]:
    """Opens for reading; BadModelFile when it is no regular file (a pipe would hang, /dev/zero would never end)."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise BadModelFile(f"{path} is no regular file")
    return os.fdopen(descriptor, "rb", buffering=0)
