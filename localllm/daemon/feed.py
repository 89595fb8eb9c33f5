"""The frames of the live feed, for whoever writes and whoever reads it. As JSON; bytes are in base64.

A frame says what changed since the one before it. Times are in seconds: `at` by the daemon's monotonic clock, `time`
since the epoch.
"""

from collections.abc import Mapping
from typing import Any

import msgspec

from localllm import wire


class Progress(msgspec.Struct, frozen=True):
    """How far a model has loaded."""

    stage: str = ""
    done_bytes: int = 0
    total_bytes: int = 0


class ModelRow(msgspec.Struct, frozen=True, kw_only=True):
    """A model that is loaded, loading or failed, as `ps` has it, and what memory its process really takes."""

    name: str
    state: str = ""
    digest: str = ""
    size_bytes: int = 0
    memory_bytes: int = 0
    resident_bytes: int = 0
    processor: str = ""
    backend: str = ""
    device: str = ""
    kv_type: str = ""
    quantize: str = ""
    context_length: int = 0
    page_size: int = 0
    vocab_size: int = 0
    pages_total: int = 0
    pages_used: int = 0
    pages_cached: int = 0
    max_sequences: int = 0
    running: int = 0
    waiting: int = 0
    tokens_per_s: float = 0.0
    progress: Progress | None = None
    expires_at: float | None = None
    pid: int | None = None
    load_s: float = 0.0
    error: str = ""
    notes: tuple[str, ...] = ()


class Rates(msgspec.Struct, frozen=True):
    """Between the last two snapshots of a model. `cache_hits`: the part of prompt tokens that was found, 0 to 1, since
    it was loaded."""

    prompt_tokens_per_s: float = 0.0
    generated_tokens_per_s: float = 0.0
    steps_per_s: float = 0.0
    cache_hits: float = 0.0


class RequestEvent(msgspec.Struct, frozen=True, kw_only=True):
    """Something happened to a request: queued, loading, submitted, admitted (`data` has cached and prompt tokens),
    progress (computed), first_token, preempted, resumed, finished or failed. Sequences of it are named `id/...`.

    `serial` counts the daemon's requests: a short name for people. `source` is the program that sent it, as it calls
    itself, else the name of its key; `priority` below 0 is that of batch work."""

    id: str
    model: str
    route: str
    name: str
    at: float
    time: float
    data: Mapping[str, Any] = {}
    serial: int = 0
    source: str = ""
    priority: int = 0


class Machine(msgspec.Struct, frozen=True):
    """Memory in bytes: what a new process could have, what there is, and what the daemon itself takes."""

    available_bytes: int = 0
    total_bytes: int = 0
    daemon_bytes: int = 0


class Frame(msgspec.Struct, frozen=True, kw_only=True):
    """`models` are all there are; `snapshots` and `rates`, by model, those that are new; `events` are in order, and
    `dropped` is how many before them were left out because the reader was slow."""

    at: float
    time: float
    models: list[ModelRow] = []
    snapshots: dict[str, wire.Snapshot] = {}
    rates: dict[str, Rates] = {}
    events: list[RequestEvent] = []
    dropped: int = 0
    machine: Machine = Machine()


def page_ids(view: wire.SequenceView) -> list[int]:
    """The pages of a sequence, in order."""
    return [int.from_bytes(view.pages[at : at + 4], "little") for at in range(0, len(view.pages), 4)]


def page_owners(snapshot: wire.Snapshot) -> dict[int, list[str]]:
    """For each page that sequences hold, their ids."""
    owners: dict[int, list[str]] = {}
    for view in snapshot.sequences:
        for page in page_ids(view):
            owners.setdefault(page, []).append(view.request_id)
    return owners
