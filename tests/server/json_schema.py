"""As much of JSON Schema as our API description uses: what is wrong with a value, in words."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Schema = Mapping[str, Any]
TYPES: Mapping[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "array": (list,),
    "object": (dict,),
    "null": (type(None),),
}
WORDS = {
    "$ref",
    "anyOf",
    "enum",
    "type",
    "properties",
    "required",
    "items",
    "additionalProperties",
    "minimum",
    "maximum",
    "minItems",
    "maxItems",
    "maxLength",
    "minLength",
    "pattern",
    "const",
    "not",
    "propertyNames",
    "maxProperties",
    "title",
    "description",
    "default",
}


def complaints(value: Any, schema: Schema, document: Schema, where: str = "$") -> list[str]:
    """Empty for a value that the schema allows. AssertionError for a word of JSON Schema that is not known here."""
    assert set(schema) <= WORDS, f"unknown words in the schema at {where}: {set(schema) - WORDS}"
    if "$ref" in schema:
        return complaints(value, resolved(schema["$ref"], document), document, where)
    if "anyOf" in schema:
        tried = [complaints(value, option, document, where) for option in schema["anyOf"]]
        if [] not in tried:
            return [f"{where} fits no option: {tried}"]
    if "not" in schema and not complaints(value, schema["not"], document, where):
        return [f"{where} is what it must not be"]
    if not any(_is_same(value, each) for each in schema.get("enum", [schema.get("const", value)])):
        return [f"{where} is {value!r}"]
    if "type" in schema and not _is(value, schema["type"]):
        return [f"{where} is no {schema['type']}"]
    return list(_parts(value, schema, document, where))


def resolved(reference: str, document: Schema) -> Schema:
    found: Any = document
    for name in reference.removeprefix("#/").split("/"):
        found = found[name]
    return dict(found)


def _is(value: Any, kind: str) -> bool:
    return isinstance(value, TYPES[kind]) and (kind == "boolean" or not isinstance(value, bool))


def _is_same(value: Any, other: Any) -> bool:
    return bool(value == other) and isinstance(value, bool) == isinstance(other, bool)


def _parts(value: Any, schema: Schema, document: Schema, where: str) -> Iterator[str]:
    if isinstance(value, dict):
        yield from _members(value, schema, document, where)
    elif isinstance(value, list):
        if not schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value)):
            yield f"{where} has {len(value)} items"
        for number, item in enumerate(value):
            yield from complaints(item, schema.get("items", {}), document, f"{where}[{number}]")
    elif isinstance(value, str):
        if not schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", len(value)):
            yield f"{where} has {len(value)} characters"
        if not re.search(schema.get("pattern", ""), value):
            yield f"{where} does not look like {schema['pattern']}"
    elif isinstance(value, int | float) and not schema.get("minimum", value) <= value <= schema.get("maximum", value):
        yield f"{where} is out of bounds"


def _members(value: Mapping[str, Any], schema: Schema, document: Schema, where: str) -> Iterator[str]:
    required: Sequence[str] = schema.get("required", ())
    yield from (f"{where}.{name} is missing" for name in required if name not in value)
    if len(value) > schema.get("maxProperties", len(value)):
        yield f"{where} has {len(value)} members"
    for name in value:
        yield from complaints(name, schema.get("propertyNames", {}), document, f"{where}: the name {name!r}")
    known, others = schema.get("properties", {}), schema.get("additionalProperties", True)
    for name, member in value.items():
        if name in known:
            yield from complaints(member, known[name], document, f"{where}.{name}")
        elif others is False:
            yield f"{where}.{name} is unknown"
        elif others is not True:
            yield from complaints(member, others, document, f"{where}.{name}")
