"""Everything the commands do with models: look, get, make, change."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from localllm.errors import DiskFull, StoreError, UsageError
from localllm.settings import Settings
from localllm.store.blobs import FreeBytes, free_bytes
from localllm.store.catalog import Catalog
from localllm.store.entry import NEIGHBOURS, Entry, PullEvent, SearchHit, UpdateCheck, VerifyResult
from localllm.store.modelfile import Modelfile
from localllm.store.names import Ref, parse_ref
from localllm.store.plan import CanRun, CheckConfig, Say
from localllm.store.shelf import Shelf

if TYPE_CHECKING:
    from localllm.quantize.receipt import Measured
    from localllm.store.pulling import Puller
    from localllm.store.quantized import Quantizing
    from localllm.store.uploads import Upload, Uploads

# What few commands need is imported where it is used: `list` opens no file, and the hub's library is slow to import.


def _silent(_: PullEvent) -> None:
    return None


class Library(Shelf):
    """A shelf and all that is done with it. `can_run` says why this build cannot run an architecture or its types,
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
        super().__init__(settings, catalog, free)
        self.can_run = can_run
        self.check_config = check_config
        self._pause = pause

    @cached_property
    def _puller(self) -> Puller:
        from localllm.store.pulling import Puller

        return Puller(self, self.can_run, self.check_config, self._pause)

    # getting models

    def search(self, query: str, progress: Say = _silent) -> list[SearchHit]:
        """Matches in the catalog, then on the hub where that can be reached."""
        from localllm.store.search import search

        return search(self, self._puller.plan(Ref("name", query), progress), query)

    def refuse_tokenizer(self, text: str) -> None:
        """ModelNotFound for a name that is only a tokenizer's: nothing that could run would come of a pull."""
        if self.is_only_tokenizer(text):
            raise self.unknown(parse_ref(text))

    def pull(self, text: str, progress: Say = _silent) -> Entry:
        """Makes sure that the model is here, whole and verified, and returns it. A damaged one is repaired."""
        ref = parse_ref(text)
        if ref.kind == "path":
            return self.at_path(ref)
        ref = self.full(ref)
        if self.is_only_tokenizer(text):
            with self.locked(ref, progress):
                return self.tokenizers.pull(text, progress)
        return self._puller.pull(ref, progress)

    def outdated(self, progress: Say = _silent) -> list[UpdateCheck]:
        """For each model of ours, whether its source has something newer."""
        return self._puller.outdated(progress)

    def update(self, text: str | None = None, progress: Say = _silent) -> list[Entry]:
        """Fetches the newest version of one model, or of all that are outdated; returns those that changed."""
        wanted = {self.full(parse_ref(text)).display} if text else None
        if wanted and not any(entry.name in wanted for entry in self.own_entries()):
            raise self.not_here(parse_ref(text or ""))
        return self._puller.update(wanted, progress)

    # making models

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
        from localllm.store.create import derived_entry
        from localllm.store.making import commit_made, make_from_uploads, rounded

        ref = self.new_ref(name)
        if files:
            return make_from_uploads(self, ref, modelfile, files, progress, way)
        entry = derived_entry(self, ref.display, modelfile, folder or Path.cwd(), progress)
        return commit_made(self, ref, rounded(self, entry, way, progress, entry.parent), progress)

    def quantize(self, source: str, name: str, way: Quantizing, progress: Say = _silent) -> Entry:
        """A new model of our own: the source's template, parameters and licence with rounded weights. One of this name
        makes way where its files are not its own download."""
        from localllm.store.making import commit_made, refuse_to_orphan, rounded

        ref, entry = self.new_ref(name), self.find(source)
        refuse_to_orphan(self, ref, entry)
        made = msgspec.structs.replace(rounded(self, entry, way, progress), name=ref.display)
        return commit_made(self, ref, made, progress)

    def keep_measured(self, text: str, measured: Measured) -> Entry:
        """Figures into the receipt of a model of ours. UsageError for one that was not quantized here."""
        ref = self.removable_ref(parse_ref(text))
        with self.locked(ref, _silent):
            entry = self.manifests.get(ref)
            if entry is None or entry.receipt is None:
                raise UsageError(f"{ref.display} was not quantized here", hint="only what was has a receipt")
            receipt = msgspec.structs.replace(entry.receipt, measured=measured)
            return self.commit(ref, msgspec.structs.replace(entry, receipt=receipt))

    def copy(self, source: str, target: str) -> Entry:
        """A second name for the same files."""
        from localllm.store.making import commit_made, renamed

        ref = self.new_ref(target)
        return commit_made(self, ref, renamed(self.find(source), ref), _silent)

    @property
    def uploads(self) -> Uploads:
        from localllm.store.uploads import Uploads

        return Uploads(self.settings.store_dir, self.free)

    def has_upload(self, digest: str) -> bool:
        """Whether a file of this digest is here. InvalidRequest for what is no digest."""
        return self.uploads.find(digest, self.own_entries()) is not None

    def receive(self, digest: str, size_bytes: int = 0) -> Upload:
        """A file to write, for `create`. DiskFull where `size_bytes` (0: unknown) would not fit."""
        return self.uploads.receive(digest, size_bytes)

    # changing what is here

    def removable(self, text: str) -> str:
        """The full name of a model that `remove` would forget; raises what keeps it from that."""
        if self.is_only_tokenizer(text) and self.tokenizers.find(text):
            return text
        return self.removable_ref(parse_ref(text)).display

    def remove(self, text: str) -> None:
        """Forgets the model and deletes the files that we brought and that no other model of ours needs."""
        from localllm.store.removal import delete_unneeded

        if self.is_only_tokenizer(text):
            with self.locked(self.full(parse_ref(text)), _silent), self.store_lock():
                gone = self.tokenizers.forget(text)
                others, damaged = self.manifests.read_all()
                delete_unneeded(gone, ([*others, *self.tokenizers.here()], damaged), self.settings.store_dir)
            return
        own = self.removable_ref(parse_ref(text))
        with self.locked(own, _silent), self.store_lock():
            try:
                entry = self.manifests.get(own)
            except StoreError:
                entry = None  # a damaged manifest can be removed too; its files are found by `verify`
            self.manifests.delete(own)
            if entry is not None:
                delete_unneeded(entry, self.manifests.read_all(), self.settings.store_dir)

    def verify(self, text: str | None = None, progress: Say = _silent) -> list[VerifyResult]:
        """Compares every file of one model, or of all of ours, with its sha256. A damaged one is repaired by `pull`."""
        from localllm.store.verify import verify_entry

        results: list[VerifyResult] = []
        for entry in [self.find(text)] if text else self.own_entries():
            checked, found = verify_entry(entry, progress)
            results += found
            if checked != entry and entry.source not in NEIGHBOURS and (own := self.own_ref(parse_ref(entry.name))):
                with contextlib.suppress(OSError, DiskFull):  # a store that cannot be written can be verified
                    self.manifests.put(own, checked)
        return results
