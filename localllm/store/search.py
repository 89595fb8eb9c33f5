"""Looking for models: the catalog first, then the hub where it can be reached."""

from __future__ import annotations

from typing import TYPE_CHECKING

from localllm.store.catalog import CatalogEntry
from localllm.store.entry import SearchHit
from localllm.store.hub import search_hub
from localllm.store.plan import Plan

if TYPE_CHECKING:
    from localllm.store.library import Library


def search(library: Library, plan: Plan, query: str) -> list[SearchHit]:
    """Catalog hits in the catalog's order, then GGUF repositories by downloads, without those the catalog names."""
    here = {entry.name for entry in library.entries()}
    found = library.catalog.search(query)
    named = {source.repo for entry in found for source in entry.sources}
    repos = [repo for repo in search_hub(query, plan) if repo not in named] if query else []
    hits = [_catalog_hit(entry, plan, entry.name in here) for entry in found]
    return hits + [SearchHit(name=f"hf.co/{repo}", source="hub", is_here=f"hf.co/{repo}" in here) for repo in repos]


def _catalog_hit(entry: CatalogEntry, plan: Plan, is_here: bool) -> SearchHit:
    return SearchHit(
        name=entry.name,
        source="catalog",
        architecture=entry.architecture,
        parameters=entry.parameters,
        context_length=entry.context_length,
        size_bytes=entry.size_bytes or _pinned_bytes(entry),
        license=entry.license,
        capabilities=entry.capabilities,
        is_here=is_here,
        refusal=plan.refusal(entry.architecture) or "",
    )


def _pinned_bytes(entry: CatalogEntry) -> int:
    return max((sum(member.size_bytes for member in source.members) for source in entry.sources), default=0)
