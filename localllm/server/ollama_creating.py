"""Models that come: pulled, or made of others or of files that were sent. What takes long is told line by line."""

import asyncio
import functools
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import TYPE_CHECKING, Any

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Scope, Send

from localllm.daemon.shelf import OpenShelf
from localllm.errors import InvalidRequest, LocalLLMError, UsageError
from localllm.server import ollama_shapes as shapes
from localllm.server.fields import MAX_MESSAGES
from localllm.server.http import BODY_TIMEOUT_S, Disconnected, EventStream, HttpError, Json, attended, in_time
from localllm.server.jobs import Job, Jobs
from localllm.server.ollama_errors import error_line, in_ollamas_words, named, refused_by_store
from localllm.server.ollama_generating import NDJSON, read
from localllm.server.ollama_models import check_name
from localllm.server.operations import Operation
from localllm.store.blobs import CHUNK_BYTES
from localllm.store.entry import PullEvent
from localllm.store.modelfile import MAX_MODELFILE_BYTES, Modelfile, typed_parameters
from localllm.store.names import looks_like_path, parse_ref
from localllm.store.uploads import Upload, checked_digest

if TYPE_CHECKING:
    from localllm.store.quantized import Quantizing

FIRST_WORD_S = 1.0
"""So long a refusal still gets a status of its own."""
OCTETS = "application/octet-stream"
_LINES = ((NDJSON, "Unless `stream` is false: objects with a `status`; the last is success, or an `error`."),)
_UNSUPPORTED: Mapping[str, str] = {
    "adapters": "put an ADAPTER line into a Modelfile, or name the adapter in requests as `lora`",
    "draft_files": "drafts are not part of a model here",
    "draft_quantize": "drafts are not part of a model here",
    "modelfile": "send `from`, `system`, `parameters` and so on as fields",
}


class OllamaCreating:
    """Pull, push, create, blobs."""

    def __init__(self, open_shelf: OpenShelf) -> None:
        self._open_shelf = open_shelf
        self._jobs = Jobs()

    def operations(self) -> tuple[Operation, ...]:
        told = functools.partial(
            Operation, tag="ollama", errors=shapes.OllamaError, unwell=shapes.OllamaError, scope="manage"
        )
        blob = "/api/blobs/{digest}"
        return (
            told(
                "POST", "/api/pull", self.pull, "Fetch a model", answer=shapes.OllamaStatus,
                body=shapes.OllamaPullRequest, streams=_LINES,
            ),
            told("POST", "/api/push", self.push, "Say that nothing is pushed", body=shapes.OllamaPullRequest),
            told(
                "POST", "/api/create", self.create, "Make a model", answer=shapes.OllamaStatus,
                body=shapes.OllamaCreateRequest, streams=_LINES,
            ),
            told("HEAD", blob, self.has_blob, "Tell whether a file is here"),
            told("POST", blob, self.receive_blob, "Send a file for a model", takes=OCTETS, status=201),
        )  # fmt: skip

    # ---- pulling and creating

    async def pull(self, request: Request) -> Response:
        """Whoever pulls what is being pulled joins in. It stops when all of them have left; the next pull goes on."""
        asked, headers = await read(request, shapes.OllamaPullRequest)
        model = _new_name(asked.model or asked.name, "name")
        job = self._join(f"pull {parse_ref(model).key}", lambda say: self._open_shelf().pull(model, say))
        lines = _Lines(job, first="pulling manifest", last=("verifying sha256 digest", "writing manifest"))
        return await lines.answer(request, asked.stream, headers)

    async def push(self, request: Request) -> Response:
        asked, _ = await read(request, shapes.OllamaPullRequest)
        named(asked.model or asked.name)
        raise InvalidRequest("push is not supported: there is no registry that this daemon sends models to")

    async def create(self, request: Request) -> Response:
        """It stops when its client leaves; a model is there in whole or not at all."""
        asked, headers = await read(request, shapes.OllamaCreateRequest)
        model = _new_name(asked.model or asked.name, "name")
        modelfile = _modelfile(asked)
        more = {"way": await asyncio.to_thread(_way, asked.quantize)} if asked.quantize else {}

        def work(say: Callable[[PullEvent], None]) -> None:
            self._open_shelf().create(model, modelfile, None, say, files=asked.files, **more)

        job = self._join(f"create {parse_ref(model).key} {id(request)}", work)
        first = "parsing GGUF" if asked.files else f"using existing layers of {asked.from_}"
        return await _Lines(job, first=first, last=("writing manifest",)).answer(request, asked.stream, headers)

    def _join(self, key: str, work: Callable[[Callable[[PullEvent], None]], object]) -> Job:
        try:
            return self._jobs.join(key, work)
        except LocalLLMError as error:
            raise in_ollamas_words(error) from None

    # ---- blobs

    async def has_blob(self, request: Request) -> Response:
        digest = _digest(request)
        if not await asyncio.to_thread(lambda: self._open_shelf().has_upload(digest)):
            raise HttpError(404, f'blob "{digest}" not found')
        return Response()

    async def receive_blob(self, request: Request) -> Response:
        digest = _digest(request)
        size = request.headers.get("content-length", "0")
        size_bytes = int(size) if size.isascii() and size.isdigit() and len(size) < 18 else 0
        shelf = await asyncio.to_thread(self._open_shelf)
        if await asyncio.to_thread(shelf.has_upload, digest):
            return Response(status_code=200)
        upload = await asyncio.to_thread(shelf.receive, digest, size_bytes)
        with upload:
            await _write_all(request, upload)
            await asyncio.to_thread(upload.commit)
        return Response(status_code=201)


def _digest(request: Request) -> str:
    digest = str(request.path_params["digest"]).replace("sha256-", "sha256:", 1)
    checked_digest(digest)
    return digest


async def _write_all(request: Request, upload: Upload) -> None:
    """The body to disk, piece by piece. HttpError when it stalls."""
    held = bytearray()
    parts = request.stream().__aiter__()
    try:
        while True:
            async with asyncio.timeout(BODY_TIMEOUT_S):
                part = await anext(parts, None)
            held += part or b""
            if held and (part is None or len(held) >= CHUNK_BYTES):
                await asyncio.to_thread(upload.write, bytes(held))
                held.clear()
            if part is None:
                return
    except TimeoutError:
        raise HttpError(408, f"nothing of the file came for {BODY_TIMEOUT_S:.0f} s", hint="send it again") from None
    except ClientDisconnect:
        raise Disconnected from None


# ---- requests


def _new_name(name: str, what: str) -> str:
    """A path is no name: nobody may ask over the network which files there are. Neither is an address: nobody may
    have us fetch what only we can reach."""
    check_name(name or named(name), what)
    if looks_like_path(name) or parse_ref(name).kind == "url":
        raise InvalidRequest(
            f'{what} "{name[:200]}" is invalid', hint="paths and addresses are for the command line", param=what
        )
    return name


def _modelfile(asked: shapes.OllamaCreateRequest) -> Modelfile:
    """InvalidRequest names a field that is wrong or not supported."""
    for name, hint in _UNSUPPORTED.items():
        if getattr(asked, name):
            raise InvalidRequest(f"{name} is not supported by create", hint=hint, param=name)
    if bool(asked.from_) == bool(asked.files):
        problem = "send either 'from' or 'files'" if asked.from_ else "neither 'from' or 'files' was specified"
        raise InvalidRequest(problem, param="from")
    try:
        params, warnings = typed_parameters(asked.parameters or {})
    except UsageError as error:
        raise InvalidRequest(error.message, hint=error.hint, param="parameters") from None
    if asked.from_:
        _new_name(asked.from_, "from")
    license_ = asked.license or ""
    texts = [asked.template or "", asked.system or "", *license_, *(each.content for each in asked.messages or ())]
    if sum(map(len, texts)) > MAX_MODELFILE_BYTES or len(asked.messages or ()) > MAX_MESSAGES:
        raise InvalidRequest(f"template, system, license and messages may have {MAX_MODELFILE_BYTES} characters")
    return Modelfile(
        from_=(asked.from_ or "",),
        params=params,
        template=asked.template or "",
        system=asked.system or "",
        license=license_ if isinstance(license_, str) else "\n".join(license_),
        messages=tuple({"role": each.role, "content": each.content} for each in asked.messages or ()),
        renderer=asked.renderer or "",
        parser=asked.parser or "",
        requires=asked.requires or "",
        warnings=warnings,
    )


def _way(text: str) -> "Quantizing":
    """InvalidRequest for a type that does not exist."""
    from localllm.runtime.quantize import Order, way_of  # deferred: numpy and the formats come with it

    try:
        return way_of(Order(text))
    except UsageError as error:
        raise InvalidRequest(f"quantize: {error.message}", hint=error.hint, param="quantize") from None


# ---- answers


class _Lines:
    """What is said of a job. Whatever was done by the end is told in Ollama's words, which clients look for."""

    def __init__(self, job: Job, *, first: str, last: tuple[str, ...]) -> None:
        self._job = job
        self._first = first
        self._last = last

    async def answer(self, request: Request, is_streamed: bool | None, headers: Mapping[str, str]) -> Response:
        try:
            if is_streamed is False:
                with self._job.watched():  # before anything is awaited: a job without watchers may end
                    warnings = await attended(request, self._whole())
                told = {"warnings": warnings} if warnings else {}
                return Json({"status": "success"} | told, headers=dict(headers))
            response: Response = await self._streamed(request)
        except LocalLLMError as error:
            raise _told(error) from None
        response.headers.update(headers)
        return response

    async def _streamed(self, request: Request) -> "_JobStream":
        lines = self._written()
        first = await anext(lines)  # from here on somebody watches
        try:
            await attended(request, self._job.begun(FIRST_WORD_S))
        except BaseException:
            await lines.aclose()
            raise
        return _JobStream(first, lines)

    async def _whole(self) -> list[str]:
        """What a stream would have said of things that have no effect."""
        return [event.message async for event in self._job.events() if event.kind == "warning"]

    async def _written(self) -> AsyncGenerator[bytes]:
        """Whoever has the first line counts as a watcher."""
        with self._job.watched():
            yield _line({"status": self._first})
            try:
                async for event in self._job.events():
                    if shown := _shown(event):
                        yield _line(shown)
            except LocalLLMError as error:
                yield error_line(_told(error))
                return
            for status in (*self._last, "success"):
                yield _line({"status": status})


def _told(error: LocalLLMError) -> LocalLLMError:
    return refused_by_store(in_ollamas_words(error))


class _JobStream(EventStream):
    """Lines, the first of which was taken already."""

    def __init__(self, first: bytes, rest: AsyncGenerator[bytes]) -> None:
        super().__init__(rest, NDJSON)
        self._first = first

    async def write(self, scope: Scope, send: Send) -> bool:
        message = {"type": "http.response.body", "body": self._first, "more_body": True}
        return await in_time(send(message)) and await super().write(scope, send)


def _shown(event: PullEvent) -> dict[str, Any] | None:
    if event.kind == "done":
        return None
    if event.kind != "progress":
        return {"status": event.message}
    is_made = event.message.startswith("quantizing ")
    shown: dict[str, Any] = {"status": event.message if is_made else f"pulling {event.sha256[:12] or event.file}"}
    if event.sha256:
        shown["digest"] = f"sha256:{event.sha256}"
    if event.total_bytes:
        shown["total"] = event.total_bytes
    return shown | ({"completed": event.completed_bytes} if event.completed_bytes else {})


def _line(shown: dict[str, Any]) -> bytes:
    return msgspec.json.encode(shown) + b"\n"
