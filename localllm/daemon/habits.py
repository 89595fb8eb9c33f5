"""When each model was last used, and how fast it answered: kept in the home, so that a restart does not forget."""

import contextlib
import logging
import os
import time
from pathlib import Path

import msgspec

from localllm.daemon.journal import Event, Journal, Record
from localllm.errors import LocalLLMError
from localllm.store.blobs import write_atomic

logger = logging.getLogger("localllm.daemon")

LEAST_TOKENS = 16
"""Of an answer whose speed counts: the first tokens of a short one say little."""
SAVE_EVERY_S = 5.0
MAX_MODELS = 1000
MAX_FILE_BYTES = 2**20


class Habit(msgspec.Struct, frozen=True):
    """`used`: seconds since the epoch. `tokens_per_s` of the last long answer that had the machine for itself; 0 before
    there was one."""

    used: float = 0.0
    tokens_per_s: float = 0.0


class Habits:
    """What the journal's requests tell of their models. Everything belongs to the event loop's thread."""

    def __init__(self, path: Path, journal: Journal) -> None:
        self._path = path
        self._known = _read(path)
        self._journal = journal
        self._saved_at = 0.0
        self._was_alone: set[str] = set()
        journal.watch(self._note)

    def of(self, model: str) -> Habit:
        return self._known.get(model, Habit())

    def save(self) -> None:
        """A home that cannot be written to loses nothing but this."""
        self._saved_at = time.monotonic()
        newest = sorted(self._known.items(), key=lambda item: -item[1].used)[:MAX_MODELS]
        with contextlib.suppress(OSError, LocalLLMError):
            write_atomic(self._path, msgspec.json.encode(dict(newest)))

    def _note(self, record: Record, event: Event) -> None:
        if event.name == "first_token" and len(self._journal.running) == 1:
            self._was_alone.add(record.id)
        elif event.name == "queued":
            self._was_alone.clear()  # whoever runs now runs beside this one
        elif event.name in ("finished", "failed"):
            self._note_end(record, event)

    def _note_end(self, record: Record, event: Event) -> None:
        was_alone = record.id in self._was_alone
        self._was_alone.discard(record.id)
        if record.first("admitted") is None:
            return
        known = self.of(record.model)
        speed = _speed(record, event) if was_alone and event.name == "finished" else 0.0
        self._known[record.model] = Habit(record.wall_time(event), speed or known.tokens_per_s)
        if time.monotonic() - self._saved_at > SAVE_EVERY_S:
            self.save()


def _speed(record: Record, end: Event) -> float:
    """Tokens per second after the first one; 0 where the answer was too short to tell."""
    first = record.first("first_token")
    if first is None or record.num_tokens < LEAST_TOKENS or end.at <= first.at:
        return 0.0
    return round((record.num_tokens - 1) / (end.at - first.at), 2)


def _read(path: Path) -> dict[str, Habit]:
    try:
        if os.stat(path).st_size > MAX_FILE_BYTES:
            return {}
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Habit])
    except FileNotFoundError:
        return {}
    except (OSError, msgspec.MsgspecError) as error:
        logger.warning("%s cannot be read, and is begun again: %s", path, error)
        return {}
