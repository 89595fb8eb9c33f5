"""Chat messages as clients send them to the plain form that templates render: text only, roles they know."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from localllm.errors import InvalidRequest

_ROLES: Mapping[Any, str] = {
    "system": "system",
    "developer": "system",  # OpenAI's newer name for it; templates know only the older
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
}
_FIELDS = frozenset(
    ("role", "content", "name", "tool_calls", "tool_call_id", "reasoning", "reasoning_content", "refusal")
)
_OF_OTHERS = frozenset(("audio", "function_call", "reasoning_details"))
"""In answers sent back: empty in ours, perhaps not in those of another server that the conversation began with."""
_IDLE = frozenset(("annotations", "cache_control", "id", "parsed", "provider_specific_fields"))
"""Fields that clients keep with messages and that say nothing to a model."""
_TEXTS = ("name", "tool_call_id", "reasoning", "reasoning_content", "refusal")
_PART_FIELDS = frozenset(("type", "text", "refusal"))


PassOver = Callable[[InvalidRequest], None]


def refuse(error: InvalidRequest) -> None:
    """Nothing is passed over."""
    raise error


def plain_messages(messages: Sequence[Mapping[str, Any]], pass_over: PassOver = refuse) -> list[dict[str, Any]]:
    """Checked and simplified. InvalidRequest says which message is wrong and how; `pass_over` judges those about what
    other servers said with their answers, and raises it or not."""
    return [_plain(index, message, pass_over) for index, message in enumerate(messages)]


def _plain(index: int, message: Mapping[str, Any], pass_over: PassOver) -> dict[str, Any]:
    where = f"messages[{index}]"
    role = message.get("role")
    if role == "function":
        raise InvalidRequest(
            f"{where}.role 'function' is not supported here",
            hint="send the result of a call as a tool message with its tool_call_id",
            param=f"{where}.role",
        )
    if not isinstance(role, str) or role not in _ROLES:
        raise _wrong(f"{where}.role", f"must be one of {', '.join(_ROLES)}, not {role!r}")
    for name, value in message.items():
        if name in _OF_OTHERS and value:
            pass_over(_wrong(f"{where}.{name}", "is not supported here"))
        elif name not in _FIELDS | _IDLE | _OF_OTHERS:
            raise _wrong(f"{where}.{name}", "is not supported here")
    plain: dict[str, Any] = {"role": _ROLES[role], "content": _content(where, role, message)}
    texts = {name: _string(f"{where}.{name}", message[name]) for name in _TEXTS if message.get(name) is not None}
    plain |= {name: texts[name] for name in ("name", "tool_call_id") if name in texts}
    thought = texts.get("reasoning_content") or texts.get("reasoning")
    if thought:
        plain["reasoning_content"] = thought
    if message.get("tool_calls") is not None and message["tool_calls"] != []:
        plain["tool_calls"] = _tool_calls(where, message["tool_calls"])
    return plain


def _content(where: str, role: str, message: Mapping[str, Any]) -> str:
    content = message.get("content")
    if isinstance(content, str):
        return content
    if content is None and role == "assistant":
        return ""
    if not isinstance(content, list):
        raise _wrong(f"{where}.content", "must be a string or a list of parts")
    return "".join(_part(f"{where}.content[{number}]", part) for number, part in enumerate(content))


def _part(where: str, part: Any) -> str:
    if not isinstance(part, Mapping):
        raise _wrong(where, "must be an object with a type")
    if part.get("type") not in ("text", "refusal"):
        raise _wrong(f"{where}.type", f"{part.get('type')!r} is not supported by this model; send text")
    for name in part:
        if name not in _PART_FIELDS and name not in _IDLE:
            raise _wrong(f"{where}.{name}", "is not supported here")
    texts = {name: _string(f"{where}.{name}", part[name]) for name in ("text", "refusal") if name in part}
    kind = str(part["type"])
    return _string(f"{where}.{kind}", texts.get(kind))


def _string(where: str, value: Any) -> str:
    if not isinstance(value, str):
        raise _wrong(where, "must be a string")
    return value


def _tool_calls(where: str, calls: Any) -> list[dict[str, Any]]:
    if not isinstance(calls, list) or not all(isinstance(call, Mapping) for call in calls):
        raise _wrong(f"{where}.tool_calls", "must be a list of objects")
    return [_tool_call(f"{where}.tool_calls[{number}]", call) for number, call in enumerate(calls)]


def _tool_call(where: str, call: Mapping[str, Any]) -> dict[str, Any]:
    function = call.get("function")
    if not isinstance(function, Mapping):
        raise _wrong(f"{where}.function", "must be an object")
    if call.get("type", "function") != "function":
        raise _wrong(f"{where}.type", f"must be function, not {call['type']!r}")
    for own, accepted in (("id", str), ("index", int)):
        given = call.get(own, accepted())
        if not isinstance(given, accepted) or isinstance(given, bool):
            raise _wrong(f"{where}.{own}", "must be a string" if accepted is str else "must be a whole number")
    name = _string(f"{where}.function.name", function.get("name"))
    arguments: Any = function.get("arguments")
    if isinstance(arguments, str):
        arguments = _object_or_text(arguments)
    if arguments is None:
        arguments = {}
    if not isinstance(arguments, Mapping | str):
        raise _wrong(f"{where}.function.arguments", "must be a JSON object")
    return {"id": call.get("id", ""), "type": "function", "function": {"name": name, "arguments": arguments}}


def _object_or_text(arguments: str) -> Any:
    """The object, which templates write out themselves. What a model said that is none, such as a call that was cut,
    stays the text it was: the conversation has to go on from there."""
    try:
        decoded = msgspec.json.decode(arguments or "null")
    except msgspec.DecodeError:
        return arguments
    return decoded if decoded is None or isinstance(decoded, Mapping) else arguments


def place_of_texts(messages: Sequence[Mapping[str, Any]]) -> str | None:
    """The first call among plain messages whose arguments are no object; None where all are."""
    for index, message in enumerate(messages):
        for number, call in enumerate(message.get("tool_calls", ())):
            if isinstance(call["function"]["arguments"], str):
                return f"messages[{index}].tool_calls[{number}].function.arguments"
    return None


def _wrong(where: str, what: str) -> InvalidRequest:
    return InvalidRequest(f"{where} {what}", param=where)
