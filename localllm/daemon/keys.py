"""API keys of this home: random, shown once, kept as hashes in a file of their owner's.

A key is 256 random bits, so that its plain SHA-256 is enough at rest: slow hashes protect what people can guess, and
would cost every request milliseconds.
"""

import contextlib
import hashlib
import os
import re
import secrets
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import msgspec

from localllm.daemon.home import locked
from localllm.errors import StoreError, UsageError

KeyScope = Literal["inference", "manage"]
SCOPES: tuple[KeyScope, ...] = ("inference", "manage")
PREFIX = "llm-"
LOCK_WAIT_S = 5.0
NOTE_EVERY_S = 60.0
"""How old a key's last use may be in the file."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")


class Key(msgspec.Struct, frozen=True):
    """What is kept of a key. `digest` is the SHA-256 of all of it, in hexadecimal digits; times are in seconds since
    the epoch, `last_used` to the minute."""

    name: str
    digest: str
    scopes: tuple[KeyScope, ...]
    created: float
    last_used: float | None = None


class _File(msgspec.Struct, forbid_unknown_fields=True):
    keys: list[Key]


def digest_of(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


class KeyFile:
    """`keys.json` in the home. Every change is made under a lock and seen by a running daemon at its next request."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._seen: tuple[int, int, int] | None = None
        self._keys: tuple[Key, ...] = ()

    def all(self) -> tuple[Key, ...]:
        """In the order they were made. Costs one look at the file's status while nothing changes. StoreError: the file
        makes no sense or may be read by others."""
        try:
            status = self.path.stat()
        except FileNotFoundError:
            self._seen, self._keys = None, ()
            return ()
        seen = (status.st_mtime_ns, status.st_size, status.st_ino)
        if seen != self._seen:
            if status.st_mode & 0o077:
                raise StoreError(f"{self.path} may be read by others", hint=f"run `chmod 600 {self.path}`")
            self._keys, self._seen = tuple(self._read().keys), seen
        return self._keys

    def create(self, name: str, scopes: Sequence[KeyScope]) -> str:
        """A new key, which nobody can show again. UsageError: the name is taken or is none."""
        if not _NAME.fullmatch(name):
            raise UsageError(f"{name[:80]!r} is no name for a key", hint="letters, digits and . _ @ - make one")
        secret = PREFIX + secrets.token_urlsafe(32)
        with self._changing() as keys:
            if any(key.name == name for key in keys):
                raise UsageError(
                    f"there is a key named {name} already", hint=f"`localllm keys revoke {name}` removes it"
                )
            keys.append(Key(name, digest_of(secret), tuple(dict.fromkeys(scopes)), time.time()))
        return secret

    def revoke(self, name: str) -> None:
        """UsageError where there is none of this name."""
        with self._changing() as keys:
            left = [key for key in keys if key.name != name]
            if len(left) == len(keys):
                raise UsageError(f"there is no key named {name[:80]!r}", hint="see `localllm keys list`")
            keys[:] = left

    def note_use(self, key: Key, now: float) -> None:
        """Not more than once a minute; it can be missed while somebody else changes the file, or the disk is full."""
        if now - (key.last_used or 0.0) < NOTE_EVERY_S:
            return
        with contextlib.suppress(StoreError, OSError), self._changing(wait_s=0.0) as keys:
            keys[:] = [msgspec.structs.replace(each, last_used=now) if each == key else each for each in keys]

    @contextlib.contextmanager
    def _changing(self, wait_s: float = LOCK_WAIT_S) -> Iterator[list[Key]]:
        """The keys as a list; what it holds at the end of the block is written, unless the block fails."""
        with locked(self.path.with_suffix(".lock"), wait_s=wait_s) as is_ours:
            if not is_ours:
                raise StoreError(f"another process is changing {self.path}", hint="try again")
            keys = self._read().keys
            yield keys
            self._write(keys)

    def _read(self) -> _File:
        try:
            return msgspec.json.decode(self.path.read_bytes(), type=_File)
        except FileNotFoundError:
            return _File([])
        except (OSError, msgspec.MsgspecError) as error:
            raise StoreError(f"{self.path} makes no sense: {error}", hint="remove it, and create new keys") from None

    def _write(self, keys: list[Key]) -> None:
        """Whoever reads the file sees all of it or the one before, and nobody but its owner does."""
        partial = self.path.with_suffix(f".{os.getpid()}.tmp")
        partial.unlink(missing_ok=True)
        try:
            descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(msgspec.json.format(msgspec.json.encode(_File(keys)), indent=2) + b"\n")
            os.replace(partial, self.path)
        finally:
            partial.unlink(missing_ok=True)  # of a disk that filled up
