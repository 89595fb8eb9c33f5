"""Models on the disk, in the catalog and on the hub, whether they fit, and pulls of them."""

from collections.abc import Sequence
from urllib.parse import quote

from localllm.client.transport import Transport
from localllm.daemon.shelf_shapes import (
    CatalogModels,
    InspectedModel,
    InstalledModels,
    ModelFit,
    ModelFits,
    PullJob,
    PullJobs,
    QuantizedSizes,
    RemovedModel,
)

BASE = "/localllm/v1"


class LibraryCalls:
    """Models on the disk, in the catalog and on the hub, whether they fit, and pulls of them."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def installed(self) -> InstalledModels:
        """What is on the disk, the newest first, and how full that is."""
        return self._transport.get(f"{BASE}/library", InstalledModels)

    def catalog(self) -> CatalogModels:
        """Every entry of the catalog, in its order."""
        return self._transport.get(f"{BASE}/catalog", CatalogModels)

    def search(self, query: str, *, hub: bool = True) -> CatalogModels:
        """Matches in the catalog, then on the hub; `notice` says why that could not be asked."""
        return self._transport.post(f"{BASE}/catalog/search", {"query": query, "hub": hub}, CatalogModels)

    def fit(self, models: Sequence[str], context_length: int = 0) -> tuple[ModelFit, ...]:
        """Whether each of these, here or in the catalog, has room on the daemon's machine. At most 512 names."""
        body = {"models": list(models), "context_length": context_length}
        return self._transport.post(f"{BASE}/fit", body, ModelFits).fits

    def inspect(self, model: str) -> InspectedModel:
        """Metadata, tensors, template and licence, as the model's own files have them."""
        return self._transport.post(f"{BASE}/library/inspect", {"model": model}, InspectedModel)

    def remove(self, model: str) -> RemovedModel:
        """Unloads the model, forgets it, and deletes what only it needed."""
        return self._transport.post(f"{BASE}/library/remove", {"model": model}, RemovedModel)

    def pulls(self) -> tuple[PullJob, ...]:
        """Pulls under way, paused, failed, and those that ended within the last minute."""
        return self._transport.get(f"{BASE}/pulls", PullJobs).pulls

    def pull(self, model: str) -> PullJob:
        """Starts a pull, or joins the one of this model; it goes on when we leave."""
        return self._transport.post(f"{BASE}/pulls", {"model": model}, PullJob)

    def quantized_sizes(self, model: str) -> QuantizedSizes:
        """What a model that is here would take in other types."""
        return self._transport.post(f"{BASE}/quantizations/sizes", {"model": model}, QuantizedSizes)

    def quantize(self, model: str, type_: str, name: str = "") -> PullJob:
        """Makes a model of one that is here; it is listed with the pulls, and goes on when we leave."""
        body = {"model": model, "type": type_, "name": name}
        return self._transport.post(f"{BASE}/quantizations", body, PullJob)

    def pause(self, pull_id: str) -> PullJob:
        """Stops it for now; what was fetched stays."""
        return self._act(pull_id, "pause")

    def resume(self, pull_id: str) -> PullJob:
        """Goes on with one that was paused, or failed."""
        return self._act(pull_id, "resume")

    def cancel(self, pull_id: str) -> PullJob:
        """Ends it and deletes what was fetched; of one that is over only the line in the list goes."""
        return self._act(pull_id, "cancel")

    def _act(self, pull_id: str, what: str) -> PullJob:
        return self._transport.post(f"{BASE}/pulls/{quote(pull_id, safe='')}/{what}", {}, PullJob)
