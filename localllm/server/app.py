"""The HTTP application: routes, health, and errors as bodies. `serve` is its foreground entry."""

import contextlib
import functools
import logging
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp

from localllm.daemon.habits import Habits
from localllm.daemon.journal import Journal
from localllm.daemon.residency import Residency
from localllm.daemon.shelf import Shelf
from localllm.daemon.sources import Sources
from localllm.daemon.tallies import Tallies
from localllm.daemon.texts import Texts
from localllm.daemon.tokenizers import Tokenizers
from localllm.errors import LocalLLMError
from localllm.server import shapes
from localllm.server.anthropic import Anthropic
from localllm.server.anthropic_models import is_anthropic
from localllm.server.anthropic_writing import PATH as MESSAGES
from localllm.server.callers import Callers
from localllm.server.desk import Desk
from localllm.server.door import Door
from localllm.server.explaining import Explaining
from localllm.server.guard import Gate, Guard, Rules, callers_for
from localllm.server.http import Disconnected, HttpError, Json, error_response
from localllm.server.live import Live
from localllm.server.looking import Looking
from localllm.server.loras import LoraRoutes
from localllm.server.manage import Manage, model_rows
from localllm.server.metrics import Metrics
from localllm.server.named import Answered, Named, wanted_id
from localllm.server.ollama import GREETING, Ollama
from localllm.server.openai import OpenAI
from localllm.server.operations import Directory, Operation, Surface
from localllm.server.outlet import DOORKEEPER
from localllm.server.pages import Pages
from localllm.server.preview import Previews
from localllm.server.quantizing import Quantizations
from localllm.server.ranking import Ranker
from localllm.server.requests import Requests
from localllm.server.response_store import ResponseStore
from localllm.server.responses import Responses
from localllm.server.shelving import Shelving
from localllm.server.tokenizing import Tokenizing
from localllm.server.vectors import Embedder
from localllm.settings import Settings

logger = logging.getLogger("localllm.server")

CLIENT_CLOSED = 499
POLLED = ("/health", "/localllm/v1/ps", "/localllm/v1/pulls")
"""Asked again and again: a log of these would hold nothing else."""
# newer FastAPI sends spans, and failures with their words, wherever OTEL_... in the environment says; ours never does
NO_TELEMETRY: Any = {
    "tracing": False, "metrics": False, "logs": False, "operation_spans": False, "auto_configure": False,
}  # fmt: skip
Handler = Callable[[Request, Any], Coroutine[Any, Any, Response]]
Lifespan = Callable[[FastAPI], contextlib.AbstractAsyncContextManager[dict[str, Any]]]


def package_version() -> str:
    """The installed version; "0+unknown" for a bare checkout."""
    try:
        return version("localllm")
    except PackageNotFoundError:
        return "0+unknown"


class Daemon:
    """One daemon's parts, and the application made of them. `instance` tells it from every other daemon."""

    def __init__(self, settings: Settings, sources: Sources, request_stop: Callable[[], None] = lambda: None) -> None:
        self.instance = uuid.uuid4().hex
        self.version = package_version()
        self.settings = settings
        self.callers = callers_for(settings)
        self.gate = Gate(Rules.of(settings), self.callers)
        self.residency = Residency(settings, sources)
        self.journal = Journal()
        self.desk = Desk(settings, self.residency, self.journal)
        self.kept = ResponseStore(settings.home / "responses.db")
        self.tallies = Tallies(self.journal)
        self.live = Live(self.residency, self.journal)
        self.habits = Habits(settings.home / "habits.json", self.journal)
        self.shelving = Shelving(settings, self.residency, sources.open_shelf, self.habits)
        self.texts = Texts(self.residency, sources.load_text)
        self.answered = Answered()
        self.directory = Directory(self._surfaces(sources, request_stop))
        self.door = Door(self.gate, self.desk, self.directory, self.answered)
        self._started = time.monotonic()

    def _surfaces(self, sources: Sources, request_stop: Callable[[], None]) -> Sequence[Surface]:
        return (
            self,
            OpenAI(self.desk, f"localllm-{self.version}"),
            LoraRoutes(self.desk),
            Responses(self.desk, self.kept),
            Anthropic(self.desk),
            Embedder(self.desk),
            Ranker(self.desk),
            Ollama(self.desk, sources.open_shelf),
            Manage(self.settings, self.residency, request_stop),
            self.shelving,
            Quantizations(self.residency, sources.open_shelf, self.shelving.pulls),
            Tokenizing(self.desk),
            Explaining(self.residency, Tokenizers(sources.library, sources.load_tokenizer, sources.open_shelf)),
            Looking(self.desk, self.version),
            Previews(self.desk, self.texts),
            Pages(self.desk, self.journal),
            Requests(self.journal),
            Metrics(self.desk, self.tallies, self.answered),
            self.live,
        )

    def application(self) -> ASGIApp:
        app = _Api(self.directory, self.version, self.callers, lifespan=self._lifespan)
        return Named(_Logged(Guard(app, self.gate, self.directory)), self.directory, self.answered)

    def operations(self) -> Sequence[Operation]:
        hello = (("text/plain", "One line."),)
        return (
            Operation("GET", "/", _greet, "Say hello", "daemon", streams=hello, scope="open"),
            Operation(
                "GET", "/health", self._health, "Tell how the daemon is", "daemon",
                shapes.Health, unwell=shapes.Health, scope="open",
            ),
            Operation(
                "GET", "/v1/health", self._health, "Tell how the daemon is under v1", "daemon",
                shapes.Health, unwell=shapes.Health, scope="open",
            ),
            Operation("GET", "/version", self._version, "Tell the version", "daemon", shapes.Version, scope="open"),
        )  # fmt: skip

    @contextlib.asynccontextmanager
    async def _lifespan(self, app: FastAPI) -> AsyncIterator[dict[str, Any]]:
        self.residency.warm_up()
        yield {DOORKEEPER: self.door}
        self.texts.close()
        self.shelving.pulls.close()
        self.habits.save()
        await self.residency.close()
        self.desk.grammars.close()
        self.kept.close()

    async def _version(self, request: Request) -> Response:
        return Json({"version": self.version})

    async def _health(self, request: Request) -> Response:
        """200 while everything that should run does; 503 with a reason when it does not."""
        health = self.health()
        return Json(health, status_code=200 if health["status"] == "ok" else 503)

    def health(self) -> dict[str, Any]:
        wounds = self.residency.crashes.wounds()
        status = "draining" if self.desk.is_draining else "degraded" if wounds else "ok"
        health = {
            "status": status,
            "version": self.version,
            "instance": self.instance,
            "uptime_s": round(time.monotonic() - self._started, 3),
        }
        if not self.callers.are_named:  # the route is open to all: with keys, only the bare truth
            models = model_rows(self.residency)
            health["models"] = [{"name": row["name"], "state": row["state"]} for row in models]
            health["reason"] = "; ".join(wound.reason for wound in wounds) or None
        return health


class _Api(FastAPI):
    """Routes answer by themselves, untouched by FastAPI's models; it describes them, when asked at /openapi.json.

    There is no page of documentation: FastAPI's would have browsers load scripts from elsewhere.
    """

    def __init__(self, directory: Directory, version: str, callers: Callers, *, lifespan: Lifespan) -> None:
        handlers: dict[int | type[Exception], Handler] = {
            LocalLLMError: _refuse,
            HTTPException: _refuse_http,
            Disconnected: _leave,
            Exception: _fail,
        }
        super().__init__(
            version=version, docs_url=None, redoc_url=None, exception_handlers=handlers, lifespan=lifespan,
            telemetry=NO_TELEMETRY,
        )  # fmt: skip
        self._callers = callers
        self.directory = directory
        self.router.routes.extend(directory.routes())

    def openapi(self) -> dict[str, Any]:
        from localllm.server.description import describe  # deferred: few ever ask

        return describe(self.directory.operations, version=self.version, needs_key=self._callers.are_named)


async def _greet(request: Request) -> Response:
    return PlainTextResponse(GREETING)


# ---- errors


async def _refuse(request: Request, error: Exception) -> Response:
    assert isinstance(error, LocalLLMError)
    return _told(error, request)


async def _refuse_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    sentence = {404: f"there is no {request.url.path[:200]} here", 405: f"{request.method} is not allowed here"}
    refusal = HttpError(error.status_code, sentence.get(error.status_code, error.detail))
    response = _told(refusal, request)
    response.headers.update(error.headers or {})
    if error.status_code == 405 and isinstance(request.app, _Api):  # one route of several knows its own methods only
        response.headers["allow"] = ", ".join(request.app.directory.methods(request.scope["path"]))
    return response


async def _leave(request: Request, error: Exception) -> Response:
    return Response(status_code=CLIENT_CLOSED)


async def _fail(request: Request, error: Exception) -> Response:
    error = LocalLLMError("something went wrong inside the daemon", hint="see `localllm daemon logs`")
    answer = _told(error, request)
    answer.headers["connection"] = "close"  # the HTTP server hangs up behind a failure: nothing may be sent after it
    return answer


def _told(error: LocalLLMError, request: Request) -> Json:
    """In the client's dialect: of a path, or of a client that says whose it is where dialects share one."""
    path = request.url.path
    is_shared = path.startswith("/v1/models")
    return error_response(error, MESSAGES if is_shared and is_anthropic(request) else path, wanted_id(request))


class _Logged:
    """One line per request: method, path, status, time. Neither bodies nor keys nor query strings."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Callable[[Any], Awaitable[None]]) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.monotonic(), 0

        async def noting(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, noting)
        finally:
            level = logging.DEBUG if scope["path"] in POLLED else logging.INFO
            spent_ms = (time.monotonic() - started) * 1000
            logger.log(level, "%s %s %d %.0f ms", scope["method"], scope["path"], status, spent_ms)


def library_of(settings: Settings) -> Sources:
    """The real store behind the daemon."""
    from localllm.store.library import Library  # deferred: tests bring a library of their own

    return Sources(library=Library(settings), open_shelf=functools.partial(_open_shelf, settings))


def _open_shelf(settings: Settings) -> Shelf:
    """The store that refuses models which this build cannot run."""
    from localllm.runtime.names import open_library  # deferred: numpy and the formats come with it

    return open_library(settings)


def serve(settings: Settings) -> int:
    """Run a daemon in the foreground until it is told to stop; the exit status."""
    from localllm.server.serving import run

    return run(settings, library_of(settings))
