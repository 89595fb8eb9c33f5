"""The models that are here, and the way others get here. One object per home; every change is made under a lock."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import msgspec

from localllm.errors import LocalLLMError, ModelNotFound, StoreError
from localllm.settings import Settings
from localllm.store.blobs import FreeBytes, free_bytes, model_lock
from localllm.store.catalog import Catalog, CatalogEntry, Source
from localllm.store.entry import Entry, PullEvent
from localllm.store.manifests import Manifests
from localllm.store.names import Ref, parse_ref, suggestions
from localllm.store.plan import CanRun, Fetched, Plan, Say


def _silent(_: PullEvent) -> None:
    return None


class Library:
    """Everything the commands do with models. `can_run` says why this build cannot run an architecture or its types."""

    def __init__(
        self,
        settings: Settings,
        can_run: CanRun | None = None,
        *,
        catalog: Catalog | None = None,
        free: FreeBytes = free_bytes,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self.settings = settings
        self.manifests = Manifests(settings.store_dir)
        self._can_run = can_run
        self._given_catalog = catalog
        self._free = free
        self._pause = pause

    @cached_property
    def catalog(self) -> Catalog:
        return self._given_catalog or Catalog.load()

    def entries(self) -> list[Entry]:
        """All models that can be run now, ours first, the newest first. Opens no model file."""
        ours, _ = self.manifests.read_all()
        return sorted(ours, key=lambda entry: -entry.modified)

    def damaged(self) -> list[StoreError]:
        """One error for each manifest that cannot be read; `entries` leaves those out."""
        return self.manifests.read_all()[1]

    def pull(self, text: str, progress: Say = _silent) -> Entry:
        """Makes sure that the model is here, whole and verified, and returns it."""
        ref = parse_ref(text)
        ref = self._full(ref)
        with self._locked(ref, progress):
            here = self.manifests.get(ref)
            if here is not None:
                progress(PullEvent(kind="done", message=f"{here.name} is here already"))
                return here
            return self._fetch(ref, progress)

    def _fetch(self, ref: Ref, say: Say) -> Entry:
        known = self.catalog.find(ref)
        sources = self._sources(ref, known)
        plan = self._plan(ref, known, say)
        plan.refuse_unless_runnable(plan.architecture)
        from localllm.store.sources import fetch

        entry = self._entry_of(ref, known, fetch(sources, plan))
        entry = self.manifests.put(ref, entry)
        say(PullEvent(kind="done", message=f"{entry.name} is ready", completed_bytes=entry.size_bytes))
        return entry

    def _full(self, ref: Ref) -> Ref:
        """A bare name becomes the catalog's tag: `smollm2` and `smollm2:1.7b` are one model, not two."""
        known = self.catalog.find(ref)
        return parse_ref(known.name) if known and ref.tag in ("", "latest") else ref

    def _sources(self, ref: Ref, known: CatalogEntry | None) -> tuple[Source, ...]:
        if known is not None:
            return known.sources
        if ref.kind == "hub":
            return (Source(kind="hub", repo=ref.target),)
        if ref.kind == "url":
            return (Source(kind="url", url=ref.target),)
        raise self._not_found(ref)

    def _plan(self, ref: Ref, known: CatalogEntry | None, say: Say) -> Plan:
        quant = ref.tag if ref.kind == "hub" else self.catalog.quant_of(ref)
        return Plan(
            name=ref.display,
            settings=self.settings,
            say=say,
            architecture=known.architecture if known else "",
            quant=quant,
            default_quants=tuple(known.quants) if known else (),
            can_run=self._can_run,
            free=self._free,
            pause=self._pause,
        )

    def _entry_of(self, ref: Ref, known: CatalogEntry | None, fetched: Fetched) -> Entry:
        from localllm.store.details import describe

        entry = Entry(
            name=ref.display,
            path=str(fetched.path),
            source=fetched.source,
            files=fetched.files,
            modified=time.time(),
            parameters=known.parameters if known else "",
            capabilities=known.capabilities if known else (),
            params=dict(known.sampling) if known else {},
            license=(known.license if known else "") or fetched.license,
            origin=fetched.origin,
        )
        return describe(entry)

    def _locked(self, ref: Ref, say: Say):  # type: ignore[no-untyped-def]
        def waiting() -> None:
            say(PullEvent(kind="status", message=f"another process works on {ref.display}; waiting for it"))

        return model_lock(self.settings.store_dir / "locks", ref.key, waiting)

    def _not_found(self, ref: Ref) -> ModelNotFound:
        near = self.catalog.suggest(ref.target)
        hint = f"did you mean {', '.join(near)}?" if near else "see `localllm search`"
        return ModelNotFound(f"there is no model {ref.display}", hint=hint)
