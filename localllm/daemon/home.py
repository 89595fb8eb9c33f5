"""What a daemon leaves in its home while it lives: a lock nobody else can hold and a file with its address."""

import contextlib
import errno
import fcntl
import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Address:
    """Where a daemon answers. `instance` is what its /health must say; `started` is in seconds since the epoch; `token`
    opens it to whoever may read the file."""

    host: str
    port: int
    pid: int
    version: str
    started: float
    instance: str
    token: str = ""

    @property
    def url(self) -> str:
        """For clients; an address that means "every interface" is reached over loopback."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"


_KINDS: dict[str, type | tuple[type, ...]] = {
    "host": str,
    "port": int,
    "pid": int,
    "version": str,
    "started": (int, float),
    "instance": str,
    "token": str,
}


def read_address(path: Path) -> Address | None:
    """The address written there; None when there is none, or when it makes no sense."""
    try:
        address = Address(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, RecursionError):
        return None
    return address if all(isinstance(getattr(address, name), kind) for name, kind in _KINDS.items()) else None


def write_address(path: Path, address: Address) -> None:
    """Whoever reads the file sees all of it or the one before, and is its owner."""
    partial = path.with_suffix(f".{os.getpid()}.tmp")
    partial.unlink(missing_ok=True)
    try:
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(asdict(address), file)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)  # of a disk that filled up


def remove_address(path: Path, instance: str) -> None:
    """Only our own: a successor may have written its address already."""
    address = read_address(path)
    if address is not None and address.instance == instance:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(path: Path, *, wait_s: float = 0.0) -> Iterator[bool]:
    """Hold an exclusive lock on the file for the block; False when another holds it for longer than `wait_s`.

    The lock goes with the process, however it ends; the file stays and means nothing.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        is_ours = _try_lock(descriptor, time.monotonic() + wait_s)
        if is_ours:
            _sign(descriptor)
        yield is_ours
    finally:
        os.close(descriptor)


def holder_of(path: Path) -> int | None:
    """The process that holds the lock now; None when nobody does, 0 when nobody can tell."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return None
    except OSError:
        signed = os.pread(descriptor, 20, 0)
        return int(signed) if signed.isdigit() and len(signed) < 10 else 0  # ids have 22 bits, or 32
    finally:
        os.close(descriptor)


def _sign(descriptor: int) -> None:
    """Our process id, for who asks while the lock is held; a full disk costs no more than that."""
    with contextlib.suppress(OSError):
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)


def _try_lock(descriptor: int, deadline: float) -> bool:
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.01)
