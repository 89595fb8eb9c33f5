"""The API in OpenAPI's terms, for `/openapi.json`. Made when somebody asks: nothing here is needed to answer others.

Shapes come from the structs that requests are decoded into and answers are tested against.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from localllm.server import fields, shapes
from localllm.wire import SAMPLING_BOUNDS

Schema = dict[str, Any]
REF = "#/components/schemas/{name}"


@dataclass(frozen=True, slots=True)
class Operation:
    """One route in words. `body` and `answer` are structs; other media types of the answer come with a sentence."""

    summary: str
    tag: str
    answer: type[msgspec.Struct] | None = None
    body: type[msgspec.Struct] | None = None
    streams: tuple[str, str] | None = None
    unwell: type[msgspec.Struct] = shapes.ErrorBody
    is_open: bool = False

    def responses(self) -> dict[int | str, dict[str, Any]]:
        content = _json(self.answer) if self.answer else {}
        if self.streams:
            kind, sentence = self.streams
            content[kind] = {"schema": {"type": "string", "description": sentence}}
        unwell = {"description": "Not now, with the reason.", "content": _json(self.unwell)}
        return {
            200: {"description": "Done.", "content": content},
            503: unwell,
            "4XX": {"description": "Refused, with the reason.", "content": _json(shapes.ErrorBody)},
            "5XX": {"description": "Failed, with the reason.", "content": _json(shapes.ErrorBody)},
        }


_EVENTS = ("text/event-stream", "With `stream`: `data:` lines of chunks (or of an error body), then `data: [DONE]`.")
_FEED = ("text/event-stream", "`data:` lines of `{models, snapshots}`, at most ten a second, until either side ends.")
_LINES = ("application/x-ndjson", "Lines of `{status, done_bytes, total_bytes}`; the last is the model or an error.")

OPERATIONS: Mapping[str, Operation] = {
    "/": Operation("Say hello", "daemon", streams=("text/plain", "One line."), is_open=True),
    "/health": Operation("Tell how the daemon is", "daemon", shapes.Health, unwell=shapes.Health, is_open=True),
    "/version": Operation("Tell the version", "daemon", shapes.Version, is_open=True),
    "/v1/models": Operation("List the models on disk", "openai", shapes.Models),
    "/v1/models/{name}": Operation("Find one model", "openai", shapes.Model),
    "/v1/chat/completions": Operation(
        "Answer a conversation", "openai", shapes.ChatAnswer, fields.ChatRequest, streams=_EVENTS
    ),
    "/v1/completions": Operation(
        "Continue a text", "openai", shapes.TextAnswer, fields.CompletionRequest, streams=_EVENTS
    ),
    "/localllm/v1/ps": Operation("List the loaded models", "localllm", shapes.LoadedModels),
    "/localllm/v1/load": Operation("Load a model", "localllm", body=shapes.LoadRequest, streams=_LINES),
    "/localllm/v1/stop": Operation("Unload a model", "localllm", shapes.Stopped, shapes.StopRequest),
    "/localllm/v1/live": Operation("Watch the engines", "localllm", streams=_FEED),
    "/localllm/v1/tokenize": Operation("Turn text into token ids", "localllm", shapes.Tokens, shapes.TokenizeRequest),
    "/localllm/v1/shutdown": Operation("Shut the daemon down", "localllm", shapes.ShuttingDown),
}
"""By path, as OpenAPI writes paths. Every path has one method."""

_SCHEMES: Schema = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "header": {"type": "apiKey", "in": "header", "name": "x-api-key"},
}


def describe(routes: Iterable[BaseRoute], *, version: str, needs_key: bool) -> Schema:
    """The OpenAPI document of these routes. KeyError for a route that nobody described."""
    documented = [_documented(route) for route in routes if isinstance(route, Route) and route.include_in_schema]
    document = get_openapi(
        title="localllm",
        version=version,
        description="Models on this machine: the OpenAI API, and what localllm's own screens use.",
        routes=documented,
    )
    components = {"schemas": _schemas()}
    if needs_key:
        document["security"] = [{name: []} for name in _SCHEMES]
        components["securitySchemes"] = _SCHEMES
    return document | {"components": components}


def _documented(route: Route) -> APIRoute:
    """FastAPI's form of a route, for its generator only. HEAD goes with every GET and is not listed."""
    operation = OPERATIONS[route.path_format]
    (method,) = (route.methods or set()) - {"HEAD"}
    return APIRoute(
        route.path,
        route.endpoint,
        methods=[method],
        operation_id=operation.summary.lower().replace(" ", "_"),
        summary=operation.summary,
        tags=[operation.tag],
        response_model=None,
        response_class=Response,
        response_description="Done.",
        responses=operation.responses(),
        openapi_extra=_extra(route, operation),
    )


def _extra(route: Route, operation: Operation) -> Schema:
    extra: Schema = {}
    if operation.body:
        extra["requestBody"] = {"required": True, "content": _json(operation.body)}
    if route.param_convertors:
        extra["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
            for name in route.param_convertors
        ]
    return extra | ({"security": []} if operation.is_open else {})


def _json(shape: type[msgspec.Struct]) -> Schema:
    return {"application/json": {"schema": {"$ref": REF.format(name=shape.__name__)}}}


# ---- schemas


def _schemas() -> Schema:
    roots = {fields.ChatRequest, fields.CompletionRequest, shapes.ErrorBody, shapes.Message}
    for operation in OPERATIONS.values():
        roots |= {shape for shape in (operation.answer, operation.body, operation.unwell) if shape}
    _, schemas = msgspec.json.schema_components(sorted(roots, key=lambda shape: shape.__name__), ref_template=REF)
    chat, completion = schemas["ChatRequest"], schemas["CompletionRequest"]
    chat["properties"]["messages"]["items"] = {"$ref": REF.format(name="Message")}
    for request, bounds in ((chat, fields.CHAT_BOUNDS), (completion, fields.COMPLETION_BOUNDS)):
        request["additionalProperties"] = False
        for name, low, high in (*fields.BOUNDS, *bounds, *SAMPLING_BOUNDS):
            _bound(request["properties"][name], low, high)
    return schemas


def _bound(schema: Schema, low: float, high: float) -> None:
    """Schemas of optional numbers are `anyOf` a number and null."""
    for option in schema["anyOf"]:
        if option["type"] != "null":
            option.update(minimum=low, maximum=high)
