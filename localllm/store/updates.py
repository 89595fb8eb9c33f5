"""Whether the source of an installed model has something newer."""

from __future__ import annotations

from collections.abc import Sequence

from localllm.errors import LocalLLMError
from localllm.store.catalog import Catalog
from localllm.store.entry import Entry, UpdateCheck
from localllm.store.hub import Repo, list_repo, unreachable
from localllm.store.names import parse_ref
from localllm.store.plan import Plan


def check_updates(entries: Sequence[Entry], catalog: Catalog, plan: Plan) -> list[UpdateCheck]:
    """One check for each entry that can be fetched again: a name of the user's own has no source, only a parent. The
    hub is asked once for each repository, and not at all when it cannot be reached."""
    asks_hub = any("repo" in entry.origin for entry in entries)
    reason = unreachable(plan) if asks_hub else ""
    return [_check(entry, catalog, plan, reason) for entry in entries if has_source(entry, catalog)]


def has_source(entry: Entry, catalog: Catalog) -> bool:
    """Whether a pull of this name would fetch it."""
    ref = parse_ref(entry.name)
    return bool(entry.origin) and (ref.kind != "name" or catalog.find(ref) is not None)


def _check(entry: Entry, catalog: Catalog, plan: Plan, reason: str) -> UpdateCheck:
    if "repo" in entry.origin:
        return _check_hub(entry, plan, reason)
    if "package" in entry.origin:
        return _check_package(entry, catalog)
    return UpdateCheck(name=entry.name, message="its source cannot be asked for newer versions")


def _check_package(entry: Entry, catalog: Catalog) -> UpdateCheck:
    known = catalog.find(parse_ref(entry.name))
    package, current = entry.origin["package"], entry.origin.get("version", "")
    newest = next((source.version for source in known.sources if source.package == package), "") if known else ""
    return UpdateCheck(name=entry.name, is_outdated=bool(newest) and newest != current, current=current, newest=newest)


def _check_hub(entry: Entry, plan: Plan, reason: str) -> UpdateCheck:
    if reason:
        return UpdateCheck(name=entry.name, message=f"Hugging Face hub cannot be reached ({reason})")
    try:
        repo = list_repo(entry.origin["repo"], plan)
    except LocalLLMError as error:
        return UpdateCheck(name=entry.name, message=error.message)
    return UpdateCheck(
        name=entry.name,
        is_outdated=_has_other_bytes(entry, repo),
        current=entry.origin.get("commit", "")[:12],
        newest=repo.commit[:12],
    )


def _has_other_bytes(entry: Entry, repo: Repo) -> bool:
    """A new commit often changes only the card: what counts is whether our file has other bytes, or is gone."""
    name = entry.origin.get("file", "")
    now = repo.files.get(name)
    ours = next((file.sha256 for file in entry.files if file.sha256 and file.path.endswith(name)), "")
    return now is None or (bool(now.sha256) and now.sha256 != ours)
