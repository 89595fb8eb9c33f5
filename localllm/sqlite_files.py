"""Files of SQLite: what an error says of them, and a damaged one out of the way."""

import contextlib
import os
import sqlite3
import time
from pathlib import Path

_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_PARTS = ("", "-wal", "-shm")


def code_of(error: sqlite3.Error) -> int:
    """SQLite's code without its details; 0 where there is none."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def is_damage(error: sqlite3.Error) -> bool:
    return code_of(error) in _DAMAGED


def set_aside(path: Path) -> Path:
    """Renames the file, with what belongs to it, and answers how it is called now."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    names = (path.with_name(f"{path.name}.damaged-{stamp}{extra}") for extra in ("", *map(str, range(99))))
    kept = next(name for name in names if not name.exists())
    for part in _PARTS:
        with contextlib.suppress(FileNotFoundError):
            os.rename(f"{path}{part}", f"{kept}{part}")
    return kept
