"""Tokenizers that come without a model: what the catalog knows, what is here, and how more get here.

Their files stay where their source keeps them; a small record under the store says where. They are no models: nothing
that lists, runs or removes models sees them.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from localllm.errors import ModelNotFound, NetworkError
from localllm.settings import Settings
from localllm.store.blobs import FreeBytes, free_bytes, write_atomic
from localllm.store.catalog import Catalog, Source, TokenizerEntry
from localllm.store.entry import Entry, ModelFile, PullEvent
from localllm.store.names import suggestions
from localllm.store.plan import Fetched, Plan, Say, SourceUnavailable

CAPABILITY = "tokenizer"
"""What an Entry of this kind can do, and all of it."""


class _Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    path: str
    files: tuple[ModelFile, ...]


class TokenizerShelf:
    """The tokenizers of one home, by the names of the catalog."""

    def __init__(self, settings: Settings, catalog: Catalog, free: FreeBytes = free_bytes) -> None:
        self._settings = settings
        self._catalog = catalog
        self._free = free

    def entries(self) -> tuple[TokenizerEntry, ...]:
        """All that the catalog names, here or not."""
        return self._catalog.tokenizers

    def knows(self, name: str) -> bool:
        return self._catalog.tokenizer(name) is not None

    def path_of(self, name: str) -> Path | None:
        """The folder of a tokenizer that is here and whole; None where it has to be pulled."""
        record = self._read(name)
        is_whole = record is not None and all(os.path.exists(file.path) for file in record.files)
        return Path(record.path) if record is not None and is_whole else None

    def find(self, name: str) -> Path:
        """The folder of a tokenizer that is here. ModelNotFound says how to get it."""
        known = self._known(name)
        path = self.path_of(known.name)
        if path is None:
            raise ModelNotFound(
                f"the tokenizer {known.name} is not here", hint=f"get it with: localllm pull {known.name}"
            )
        return path

    def pull(self, name: str, say: Say) -> Entry:
        """Fetch it from the first source that has it. NetworkError lists why none did."""
        known = self._known(name)
        here = self.path_of(known.name)
        if here is not None:
            say(PullEvent(kind="done", message=f"{known.name} is here already"))
            return _entry(known, here, ())
        fetched = self._fetch(known, say)
        record = _Record(str(fetched.path), fetched.files)
        target = self._record_of(known.name)
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(target, msgspec.json.encode(record))
        say(PullEvent(kind="done", message=f"{known.name} is ready"))
        return _entry(known, fetched.path, fetched.files)

    def here(self) -> list[Entry]:
        """Those that are here, with their files."""
        records = [(known, self._read(known.name)) for known in self.entries()]
        return [_entry(known, Path(record.path), record.files) for known, record in records if record is not None]

    def forget(self, name: str) -> Entry:
        """Its record goes; the files are told, for whoever knows what else needs them. ModelNotFound."""
        self.find(name)
        known = self._known(name)
        record = self._read(known.name)
        self._record_of(known.name).unlink(missing_ok=True)
        return _entry(known, Path(), () if record is None else record.files)

    def _read(self, name: str) -> _Record | None:
        """None for one that was never pulled, or whose record is damaged: a pull makes it anew."""
        try:
            return msgspec.json.decode(self._record_of(name).read_bytes(), type=_Record)
        except (OSError, msgspec.MsgspecError):
            return None

    def _fetch(self, known: TokenizerEntry, say: Say) -> Fetched:
        plan = Plan(name=known.name, settings=self._settings, say=say, free=self._free)
        reasons: list[str] = []
        for source in known.sources:
            try:
                return _fetched(source, plan)
            except SourceUnavailable as failure:
                if failure.error is not None and source is known.sources[-1]:
                    raise failure.error from None
                reasons.append(failure.message)
        raise NetworkError(
            f"{known.name} could not be fetched: {'; '.join(reasons) or 'it has no source'}", hint="check the network"
        )

    def _known(self, name: str) -> TokenizerEntry:
        known = self._catalog.tokenizer(name)
        if known is None:
            near = suggestions(name, [entry.name for entry in self.entries()])
            hint = f"did you mean {' or '.join(near)}?" if near else "`localllm tokenize --list` shows what there is"
            raise ModelNotFound(f"there is no tokenizer {name}", hint=hint)
        return known

    def _record_of(self, name: str) -> Path:
        """`name` is one of the catalog's: a name of a user never becomes a path."""
        return self._settings.store_dir / "tokenizers" / f"{name}.json"


def _fetched(source: Source, plan: Plan) -> Fetched:
    if source.kind == "path":
        folder = Path(source.path).expanduser().absolute()
        if not (folder / "tokenizer.json").is_file():
            raise SourceUnavailable(f"{folder} has no tokenizer.json")
        size_bytes = (folder / "tokenizer.json").stat().st_size
        file = ModelFile(path=str(folder / "tokenizer.json"), size_bytes=size_bytes)
        return Fetched(source="path", path=folder, files=(file,))
    from localllm.store.hub import fetch_tokenizer  # deferred: only a pull needs it

    return fetch_tokenizer(source, plan)


def _entry(known: TokenizerEntry, folder: Path, files: tuple[ModelFile, ...]) -> Entry:
    return Entry(
        name=known.name,
        path=str(folder),
        source="hub",
        files=files,
        size_bytes=sum(file.size_bytes for file in files),
        capabilities=(CAPABILITY,),
        license=known.license,
    )
