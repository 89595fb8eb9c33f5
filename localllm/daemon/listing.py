"""The catalog, the hub and the disk as lists for people. Reads names and sizes; opens no model file."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from localllm.daemon.shelf_shapes import CatalogModel, CatalogModels, CatalogQuant
from localllm.errors import LocalLLMError, ModelNotFound
from localllm.settings import Settings
from localllm.store.catalog import Catalog, CatalogEntry
from localllm.store.entry import Entry, PullEvent, SearchHit
from localllm.store.names import parse_ref
from localllm.store.plan import CanRun, Say

_UNITS = {"T": 1e12, "B": 1e9, "M": 1e6, "K": 1e3}
_BITS = {
    "Q2_K": 3.0, "Q3_K_S": 3.5, "Q3_K_M": 3.9, "Q3_K_L": 4.3, "IQ3_M": 3.7, "IQ4_XS": 4.3, "IQ4_NL": 4.6, "Q4_0": 4.6,
    "Q4_1": 5.0, "Q4_K_S": 4.6, "Q4_K_M": 4.85, "MXFP4": 4.4, "Q5_0": 5.6, "Q5_1": 6.0, "Q5_K_S": 5.5, "Q5_K_M": 5.7,
    "Q6_K": 6.6, "Q8_0": 8.5, "F16": 16.0, "BF16": 16.0, "F32": 32.0,
}  # fmt: skip
"""About so many bits a weight, over a whole file: embeddings and norms are kept larger."""


class Searchable(Protocol):
    """`store.library.Library`, as far as lists need it."""

    can_run: CanRun | None
    settings: Settings

    @property
    def catalog(self) -> Catalog: ...

    def entries(self) -> Sequence[Entry]: ...

    def search(self, query: str, progress: Say) -> list[SearchHit]: ...


@dataclass(frozen=True, slots=True)
class DiskUse:
    """`store_bytes` are in files that we brought; `disk_bytes` and `free_bytes` are those of the store's disk."""

    store_bytes: int
    disk_bytes: int
    free_bytes: int


def disk_use(entries: Iterable[Entry], store_dir: Path) -> DiskUse:
    """A file that several models share counts once."""
    files = {os.path.realpath(file.path): file.size_bytes for entry in entries for file in entry.files if file.is_ours}
    there = next(folder for folder in (store_dir, *store_dir.parents) if folder.exists())
    disk = shutil.disk_usage(there)
    return DiskUse(sum(files.values()), disk.total, disk.free)


def is_safetensors(entry: Entry) -> bool:
    """By the names of its files: a list opens none."""
    return any(name.endswith(".safetensors") for name in (entry.path, *(file.path for file in entry.files)))


def weights_in(parameters: str) -> float:
    """How many weights a catalog's "8.03B" are; 0 where it does not say. Experts count: "8x7B" is 56e9."""
    text = parameters.strip().upper()
    factor = _UNITS.get(text[-1:], 0.0)
    count = 1.0
    for part in text[:-1].split("X"):
        try:
            count *= float(part)
        except ValueError:
            return 0.0
    return count * factor


def catalog_models(library: Searchable) -> CatalogModels:
    """Every entry of the catalog, in its order."""
    here = {entry.name for entry in library.entries()}
    return CatalogModels(models=tuple(_listed(entry, library.can_run, here) for entry in library.catalog.entries))


def found_models(library: Searchable, query: str, *, with_hub: bool) -> CatalogModels:
    """Entries of the catalog that match, then repositories of the hub; with why that was not asked, if it was not."""
    notices: list[str] = []

    def say(event: PullEvent) -> None:
        if event.kind == "warning":
            notices.append(event.message)

    here = {entry.name for entry in library.entries()}
    found = [_listed(entry, library.can_run, here) for entry in library.catalog.search(query)]
    repos: list[CatalogModel] = []
    if with_hub and query.strip():
        try:
            repos = [_of_hub(hit) for hit in library.search(query, say) if hit.source == "hub"]
        except LocalLLMError as error:  # what the catalog has is worth showing in any case
            notices.append(error.message)
        if library.settings.offline:
            notices.append("offline is set, so only the catalog was searched")
    return CatalogModels(models=(*found, *repos), notice=". ".join(notices))


def entry_of(library: Searchable, name: str) -> Entry:
    """A model of the catalog as if it were here, without a path; ModelNotFound for a name that is not in it."""
    ref = parse_ref(name)
    known = library.catalog.find(ref)
    if known is None:
        raise ModelNotFound(f"nobody knows how large {ref.display} is before it is here")
    quant = library.catalog.quant_of(ref) or known.default_quant
    return Entry(
        name=known.name,
        path="",
        source="hub",
        size_bytes=_bytes_of(known, quant),
        parameters=known.parameters,
        quantization=quant,
        context_length=known.context_length,
        architecture=known.architecture,
    )


def _listed(entry: CatalogEntry, can_run: CanRun | None, here: Collection[str]) -> CatalogModel:
    refusal = can_run(entry.architecture, ()) if can_run and entry.architecture else None
    return CatalogModel(
        name=entry.name,
        architecture=entry.architecture,
        parameters=entry.parameters,
        context_length=entry.context_length,
        size_bytes=_bytes_of(entry, entry.default_quant),
        license=entry.license,
        gated=entry.gated,
        capabilities=entry.capabilities,
        quants=tuple(_quant(entry, tag) for tag in entry.quants),
        default_quant=entry.default_quant,
        repo=next((source.repo for source in entry.sources if source.repo), ""),
        original=entry.original,
        refusal=refusal or "",
        is_here=entry.name in here,
    )


def _quant(entry: CatalogEntry, tag: str) -> CatalogQuant:
    is_default = tag == entry.default_quant
    name = entry.name if is_default else f"{entry.name}-{tag.lower()}"
    return CatalogQuant(tag=tag, model=name, size_bytes=_bytes_of(entry, tag), is_default=is_default)


def _of_hub(hit: SearchHit) -> CatalogModel:
    return CatalogModel(
        name=hit.name, source="hub", repo=hit.name.removeprefix("hf.co/"), is_here=hit.is_here, refusal=hit.refusal
    )


def _bytes_of(entry: CatalogEntry, quant: str) -> int:
    """Of one quantization: the catalog knows that of the default, or the files themselves; others by their bits."""
    pinned = max((sum(member.size_bytes for member in source.members) for source in entry.sources), default=0)
    known, of = entry.size_bytes or pinned, entry.default_quant
    if not known:
        return int(weights_in(entry.parameters) * _BITS.get(quant, 0.0) / 8)
    if quant == of or quant not in _BITS or of not in _BITS:
        return known
    return int(known * _BITS[quant] / _BITS[of])
