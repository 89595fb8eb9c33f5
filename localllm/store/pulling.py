"""Getting models: from wherever a name says, again where they are damaged, anew where there is something newer."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from localllm.errors import BadModelFile, StoreError, UsageError
from localllm.store.catalog import CatalogEntry, Source
from localllm.store.details import block_types, describe
from localllm.store.entry import Entry, PullEvent, UpdateCheck
from localllm.store.names import Ref, parse_ref
from localllm.store.plan import CanRun, CheckConfig, Fetched, Plan, Say
from localllm.store.shelf import Shelf
from localllm.store.sources import fetch
from localllm.store.verify import has_changed


class Puller:
    """Fetches models onto a shelf. For `can_run` and `check_config` see Library; `pause` waits between attempts."""

    def __init__(
        self, shelf: Shelf, can_run: CanRun | None, check_config: CheckConfig | None, pause: Callable[[float], None]
    ) -> None:
        self._shelf = shelf
        self._can_run = can_run
        self._check_config = check_config
        self._pause = pause

    def plan(self, ref: Ref, say: Say, known: CatalogEntry | None = None) -> Plan:
        shelf = self._shelf
        return Plan(
            name=ref.display,
            settings=shelf.settings,
            say=say,
            architecture=known.architecture if known else "",
            quant=ref.tag if ref.kind == "hub" else shelf.catalog.quant_of(ref) if known else "",
            default_quants=tuple(known.quants) if known else (),
            can_run=self._can_run,
            check_config=self._check_config,
            owned=self._owned(),
            free=shelf.free,
            pause=self._pause,
        )

    def pull(self, ref: Ref, say: Say) -> Entry:
        """Makes sure that the model of this full name is here, whole and verified."""
        shelf = self._shelf
        with shelf.locked(ref, say):
            here = self._readable(ref, say)
            changed = here and next((file for file in here.files if has_changed(file)), None)
            if here is not None and changed is None:
                say(PullEvent(kind="done", message=f"{here.name} is here already"))
                return here
            if here is not None and changed is not None:
                wrong = f"{Path(changed.path).name} of {here.name} is missing or damaged"
                if not shelf.has_source(here):
                    hint = shelf.how_to_get_back(here)
                    raise StoreError(f"{wrong}, and there is nowhere to fetch it from", hint=hint)
                say(PullEvent(kind="warning", message=f"{wrong}; fetching it again"))
            return self._fetch(ref, say)

    def outdated(self, say: Say) -> list[UpdateCheck]:
        from localllm.store.updates import check_updates  # deferred: the hub's library is slow to import

        shelf = self._shelf
        return check_updates(shelf.own_entries(), shelf.catalog, self.plan(Ref("name", "update"), say))

    def update(self, names: set[str] | None, say: Say) -> list[Entry]:
        """Those of these names, or of all, that have a newer version."""
        self._refuse_own_names(names or set())
        checks = [check for check in self.outdated(say) if names is None or check.name in names]
        return [self._refetch(check.name, say) for check in checks if check.is_outdated]

    def _refuse_own_names(self, names: set[str]) -> None:
        for entry in self._shelf.own_entries():
            if entry.name in names and not self._shelf.has_source(entry):
                made = f"was made from {entry.parent}" if entry.parent else "was not pulled"
                raise UsageError(
                    f"{entry.name} {made} and has no source of its own", hint="update the model it comes from"
                )

    def _refetch(self, name: str, say: Say) -> Entry:
        """The files of the old version go when nothing else of ours needs them."""
        ref = parse_ref(name)
        with self._shelf.locked(ref, say):
            old, new = self._shelf.manifests.get(ref), self._fetch(ref, say)
            if old is not None:
                self._shelf.discard(old)
            return new

    def _fetch(self, ref: Ref, say: Say) -> Entry:
        shelf = self._shelf
        known = shelf.catalog.find(ref)
        sources = self._sources(ref, known)
        plan = self.plan(ref, say, known)
        plan.refuse_unless_runnable(plan.architecture)
        fetched = fetch(sources, plan)
        try:
            entry = shelf.commit(ref, _entry_of(ref, known, fetched))
        except BadModelFile:  # no name will ever hold what came, so nobody could remove it
            shelf.discard(Entry(name=ref.display, path=str(fetched.path), source=fetched.source, files=fetched.files))
            raise
        _warn_if_not_runnable(entry, plan)
        say(PullEvent(kind="done", message=f"{entry.name} is ready", completed_bytes=entry.size_bytes))
        return entry

    def _sources(self, ref: Ref, known: CatalogEntry | None) -> tuple[Source, ...]:
        if known is not None:
            return known.sources
        if ref.kind == "hub":
            return (Source(kind="hub", repo=ref.target),)
        if ref.kind == "url":
            return (Source(kind="url", url=ref.target),)
        raise self._shelf.unknown(ref)

    def _owned(self) -> frozenset[str]:
        entries = self._shelf.own_entries()
        return frozenset(os.path.realpath(file.path) for entry in entries for file in entry.files if file.is_ours)

    def _readable(self, ref: Ref, say: Say) -> Entry | None:
        """The model of ours with this name; None, with a warning, when its manifest is damaged and can be made anew."""
        try:
            return self._shelf.manifests.get(ref)
        except StoreError as error:
            if ref.kind == "name" and self._shelf.catalog.find(ref) is None:
                raise
            say(PullEvent(kind="warning", message=f"{error.message}; fetching {ref.display} again"))
            return None


def _entry_of(ref: Ref, known: CatalogEntry | None, fetched: Fetched) -> Entry:
    entry = Entry(
        name=ref.display,
        path=str(fetched.path),
        source=fetched.source,
        files=fetched.files,
        modified=time.time(),
        quantization=fetched.quant,
        parameters=known.parameters if known else "",
        # projectors are not fetched, so what comes answers text only
        capabilities=tuple(item for item in known.capabilities if item not in ("vision", "audio")) if known else (),
        params=dict(known.sampling) if known else {},
        license=(known.license if known else "") or fetched.license,
        origin=fetched.origin,
    )
    return describe(entry)


def _warn_if_not_runnable(entry: Entry, plan: Plan) -> None:
    if Path(entry.path).is_dir():
        return  # its config.json was checked before its weights came
    if reason := plan.refusal(entry.architecture, block_types(Path(entry.path))):
        plan.warn(f"{entry.name} is here, but {reason}")
