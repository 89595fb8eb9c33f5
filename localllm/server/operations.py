"""The routes of the daemon, each with what the guard, the router and the API description need to know of it.

A surface (one dialect, or one group of routes) is a class with a method `operations`.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route

from localllm.server import shapes

Scope = Literal["open", "inference", "manage"]
"""Who may call a route where keys are asked for: anybody, keys for inference, keys for managing models."""
JSON = "application/json"


@dataclass(frozen=True, slots=True)
class Operation:
    """One method of one path. `body` is a struct, `answer` one or anything made of some (`A | list[B]`); `streams` are
    other media types of the answer, each with a sentence; `takes` is the media type of the body; `query` names
    parameters, each with a sentence. `asks` for an answer: refused before its body is read while there is no room;
    short bodies are read all the same where they may be `orders` to load a model or to let it go."""

    method: Literal["GET", "POST", "DELETE", "HEAD"]
    path: str
    endpoint: Callable[[Request], Awaitable[Response]]
    summary: str
    tag: str
    answer: Any = None
    body: type[msgspec.Struct] | None = None
    streams: Sequence[tuple[str, str]] = ()
    unwell: type[msgspec.Struct] = shapes.ErrorBody
    errors: type[msgspec.Struct] = shapes.ErrorBody
    scope: Scope = "inference"
    takes: str = JSON
    query: Sequence[tuple[str, str]] = ()
    status: int = 200
    asks: bool = False
    orders: bool = False

    def route(self) -> Route:
        return Route(self.path, self.endpoint, methods=[self.method])


class Surface(Protocol):
    """Some of the daemon's routes."""

    def operations(self) -> Sequence[Operation]: ...


class Directory:
    """All operations; finds the one that a request means."""

    def __init__(self, surfaces: Sequence[Surface]) -> None:
        self.operations = [operation for surface in surfaces for operation in surface.operations()]
        self._routes = [(operation, operation.route()) for operation in self.operations]

    def routes(self) -> list[Route]:
        return [route for _, route in self._routes]

    def methods(self, path: str) -> list[str]:
        """All that some operation answers on this path, in the order of the alphabet."""
        scope = {"type": "http", "method": "GET", "path": path, "root_path": ""}
        found = [each for each in self._routes if each[1].matches(scope)[0] is not Match.NONE]
        exact = [each for each in found if each[0].path == path]  # it stands before any that has parameters
        return sorted(set().union(*(route.methods or set() for _, route in exact or found)))

    def names(self, path: str) -> list[str]:
        """What stands in the path where routes have parameters."""
        scope = {"type": "http", "method": "GET", "path": path, "root_path": ""}
        matches = (route.matches(scope)[1] for _, route in self._routes)
        return [str(value) for match in matches for value in match.get("path_params", {}).values()]

    def find(self, method: str, path: str) -> Operation | None:
        """None where no operation has this path and method. HEAD goes with every GET."""
        scope = {"type": "http", "method": method, "path": path, "root_path": ""}
        for operation, route in self._routes:
            if route.matches(scope)[0] is Match.FULL:
                return operation
        return None
