"""What Ollama's clients ask about models, and the two changes that take no time: copying and deleting."""

import asyncio
import functools
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from localllm.daemon.residency import Residency
from localllm.daemon.resident import Resident
from localllm.daemon.shelf import OpenShelf
from localllm.errors import InvalidRequest, LocalLLMError, ModelNotFound, UsageError
from localllm.server import ollama_shapes as shapes
from localllm.server.callers import caller_of, seen_by
from localllm.server.http import Json
from localllm.server.manage import row_of
from localllm.server.ollama_errors import in_ollamas_words, named, refused_by_store
from localllm.server.ollama_generating import read
from localllm.server.ollama_writing import rfc3339
from localllm.server.operations import Operation
from localllm.store.entry import Entry
from localllm.store.names import looks_like_path, parse_ref

VERSION = "0.33.0"
"""The version of Ollama whose API this is: clients refuse to talk to servers that are too old for a feature."""
FOREVER_S = 292 * 365.25 * 86400
"""What Ollama shows for a model that is never unloaded."""
SHORT_ARRAY = 5


class OllamaModels:
    """Which models there are, which are loaded, and what they are."""

    def __init__(self, residency: Residency, open_shelf: OpenShelf) -> None:
        self._residency = residency
        self._open_shelf = open_shelf

    def operations(self) -> tuple[Operation, ...]:
        told = functools.partial(Operation, tag="ollama", errors=shapes.OllamaError, unwell=shapes.OllamaError)
        return (
            told(
                "GET", "/api/version", self.version, "Tell whose API this is", answer=shapes.OllamaVersion,
                scope="open",
            ),
            told("GET", "/api/tags", self.tags, "List the models, Ollama's way", answer=shapes.OllamaTags),
            told("GET", "/api/ps", self.ps, "List the loaded models, Ollama's way", answer=shapes.OllamaRunning),
            told(
                "POST", "/api/show", self.show, "Show what a model is", answer=shapes.OllamaShown,
                body=shapes.OllamaShowRequest,
            ),
            told(
                "POST", "/api/copy", self.copy, "Give a model a second name", body=shapes.OllamaCopyRequest,
                scope="manage",
            ),
            told(
                "DELETE", "/api/delete", self.delete, "Delete a model", body=shapes.OllamaDeleteRequest,
                scope="manage",
            ),
        )  # fmt: skip

    async def version(self, request: Request) -> Response:
        return Json({"version": VERSION})

    async def tags(self, request: Request) -> Response:
        entries = await self._residency.entries()
        newest_first = sorted(entries, key=lambda entry: -entry.modified)
        return Json({"models": [_listed(entry) for entry in newest_first]})

    async def ps(self, request: Request) -> Response:
        """Longest kept first."""
        residents = [each for each in self._residency.residents() if each.state not in ("stopping", "failed")]
        rows = [_running(each, self._residency) for each in residents]
        return Json({"models": sorted(rows, key=lambda row: row["expires_at"], reverse=True)})

    async def show(self, request: Request) -> Response:
        asked, headers = await read(request, shapes.OllamaShowRequest)
        model = named(asked.model or asked.name)
        try:
            entry = await self._residency.find(model)
            seen = seen_by(caller_of(request), entry)
            shown = await self._residency.in_thread(functools.partial(_shown, entry, seen, asked))
        except LocalLLMError as error:
            raise in_ollamas_words(error, model) from None
        return Json(shown, headers=headers)

    async def copy(self, request: Request) -> Response:
        asked, headers = await read(request, shapes.OllamaCopyRequest)
        check_name(asked.source, "source")
        check_name(asked.destination, "destination")
        try:
            named(asked.source)
            await asyncio.to_thread(lambda: self._open_shelf().copy(asked.source, asked.destination))
        except ModelNotFound:
            raise ModelNotFound(f'model "{asked.source}" not found') from None
        except LocalLLMError as error:
            raise refused_by_store(error) from None
        return Response(headers=headers)

    async def delete(self, request: Request) -> Response:
        """A model that is loaded under this name is unloaded first."""
        asked, headers = await read(request, shapes.OllamaDeleteRequest)
        model = named(asked.model or asked.name)
        check_name(model, "name")
        try:
            shelf = await asyncio.to_thread(self._open_shelf)
            name = await asyncio.to_thread(shelf.removable, model)
            if any(each.entry.name == name for each in self._residency.residents()):
                await self._residency.stop(name)
            await asyncio.to_thread(shelf.remove, model)
        except LocalLLMError as error:
            raise refused_by_store(in_ollamas_words(error, model)) from None
        return Response(headers=headers)


def check_name(name: str, what: str) -> None:
    """InvalidRequest, in Ollama's words, for what can be no model's name."""
    try:
        parse_ref(name)
    except UsageError as error:
        raise InvalidRequest(f'{what} "{name[:200]}" is invalid', hint=error.message, param=what) from None


# ---- what is told of a model


def _listed(entry: Entry) -> dict[str, Any]:
    return {
        "name": entry.name,
        "model": entry.name,
        "modified_at": rfc3339(entry.modified),
        "size": entry.size_bytes,
        "digest": entry.digest,
        "details": details(entry),
        "capabilities": list(entry.capabilities),
    }


def details(entry: Entry) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "parent_model": "" if looks_like_path(entry.parent) else entry.parent,
        "format": _format(entry),
        "family": entry.architecture,
        "families": [entry.architecture] if entry.architecture else [],
        "parameter_size": entry.parameters,
        "quantization_level": entry.quantization,
    }
    lengths = {"context_length": entry.context_length, "embedding_length": entry.embedding_length}
    return shown | {name: value for name, value in lengths.items() if value}


def _format(entry: Entry) -> str:
    """By the names of its files: a list opens none."""
    names = [entry.path, *(file.path for file in entry.files)]
    return "safetensors" if any(name.endswith(".safetensors") for name in names) else "gguf"


def _running(resident: Resident, residency: Residency) -> dict[str, Any]:
    row, entry = row_of(resident, residency), resident.entry
    size = _memory_in_use(row)
    on_gpu = not str(row.get("device", "cpu")).startswith("cpu")
    expires_at = row["expires_at"] or time.time() + FOREVER_S
    return {
        "name": entry.name,
        "model": entry.name,
        "size": size,
        "digest": entry.digest,
        "details": details(entry),
        "expires_at": rfc3339(expires_at),
        "size_vram": size if on_gpu else 0,
        "context_length": row["context_length"],
    }


def _memory_in_use(row: Mapping[str, Any]) -> int:
    """Weights, and the pages that were ever filled: the others cost nothing yet."""
    weights = int(row["size_bytes"])
    pages, total = row["pages_used"] + row["pages_cached"], row["pages_total"]
    return weights + (max(0, row.get("memory_bytes", 0) - weights) * pages // total if total else 0)


def _shown(entry: Entry, seen: Entry, asked: shapes.OllamaShowRequest) -> dict[str, Any]:
    """Opens the model's file; not for the event loop. `seen` is the model as the client may see it."""
    # deferred: numpy comes with them, which a daemon without a model need not load
    from localllm.store.inside import facts_of, template_in
    from localllm.store.modelfile import render_modelfile

    facts = facts_of(Path(entry.path))
    texts = {
        "license": entry.license,
        "system": asked.system or entry.system,
        **{name: entry.origin.get(name, "") for name in ("renderer", "parser", "requires")},
    }
    shown: dict[str, Any] = {
        "modelfile": render_modelfile(seen),
        "parameters": parameters_text(entry.params),
        "template": entry.template or template_in(Path(entry.path)),
        "details": details(entry) | {"format": facts.format},
        "model_info": _model_info(entry, facts.metadata, is_verbose=asked.verbose is True),
        "capabilities": list(entry.capabilities),
        "modified_at": rfc3339(entry.modified),
        **{name: text for name, text in texts.items() if text},
    }
    if entry.messages:
        shown["messages"] = [dict(message) for message in entry.messages]
    if asked.verbose:
        shown["tensors"] = [{"name": each.name, "type": each.type, "shape": list(each.shape)} for each in facts.tensors]
    return shown


def _model_info(entry: Entry, metadata: Mapping[str, Any], *, is_verbose: bool) -> dict[str, Any]:
    """Flat keys, as GGUF has them; for safetensors those of config.json, with the few that clients look for."""
    info = {"general.architecture": entry.architecture, **metadata}
    if "config.json" not in metadata and f"{entry.architecture}.context_length" not in metadata:
        lengths = {"context_length": entry.context_length, "embedding_length": entry.embedding_length}
        info |= {f"{entry.architecture}.{name}": value for name, value in lengths.items() if value}
    return {name: _shortened(value, is_verbose) for name, value in info.items() if name != "tokenizer.chat_template"}


def _shortened(value: Any, is_verbose: bool) -> Any:
    is_long = isinstance(value, list) and len(value) > SHORT_ARRAY
    return None if is_long and not is_verbose else finite(value)


def finite(value: Any) -> Any:
    """JSON has neither infinities nor NaN."""
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return str(value)
    return [finite(item) for item in value] if isinstance(value, list) else value


def parameters_text(params: Mapping[str, Any]) -> str:
    """A name and a value per line; texts stand in quotes, lists have a line per item."""
    rows = [(name, item) for name, value in params.items() for item in (value if isinstance(value, list) else [value])]
    return "\n".join(f"{name:<30} {_value_text(value)}" for name, value in rows)


def _value_text(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value).lower() if isinstance(value, bool) else str(value)
