"""Responses that clients may come back to, in a SQLite file of the daemon's home. Each belongs to one caller.

Bounded by age, number and size; the ones that nobody used longest go first. One thread does all the work, in order:
what was put in before is found after. A file that is damaged is set aside, and a new one begun.
"""

import asyncio
import contextlib
import logging
import os
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from localllm.errors import DiskFull, InvalidRequest, LocalLLMError, StoreError
from localllm.sqlite_files import code_of, is_damage, set_aside

logger = logging.getLogger("localllm.server")

T = TypeVar("T")
VERSION = 1
BUSY_S = 5.0
MAX_AGE_S = 30 * 86_400.0
MAX_RESPONSES = 10_000
MAX_BYTES = 2**30
MAX_CHAIN = 2048
"""Responses that one conversation may go back."""
TRIM_EVERY = 64
"""Responses between two looks at the bounds."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS responses (
    id TEXT PRIMARY KEY,
    owner TEXT NOT NULL,
    previous TEXT,
    used REAL NOT NULL,
    size INTEGER NOT NULL,
    body BLOB NOT NULL,
    input BLOB NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS by_use ON responses (used, id, size);
"""
_LEAST = f"PRAGMA user_version = {VERSION}"
_CHAIN = """
WITH RECURSIVE chain (id, previous, depth) AS (
    SELECT id, previous, 0 FROM responses WHERE id = ? AND owner = ?
    UNION ALL
    SELECT earlier.id, earlier.previous, depth + 1 FROM responses AS earlier, chain
    WHERE earlier.id = chain.previous AND earlier.owner = ? AND depth < ?
)
SELECT responses.id, responses.previous, body, input FROM chain JOIN responses USING (id) ORDER BY depth DESC
"""


@dataclass(frozen=True, slots=True)
class Stored:
    """A response. `body` and `input` (its own items, without those of responses before it) are JSON."""

    id: str
    previous: str | None
    body: bytes
    input: bytes


@dataclass(frozen=True, slots=True)
class Bounds:
    max_age_s: float = MAX_AGE_S
    max_responses: int = MAX_RESPONSES
    max_bytes: int = MAX_BYTES
    trim_every: int = TRIM_EVERY


class ResponseStore:
    """The file is made by the first response that is kept. Errors are StoreError, or DiskFull."""

    def __init__(self, path: Path, bounds: Bounds | None = None, clock: Callable[[], float] = time.time) -> None:
        self._path = path
        self._bounds = bounds or Bounds()
        self._clock = clock
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="responses")
        self._opened: sqlite3.Connection | None = None
        self._num_saves = 0

    async def ready(self) -> None:
        """Make sure that something can be kept, by writing as little as a file takes. Raises what would keep it from
        being kept."""
        await self._run(lambda: self._connection().execute(_LEAST))

    def put(self, owner: str, make: Callable[[], Stored]) -> "Future[None]":
        """Keep what `make` makes, in the thread. Requests that come later find it, even while this is under way."""
        return self._thread.submit(self._guarded, lambda: self._put(owner, make()))

    async def find(self, owner: str, response_id: str) -> Stored | None:
        """None where this caller has no such response."""
        chain = await self._run(lambda: self._rows(owner, response_id, 0))
        return chain[-1] if chain else None

    async def conversation(self, owner: str, response_id: str) -> list[Stored]:
        """The response and all before it, oldest first. Empty where this caller has no such response;
        InvalidRequest when one before it is gone, or there are too many."""
        chain = await self._run(lambda: self._rows(owner, response_id, MAX_CHAIN))
        if chain and chain[0].previous is not None:
            raise InvalidRequest(
                f"what was said before {chain[0].id} is not kept any more",
                hint="send all of the conversation as `input`",
                param="previous_response_id",
            )
        return chain

    async def delete(self, owner: str, response_id: str) -> bool:
        """False where this caller has no such response."""
        return await self._run(lambda: self._delete(owner, response_id))

    def close(self) -> None:
        """Finish what was put in."""
        self._thread.submit(self._close)
        self._thread.shutdown(wait=True)

    # ---- in the thread

    async def _run(self, work: Callable[[], T]) -> T:
        return await asyncio.wrap_future(self._thread.submit(self._guarded, work))

    def _guarded(self, work: Callable[[], T]) -> T:
        try:
            try:
                return work()
            except sqlite3.DatabaseError as error:
                if not is_damage(error):
                    raise
                self._set_aside(error)
                return work()
        except (sqlite3.Error, OSError) as error:
            raise _error_of(error, self._path) from None

    def _set_aside(self, error: sqlite3.DatabaseError) -> None:
        """Nobody else has the file open: a home has one daemon."""
        self._close()
        kept = set_aside(self._path)
        logger.warning("%s is damaged (%s); it is kept as %s, and a new one begun", self._path.name, error, kept.name)

    def _connection(self) -> sqlite3.Connection:
        if self._opened is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(self._path, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW, 0o600))
            opened = sqlite3.connect(self._path, timeout=BUSY_S, isolation_level=None)
            try:
                if opened.execute("PRAGMA user_version").fetchone()[0] > VERSION:
                    newer = f"{self._path.name} was written by a newer localllm"
                    raise StoreError(newer, hint="update localllm, or send `store`: false")
                opened.execute("PRAGMA journal_mode = WAL")
                opened.execute("PRAGMA synchronous = NORMAL")
                opened.execute("PRAGMA secure_delete = ON")  # what was deleted is not to be read from the file
                opened.executescript(_SCHEMA)
            except (sqlite3.Error, StoreError):
                opened.close()
                raise
            self._opened = opened
        return self._opened

    def _put(self, owner: str, stored: Stored) -> None:
        size = len(stored.body) + len(stored.input)
        row = (stored.id, owner, stored.previous, self._clock(), size, stored.body, stored.input)
        self._connection().execute("INSERT OR REPLACE INTO responses VALUES (?, ?, ?, ?, ?, ?, ?)", row)
        self._num_saves += 1
        if self._num_saves % self._bounds.trim_every == 1 or self._bounds.trim_every == 1:
            self._trim()

    def _rows(self, owner: str, response_id: str, depth: int) -> list[Stored]:
        if self._opened is None and not self._path.exists():
            return []
        connection = self._connection()
        rows = connection.execute(_CHAIN, (response_id, owner, owner, depth)).fetchall()
        ids = [(self._clock(), row[0]) for row in rows]
        connection.executemany("UPDATE responses SET used = ? WHERE id = ?", ids)
        return [Stored(*row) for row in rows]

    def _delete(self, owner: str, response_id: str) -> bool:
        if self._opened is None and not self._path.exists():
            return False
        gone = self._connection().execute("DELETE FROM responses WHERE id = ? AND owner = ?", (response_id, owner))
        return gone.rowcount > 0

    def _trim(self) -> None:
        connection, bounds = self._connection(), self._bounds
        connection.execute("DELETE FROM responses WHERE used < ?", (self._clock() - bounds.max_age_s,))
        surplus: list[tuple[str]] = []
        num_kept = num_bytes = 0
        for response_id, size in connection.execute("SELECT id, size FROM responses ORDER BY used DESC, id"):
            num_kept, num_bytes = num_kept + 1, num_bytes + size
            if num_kept > bounds.max_responses or num_bytes > bounds.max_bytes:
                surplus.append((response_id,))
        connection.executemany("DELETE FROM responses WHERE id = ?", surplus)

    def _close(self) -> None:
        if self._opened is not None:
            with contextlib.suppress(sqlite3.Error):
                self._opened.close()
            self._opened = None


def _error_of(error: sqlite3.Error | OSError, path: Path) -> LocalLLMError:
    if isinstance(error, sqlite3.Error) and code_of(error) == sqlite3.SQLITE_BUSY:
        return StoreError(f"another program holds {path.name}", hint="end it, or send `store`: false")
    if "full" in str(error) or "No space" in str(error):
        return DiskFull("the response cannot be kept: the disk is full", hint="make room, or send `store`: false")
    return StoreError(f"{path.name} cannot be used: {error}", hint=f"move {path} away; it holds kept responses only")
