"""Every answer has a name, the client's where it sends a good one, and is counted by route and status.

Outermost of all layers, so that refusals of the guard have names and are counted as well.
"""

import uuid
from collections import Counter

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from localllm.server.fields import GOOD_NAME, check_request_id
from localllm.server.http import ERROR_HEADER
from localllm.server.operations import Directory

HEADER = "x-request-id"
STATE = "localllm.request_id"
NO_ROUTE = "other"
METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"))


class Answered:
    """How many answers were given, by route, method and status, and how many refusals by code."""

    def __init__(self) -> None:
        self.by_route: Counter[tuple[str, str, int]] = Counter()
        self.refusals: Counter[str] = Counter()


class Named:
    """ASGI middleware. `answered` is counted up when an answer begins."""

    def __init__(self, app: ASGIApp, directory: Directory, answered: Answered) -> None:
        self._app = app
        self._answered = answered
        self._paths = {operation.endpoint: operation.path for operation in directory.operations}
        self._plain = frozenset(operation.path for operation in directory.operations)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get(HEADER, "")
        scope[STATE] = given if GOOD_NAME.fullmatch(given) else uuid.uuid4().hex

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(raw=message["headers"])
                headers[HEADER] = scope[STATE]
                self._count(scope, message["status"], headers.get(ERROR_HEADER))
            await send(message)

        await self._app(scope, receive, sending)

    def _count(self, scope: Scope, status: int, code: str | None) -> None:
        path = self._path_of(scope)
        method = scope["method"] if path != NO_ROUTE and scope["method"] in METHODS else ""
        self._answered.by_route[path, method, status] += 1
        if code is not None:
            self._answered.refusals[code] += 1

    def _path_of(self, scope: Scope) -> str:
        """As the route has it, so that what clients put into paths makes no new counts."""
        path, endpoint = str(scope["path"]), scope.get("endpoint")
        if path in self._plain:
            return path
        return NO_ROUTE if endpoint is None else self._paths.get(endpoint, NO_ROUTE)


def wanted_id(request: Request, named: str | None = None) -> str:
    """What the request is to be called: as its body says, or its header, or as we like. InvalidRequest for a bad name
    in the body."""
    if named is None:
        return str(request.scope.get(STATE, ""))
    check_request_id(named)
    return named


def set_id(request: Request, request_id: str) -> None:
    """It is called so in the end."""
    request.scope[STATE] = request_id
