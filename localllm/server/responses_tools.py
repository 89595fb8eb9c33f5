"""Tools as the Responses API has them, to tools of a chat and back: flat functions, tools that take a text, and
namespaces of both."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from localllm.errors import InvalidRequest
from localllm.server.notes import Notes
from localllm.server.passing import over, over_unknown

_NAME = re.compile(r"[A-Za-z0-9_.:-]{1,128}")
_TEXT_INPUT = {"type": "object", "properties": {"input": {"type": "string"}}, "required": ["input"]}
_TEXT_DEFAULT = {"type": "text"}
FIELDS = ("type", "name", "description", "parameters", "strict")
"""Of a function."""
IDLE = ("cache_control",)
"""Fields that clients keep with tools and that change no answer."""


@dataclass(frozen=True, slots=True)
class Tool:
    """Who a call is meant for. `is_custom`: it takes a text, which the model writes as the argument `input`."""

    name: str
    namespace: str = ""
    is_custom: bool = False

    @property
    def flat(self) -> str:
        """Its name for the model."""
        return f"{self.namespace}__{self.name}" if self.namespace else self.name


@dataclass(slots=True)
class Toolbox:
    """Tools by their flat names, and what the chat is told of them."""

    by_flat: dict[str, Tool] = field(default_factory=dict)
    functions: list[dict[str, Any]] = field(default_factory=list)

    def add(self, tool: Tool, function: dict[str, Any], where: str) -> None:
        if tool.flat in self.by_flat:
            raise InvalidRequest(f"{where}.name: there is another tool named {tool.flat!r}", param=f"{where}.name")
        self.by_flat[tool.flat] = tool
        self.functions.append({"type": "function", "function": {**function, "name": tool.flat}})

    def of_call(self, flat: str) -> Tool:
        return self.by_flat.get(flat) or Tool(flat)


def toolbox_of(tools: list[dict[str, Any]], notes: Notes) -> Toolbox:
    """InvalidRequest names the tool that makes no sense. Those that run on OpenAI's machines are passed over."""
    box = Toolbox()
    for number, tool in enumerate(tools):
        _add(box, tool, f"tools[{number}]", "", notes)
    return box


def _add(box: Toolbox, tool: Mapping[str, Any], where: str, namespace: str, notes: Notes) -> None:
    kind = tool.get("type")
    if kind == "namespace" and not namespace:
        for number, inner in enumerate(_inner(tool, where)):
            _add(box, inner, f"{where}.tools[{number}]", _name(tool, where), notes)
    elif kind == "function":
        box.add(Tool(_name(tool, where), namespace), _function(tool, where, notes), where)
    elif kind == "custom":
        _check_format(tool.get("format"), f"{where}.format", notes)
        about = {"description": tool["description"]} if isinstance(tool.get("description"), str) else {}
        box.add(Tool(_name(tool, where), namespace, is_custom=True), {**about, "parameters": _TEXT_INPUT}, where)
    elif isinstance(kind, str):
        over(notes, f"{where}", f"tools of type {kind[:64]!r} do not run here", "send tools of type function")
    else:
        raise InvalidRequest(f"{where}.type must be a string", param=f"{where}.type")


def _inner(tool: Mapping[str, Any], where: str) -> list[dict[str, Any]]:
    inner = tool.get("tools")
    if not isinstance(inner, list) or not all(isinstance(each, dict) for each in inner):
        raise InvalidRequest(f"{where}.tools must be a list of tools", param=f"{where}.tools")
    return inner


def _name(tool: Mapping[str, Any], where: str) -> str:
    name = tool.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InvalidRequest(
            f"{where}.name must be 1 to 128 letters, digits, and any of _ . : -",
            hint='for example {"type": "function", "name": "f", "parameters": {"type": "object"}}',
            param=f"{where}.name",
        )
    return name


def _function(tool: Mapping[str, Any], where: str, notes: Notes) -> dict[str, Any]:
    function: dict[str, Any] = {}
    over_unknown(notes, tool, where, FIELDS, IDLE)
    for name, kind in (("description", str), ("parameters", dict), ("strict", bool)):
        value = tool.get(name)
        if value is not None and not isinstance(value, kind):
            shown = {str: "a string", dict: "an object", bool: "true or false"}[kind]
            raise InvalidRequest(f"{where}.{name} must be {shown}", param=f"{where}.{name}")
        if value is not None:
            function[name] = value
    return function


def _check_format(value: Any, where: str, notes: Notes) -> None:
    if value is not None and value != _TEXT_DEFAULT:
        over(notes, where, "the input of a custom tool is not held to a grammar", "leave the format out")


# ---- which one is to be called


def choice_of(choice: str | Mapping[str, Any], box: Toolbox) -> tuple[str | dict[str, Any], list[dict[str, Any]]]:
    """The chat's tool_choice, and the tools that may be called."""
    if isinstance(choice, str):
        if choice not in ("none", "auto", "required"):
            raise _wrong("tool_choice", "must be none, auto, required, or name a tool")
        return choice, box.functions
    if choice.get("type") in ("function", "custom"):
        return {"type": "function", "function": {"name": _flat(choice, box, "tool_choice")}}, box.functions
    if choice.get("type") == "allowed_tools" and choice.get("mode", "auto") in ("auto", "required"):
        allowed = set(_allowed(choice, box))
        kept = [each for each in box.functions if each["function"]["name"] in allowed]
        return str(choice.get("mode", "auto")), kept
    raise _wrong("tool_choice.type", "must be function, custom, or allowed_tools with the mode auto or required")


def _allowed(choice: Mapping[str, Any], box: Toolbox) -> Iterator[str]:
    named = choice.get("tools")
    if not isinstance(named, list) or not named or not all(isinstance(each, dict) for each in named):
        raise _wrong("tool_choice.tools", "must be a list of tools")
    for number, each in enumerate(named):
        yield _flat(each, box, f"tool_choice.tools[{number}]")


def _flat(choice: Mapping[str, Any], box: Toolbox, where: str) -> str:
    for flat, tool in box.by_flat.items():
        if choice.get("name") in (flat, tool.name) and choice.get("namespace") in (None, tool.namespace):
            return flat
    raise _wrong(f"{where}.name", "is not the name of one of the tools")


def _wrong(where: str, what: str) -> InvalidRequest:
    return InvalidRequest(f"{where} {what}", param=where)


# ---- what comes back


def text_input(arguments: str) -> str:
    """What a model wrote for a tool that takes a text; all it wrote where that is no object with `input`."""
    try:
        decoded = msgspec.json.decode(arguments)
    except msgspec.DecodeError:
        return arguments
    value = decoded.get("input") if isinstance(decoded, dict) else None
    return value if isinstance(value, str) else arguments
