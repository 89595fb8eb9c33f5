"""The form that a request wants its answer to have: OpenAI's `response_format`, and what vLLM and llama.cpp call it."""

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from localllm.daemon.formats import Format
from localllm.daemon.grammars import (
    Draft,
    choice_grammar,
    gbnf_grammar,
    json_object_grammar,
    json_schema_grammar,
    lark_grammar,
    regex_grammar,
)
from localllm.errors import InvalidRequest
from localllm.server.fields import ChatRequest, Common

_FORMAT = "response_format"
_GUIDED = ("guided_json", "guided_regex", "guided_choice", "guided_grammar", "grammar", "json_schema")


def wanted_format(request: Common) -> Format | None:
    """None where any text will do. InvalidRequest names a form that is none, and a second that is not the first under
    another name: clients for any vLLM send the older name and the newer one."""
    found = [(param, value) for param, value in _asked(request) if value is not None]
    if not found:
        return None
    (first, value), *others = found
    for other, again in others:
        if (_draft_of(other), again) != (_draft_of(first), value):
            raise InvalidRequest(f"{other} does not go with {first}: an answer has one form", param=other)
    return Format(_draft_of(first)(value, first), _param(first))


def will_need_grammar(request: Common) -> bool:
    """From a glance at its fields, before its model is there. Whoever never sees such a request pays nothing."""
    if isinstance(request, ChatRequest) and request.tools and request.tool_choice not in (None, "auto", "none"):
        return True
    return any(getattr(request, name) for name in (_FORMAT, "structured_outputs", *_GUIDED))


def _asked(request: Common) -> list[tuple[str, Any]]:
    """Fields that ask for a form, by their path."""
    own = request.structured_outputs
    vllm = {} if own is None else {f"structured_outputs.{name}": value for name, value in _given(own)}
    others = {name: getattr(request, name) for name in _GUIDED if getattr(request, name) not in (None, "")}
    return [*_of_response_format(request.response_format), *vllm.items(), *others.items()]


def _given(own: msgspec.Struct) -> list[tuple[str, Any]]:
    given = [(name, value) for name, value in msgspec.structs.asdict(own).items() if value is not None]
    return [(name, value) for name, value in given if name != "json_object" or value]


def _of_response_format(wanted: Mapping[str, Any] | None) -> list[tuple[str, Any]]:
    """`json_object`, with the schema that llama.cpp lets it have, or by text-generation-inference's name for it; or
    `json_schema` with the schema in the place that OpenAI has for it, or llama.cpp."""
    if wanted is None or wanted.get("type") == "text":
        return []
    kind = wanted.get("type")
    if kind == "json_object":
        schemas = [(f"{_FORMAT}.{name}", wanted[name]) for name in ("schema", "value") if wanted.get(name) is not None]
        return schemas or [("response_format.json_object", True)]
    if kind != "json_schema":
        raise InvalidRequest(
            f"response_format.type must be text, json_object or json_schema, not {kind!r}", param="response_format"
        )
    inner = wanted.get("json_schema", wanted)
    schema = inner.get("schema") if isinstance(inner, Mapping) else None
    if schema is None:
        raise InvalidRequest("response_format.json_schema needs a schema", param="response_format")
    place = "response_format.json_schema" if "json_schema" in wanted else "response_format"
    return [(f"{place}.schema", schema)]


def _json(value: Any, param: str) -> Draft:
    """A schema, or one as text."""
    if isinstance(value, str):
        try:
            value = msgspec.json.decode(value)
        except (msgspec.DecodeError, RecursionError):
            raise InvalidRequest(f"{param} must be a JSON schema", param=param) from None
    return json_schema_grammar(value, param=_param(param))


def _param(path: str) -> str:
    return _FORMAT if path.startswith(_FORMAT) else path


def _own_grammar(text: str, param: str) -> Draft:
    """GBNF where there is a rule `root ::=`, else Lark."""
    return gbnf_grammar(text, param=param) if "::=" in text else lark_grammar(text, param=param)


def _draft_of(path: str) -> Callable[[Any, str], Draft]:
    return _DRAFTS[path.rpartition(".")[2].removeprefix("guided_")]


_DRAFTS: Mapping[str, Callable[[Any, str], Draft]] = {
    "json_object": lambda value, param: json_object_grammar(),
    "json": _json,
    "schema": _json,
    "value": _json,
    "json_schema": _json,
    "regex": lambda value, param: regex_grammar(value, param=param),
    "choice": lambda value, param: choice_grammar(value, param=param),
    "grammar": _own_grammar,
}
