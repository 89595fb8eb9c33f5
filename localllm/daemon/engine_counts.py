"""Counts of engines that go on when a model is unloaded and loaded again, and how often that happened.

Workers count for themselves and tell it in their snapshots; a new worker begins at zero.
"""

from collections import Counter
from collections.abc import Mapping

from localllm import wire
from localllm.daemon.residency import Residency
from localllm.daemon.resident import Resident

COUNTERS: Mapping[str, tuple[str, str]] = {
    "prefix_cache_queries": ("num_prompt_tokens", "prompt tokens that were looked up in the prefix cache"),
    "prefix_cache_hits": ("num_cached_tokens", "prompt tokens that were found in the prefix cache"),
    "prompt_tokens": ("num_prompt_tokens", "tokens of prompts"),
    "generation_tokens": ("num_generated_tokens", "tokens that were generated"),
    "num_preemptions": ("num_preemptions", "times that a sequence gave its memory to others"),
    "engine_steps": ("num_steps", "steps of the engine"),
    "spec_decode_num_drafts": ("num_drafts", "times that tokens were guessed"),
    "spec_decode_num_draft_tokens": ("num_drafted_tokens", "tokens that were guessed"),
    "spec_decode_num_accepted_tokens": ("num_accepted_tokens", "guessed tokens that stand"),
}
"""Names of metrics: a field of the snapshot, and what it counts."""
FIELDS = sorted({field for field, _ in COUNTERS.values()} | {"num_step_tokens"})


class Counts(Counter[str]):
    """Of one model, by fields of the snapshot. `step_sizes` counts steps by their tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.step_sizes = [0] * (len(wire.STEP_TOKEN_BOUNDS) + 1)

    def add(self, snapshot: wire.Snapshot) -> None:
        for field in FIELDS:
            self[field] += getattr(snapshot, field)
        pairs = zip(self.step_sizes, snapshot.step_sizes, strict=False)
        self.step_sizes = [own + more for own, more in pairs] if snapshot.step_sizes else self.step_sizes


class EngineCounts:
    """Listens to a residency; every count is by the model's name."""

    def __init__(self, residency: Residency) -> None:
        self.loads: Counter[str] = Counter()
        self.crashes: Counter[str] = Counter()
        self.evictions: Counter[str] = Counter()
        self._residency = residency
        self._past: dict[str, Counts] = {}
        self._present: dict[str, tuple[Resident, wire.Snapshot | None]] = {}
        self._last_eviction: object = None
        residency.watch(self._note)

    def by_model(self) -> dict[str, Counts]:
        """Past workers and present ones together."""
        found: dict[str, Counts] = {}
        for name in {**self._past, **self._present}:
            found[name] = self._sum(name)
        return found

    def _sum(self, name: str) -> Counts:
        total = Counts()
        past = self._past.get(name)
        if past is not None:
            total.update(past)
            total.step_sizes = past.step_sizes.copy()
        _, snapshot = self._present.get(name, (None, None))
        if snapshot is not None:
            total.add(snapshot)
        return total

    def _note(self, resident: Resident) -> None:
        """Called for every snapshot and every change of state."""
        name = resident.entry.name
        known, snapshot = self._present.get(name, (None, None))
        if known is not resident:
            self._put_past(name, snapshot)
        was_ready = known is resident
        if resident.state == "ready" and not was_ready:
            self.loads[name] += 1
        if resident.state == "ready" or was_ready:
            self._present[name] = resident, resident.snapshot
        if resident.gone.is_set():
            self._note_end(resident)

    def _note_end(self, resident: Resident) -> None:
        self.crashes[resident.entry.name] += resident.crashed
        for eviction in reversed(self._residency.evictions):
            if eviction is self._last_eviction:
                break
            self.evictions[eviction.name] += 1
        if self._residency.evictions:
            self._last_eviction = self._residency.evictions[-1]

    def _put_past(self, name: str, snapshot: wire.Snapshot | None) -> None:
        if snapshot is not None:
            self._past.setdefault(name, Counts()).add(snapshot)
            del self._present[name]
