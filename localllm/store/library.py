"""The models that are here, and the way others get here. One object per home; every change is made under a lock."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from localllm.errors import BadModelFile, DiskFull, ModelNotFound, StoreError, UsageError
from localllm.settings import Settings
from localllm.store.blobs import FreeBytes, free_bytes, model_lock
from localllm.store.catalog import Catalog, CatalogEntry, Source
from localllm.store.described import Descriptions
from localllm.store.entry import NEIGHBOURS, Entry, PullEvent, SearchHit, UpdateCheck, VerifyResult
from localllm.store.manifests import Manifests, digest_of
from localllm.store.modelfile import Modelfile
from localllm.store.names import Ref, parse_ref, suggestions
from localllm.store.neighbours import ListingCache, neighbour_entries
from localllm.store.pick import DEFAULT_TAGS
from localllm.store.plan import CanRun, CheckConfig, Fetched, Plan, Say
from localllm.store.tokenizers import TokenizerShelf

if TYPE_CHECKING:
    from localllm.quantize.receipt import Measured
    from localllm.store.quantized import Quantizing
    from localllm.store.uploads import Gathered, Upload, Uploads

_OWNERS = {"ollama": "Ollama", "lmstudio": "LM Studio", "huggingface": "the Hugging Face cache"}


def _silent(_: PullEvent) -> None:
    return None


class Library:
    """Everything the commands do with models. `can_run` says why this build cannot run an architecture or its types,
    `check_config` raises what is wrong with a config.json."""

    def __init__(
        self,
        settings: Settings,
        can_run: CanRun | None = None,
        *,
        check_config: CheckConfig | None = None,
        catalog: Catalog | None = None,
        free: FreeBytes = free_bytes,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self.settings = settings
        self.manifests = Manifests(settings.store_dir)
        self.can_run = can_run
        self.check_config = check_config
        self._given_catalog = catalog
        self._free = free
        self._pause = pause
        self._descriptions = Descriptions()

    @cached_property
    def catalog(self) -> Catalog:
        return self._given_catalog or Catalog.load()

    @cached_property
    def tokenizers(self) -> TokenizerShelf:
        """Tokenizers without models; `entries` and `find` know nothing of them."""
        return TokenizerShelf(self.settings, self.catalog, self._free)

    # what is here

    def entries(self) -> list[Entry]:
        """All models that can be run now, the newest first; opens no model file. `damaged` has what cannot be read."""
        ours, _ = self.manifests.read_all()
        listed = {file.path for entry in ours for file in entry.files}
        others = [entry for entry in self._neighbours() if entry.files[0].path not in listed]
        return sorted(ours + others, key=lambda entry: (-entry.modified, entry.name))

    def damaged(self) -> list[StoreError]:
        """One error for each manifest that cannot be read."""
        return self.manifests.read_all()[1]

    def find(self, text: str) -> Entry:
        """The model of a name, a file or a folder. ModelNotFound says what was perhaps meant, or how to get it."""
        ref = parse_ref(text)
        if ref.kind == "path":
            return self._at_path(ref)
        entry = self._ours(ref) or self._neighbour(ref)
        if entry is None:
            raise self._not_here(ref)
        return self._with_files(entry)

    def where(self, text: str) -> list[Path]:
        """The files of a model."""
        return [Path(file.path) for file in self.find(text).files]

    def search(self, query: str, progress: Say = _silent) -> list[SearchHit]:
        """Matches in the catalog, then on the hub where that can be reached."""
        from localllm.store.search import search  # deferred: the hub's library is slow to import

        return search(self, self._plan(Ref("name", query), None, progress), query)

    def refuse_tokenizer(self, text: str) -> None:
        """ModelNotFound for a name that is only a tokenizer's: nothing that could run would come of a pull."""
        if self._is_only_tokenizer(text):
            raise self._unknown(parse_ref(text))

    def _is_only_tokenizer(self, text: str) -> bool:
        ref = parse_ref(text)
        is_known = self.tokenizers.knows(text) and self.catalog.find(ref) is None
        return is_known and self._own_ref(ref) is None

    # getting models

    def pull(self, text: str, progress: Say = _silent) -> Entry:
        """Makes sure that the model is here, whole and verified, and returns it. A damaged one is repaired."""
        ref = parse_ref(text)
        if ref.kind == "path":
            return self._at_path(ref)
        ref = self._full(ref)
        if self._is_only_tokenizer(text):
            with self._locked(ref, progress):
                return self.tokenizers.pull(text, progress)
        with self._locked(ref, progress):
            here = self._readable(ref, progress)
            if here is not None and self._is_intact(here, progress):
                progress(PullEvent(kind="done", message=f"{here.name} is here already"))
                return here
            if here is not None and not self._has_source(here):
                raise StoreError(
                    f"{here.name} is damaged, and there is nowhere to fetch it from", hint=self._how_to_get_back(here)
                )
            return self._fetch(ref, progress)

    def outdated(self, progress: Say = _silent) -> list[UpdateCheck]:
        """For each model of ours, whether its source has something newer."""
        from localllm.store.updates import check_updates  # deferred: the hub's library is slow to import

        ours, _ = self.manifests.read_all()
        return check_updates(ours, self.catalog, self._plan(Ref("name", "update"), None, progress))

    def update(self, text: str | None = None, progress: Say = _silent) -> list[Entry]:
        """Fetches the newest version of one model, or of all that are outdated; returns those that changed."""
        wanted = {self._full(parse_ref(text)).display} if text else None
        if wanted and not any(entry.name in wanted for entry in self.manifests.read_all()[0]):
            raise self._not_here(parse_ref(text or ""))
        self._refuse_own_names(wanted or set())
        checks = [check for check in self.outdated(progress) if wanted is None or check.name in wanted]
        return [self._refetch(check.name, progress) for check in checks if check.is_outdated]

    def _refuse_own_names(self, names: set[str]) -> None:
        from localllm.store.updates import has_source  # deferred as above

        for entry in self.manifests.read_all()[0]:
            if entry.name in names and not has_source(entry, self.catalog):
                made = f"was made from {entry.parent}" if entry.parent else "was not pulled"
                raise UsageError(
                    f"{entry.name} {made} and has no source of its own", hint="update the model it comes from"
                )

    def create(
        self,
        name: str,
        modelfile: Modelfile,
        folder: Path | None = None,
        progress: Say = _silent,
        *,
        files: Mapping[str, str] | None = None,
        way: Quantizing | None = None,
    ) -> Entry:
        """A new model from a Modelfile; its weights stay where they are, or are quantized in the `way` that is given.
        Relative paths are relative to `folder`. `files`, names with digests of what was uploaded, stand in for the FROM
        lines and become the model's own."""
        ref = self._new_name(name)
        if files:
            return self._create_from_uploads(ref, modelfile, files, progress, way)
        entry = self._derived(ref, modelfile, folder or Path.cwd(), progress)
        return self._commit_created(ref, self._quantized(entry, way, progress, entry.parent), progress)

    def quantize(self, source: str, name: str, way: Quantizing, progress: Say = _silent) -> Entry:
        """A new model of our own: the source's template, parameters and licence with rounded weights. One of this name
        makes way where its files are not its own download."""
        ref, entry = self._new_name(name), self.find(source)
        self._refuse_to_orphan(ref, entry)
        made = msgspec.structs.replace(self._quantized(entry, way, progress), name=ref.display)
        return self._commit_created(ref, made, progress)

    def keep_measured(self, text: str, measured: Measured) -> Entry:
        """Figures into the receipt of a model of ours. UsageError for one that was not quantized here."""
        ref = self._removable(parse_ref(text))
        with self._locked(ref, _silent):
            entry = self.manifests.get(ref)
            if entry is None or entry.receipt is None:
                raise UsageError(f"{ref.display} was not quantized here", hint="only what was has a receipt")
            receipt = msgspec.structs.replace(entry.receipt, measured=measured)
            return self._commit(ref, msgspec.structs.replace(entry, receipt=receipt))

    def _quantized(self, entry: Entry, way: Quantizing | None, progress: Say, of: str = "") -> Entry:
        """`of`: what the entry is made from, where its name is a new one."""
        if way is None:
            return entry
        from localllm.store.quantized import quantized  # deferred: few models are

        source = msgspec.structs.replace(entry, name=of or entry.name)
        made = quantized(source, way, self.settings.store_dir, self._free, progress)
        return msgspec.structs.replace(made, name=entry.name)

    def _derived(self, ref: Ref, modelfile: Modelfile, folder: Path, progress: Say) -> Entry:
        from localllm.store.create import derived_entry  # deferred: opens files, which `list` never does

        return derived_entry(self, ref.display, modelfile, folder, progress)

    def _commit_created(self, ref: Ref, entry: Entry, progress: Say = _silent) -> Entry:
        """In the place of an older one, whose files go when they were sent here and nothing else of ours needs them."""
        from localllm.store.removal import delete_unneeded  # deferred: one command of many needs it

        with self._locked(ref, progress):
            self._refuse_to_orphan(ref, entry)
            old = self.manifests.get(ref)
            created = self._commit(ref, entry)
            if old is not None:
                with self._store_lock():
                    delete_unneeded(old, self.manifests.read_all(), self.settings.store_dir)
            return created

    def _create_from_uploads(
        self, ref: Ref, modelfile: Modelfile, files: Mapping[str, str], progress: Say, way: Quantizing | None
    ) -> Entry:
        gathered = self.uploads.gather(files, self.manifests.read_all()[0])
        try:
            started = dataclasses.replace(modelfile, from_=gathered.starts)
            entry = gathered.taken(self._derived(ref, started, gathered.folder, progress))
            entry = msgspec.structs.replace(self._quantized(entry, way, progress, entry.parent), parent="")
            return self._commit_created(ref, entry, progress)
        finally:
            self._forget_uploads(gathered)

    def _forget_uploads(self, gathered: Gathered) -> None:
        """What a model took over is its own from here on; the rest goes, or waits for another try."""
        with self._store_lock():
            kept = self.manifests.read_all()[0]
            gathered.discard(kept)
            held = {file.path for entry in kept for file in entry.files}
            self.uploads.forget(digits for path, digits in gathered.digests.items() if path in held)

    # uploads

    @property
    def uploads(self) -> Uploads:
        from localllm.store.uploads import Uploads  # deferred: only a daemon takes files

        return Uploads(self.settings.store_dir, self._free)

    def has_upload(self, digest: str) -> bool:
        """Whether a file of this digest is here. InvalidRequest for what is no digest."""
        return self.uploads.find(digest, self.manifests.read_all()[0]) is not None

    def receive(self, digest: str, size_bytes: int = 0) -> Upload:
        """A file to write, for `create`. DiskFull where `size_bytes` (0: unknown) would not fit."""
        return self.uploads.receive(digest, size_bytes)

    # changing what is here

    def copy(self, source: str, target: str) -> Entry:
        """A second name for the same files."""
        ref = self._new_name(target)
        entry = _as_ours(msgspec.structs.replace(self.find(source), name=ref.display, modified=time.time()))
        return self._commit_created(ref, entry)

    def removable(self, text: str) -> str:
        """The full name of a model that `remove` would forget; raises what keeps it from that."""
        ref = parse_ref(text)
        return text if self._is_only_tokenizer(text) and self.tokenizers.find(text) else self._removable(ref).display

    def remove(self, text: str) -> None:
        """Forgets the model and deletes the files that we brought and that no other model of ours needs."""
        from localllm.store.removal import delete_unneeded  # deferred: one command of many needs it

        if self._is_only_tokenizer(text):
            with self._locked(self._full(parse_ref(text)), _silent), self._store_lock():
                gone = self.tokenizers.forget(text)
                others, damaged = self.manifests.read_all()
                delete_unneeded(gone, ([*others, *self.tokenizers.here()], damaged), self.settings.store_dir)
            return
        own = self._removable(parse_ref(text))
        with self._locked(own, _silent), self._store_lock():
            try:
                entry = self.manifests.get(own)
            except StoreError:
                entry = None  # a damaged manifest can be removed too; its files are found by `verify`
            self.manifests.delete(own)
            if entry is not None:
                delete_unneeded(entry, self.manifests.read_all(), self.settings.store_dir)

    def _removable(self, ref: Ref) -> Ref:
        own = self._own_ref(ref)
        if own is None:
            self._refuse_foreign(ref)
            raise self._not_here(ref)
        return own

    def verify(self, text: str | None = None, progress: Say = _silent) -> list[VerifyResult]:
        """Compares every file of one model, or of all of ours, with its sha256. A damaged one is repaired by `pull`."""
        from localllm.store.verify import verify_entry  # deferred: one command of many needs it

        entries = [self.find(text)] if text else self.manifests.read_all()[0]
        results: list[VerifyResult] = []
        for entry in entries:
            checked, found = verify_entry(entry, progress)
            results += found
            if checked != entry and entry.source not in NEIGHBOURS and (own := self._own_ref(parse_ref(entry.name))):
                with contextlib.suppress(OSError, DiskFull):  # a store that cannot be written can be verified
                    self.manifests.put(own, checked)
        return results

    # behind the scenes

    def _at_path(self, ref: Ref) -> Entry:
        path = Path(ref.target)
        modified = path.stat().st_mtime if path.exists() else 0.0
        entry = self._descriptions.of(Entry(name=ref.target, path=ref.target, source="path", modified=modified))
        return msgspec.structs.replace(entry, digest=digest_of(entry))

    def _with_files(self, entry: Entry) -> Entry:
        """The entry once its files are known to exist; a neighbour's with what its file says about itself."""
        for file in entry.files:
            if not os.path.exists(file.path):
                raise ModelNotFound(f"{file.path} of {entry.name} is gone", hint=self._how_to_get_back(entry))
        return self._descriptions.of(entry) if entry.source in NEIGHBOURS else entry

    def _how_to_get_back(self, entry: Entry) -> str:
        if entry.source in NEIGHBOURS:
            return f"fetch it again with the tools of {_OWNERS[entry.source]}"
        if self._has_source(entry):
            return f"fetch it again with: localllm pull {entry.name}"
        if entry.parent:
            return f"pull {entry.parent}, which it was made from, or forget it with: localllm rm {entry.name}"
        return f"put its file back, or forget it with: localllm rm {entry.name}"

    def _has_source(self, entry: Entry) -> bool:
        from localllm.store.updates import has_source  # deferred: the hub's library is slow to import

        return has_source(entry, self.catalog)

    def _own_ref(self, ref: Ref) -> Ref | None:
        """The name under which a model of ours is meant: as typed, or as the catalog completes it."""
        for candidate in (ref, self._full(ref) if ref.kind == "name" and not ref.tag else ref):
            if self.manifests.path_of(candidate).is_file():
                return candidate
        return None

    def _ours(self, ref: Ref) -> Entry | None:
        own = self._own_ref(ref)
        return self.manifests.get(own) if own else None

    def _neighbours(self) -> list[Entry]:
        cache = ListingCache(self.settings.store_dir / "neighbours.json")
        return neighbour_entries(cache, self.settings.ollama_models, self.settings.lmstudio_models, os.environ)

    def _neighbour(self, ref: Ref) -> Entry | None:
        wanted = _bare(ref.display)
        named = {_bare(entry.name): entry for entry in reversed(self._neighbours())}
        if wanted in named:
            return named[wanted]
        full = _bare(self._full(ref).display)
        if ref.kind == "hub" and not ref.tag:  # `org/repo` without a tag: the one that a pull would choose
            tags = [entry for name, entry in named.items() if name.startswith(wanted + ":")]
            order = {tag: rank for rank, tag in enumerate(DEFAULT_TAGS)}
            return min(tags, key=lambda entry: order.get(entry.quantization, len(order)), default=None)
        return named.get(full)

    def _refuse_foreign(self, ref: Ref) -> None:
        entry = self._neighbour(ref) if ref.kind != "path" else None
        if entry is not None:
            owner = _OWNERS[entry.source]
            raise StoreError(f"{entry.name} belongs to {owner}, not to us", hint=f"remove it with the tools of {owner}")
        if ref.kind == "path":
            raise UsageError(
                f"{ref.target} is a file, not a model of the store", hint="`localllm list` shows their names"
            )

    def _full(self, ref: Ref) -> Ref:
        """A bare name becomes the catalog's tag: `smollm2` and `smollm2:1.7b` are one model, not two."""
        known = self.catalog.find(ref) if ref.kind == "name" and ref.tag in ("", "latest") else None
        return parse_ref(known.name) if known else ref

    def _fetch(self, ref: Ref, say: Say) -> Entry:
        from localllm.store.sources import fetch  # deferred: only a pull needs it

        known = self.catalog.find(ref)
        sources = self._sources(ref, known)
        plan = self._plan(ref, known, say)
        plan.refuse_unless_runnable(plan.architecture)
        fetched = fetch(sources, plan)
        try:
            entry = self._commit(ref, self._entry_of(ref, known, fetched))
        except BadModelFile:
            self._forget_fetched(ref, fetched)
            raise
        self._warn_if_not_runnable(entry, plan)
        say(PullEvent(kind="done", message=f"{entry.name} is ready", completed_bytes=entry.size_bytes))
        return entry

    def _forget_fetched(self, ref: Ref, fetched: Fetched) -> None:
        """What came is no model: no name will ever hold it, so nobody could remove it."""
        from localllm.store.removal import delete_unneeded  # deferred: one command of many needs it

        gone = Entry(name=ref.display, path=str(fetched.path), source=fetched.source, files=fetched.files)
        with self._store_lock():
            delete_unneeded(gone, self.manifests.read_all(), self.settings.store_dir)

    def _refetch(self, name: str, say: Say) -> Entry:
        """Fetches a newer version; the files of the old one go when nothing else of ours needs them."""
        from localllm.store.removal import delete_unneeded  # deferred: one command of many needs it

        ref = parse_ref(name)
        with self._locked(ref, say):
            old, new = self.manifests.get(ref), self._fetch(ref, say)
            if old is not None:
                with self._store_lock():
                    delete_unneeded(old, self.manifests.read_all(), self.settings.store_dir)
            return new

    def _sources(self, ref: Ref, known: CatalogEntry | None) -> tuple[Source, ...]:
        if known is not None:
            return known.sources
        if ref.kind == "hub":
            return (Source(kind="hub", repo=ref.target),)
        if ref.kind == "url":
            return (Source(kind="url", url=ref.target),)
        raise self._unknown(ref)

    def _plan(self, ref: Ref, known: CatalogEntry | None, say: Say) -> Plan:
        return Plan(
            name=ref.display,
            settings=self.settings,
            say=say,
            architecture=known.architecture if known else "",
            quant=ref.tag if ref.kind == "hub" else self.catalog.quant_of(ref) if known else "",
            default_quants=tuple(known.quants) if known else (),
            can_run=self.can_run,
            check_config=self.check_config,
            owned=self._owned(),
            free=self._free,
            pause=self._pause,
        )

    def _owned(self) -> frozenset[str]:
        entries, _ = self.manifests.read_all()
        return frozenset(os.path.realpath(file.path) for entry in entries for file in entry.files if file.is_ours)

    def _entry_of(self, ref: Ref, known: CatalogEntry | None, fetched: Fetched) -> Entry:
        from localllm.store.details import describe  # deferred: it brings numpy

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

    def _readable(self, ref: Ref, say: Say) -> Entry | None:
        """The model of ours with this name; None, with a warning, when its manifest is damaged and can be made anew."""
        try:
            return self.manifests.get(ref)
        except StoreError as error:
            if ref.kind == "name" and self.catalog.find(ref) is None:
                raise
            say(PullEvent(kind="warning", message=f"{error.message}; fetching {ref.display} again"))
            return None

    def _refuse_to_orphan(self, ref: Ref, new: Entry) -> None:
        """A name is not taken from a model whose download nothing else of ours would hold on to."""
        old = self.manifests.get(ref)
        if old is None or old.source == "path":  # what was sent, and not fetched, its sender has
            return
        others = [entry for entry in self.manifests.read_all()[0] if entry.name != old.name]
        held = {file.path for entry in (new, *others) for file in entry.files}
        if any(file.is_ours and file.path not in held for file in old.files):
            raise StoreError(
                f"{old.name} is here, with a download of its own",
                hint=f"choose another name, or remove it first: localllm rm {old.name}",
            )

    def _warn_if_not_runnable(self, entry: Entry, plan: Plan) -> None:
        from localllm.store.details import block_types  # deferred: it brings numpy

        if Path(entry.path).is_dir():
            return  # its config.json was checked before its weights came
        if reason := plan.refusal(entry.architecture, block_types(Path(entry.path))):
            plan.warn(f"{entry.name} is here, but {reason}")

    def _is_intact(self, entry: Entry, say: Say) -> bool:
        from localllm.store.verify import has_changed  # deferred: one command of many needs it

        for file in entry.files:
            if has_changed(file):
                say(
                    PullEvent(
                        kind="warning", message=f"{Path(file.path).name} is missing or damaged; fetching it again"
                    )
                )
                return False
        return True

    def _commit(self, ref: Ref, entry: Entry) -> Entry:
        """The manifest comes last, and under the lock of `remove`: it never names a file that is being deleted."""
        with self._store_lock():
            missing = [file.path for file in entry.files if not os.path.exists(file.path)]
            if missing:
                raise StoreError(f"{missing[0]} was removed in the meantime", hint="try again")
            return self.manifests.put(ref, entry)

    def _new_name(self, name: str) -> Ref:
        ref = parse_ref(name)
        if ref.kind != "name":
            raise UsageError(
                f"{name!r} cannot be a new name: use letters, digits, '.', '-' and '_'", hint="e.g. mine:v1"
            )
        return ref

    def _locked(self, ref: Ref, say: Say) -> contextlib.AbstractContextManager[None]:
        def waiting() -> None:
            say(PullEvent(kind="status", message=f"another process works on {ref.display}; waiting for it"))

        return model_lock(self.settings.store_dir / "locks", ref.key, waiting)

    def _store_lock(self) -> contextlib.AbstractContextManager[None]:
        return model_lock(self.settings.store_dir / "locks", "+store")

    def _not_here(self, ref: Ref) -> ModelNotFound:
        known = self.catalog.find(ref)
        if known is not None or ref.kind in ("hub", "url"):
            name = self._full(ref).display
            return ModelNotFound(f"{name} is not here", hint=f"get it with: localllm pull {name}")
        return self._unknown(ref)

    def _unknown(self, ref: Ref) -> ModelNotFound:
        if self.tokenizers.knows(ref.target):
            return ModelNotFound(
                f"{ref.target} is only a tokenizer: there is no model to run", hint="`localllm tokenize` uses it"
            )
        names = [entry.name for entry in self.entries()] + [entry.name for entry in self.catalog.entries]
        near = suggestions(ref.display.removesuffix(":latest"), names)
        hint = f"did you mean {' or '.join(near)}?" if near else "`localllm search` shows what can be pulled"
        return ModelNotFound(f"there is no model {ref.display}", hint=hint)


def _bare(name: str) -> str:
    return name.lower().removeprefix("hf.co/")


def _as_ours(entry: Entry) -> Entry:
    """A neighbour's model under a name of ours: its files stay the neighbour's."""
    return msgspec.structs.replace(entry, source="path") if entry.source in NEIGHBOURS else entry
