"""What a model will need before it is loaded, and which idle models would have to go for it. Pure arithmetic."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from localllm import wire
from localllm.store.entry import Entry

MARGIN = 1.15
"""A loaded model needs about this many times its weights: they, the process, and what steps compute with."""
LEAST_KV_BYTES = 32 * 2**20
_BITS = {"q8_0": 8.5, "q4_0": 4.5, "q4_k": 4.5}
_FLOAT_BITS = 16.0

Outcome = Literal["fits", "evict", "wait", "never"]


@dataclass(frozen=True, slots=True)
class Holder:
    """A loaded model as the plan sees it. `num_bytes` come free when it goes."""

    name: str
    num_bytes: int
    is_idle: bool
    last_used: float


@dataclass(frozen=True, slots=True)
class Plan:
    """`evict`: these models make enough room, least recently used first. `wait`: there will be enough once the others
    have nothing to do. `never`: all models together hold too little. Sizes in bytes."""

    outcome: Outcome
    needed: int
    available: int
    evictable: int
    evict: tuple[str, ...] = ()

    @property
    def numbers(self) -> str:
        """For people."""
        return f"about {gigabytes(self.needed)} is needed, {gigabytes(self.available)} is free"


def needed_bytes(entry: Entry, load: wire.Load) -> int:
    """Weights as they will be in memory, with a margin, and the least of KV pages that is of any use."""
    share = _BITS.get(load.quantize, _FLOAT_BITS) / _FLOAT_BITS if entry.quantization.lower() in _FLOATS else 1.0
    return int(entry.size_bytes * share * MARGIN) + (LEAST_KV_BYTES if entry.size_bytes > LEAST_KV_BYTES else 0)


_FLOATS = ("", "f16", "bf16", "f32")


def plan(needed: int, available: int, holders: Sequence[Holder]) -> Plan:
    """What has to happen before so many bytes are there. Nobody is to go unless that is enough."""
    idle = sorted((holder for holder in holders if holder.is_idle), key=lambda holder: holder.last_used)
    evictable, room, going = sum(holder.num_bytes for holder in idle), available, []
    if needed <= available:
        return Plan("fits", needed, available, evictable)
    for holder in idle:
        room += holder.num_bytes
        going.append(holder.name)
        if needed <= room:
            return Plan("evict", needed, available, evictable, tuple(going))
    all_of_it = available + sum(holder.num_bytes for holder in holders)
    return Plan("wait" if needed <= all_of_it else "never", needed, available, evictable)


def gigabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 5e7 else f"{num_bytes / 1e6:.1f} MB"
