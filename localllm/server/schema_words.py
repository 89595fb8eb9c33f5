"""The words that schemas of requests are written in: what JSON schema calls kinds, lists, choices and objects."""

from collections.abc import Sequence
from typing import Any

Schema = dict[str, Any]

ANY: Schema = {}
NULL: Schema = {"type": "null"}
OBJECT: Schema = {"type": "object"}
TEXT: Schema = {"type": "string"}
FLAG: Schema = {"type": "boolean"}
SOME: Schema = {"type": "string", "minLength": 1}
TOKEN: Schema = {"type": "integer", "minimum": 0, "maximum": 2**31 - 1}


def or_null(*options: Schema) -> Schema:
    """One of these, or nothing said."""
    return {"anyOf": [*options, NULL]}


def one_of(*words: str) -> Schema:
    """A text that is one of these."""
    return {"type": "string", "enum": list(words)}


def list_of(item: Schema, least: int = 0, most: int = 0) -> Schema:
    """`most` 0: any number of items."""
    bounds = ({"minItems": least} if least else {}) | ({"maxItems": most} if most else {})
    return {"type": "array", "items": item, **bounds}


def whole(low: int, high: int) -> Schema:
    """A number without a fraction, both ends allowed."""
    return {"type": "integer", "minimum": low, "maximum": high}


def object_of(required: Sequence[str] = (), /, **properties: Schema) -> Schema:
    """An object that may have other properties, too."""
    return OBJECT | {"properties": properties} | ({"required": list(required)} if required else {})


def closed(required: Sequence[str] = (), /, **properties: Schema) -> Schema:
    """An object with these properties and no others."""
    return object_of(required, **properties) | {"additionalProperties": False}


def sealed(schema: Schema, /, **others: Schema) -> Schema:
    """The object that `schema` describes, with these properties perhaps, and no others."""
    return schema | {"properties": {**others, **schema["properties"]}, "additionalProperties": False}


def told(schema: Schema, /, *idle: str) -> Schema:
    """The object that `schema` describes, with these properties perhaps; of others only such as say nothing."""
    return schema | {"properties": {**dict.fromkeys(idle, ANY), **schema["properties"]}, "additionalProperties": NULL}


def kind(name: str, required: Sequence[str] = (), /, **properties: Schema) -> Schema:
    """An object whose `type` is this."""
    return object_of(("type", *required), type={"const": name}, **properties)
