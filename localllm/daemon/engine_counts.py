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

    def copied(self) -> "Counts":
        copy = Counts()
        copy.update(self)
        copy.step_sizes = self.step_sizes.copy()
        return copy

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
        self._present: dict[Resident, wire.Snapshot | None] = {}
        self._last_eviction: object = None
        residency.watch(self._note)

    def by_model(self) -> dict[str, Counts]:
        """Past workers and present ones together."""
        found = {name: past.copied() for name, past in self._past.items()}
        for resident, snapshot in self._present.items():
            counts = found.setdefault(resident.entry.name, Counts())
            if snapshot is not None:
                counts.add(snapshot)
        return found

    def _note(self, resident: Resident) -> None:
        """Called for every snapshot and every change of state."""
        if resident.gone.is_set():
            self._note_end(resident)
            return
        is_new = resident not in self._present
        if resident.state == "ready" or not is_new:
            self._present[resident] = resident.snapshot
            self.loads[resident.entry.name] += is_new

    def _note_end(self, resident: Resident) -> None:
        name = resident.entry.name
        snapshot = self._present.pop(resident, None)
        if snapshot is not None:
            self._past.setdefault(name, Counts()).add(snapshot)
        self.crashes[name] += resident.crashed
        self._note_evictions()

    def _note_evictions(self) -> None:
        for eviction in reversed(self._residency.evictions):
            if eviction is self._last_eviction:
                break
            self.evictions[eviction.name] += 1
        if self._residency.evictions:
            self._last_eviction = self._residency.evictions[-1]
