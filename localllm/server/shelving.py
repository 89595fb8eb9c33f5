"""Models on the disk, in the catalog and on the hub; whether they fit; pulls as jobs. What our own screens ask for.

Whatever opens files or the network runs in threads. Where files lie is told to those who manage models only.
"""

import asyncio
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

from localllm.daemon import shelf_shapes
from localllm.daemon.fitting import Cost, cost_of_file, cost_of_size, fit_of, fit_of_loaded
from localllm.daemon.habits import Habits
from localllm.daemon.listing import catalog_models, disk_use, entry_of, found_models, is_safetensors, weights_in
from localllm.daemon.memory_plan import Holder
from localllm.daemon.residency import Residency
from localllm.daemon.resident import Resident
from localllm.daemon.shelf import OpenShelf
from localllm.errors import InvalidRequest, LocalLLMError, ModelNotFound, StoreError, UsageError
from localllm.runtime.presets import load_order
from localllm.server import shelving_shapes as shapes
from localllm.server.callers import Caller, caller_of, check_names
from localllm.server.http import Json, attended, read_object
from localllm.server.inspecting import inspected
from localllm.server.operations import Operation
from localllm.server.pulls import Pulls
from localllm.server.unknowns import take
from localllm.settings import Settings
from localllm.store.entry import NEIGHBOURS, Entry
from localllm.store.names import parse_ref

BASE, TAG = "/localllm/v1", "localllm"
MAX_COSTS = 4096
_HINTS = {"path": "load a file that is here by its path", "url": "`localllm pull` fetches addresses"}


class Shelving:
    """The library, the catalog, fits and pulls."""

    def __init__(self, settings: Settings, residency: Residency, open_shelf: OpenShelf, habits: Habits) -> None:
        self._settings = settings
        self._residency = residency
        self._open_shelf = open_shelf
        self._habits = habits
        self._costs: dict[tuple[str, str, str], Cost | LocalLLMError] = {}
        self.pulls = Pulls(open_shelf, settings.home / "pulls.json")

    def operations(self) -> Sequence[Operation]:
        found, one = shelf_shapes.CatalogModels, shelf_shapes.PullJob
        return (
            Operation(
                "GET", f"{BASE}/library", self.library, "List the models on the disk", TAG,
                shelf_shapes.InstalledModels,
            ),
            Operation(
                "POST", f"{BASE}/library/inspect", self.inspect, "Look into a model's files", TAG,
                shelf_shapes.InspectedModel, shapes.ShelfModelRequest,
            ),
            Operation(
                "POST", f"{BASE}/library/remove", self.remove, "Remove a model from the disk", TAG,
                shelf_shapes.RemovedModel, shapes.ShelfModelRequest, scope="manage",
            ),
            Operation("GET", f"{BASE}/catalog", self.catalog, "List the models that can be pulled", TAG, found),
            Operation(
                "POST", f"{BASE}/catalog/search", self.search, "Search the catalog and the hub", TAG, found,
                shapes.SearchModelsRequest, scope="manage",
            ),
            Operation(
                "POST", f"{BASE}/fit", self.fit, "Tell whether models have room here", TAG, shelf_shapes.ModelFits,
                shapes.FitModelsRequest,
            ),
            Operation("GET", f"{BASE}/pulls", self.list_pulls, "List the pulls", TAG, shelf_shapes.PullJobs),
            Operation(
                "POST", f"{BASE}/pulls", self.start_pull, "Pull a model in the background", TAG, one,
                shapes.ShelfModelRequest, scope="manage",
            ),
            Operation(
                "POST", f"{BASE}/pulls/{{pull_id}}/pause", self.pause_pull, "Pause a pull", TAG, one, scope="manage"
            ),
            Operation(
                "POST", f"{BASE}/pulls/{{pull_id}}/resume", self.resume_pull, "Go on with a pull", TAG, one,
                scope="manage",
            ),
            Operation(
                "POST", f"{BASE}/pulls/{{pull_id}}/cancel", self.cancel_pull, "Cancel a pull", TAG, one, scope="manage"
            ),
        )  # fmt: skip

    # ---- what is here

    async def library(self, request: Request) -> Response:
        entries, caller = await self._residency.entries(), caller_of(request)
        models = tuple(self._installed(entry, caller) for entry in entries)
        return Json(await asyncio.to_thread(self._shelved, models, entries))

    def _installed(self, entry: Entry, caller: Caller) -> shelf_shapes.InstalledModel:
        habit = self._habits.of(entry.name)
        return shelf_shapes.InstalledModel(
            name=entry.name,
            digest=entry.digest,
            size_bytes=entry.size_bytes,
            format="safetensors" if is_safetensors(entry) else "gguf",
            quantization=entry.quantization,
            architecture=entry.architecture,
            parameters=entry.parameters,
            context_length=entry.context_length,
            modified=entry.modified,
            used=habit.used,
            tokens_per_s=habit.tokens_per_s,
            license=entry.license.strip().partition("\n")[0][:200],
            capabilities=entry.capabilities,
            source=entry.source,
            is_ours=entry.source not in NEIGHBOURS,
            file=Path(entry.path).name,
            path=entry.path if "manage" in caller.scopes else "",
        )

    def _shelved(
        self, models: tuple[shelf_shapes.InstalledModel, ...], entries: Sequence[Entry]
    ) -> shelf_shapes.InstalledModels:
        use = disk_use(entries, self._settings.store_dir)
        return shelf_shapes.InstalledModels(
            models=models,
            store_bytes=use.store_bytes,
            disk_bytes=use.disk_bytes,
            free_bytes=use.free_bytes,
            damaged=tuple(error.message for error in self._damaged()),
        )

    def _damaged(self) -> Sequence[LocalLLMError]:
        try:
            return self._open_shelf().damaged()
        except LocalLLMError:  # a daemon whose models are given to it has nothing that could be damaged
            return ()

    async def inspect(self, request: Request) -> Response:
        entry = await self._residency.find(await _named(request))
        return Json(await attended(request, asyncio.to_thread(inspected, entry)))

    async def remove(self, request: Request) -> Response:
        """A model that is loaded under this name is unloaded first."""
        name = await _named(request)
        try:
            shelf = await asyncio.to_thread(self._open_shelf)
            full = await asyncio.to_thread(shelf.removable, name)
            if any(each.entry.name == full for each in self._residency.residents()):
                await self._residency.stop(full)
            before = await asyncio.to_thread(self._store_bytes)
            await asyncio.to_thread(shelf.remove, name)
        except StoreError as error:
            error.http_status = 409  # what the store will not do is no failure of ours
            raise
        freed = max(0, before - await asyncio.to_thread(self._store_bytes))
        return Json(shelf_shapes.RemovedModel(removed=full, freed_bytes=freed))

    def _store_bytes(self) -> int:
        return disk_use(self._open_shelf().entries(), self._settings.store_dir).store_bytes

    # ---- what could be here

    async def catalog(self, request: Request) -> Response:
        shelf = await asyncio.to_thread(self._open_shelf)
        return Json(await asyncio.to_thread(catalog_models, shelf))

    async def search(self, request: Request) -> Response:
        wanted = take(await read_object(request), shapes.SearchModelsRequest, request).request
        shelf = await asyncio.to_thread(self._open_shelf)
        work = asyncio.to_thread(found_models, shelf, wanted.query, with_hub=wanted.hub)
        return Json(await attended(request, work))

    # ---- whether it fits

    async def fit(self, request: Request) -> Response:
        wanted = take(await read_object(request), shapes.FitModelsRequest, request).request
        check_names(caller_of(request), wanted.models)
        entries = {entry.name: entry for entry in await self._residency.entries()}
        loaded = {each.entry.name: each for each in self._residency.residents() if each.ready is not None}
        room = _Room(
            self._residency.available_memory_bytes(),
            self._residency.holders(),
            self._residency.memory_bytes(),
            wanted.context_length,
        )
        seeker = _Seeker(entries, self._open_shelf)
        work = asyncio.to_thread(lambda: [self._fit(name, seeker, loaded, room) for name in wanted.models])
        return Json(shelf_shapes.ModelFits(fits=tuple(await attended(request, work))))

    def _fit(
        self, name: str, seeker: "_Seeker", loaded: Mapping[str, Resident], room: "_Room"
    ) -> shelf_shapes.ModelFit:
        """Never an error: what nobody can tell is unknown, with the reason."""
        try:
            entry = seeker.find(name)
            load, cost = load_order(entry, self._settings), self._cost(entry)
            resident = loaded.get(entry.name) if entry.path else None  # another quantization has no file here
            if resident is not None and resident.ready is not None:
                return fit_of_loaded(name, cost, resident.ready, room.memory_bytes)
            return fit_of(name, cost, load, room.available, room.holders, room.memory_bytes, room.context_length)
        except LocalLLMError as error:
            return shelf_shapes.ModelFit(model=name, sentence=error.message, memory_bytes=room.memory_bytes)

    def _cost(self, entry: Entry) -> Cost:
        """Headers are read once: those of large vocabularies take as long as a short answer."""
        key = (entry.digest or entry.path, entry.name, entry.quantization)
        known = self._costs.get(key)
        if known is None:
            if len(self._costs) >= MAX_COSTS:
                self._costs.clear()
            known = self._costs[key] = self._new_cost(entry)
        if isinstance(known, LocalLLMError):
            raise known
        return known

    def _new_cost(self, entry: Entry) -> Cost | LocalLLMError:
        load = load_order(entry, self._settings)
        if not entry.path:
            return cost_of_size(entry, load, weights_in(entry.parameters))
        try:
            return cost_of_file(entry, load)
        except LocalLLMError as error:
            return error

    # ---- pulls

    async def list_pulls(self, request: Request) -> Response:
        return Json(shelf_shapes.PullJobs(pulls=tuple(self.pulls.listed())))

    async def start_pull(self, request: Request) -> Response:
        name = await _named(request)
        try:
            kind = parse_ref(name).kind
        except UsageError as error:
            raise InvalidRequest(error.message, hint=error.hint, param="model") from None
        if kind in ("path", "url"):  # whoever may ask for any address could look around behind the firewall
            raise InvalidRequest("model must be a name, or a repository of the hub", hint=_HINTS[kind], param="model")
        await asyncio.to_thread(self._open_shelf)  # where models are given there is nothing to pull into
        return Json(self.pulls.start(name).shown())

    async def pause_pull(self, request: Request) -> Response:
        return Json(self.pulls.pause(_id(request)).shown())

    async def resume_pull(self, request: Request) -> Response:
        return Json(self.pulls.resume(_id(request)).shown())

    async def cancel_pull(self, request: Request) -> Response:
        return Json(self.pulls.cancel(_id(request)).shown())


@dataclass(frozen=True, slots=True)
class _Room:
    """What there is for a model: bytes that are free now, who holds others, and what is wanted besides."""

    available: int
    holders: Sequence[Holder]
    memory_bytes: int
    context_length: int


class _Seeker:
    """Models that are here by their full names, then the catalog, then here under another spelling. The store is opened
    once for all of them, and only where it is needed."""

    def __init__(self, entries: Mapping[str, Entry], open_shelf: OpenShelf) -> None:
        self._entries = entries
        self._open = functools.cache(open_shelf)

    def find(self, name: str) -> Entry:
        if name in self._entries:
            return self._entries[name]
        shelf = self._open()
        try:
            known = entry_of(shelf, name)
        except ModelNotFound:
            return shelf.find(name)
        is_same = known.quantization == self._entries[known.name].quantization if known.name in self._entries else False
        return self._entries[known.name] if is_same else known


async def _named(request: Request) -> str:
    name = take(await read_object(request), shapes.ShelfModelRequest, request).request.model
    return str(name)


def _id(request: Request) -> str:
    return str(request.path_params["pull_id"])
