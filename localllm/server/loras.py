"""Routes of adapters: vLLM's orders to load and unload one, llama.cpp's list of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import Response

from localllm.daemon.loras import SEPARATOR, NamedLora, check_scale, facts_of
from localllm.errors import BadModelFile, InvalidRequest, ModelNotFound, UnsupportedModel
from localllm.server.desk import Desk
from localllm.server.http import Json, read_object
from localllm.server.lora_shapes import LoadLora, Lora, LoraUnloaded, UnloadLora
from localllm.server.operations import Operation
from localllm.server.unknowns import converted, refusal

if TYPE_CHECKING:
    from localllm.models.adapters import AdapterFacts

LONGEST_PATH = 4096


class LoraRoutes:
    """`/v1/load_lora_adapter`, `/v1/unload_lora_adapter`, `/lora-adapters`."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def operations(self) -> Sequence[Operation]:
        return (
            Operation(
                "POST", "/v1/load_lora_adapter", self.load, "Let requests name an adapter", "adapters",
                Lora, LoadLora, scope="manage",
            ),
            Operation(
                "POST", "/v1/unload_lora_adapter", self.unload, "Let no request name an adapter any more", "adapters",
                LoraUnloaded, UnloadLora, scope="manage",
            ),
            Operation("GET", "/lora-adapters", self.list, "List the adapters that requests may name", "adapters",
                list[Lora]),
        )  # fmt: skip

    async def load(self, request: Request) -> Response:
        body = await _read(request, LoadLora)
        check_scale(body.get("scale"), "scale")
        path = _path(body["lora_path"])
        scale = body.get("scale")
        lora = NamedLora(body["lora_name"], str(path), 1.0 if scale is None else float(scale))
        facts = await self._desk.residency.in_thread(lambda: _facts(str(path)))
        self._desk.loras.add(lora)
        known = self._desk.loras.all()
        told = {"base": facts.base, "rank": max(facts.ranks), "targets": list(facts.targets)}
        return Json({"id": known.index(lora), **asdict(lora), **told})

    async def unload(self, request: Request) -> Response:
        body = await _read(request, UnloadLora)
        return Json({"unloaded": self._desk.loras.remove(body["lora_name"]).name})

    async def list(self, request: Request) -> Response:
        return Json([{"id": index, **asdict(lora)} for index, lora in enumerate(self._desk.loras.all())])


def adapted_models(desk: Desk) -> list[tuple[str, str]]:
    """Names under which clients find an adapter, each with its model: beside every loaded model that writes, or the
    usual one where none is loaded."""
    loaded = [resident.entry.name for resident in desk.residency.residents() if resident.state == "ready"]
    bases = loaded or [desk.settings.default_model]
    return [(f"{base}{SEPARATOR}{lora.name}", base) for base in bases for lora in desk.loras.all()]


async def _read(request: Request, kind: type[LoadLora] | type[UnloadLora]) -> dict[str, Any]:
    """The body, of the right types. InvalidRequest names the field that is not."""
    body = await read_object(request)
    if unknown := [name for name in body if name not in kind.__struct_fields__]:
        raise refusal(unknown[0])
    converted(body, kind)
    return body


def _path(text: str) -> Path:
    if not 0 < len(text) <= LONGEST_PATH or "\0" in text or not text.startswith("/"):
        raise InvalidRequest("lora_path must be an absolute path on the daemon's machine", param="lora_path")
    return Path(text)


def _facts(path: str) -> AdapterFacts:
    try:
        return facts_of(path)
    except (BadModelFile, ModelNotFound, UnsupportedModel) as error:
        raise InvalidRequest(error.message, hint=error.hint, param="lora_path") from error
