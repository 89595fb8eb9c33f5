"""Items of a conversation, as the Responses API has them, to messages of a chat."""

import base64
import binascii
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from localllm.errors import InvalidRequest
from localllm.server.notes import Notes
from localllm.server.passing import over, over_unknown
from localllm.server.responses_tools import Tool

MAX_ITEMS = 4096
SEALED = "localllm.1:"
"""How reasoning begins that we packed for clients who carry it without looking inside."""

_ROLES = ("user", "assistant", "system", "developer")
_TEXTS = ("input_text", "output_text", "text", "summary_text", "reasoning_text")


def items_of(given: str | Sequence[dict[str, Any]] | None) -> list[dict[str, Any]]:
    """A string is what the user says. InvalidRequest: too many."""
    if isinstance(given, str):
        return [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": given}]}]
    if len(given or ()) > MAX_ITEMS:
        raise InvalidRequest(f"input may hold at most {MAX_ITEMS} items", param="input")
    return [{"type": "message", **item} if "role" in item else item for item in given or ()]


def sealed(reasoning: str) -> str:
    return SEALED + base64.b64encode(reasoning.encode("utf-8", "surrogatepass")).decode()


def unsealed(packed: str) -> str | None:
    """None for what others have packed."""
    try:
        return base64.b64decode(packed.removeprefix(SEALED), validate=True).decode() if SEALED in packed else None
    except (binascii.Error, UnicodeDecodeError):
        return None


FIELDS: Mapping[str, tuple[str, ...]] = {
    "message": ("role", "content"),
    "reasoning": ("summary", "content", "encrypted_content"),
    "function_call": ("call_id", "name", "arguments", "namespace"),
    "custom_tool_call": ("call_id", "name", "input", "namespace"),
    "function_call_output": ("call_id", "output"),
    "custom_tool_call_output": ("call_id", "output"),
}
"""What each type of item may say; in `_PART_FIELDS` a part of its text."""
IDLE = (
    "type", "id", "status", "phase", "annotations", "logprobs", "parsed", "parsed_arguments", "cache_control",
    "created_by", "provider_specific_fields",
)  # fmt: skip
"""Fields that clients keep with items and parts and that say nothing to a model."""
_PART_FIELDS = ("text", "refusal")


def check_fields(item: Mapping[str, Any], where: str, notes: Notes) -> None:
    """Fields of an item, and of the parts of its texts, that nobody here reads are passed over as `notes` wants it."""
    known = FIELDS.get(str(item.get("type")))
    if known is None:  # refused, or passed over, as a whole
        return
    over_unknown(notes, item, where, known, IDLE)
    for name in ("content", "output", "summary"):
        parts = item.get(name)
        for number, part in enumerate(parts if isinstance(parts, list) else ()):
            if isinstance(part, Mapping):
                over_unknown(notes, part, f"{where}.{name}[{number}]", _PART_FIELDS, IDLE)


@dataclass(slots=True)
class Conversation:
    """Messages, and for each which item it began with. What a model says in one turn is one message: what it thought,
    said and wants to call."""

    notes: Notes
    messages: list[dict[str, Any]] = field(default_factory=list)
    names: dict[str, str] = field(default_factory=dict)
    _called: dict[str, str] = field(default_factory=dict)

    def add(self, item: Mapping[str, Any], where: str) -> None:
        """InvalidRequest says what is wrong with it."""
        kind = item.get("type")
        if kind == "message":
            self._message(item, where)
        elif kind == "reasoning":
            self._reasoning(item, where)
        elif kind in ("function_call", "custom_tool_call"):
            self._call(item, where, is_custom=kind == "custom_tool_call")
        elif kind in ("function_call_output", "custom_tool_call_output"):
            self._output(item, where)
        elif kind == "item_reference":
            raise _wrong(f"{where}.type", "item_reference is not supported; send the item, or previous_response_id")
        elif isinstance(kind, str):
            over(self.notes, where, f"items of type {kind[:64]!r} are not supported")
        else:
            raise _wrong(f"{where}.type", "must be a string")

    def instruct(self, text: str, where: str) -> None:
        """What the system says; at the beginning it is one message, as most templates want it."""
        if self.messages and all(message["role"] == "system" for message in self.messages):
            self.messages[-1]["content"] += "\n\n" + text
        else:
            self._append({"role": "system", "content": text}, where)

    def _message(self, item: Mapping[str, Any], where: str) -> None:
        role = item.get("role")
        if role not in _ROLES:
            raise _wrong(f"{where}.role", f"must be one of {', '.join(_ROLES)}, not {role!r}")
        text = _text(item.get("content"), f"{where}.content")
        if role == "assistant":
            turn = self._turn(where, "content", "tool_calls")
            turn["content"] = text
        elif role == "user":
            self._append({"role": "user", "content": text}, where)
        else:
            self.instruct(text, where)

    def _reasoning(self, item: Mapping[str, Any], where: str) -> None:
        thought = _thought(item, where)
        if thought:
            self._turn(where, "content", "tool_calls", "reasoning_content")["reasoning_content"] = thought
        elif item.get("encrypted_content"):
            over(self.notes, f"{where}.encrypted_content", "this reasoning was encrypted elsewhere")

    def _call(self, item: Mapping[str, Any], where: str, *, is_custom: bool) -> None:
        call_id, name = _string(item, "call_id", where), _string(item, "name", where)
        namespace = item.get("namespace") or ""
        flat = Tool(name, namespace if isinstance(namespace, str) else "").flat
        arguments = _string(item, "input" if is_custom else "arguments", where)
        if is_custom:
            arguments = msgspec.json.encode({"input": arguments}).decode()
        self._called[call_id] = flat
        calls = self._turn(where).setdefault("tool_calls", [])
        self.names[f"messages[{len(self.messages) - 1}].tool_calls[{len(calls)}].function"] = where
        calls.append({"id": call_id, "type": "function", "function": {"name": flat, "arguments": arguments or "{}"}})

    def _output(self, item: Mapping[str, Any], where: str) -> None:
        call_id = _string(item, "call_id", where)
        message = {"role": "tool", "tool_call_id": call_id, "content": _text(item.get("output"), f"{where}.output")}
        if call_id in self._called:
            message["name"] = self._called[call_id]
        self._append(message, where)

    def _turn(self, where: str, *taken: str) -> dict[str, Any]:
        """The assistant's message under way, unless it has one of these already."""
        last = self.messages[-1] if self.messages else {}
        if last.get("role") == "assistant" and not any(last.get(name) for name in taken):
            return last
        return self._append({"role": "assistant", "content": ""}, where)

    def _append(self, message: dict[str, Any], where: str) -> dict[str, Any]:
        self.names[f"messages[{len(self.messages)}]"] = where
        self.messages.append(message)
        return message


def _thought(item: Mapping[str, Any], where: str) -> str:
    said = [
        "" if item.get(name) is None else _text(item[name], f"{where}.{name}", joint)
        for name, joint in (("content", ""), ("summary", "\n\n"))
    ]
    if any(said):
        return said[0] or said[1]
    packed = item.get("encrypted_content")
    return (unsealed(packed) or "") if isinstance(packed, str) else ""


def _text(content: Any, where: str, joint: str = "") -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise _wrong(where, "must be a string or a list of parts")
    return joint.join(_part(part, f"{where}[{number}]") for number, part in enumerate(content))


def _part(part: Any, where: str) -> str:
    if not isinstance(part, Mapping):
        raise _wrong(where, "must be an object with a type")
    kind = part.get("type")
    if kind == "refusal":
        return _string(part, "refusal", where)
    if kind not in _TEXTS:
        raise _wrong(f"{where}.type", f"{kind!r} is not supported by this model; send input_text")
    return _string(part, "text", where)


def _string(item: Mapping[str, Any], name: str, where: str) -> str:
    value = item.get(name)
    if not isinstance(value, str):
        raise _wrong(f"{where}.{name}", "must be a string")
    return value


def _wrong(where: str, what: str) -> InvalidRequest:
    return InvalidRequest(f"{where} {what}", param=where)
