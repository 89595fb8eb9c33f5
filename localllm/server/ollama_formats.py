"""`format` of Ollama's requests as `response_format` of ours."""

from collections.abc import Mapping
from typing import Any

from localllm.errors import InvalidRequest

_MAPS = ("properties", "$defs", "definitions")
_LISTS = ("anyOf", "oneOf", "prefixItems")
_MAY_SAY_MORE = ("additionalProperties", "patternProperties", "unevaluatedProperties", "allOf", "$ref", "not", "if")


def response_format(wanted: str | Mapping[str, Any] | None) -> dict[str, Any] | None:
    """None for any text. InvalidRequest for a word other than "json"."""
    if wanted is None or wanted == "":
        return None
    if wanted == "json":
        return {"type": "json_object"}
    if isinstance(wanted, str):
        raise InvalidRequest(
            f'invalid format: "{wanted[:40]}"; expected "json" or a valid JSON Schema object', param="format"
        )
    return {"type": "json_schema", "json_schema": {"name": "format", "schema": closed(wanted)}}


def closed(schema: Any) -> Any:
    """The schema with objects that have the properties it names and no others, where it does not speak of others: what
    Ollama makes of it, and what keeps small models from adding some for ever. Whatever fits this fits the schema."""
    if not isinstance(schema, Mapping):
        return schema
    made = {name: _closed_below(name, value) for name, value in schema.items()}
    if "properties" in schema and not any(word in schema for word in _MAY_SAY_MORE):
        made["additionalProperties"] = False
    return made


def _closed_below(name: str, value: Any) -> Any:
    if name in _MAPS and isinstance(value, Mapping):
        return {key: closed(inner) for key, inner in value.items()}
    if name in _LISTS and isinstance(value, list):
        return [closed(inner) for inner in value]
    return closed(value) if name == "items" else value
