"""Which models are here and which of them a name means. One object per home; every change is made under a lock."""

from __future__ import annotations

import contextlib
import os
from functools import cached_property
from pathlib import Path

import msgspec

from localllm.errors import ModelNotFound, StoreError, UsageError
from localllm.settings import Settings
from localllm.store.blobs import FreeBytes, free_bytes, model_lock
from localllm.store.catalog import Catalog
from localllm.store.described import Descriptions
from localllm.store.entry import NEIGHBOURS, Entry, PullEvent
from localllm.store.manifests import Manifests, digest_of
from localllm.store.names import Ref, looks_like_path, parse_ref, suggestions
from localllm.store.neighbours import ListingCache, neighbour_entries
from localllm.store.pick import DEFAULT_TAGS
from localllm.store.plan import Say
from localllm.store.tokenizers import TokenizerShelf

_OWNERS = {"ollama": "Ollama", "lmstudio": "LM Studio", "huggingface": "the Hugging Face cache"}


class Shelf:
    """Models of ours, those of our neighbours, and files and folders by their paths."""

    def __init__(self, settings: Settings, catalog: Catalog | None = None, free: FreeBytes = free_bytes) -> None:
        self.settings = settings
        self.manifests = Manifests(settings.store_dir)
        self.free = free
        self._given_catalog = catalog
        self._descriptions = Descriptions()

    @cached_property
    def catalog(self) -> Catalog:
        return self._given_catalog or Catalog.load()

    @cached_property
    def tokenizers(self) -> TokenizerShelf:
        """Tokenizers without models; `entries` and `find` know nothing of them."""
        return TokenizerShelf(self.settings, self.catalog, self.free)

    # what is here

    def entries(self) -> list[Entry]:
        """All models that can be run now, the newest first; opens no model file. `damaged` has what cannot be read."""
        ours = self.own_entries()
        listed = {file.path for entry in ours for file in entry.files}
        others = [entry for entry in self._neighbours() if entry.files[0].path not in listed]
        return sorted(ours + others, key=lambda entry: (-entry.modified, entry.name))

    def own_entries(self) -> list[Entry]:
        """Models of ours."""
        return self.manifests.read_all()[0]

    def damaged(self) -> list[StoreError]:
        """One error for each manifest that cannot be read."""
        return self.manifests.read_all()[1]

    def find(self, text: str) -> Entry:
        """The model of a name, a file or a folder. ModelNotFound says what was perhaps meant, or how to get it."""
        ref = parse_ref(text)
        if ref.kind == "path":
            return self.at_path(ref)
        own = self.own_ref(ref)
        entry = (self.manifests.get(own) if own else None) or self._neighbour(ref)
        if entry is None:
            raise self.not_here(ref)
        return self._with_files(entry)

    def where(self, text: str) -> list[Path]:
        """The files of a model."""
        return [Path(file.path) for file in self.find(text).files]

    def at_path(self, ref: Ref) -> Entry:
        path = Path(ref.target)
        modified = path.stat().st_mtime if path.exists() else 0.0
        entry = self._descriptions.of(Entry(name=ref.target, path=ref.target, source="path", modified=modified))
        return msgspec.structs.replace(entry, digest=digest_of(entry))

    def _with_files(self, entry: Entry) -> Entry:
        """The entry once its files are known to exist; a neighbour's with what its file says about itself."""
        for file in entry.files:
            if not os.path.exists(file.path):
                raise ModelNotFound(f"{file.path} of {entry.name} is gone", hint=self.how_to_get_back(entry))
        return self._descriptions.of(entry) if entry.source in NEIGHBOURS else entry

    def _neighbours(self) -> list[Entry]:
        cache = ListingCache(self.settings.store_dir / "neighbours.json")
        return neighbour_entries(cache, self.settings.ollama_models, self.settings.lmstudio_models, os.environ)

    # what a name means

    def full(self, ref: Ref) -> Ref:
        """A bare name becomes the catalog's tag: `smollm2` and `smollm2:1.7b` are one model, not two."""
        known = self.catalog.find(ref) if ref.kind == "name" and ref.tag in ("", "latest") else None
        return parse_ref(known.name) if known else ref

    def own_ref(self, ref: Ref) -> Ref | None:
        """The name under which a model of ours is meant: as typed, or as the catalog completes it."""
        for candidate in (ref, self.full(ref) if ref.kind == "name" and not ref.tag else ref):
            if self.manifests.path_of(candidate).is_file():
                return candidate
        return None

    def removable_ref(self, ref: Ref) -> Ref:
        """The name of a model of ours; raises what keeps this one from being that."""
        own = self.own_ref(ref)
        if own is None:
            self._refuse_foreign(ref)
            raise self.not_here(ref)
        return own

    def new_ref(self, name: str) -> Ref:
        """A name that a model of ours can be given."""
        ref = parse_ref(name)
        if ref.kind != "name":
            raise UsageError(
                f"{name!r} cannot be a new name: use letters, digits, '.', '-' and '_'", hint="e.g. mine:v1"
            )
        return ref

    def is_only_tokenizer(self, text: str) -> bool:
        ref = parse_ref(text)
        is_known = self.tokenizers.knows(text) and self.catalog.find(ref) is None
        return is_known and self.own_ref(ref) is None

    def _neighbour(self, ref: Ref) -> Entry | None:
        wanted = _bare(ref.display)
        named = {_bare(entry.name): entry for entry in reversed(self._neighbours())}
        if wanted in named:
            return named[wanted]
        full = _bare(self.full(ref).display)
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

    # what is said of one that is not here

    def not_here(self, ref: Ref) -> ModelNotFound:
        known = self.catalog.find(ref)
        if known is not None or ref.kind in ("hub", "url"):
            name = self.full(ref).display
            return ModelNotFound(f"{name} is not here", hint=f"get it with: localllm pull {name}")
        return self.unknown(ref)

    def unknown(self, ref: Ref) -> ModelNotFound:
        if self.tokenizers.knows(ref.target):
            return ModelNotFound(
                f"{ref.target} is only a tokenizer: there is no model to run", hint="`localllm tokenize` uses it"
            )
        names = [entry.name for entry in self.entries()] + [entry.name for entry in self.catalog.entries]
        near = suggestions(ref.display.removesuffix(":latest"), names)
        hint = f"did you mean {' or '.join(near)}?" if near else "`localllm search` shows what can be pulled"
        return ModelNotFound(f"there is no model {ref.display}", hint=hint)

    def how_to_get_back(self, entry: Entry) -> str:
        if entry.source in NEIGHBOURS:
            return f"fetch it again with the tools of {_OWNERS[entry.source]}"
        if self.has_source(entry):
            return f"fetch it again with: localllm pull {entry.name}"
        if entry.parent and not looks_like_path(entry.parent):
            return f"pull {entry.parent}, which it was made from, or forget it with: localllm rm {entry.name}"
        return f"put its file back, or forget it with: localllm rm {entry.name}"

    def has_source(self, entry: Entry) -> bool:
        from localllm.store.updates import has_source  # deferred: the hub's library is slow to import

        return has_source(entry, self.catalog)

    # changes

    def locked(self, ref: Ref, say: Say) -> contextlib.AbstractContextManager[None]:
        """Nobody else works on this model meanwhile."""

        def waiting() -> None:
            say(PullEvent(kind="status", message=f"another process works on {ref.display}; waiting for it"))

        return model_lock(self.settings.store_dir / "locks", ref.key, waiting)

    def store_lock(self) -> contextlib.AbstractContextManager[None]:
        """No file is deleted and no manifest written meanwhile."""
        return model_lock(self.settings.store_dir / "locks", "+store")

    def commit(self, ref: Ref, entry: Entry) -> Entry:
        """The manifest comes last, and under the lock of `discard`: it never names a file that is being deleted."""
        with self.store_lock():
            missing = [file.path for file in entry.files if not os.path.exists(file.path)]
            if missing:
                raise StoreError(f"{missing[0]} was removed in the meantime", hint="try again")
            return self.manifests.put(ref, entry)

    def discard(self, gone: Entry) -> None:
        """Deletes the files of a model that no manifest names any more, as far as no other model of ours needs them."""
        from localllm.store.removal import delete_unneeded  # deferred: one command of many needs it

        with self.store_lock():
            delete_unneeded(gone, self.manifests.read_all(), self.settings.store_dir)


def _bare(name: str) -> str:
    return name.lower().removeprefix("hf.co/")
