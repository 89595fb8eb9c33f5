"""The API in OpenAPI's terms, for `/openapi.json`. Made when somebody asks: nothing here is needed to answer others.

Shapes come from the structs that requests are decoded into and answers are tested against.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from starlette.responses import Response

from localllm.server import anthropic_shapes, fields, narrowing, responses_shapes, shapes
from localllm.server.operations import JSON, Operation
from localllm.wire import SAMPLING_BOUNDS

Schema = dict[str, Any]
REF = "#/components/schemas/{name}"


_SCHEMES: Schema = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "header": {"type": "apiKey", "in": "header", "name": "x-api-key"},
}


def describe(operations: Sequence[Operation], *, version: str, needs_key: bool) -> Schema:
    """The OpenAPI document of these operations."""
    document = get_openapi(
        title="localllm",
        version=version,
        description="Models on this machine: the dialects of OpenAI, Ollama and Anthropic, and what localllm's own "
        "screens use.",
        routes=[_documented(operation) for operation in operations],
    )
    components = {"schemas": _schemas(operations)}
    if needs_key:
        document["security"] = [{name: []} for name in _SCHEMES]
        components["securitySchemes"] = _SCHEMES
    return document | {"components": components}


def _documented(operation: Operation) -> APIRoute:
    """FastAPI's form of a route, for its generator only. HEAD goes with every GET and is not listed."""
    return APIRoute(
        operation.path,
        operation.endpoint,
        methods=[operation.method],
        operation_id=operation.summary.lower().replace(" ", "_"),
        summary=operation.summary,
        tags=[operation.tag],
        response_model=None,
        response_class=Response,
        status_code=operation.status,
        response_description="Done.",
        responses=_responses(operation),
        openapi_extra=_extra(operation),
    )


def _responses(operation: Operation) -> dict[int | str, dict[str, Any]]:
    content = _json(operation.answer) if operation.answer else {}
    for kind, sentence in operation.streams:
        # an event is no string: what an event stream holds is told in words
        form = {} if kind == "text/event-stream" else {"type": "string"}
        content[kind] = {"schema": form | {"description": sentence}}
    return {
        operation.status: {"description": "Done.", "content": content},
        503: {"description": "Not now, with the reason.", "content": _json(operation.unwell)},
        "4XX": {"description": "Refused, with the reason.", "content": _json(operation.errors)},
        "5XX": {"description": "Failed, with the reason.", "content": _json(operation.errors)},
    }


def _extra(operation: Operation) -> Schema:
    extra: Schema = {}
    if operation.body:
        extra["requestBody"] = {"required": True, "content": _json(operation.body)}
    elif operation.takes != JSON:
        extra["requestBody"] = {"required": True, "content": {operation.takes: {"schema": {"type": "string"}}}}
    parameters = [(name, "path", "") for name in operation.route().param_convertors]
    parameters += [(name, "query", sentence) for name, sentence in operation.query]
    if parameters:
        extra["parameters"] = [_parameter(*each) for each in parameters]
    return extra | ({"security": []} if operation.scope == "open" else {})


def _parameter(name: str, place: str, sentence: str) -> Schema:
    schema = narrowing.PARAMETERS.get(name, {"type": "string"})
    shown = {"name": name, "in": place, "required": place == "path", "schema": schema}
    return shown | ({"description": sentence} if sentence else {})


def _json(shape: Any) -> Schema:
    (schema,), _ = msgspec.json.schema_components([shape], ref_template=REF)
    return {"application/json": {"schema": schema}}


# ---- schemas


def _schemas(operations: Sequence[Operation]) -> Schema:
    roots: set[Any] = {fields.ChatRequest, fields.CompletionRequest, shapes.ErrorBody, shapes.Message}
    for operation in operations:
        named = (operation.answer, operation.body, operation.unwell, operation.errors)
        roots |= {shape for shape in named if shape}
    _, schemas = msgspec.json.schema_components(sorted(roots, key=str), ref_template=REF)
    for shape, bounds in _BOUNDED.items():
        _bound_all(schemas[shape]["properties"], bounds)
    narrowing.narrow(schemas, {each.body.__name__ for each in operations if each.body})
    return schemas


_EVERYWHERE = (*SAMPLING_BOUNDS, *fields.BOUNDS)
_BOUNDED: Mapping[str, Sequence[fields.Bound]] = {
    "ChatRequest": (*_EVERYWHERE, *fields.CHAT_BOUNDS),
    "PreviewRequest": (*_EVERYWHERE, *fields.CHAT_BOUNDS),
    "CompletionRequest": (*_EVERYWHERE, *fields.COMPLETION_BOUNDS),
    "ResponseRequest": (*_EVERYWHERE, *responses_shapes.RESPONSE_BOUNDS),
    "MessagesRequest": (*_EVERYWHERE, *anthropic_shapes.MESSAGE_BOUNDS),
    "Thinking": anthropic_shapes.THINKING_BOUNDS,
    "OllamaOptions": narrowing.option_bounds(),
}
"""Shapes and what bounds their numbers; of a field that is bounded twice the later bounds hold."""


def _bound_all(properties: Schema, bounds: Iterable[fields.Bound]) -> None:
    for name, low, high in bounds:
        if name in properties:
            _bound(properties[name], low, high)


def _bound(schema: Schema, low: float, high: float) -> None:
    """Schemas of optional numbers are `anyOf` a number and null."""
    for option in schema.get("anyOf", [schema]):
        if option["type"] != "null":
            option.update(minimum=low, maximum=high)
