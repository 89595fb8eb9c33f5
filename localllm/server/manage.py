"""What our own CLI and screens ask of the daemon: what is loaded, load, stop, tokenize, shut down."""

import asyncio
import contextlib
import functools
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import asdict
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from localllm.daemon.keepalive import keep_alive_seconds
from localllm.daemon.residency import Residency
from localllm.daemon.resident import Resident
from localllm.errors import InvalidRequest, LocalLLMError
from localllm.runtime.presets import LoadWish
from localllm.server import shapes, unknowns
from localllm.server.http import EventStream, Json, attended, error_object, read_object
from localllm.server.operations import Operation
from localllm.server.prompts import chat_prompt
from localllm.server.unknowns import refusal
from localllm.settings import Settings

PROGRESS_EVERY_S = 0.1
LINES = ("application/x-ndjson", "Lines of `{status, done_bytes, total_bytes}`; the last is the model or an error.")
SETTLE_S = 0.3


class Manage:
    """Endpoints under `/localllm/v1`. `shut_down` starts the drain."""

    def __init__(self, settings: Settings, residency: Residency, shut_down: Callable[[], None]) -> None:
        self._settings = settings
        self._residency = residency
        self._shut_down = shut_down

    def operations(self) -> Sequence[Operation]:
        base, tag = "/localllm/v1", "localllm"
        return (
            Operation("GET", f"{base}/ps", self.ps, "List the loaded models", tag, shapes.LoadedModels),
            Operation(
                "POST", f"{base}/load", self.load, "Load a model", tag, body=shapes.LoadRequest, streams=(LINES,),
                scope="manage",
            ),
            Operation(
                "POST", f"{base}/stop", self.stop, "Unload a model", tag, shapes.Stopped, shapes.StopRequest,
                scope="manage",
            ),
            Operation(
                "POST", f"{base}/tokenize", self.tokenize, "Turn text into token ids", tag,
                shapes.Tokens, shapes.TokenizeRequest,
            ),
            Operation(
                "POST", f"{base}/shutdown", self.shutdown, "Shut the daemon down", tag, shapes.ShuttingDown,
                scope="manage",
            ),
        )  # fmt: skip

    async def ps(self, request: Request) -> Response:
        """What is loaded. Waits a moment for counts that are known to be old: engines publish ten times a second."""
        for resident in self._residency.residents():
            await resident.settled(SETTLE_S)
        evictions = [asdict(eviction) for eviction in self._residency.evictions]
        return Json({"models": model_rows(self._residency), "evictions": evictions})

    async def load(self, request: Request) -> Response:
        body = await _read(request, shapes.LoadRequest)
        name, keep_alive = _name(body, self._settings), body.get("keep_alive")
        if keep_alive is not None and not isinstance(keep_alive, str | int | float):
            raise InvalidRequest("keep_alive must be a number or a string", param="keep_alive")
        if keep_alive is not None:
            keep_alive_seconds(keep_alive)  # what makes no sense is refused before the stream begins
        wish = _wish(body)
        await self._residency.find(name)  # an unknown model is a plain 404, not a line in a stream
        return EventStream(self._loading(name, keep_alive, wish), "application/x-ndjson")

    async def _loading(self, name: str, keep_alive: str | float | None, wish: LoadWish) -> AsyncIterator[bytes]:
        task = asyncio.create_task(self._load(name, keep_alive, wish))
        try:
            entry = await self._residency.find(name)
            last = None
            while not (await asyncio.wait({task}, timeout=PROGRESS_EVERY_S))[0]:
                line = _progress_line(self._residency, entry.name)
                if line != last:
                    last = line
                    yield _line(line)
            yield _line(_outcome(task))
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await task

    async def _load(self, name: str, keep_alive: str | float | None, wish: LoadWish) -> dict[str, Any]:
        async with self._residency.using(name, keep_alive, wish) as resident:
            return {"status": "ready", **row_of(resident, self._residency)}

    async def stop(self, request: Request) -> Response:
        name = _name(await _read(request, shapes.StopRequest), self._settings)
        was_loaded = await self._residency.stop(name)
        return Json({"stopped": name, "was_loaded": was_loaded})

    async def tokenize(self, request: Request) -> Response:
        return Json(await attended(request, self._tokenized(await _read(request, shapes.TokenizeRequest))))

    async def _tokenized(self, body: dict[str, Any]) -> dict[str, Any]:
        unknowns.converted(body, shapes.TokenizeRequest)  # for the types; messages are looked at more closely below
        name = _name(body, self._settings)
        async with self._residency.using(name) as resident:
            tokens = await self._residency.in_thread(functools.partial(_tokens, body, resident))
            return {"tokens": tokens, "count": len(tokens), "max_model_len": resident.context_length}

    async def shutdown(self, request: Request) -> Response:
        self._shut_down()
        return Json({"status": "shutting down"})


async def _read(request: Request, kind: type[msgspec.Struct]) -> dict[str, Any]:
    """The body. InvalidRequest for a field that these routes do not have."""
    body = await read_object(request)
    if unknown := [name for name in body if name not in kind.__struct_fields__]:
        raise refusal(unknown[0])
    return body


def _name(body: dict[str, Any], settings: Settings) -> str:
    name = body.get("model", settings.default_model)
    if not isinstance(name, str) or not name:
        raise InvalidRequest("model must be a name", param="model")
    return name


def _wish(body: dict[str, Any]) -> LoadWish:
    return unknowns.converted(body, LoadWish).checked()


def _tokens(body: dict[str, Any], resident: Resident) -> list[int]:
    prompt, messages = body.get("prompt"), body.get("messages")
    if isinstance(prompt, str):
        add_special = body.get("add_special_tokens", True) is not False
        return resident.text.tokenizer.encode(prompt, add_special=add_special, parse_special=True)
    if isinstance(messages, list) and messages and all(isinstance(message, dict) for message in messages):
        text = chat_prompt(messages, None, resident.entry, resident.text)
        return resident.text.tokenizer.encode(text, add_special=False, parse_special=True)
    raise InvalidRequest("send `prompt` (a string) or `messages` (a list)", param="prompt")


def _line(payload: dict[str, Any]) -> bytes:
    return msgspec.json.encode(payload) + b"\n"


def _progress_line(residency: Residency, name: str) -> dict[str, Any]:
    progress = next((each.progress for each in residency.residents() if each.entry.name == name), None)
    if progress is None:
        return {"status": "starting", "done_bytes": 0, "total_bytes": 0}
    return {"status": progress.stage, "done_bytes": progress.done_bytes, "total_bytes": progress.total_bytes}


def _outcome(task: "asyncio.Task[dict[str, Any]]") -> dict[str, Any]:
    try:
        return task.result()
    except LocalLLMError as error:
        return {"error": error_object(error)}


def model_rows(residency: Residency) -> list[dict[str, Any]]:
    """One row per loaded model, and one per model that crashed and was not started again."""
    rows = [row_of(resident, residency) for resident in residency.residents()]
    shown = {row["name"] for row in rows}
    return rows + [
        {**_EMPTY_ROW, "name": wound.name, "state": "failed", "error": wound.reason}
        for wound in residency.crashes.wounds()
        if wound.name not in shown
    ]


_EMPTY_ROW: dict[str, Any] = {
    "name": "",
    "digest": "",
    "size_bytes": 0,
    "processor": "",
    "backend": "",
    "kv_type": "",
    "quantize": "",
    "context_length": 0,
    "expires_at": None,
    "state": "loading",
    "progress": None,
    "pages_used": 0,
    "pages_cached": 0,
    "pages_total": 0,
    "page_size": 0,
    "running": 0,
    "waiting": 0,
    "tokens_per_s": 0.0,
}


def row_of(resident: Resident, residency: Residency) -> dict[str, Any]:
    expires_in_s = residency.expires_in_s(resident)
    row = {
        **_EMPTY_ROW,
        "name": resident.entry.name,
        "digest": resident.entry.digest,
        "size_bytes": resident.entry.size_bytes,
        "expires_at": None if expires_in_s is None else time.time() + expires_in_s,
        "state": resident.state,
        "kv_type": resident.load.kv_type,
        "quantize": resident.load.quantize,
        "pid": resident.pid,
    }
    if resident.progress is not None:
        row["progress"] = msgspec.structs.asdict(resident.progress)
    return row | _ready_part(resident) | _engine_part(resident)


def _ready_part(resident: Resident) -> dict[str, Any]:
    ready = resident.ready
    if ready is None:
        return {}
    return {
        "size_bytes": ready.weight_bytes or resident.entry.size_bytes,  # rounded weights are smaller than their file
        "processor": "100% CPU" if ready.device.startswith("cpu") else "100% GPU",
        "device": ready.device,
        "backend": ready.backend,
        "context_length": ready.context_length,
        "pages_total": ready.num_pages,
        "page_size": ready.page_size,
        "vocab_size": ready.vocab_size,
        "memory_bytes": ready.weight_bytes + ready.kv_bytes + ready.state_bytes,
        "load_s": ready.load_s,
        "notes": [*ready.notes, *resident.text_notes],
    }


def _engine_part(resident: Resident) -> dict[str, Any]:
    snapshot = resident.snapshot
    if snapshot is None:
        return {}
    cached = snapshot.pages.count(1)
    return {
        "pages_used": len(snapshot.pages) - snapshot.pages.count(0) - cached,
        "pages_cached": cached,
        "running": snapshot.num_running,
        "waiting": snapshot.num_waiting,
        "tokens_per_s": resident.tokens_per_s,
    }
