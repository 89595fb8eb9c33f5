"""The file of chats: opened for its owner only, brought up to date, set aside when damaged; errors in our words."""

import contextlib
import fcntl
import os
import shutil
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from localllm.errors import ChatsUnusable, DiskFull, LocalLLMError
from localllm.history.schema import INDEX, STEPS, VERSION
from localllm.sqlite_files import code_of, is_damage, set_aside

BUSY_S = 10.0
LEAST_FREE_BYTES = 1 << 16
"""Of what SQLite needs beside the file, to read it as well: where that has no room it says no more than I/O error."""


class Database:
    """One connection, usable from any thread. `notice` is a sentence for the person, where opening had to act."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.notice = ""
        self._lock = threading.RLock()
        self._connection = self._opened()
        self.has_index = self._make_index()

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    def rows(self, query: str, *values: Any) -> list[Any]:
        with self._lock, self._our_words():
            return self._connection.execute(query, values).fetchall()

    @contextlib.contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction: all of it or nothing. DiskFull or ChatsUnusable when it cannot be written."""
        with self._lock, self._our_words():
            if self._connection.in_transaction:  # part of a greater whole
                yield self._connection
                return
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):  # SQLite rolls some of them back itself
                    self._connection.execute("ROLLBACK")
                raise

    # ---- opening

    def _opened(self) -> sqlite3.Connection:
        try:
            return self._connected()
        except sqlite3.DatabaseError as error:
            if not is_damage(error):
                raise in_our_words(error, self.path) from None
            self._set_aside()
        with self._our_words():
            return self._connected()

    def _connected(self) -> sqlite3.Connection:
        self._make_file()
        connection = sqlite3.connect(self.path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")  # a crash of ours loses nothing, one of power a moment
            connection.execute("PRAGMA foreign_keys = ON")
            self._migrate(connection)
            connection.execute("SELECT count(*) FROM chats, (SELECT max(id) FROM messages)").fetchone()
        except BaseException:
            connection.close()
            raise
        return connection

    def _make_file(self) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        except OSError as error:
            hint = "set LOCALLLM_HOME to a folder that you may write to"
            raise ChatsUnusable(f"{self.path} cannot be opened ({error.strerror})", hint=hint) from None

    def _migrate(self, connection: sqlite3.Connection) -> None:
        if _version(connection) == VERSION:
            return
        connection.execute("BEGIN IMMEDIATE")  # and look again: another process may have done it
        try:
            found = _version(connection)
            if found > VERSION:
                raise ChatsUnusable(f"{self.path} was written by a newer localllm", hint="update localllm")
            for step in STEPS[found:]:
                for statement in _statements(step):
                    connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {VERSION}")
        except BaseException:
            connection.execute("ROLLBACK")
            raise
        connection.execute("COMMIT")

    def _make_index(self) -> bool:
        """Whether this SQLite can index words; search reads everything where it cannot."""
        try:
            with self._lock:
                self._connection.execute(INDEX)
        except sqlite3.OperationalError:
            return False
        return True

    def _set_aside(self) -> None:
        """Renames the damaged file, with what belongs to it. Only one process does it, and only to the damaged one."""
        with open(self.path.with_suffix(".lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            try:
                self._connected().close()  # another process was faster
                return
            except sqlite3.DatabaseError:
                pass
            kept = set_aside(self.path)
        self.notice = f"The file of chats was damaged. It was kept as {kept}, and a new one was begun."

    @contextlib.contextmanager
    def _our_words(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise in_our_words(error, self.path) from None


def in_our_words(error: sqlite3.Error, path: Path) -> LocalLLMError:
    """SQLite's error as one of ours."""
    code = code_of(error)
    if code == sqlite3.SQLITE_FULL:
        return DiskFull("the disk is full: the chat was not written", hint="free some space, and try again")
    if code == sqlite3.SQLITE_IOERR and shutil.disk_usage(path.parent).free < LEAST_FREE_BYTES:
        return DiskFull(f"the disk is full: {path} cannot be opened", hint="free some space, and try again")
    if is_damage(error):
        hint = "move it away to begin a new one; `sqlite3 FILE .recover` may read what is left"
        return ChatsUnusable(f"{path} is damaged ({error})", hint=hint)
    if code == sqlite3.SQLITE_BUSY:
        return ChatsUnusable(f"another program holds {path}", hint="end it, or try again")
    return ChatsUnusable(
        f"{path} cannot be used ({error})", hint="see that you may write to it, and that it is no link"
    )


def _version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def _statements(script: str) -> Iterator[str]:
    """One by one: `executescript` would commit between them."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if statement.strip() and sqlite3.complete_statement(statement):
            yield statement
            statement = ""
