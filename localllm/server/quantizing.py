"""Models in fewer bits, made by the daemon: what each type would take, and quantizations, listed with the pulls.

Only models of the store are named here: what a path is, nobody may ask over the network.
"""

import asyncio
from collections.abc import Sequence
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

from localllm.daemon import shelf_shapes
from localllm.daemon.residency import Residency
from localllm.daemon.shelf import OpenShelf
from localllm.errors import InvalidRequest, UsageError
from localllm.server import shelving_shapes as shapes
from localllm.server.http import Json, attended, read_object
from localllm.server.operations import Operation
from localllm.server.pulls import Pulls
from localllm.server.unknowns import take
from localllm.store.entry import Entry
from localllm.store.names import looks_like_path, parse_ref, quantized_name

BASE, TAG = "/localllm/v1/quantizations", "localllm"


class Quantizations:
    """Sizes, and the start; pauses and ends are those of pulls."""

    def __init__(self, residency: Residency, open_shelf: OpenShelf, pulls: Pulls) -> None:
        self._residency = residency
        self._open_shelf = open_shelf
        self._pulls = pulls

    def operations(self) -> Sequence[Operation]:
        return (
            Operation(
                "POST", f"{BASE}/sizes", self.sizes, "Tell what a model would take in other types", TAG,
                shelf_shapes.QuantizedSizes, shapes.ShelfModelRequest,
            ),
            Operation(
                "POST", BASE, self.start, "Quantize a model in the background", TAG, shelf_shapes.PullJob,
                shapes.QuantizeModelRequest, scope="manage",
            ),
        )  # fmt: skip

    async def sizes(self, request: Request) -> Response:
        wanted = take(await read_object(request), shapes.ShelfModelRequest, request).request
        entry = await self._found(wanted.model)
        return Json(await attended(request, asyncio.to_thread(_sizes, entry)))

    async def start(self, request: Request) -> Response:
        """The same again joins in, or goes on where it was paused."""
        wanted = take(await read_object(request), shapes.QuantizeModelRequest, request).request
        entry = await self._found(wanted.model)
        label = await asyncio.to_thread(_label, wanted.type)
        name = _checked_name(wanted.name or quantized_name(entry.name, label))
        await asyncio.to_thread(self._open_shelf)  # where models are given there is nothing to make others of
        return Json(self._pulls.quantize(entry.name, label, name).shown())

    async def _found(self, name: str) -> Entry:
        if looks_like_path(name):
            raise InvalidRequest("model must be a name", hint="`localllm quantize` takes paths", param="model")
        return await self._residency.find(name)


def _sizes(entry: Entry) -> shelf_shapes.QuantizedSizes:
    from localllm.runtime.quantize import sizes_of  # deferred: numpy and the formats come with it

    try:
        types = sizes_of(Path(entry.path))
    except UsageError as error:
        return shelf_shapes.QuantizedSizes(model=entry.name, size_bytes=entry.size_bytes, refusal=error.message)
    return shelf_shapes.QuantizedSizes(
        model=entry.name,
        size_bytes=entry.size_bytes,
        types=tuple(
            shelf_shapes.QuantizedSize(type=name, size_bytes=size, bits_per_weight=round(bits, 3))
            for name, size, bits in types
        ),
    )


def _label(text: str) -> str:
    from localllm.runtime.quantize import Order  # deferred, as above

    try:
        return Order(text).checked().label
    except UsageError as error:
        raise InvalidRequest(error.message, hint=error.hint, param="type") from None


def _checked_name(name: str) -> str:
    try:
        is_name = parse_ref(name).kind == "name"
    except UsageError as error:
        raise InvalidRequest(error.message, hint=error.hint, param="name") from None
    if not is_name:
        raise InvalidRequest("name must be a new name, as in mine:q4", param="name")
    return name
