"""A request for a message becomes a chat. What the clients of this dialect have newly thought of is passed over."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from localllm.errors import InvalidRequest
from localllm.server import fields
from localllm.server.anthropic_shapes import Counted, MessagesRequest, Thinking
from localllm.server.fields import MAX_NAME_CHARS, ChatRequest
from localllm.server.notes import Notes
from localllm.server.passing import named_as, over, over_unknown
from localllm.server.responses_input import unsealed

BILLING = "x-anthropic-"
"""How a block of Claude Code's system prompt begins that is no prompt: it counts requests, and as part of a prompt it
would keep every one from the cache."""
JOINT = "\n\n"
_TOOL_FIELDS = frozenset(("type", "name", "description", "input_schema", "strict"))
_WITHOUT_EFFECT = frozenset(("cache_control", "eager_input_streaming", "citations", "caller", "toolset_name"))
_BLOCK_FIELDS: Mapping[str, tuple[str, ...]] = {
    "text": ("text",),
    "document": ("source", "title", "context"),
    "search_result": ("source", "title", "content"),
    "tool_result": ("tool_use_id", "content", "is_error"),
    "tool_use": ("id", "name", "input"),
    "thinking": ("thinking", "signature"),
}
_NAMES = {
    "max_completion_tokens": "max_tokens",
    "stop": "stop_sequences",
    "response_format": "output_config.format",
    "response_format.json_schema": "output_config.format.schema",
    "reasoning_effort": "output_config.effort",
    "reasoning": "thinking",
    "reasoning.max_tokens": "thinking.budget_tokens",
    "user": "metadata.user_id",
    "parallel_tool_calls": "tool_choice.disable_parallel_tool_use",
}


@dataclass(frozen=True, slots=True)
class Translated:
    """`names`: how the client calls the chat's fields."""

    chat: ChatRequest
    notes: Notes
    names: dict[str, str]


def translated(wanted: Counted, notes: Notes) -> Translated:
    """InvalidRequest names the field."""
    talk = _Talk(notes)
    system = talk.system_text(wanted.system, "system")
    if system:
        talk.append({"role": "system", "content": system}, "system")
    for number, turn in enumerate(wanted.messages):
        talk.add(turn.role, turn.content, f"messages[{number}]")
    names = _NAMES | ({} if wanted.thinking else {"reasoning": "output_config.effort"}) | talk.names
    body: dict[str, Any] = {"model": wanted.model, "messages": talk.messages, **_shared(wanted, notes)}
    last = talk.messages[-1]
    if last["role"] == "assistant":
        if last.get("tool_calls"):
            where = f"messages[{len(wanted.messages) - 1}].content"
            raise InvalidRequest(f"{where}: a tool_use needs a tool_result behind it", param=where)
        body["continue_final_message"] = True
    if isinstance(wanted, MessagesRequest):
        body |= _of_message(wanted)
    with named_as(names):
        return Translated(fields.parse(body, ChatRequest), notes, names)


def _shared(wanted: Counted, notes: Notes) -> dict[str, Any]:
    """What changes the prompt."""
    body: dict[str, Any] = {}
    tools = [each for number, tool in enumerate(wanted.tools or ()) if (each := _tool(tool, f"tools[{number}]", notes))]
    if tools:
        body["tools"] = tools
    if wanted.tool_choice is not None:
        body |= _choice(wanted.tool_choice, bool(tools))
    config = wanted.output_config
    form = (config.format if config else None) or wanted.output_format
    if form is not None:
        schema = {"name": "output", "schema": form.schema, "strict": True}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    return body | _thinking(wanted.thinking, config.effort if config else None)


def _of_message(wanted: MessagesRequest) -> dict[str, Any]:
    body: dict[str, Any] = {"max_completion_tokens": wanted.max_tokens}
    for name in ("stream", "temperature", "top_p", "top_k", "service_tier"):
        if getattr(wanted, name) is not None:
            body[name] = getattr(wanted, name)
    if wanted.stop_sequences:
        body["stop"] = wanted.stop_sequences
    if wanted.metadata is not None and wanted.metadata.user_id:
        body["user"] = _user(wanted.metadata.user_id)
    return body


def _user(user_id: str) -> str:
    """Long ids (agents pack a JSON object in it) by their hash."""
    return user_id if len(user_id) <= MAX_NAME_CHARS else hashlib.sha256(user_id.encode("utf-8", "replace")).hexdigest()


def _thinking(thinking: Thinking | None, effort: str | None) -> dict[str, Any]:
    """Without a word about it there is none, as this dialect's clients expect."""
    if thinking is None and effort is None:
        return {"reasoning": {"enabled": False}}
    if thinking is not None and thinking.type == "disabled":
        return {"reasoning": {"enabled": False}}
    reasoning: dict[str, Any] = {} if effort is None else {"effort": effort}
    if thinking is not None and thinking.type == "enabled":
        reasoning |= {"enabled": True, "max_tokens": thinking.budget_tokens}
    return {"reasoning": reasoning} if reasoning else {}


# ---- tools


def _tool(tool: Mapping[str, Any], where: str, notes: Notes) -> dict[str, Any] | None:
    kind = tool.get("type")
    if not isinstance(kind, str | None):
        raise _wrong(f"{where}.type", "must be a string")
    if kind not in (None, "custom"):
        over(notes, where, f"tools of type {kind!r} do not run here")
        return None
    name, schema = tool.get("name"), tool.get("input_schema")
    if not isinstance(name, str) or not name:
        raise _wrong(f"{where}.name", "must be a string")
    if not isinstance(schema, dict):
        raise _wrong(f"{where}.input_schema", "must be an object")
    for other in tool.keys() - _TOOL_FIELDS - _WITHOUT_EFFECT:
        over(notes, f"{where}.{other}", "is not supported")
    function: dict[str, Any] = {"name": name, "parameters": schema}
    for field_name, accepted in (("description", str), ("strict", bool)):
        value = tool.get(field_name)
        if value is not None and not isinstance(value, accepted):
            raise _wrong(f"{where}.{field_name}", "must be a string" if accepted is str else "must be true or false")
        if value is not None:
            function[field_name] = value
    return {"type": "function", "function": function}


def _choice(choice: Mapping[str, Any], has_tools: bool) -> dict[str, Any]:
    kind, is_single = choice.get("type"), choice.get("disable_parallel_tool_use")
    if is_single is not None and not isinstance(is_single, bool):
        raise _wrong("tool_choice.disable_parallel_tool_use", "must be true or false")
    if kind not in ("auto", "any", "tool", "none"):
        raise _wrong("tool_choice.type", "must be auto, any, tool or none")
    if kind in ("any", "tool") and not has_tools:
        raise _wrong("tool_choice", "needs `tools`")
    if kind == "tool" and not isinstance(choice.get("name"), str):
        raise _wrong("tool_choice.name", "must be the name of one of the tools")
    named = {"type": "function", "function": {"name": choice.get("name")}}
    neutral = {"auto": "auto", "any": "required", "none": "none", "tool": named}[kind]
    body: dict[str, Any] = {"tool_choice": neutral} if has_tools else {}
    return body | ({"parallel_tool_calls": False} if is_single and has_tools else {})


# ---- messages


@dataclass(slots=True)
class _Talk:
    """Messages of the chat, and for each which message of the request it came from."""

    notes: Notes
    messages: list[dict[str, Any]] = field(default_factory=list)
    names: dict[str, str] = field(default_factory=dict)
    _called: dict[str, str] = field(default_factory=dict)

    def append(self, message: dict[str, Any], where: str) -> None:
        self.names[f"messages[{len(self.messages)}]"] = where
        self.messages.append(message)

    def system_text(self, system: str | Sequence[Mapping[str, Any]] | None, where: str) -> str:
        if system is None or isinstance(system, str):
            return system or ""
        texts: list[str] = []
        for number, block in enumerate(system):
            text = self._text(block, f"{where}[{number}]")
            if text.startswith(BILLING):
                over(self.notes, f"{where}[{number}]", "is no prompt")
            elif text:
                texts.append(text)
        return JOINT.join(texts)

    def add(self, role: str, content: str | Sequence[Mapping[str, Any]], where: str) -> None:
        if isinstance(content, str):
            self._say(role, content, where)
        elif role == "assistant":
            self._assistant(content, f"{where}.content", where)
        elif role == "system":
            self._say(role, self.system_text(content, f"{where}.content"), where)
        else:
            self._user(content, f"{where}.content", where)

    def _say(self, role: str, text: str, where: str) -> None:
        """Neighbours of one role are one turn."""
        last = self.messages[-1] if self.messages else {}
        if last.get("role") == role and role != "assistant":
            last["content"] += JOINT + text
        else:
            self.append({"role": role, "content": text}, where)

    # ---- the user's

    def _user(self, blocks: Sequence[Mapping[str, Any]], path: str, where: str) -> None:
        texts: list[str] = []
        for number, block in enumerate(blocks):
            if _type(block, f"{path}[{number}]") == "tool_result":
                self._flush(texts, where)
                self._result(block, f"{path}[{number}]", where)
            else:
                texts.append(self._shown(block, f"{path}[{number}]"))
        if texts or not blocks:
            self._flush(texts or [""], where)

    def _flush(self, texts: list[str], where: str) -> None:
        if texts:
            self._say("user", JOINT.join(texts), where)
            texts.clear()

    def _result(self, block: Mapping[str, Any], path: str, where: str) -> None:
        self._check_names(block, "tool_result", path)
        call_id = block.get("tool_use_id")
        if not isinstance(call_id, str):
            raise _wrong(f"{path}.tool_use_id", "must be a string")
        content = block.get("content")
        if isinstance(content, list):
            content = JOINT.join(self._shown(each, f"{path}.content[{n}]") for n, each in enumerate(content))
        if content is not None and not isinstance(content, str):
            raise _wrong(f"{path}.content", "must be a string or a list of blocks")
        text = f"Error: {content or ''}" if block.get("is_error") is True else content or ""
        message = {"role": "tool", "tool_call_id": call_id, "content": text}
        if call_id in self._called:
            message["name"] = self._called[call_id]
        self.append(message, where)

    def _shown(self, block: Mapping[str, Any], path: str) -> str:
        """Text, or what can be read as such."""
        kind = _type(block, path)
        if kind == "document":
            return self._document(block, path)
        if kind == "search_result":
            self._check_names(block, kind, path)
            return JOINT.join(filter(None, (_about(block), self.system_text(_blocks(block, path), f"{path}.content"))))
        return self._text(block, path)

    def _document(self, block: Mapping[str, Any], path: str) -> str:
        self._check_names(block, "document", path)
        source = block.get("source")
        kind = source.get("type") if isinstance(source, Mapping) else None
        if not isinstance(source, Mapping) or kind not in ("text", "content"):
            raise _wrong(f"{path}.source.type", f"{kind!r} is not supported by this model; send text")
        if kind == "content":
            said = source.get("content")
            text = said if isinstance(said, str) else self.system_text(_blocks(source, path), f"{path}.source.content")
        elif isinstance(source.get("data"), str):
            text = source["data"]
        else:
            raise _wrong(f"{path}.source.data", "must be a string")
        return JOINT.join(filter(None, (_about(block), text)))

    def _text(self, block: Mapping[str, Any], path: str) -> str:
        kind = _type(block, path)
        if kind != "text":
            raise _wrong(f"{path}.type", f"{kind!r} is not supported by this model; send text")
        self._check_names(block, kind, path)
        text = block.get("text")
        if not isinstance(text, str):
            raise _wrong(f"{path}.text", "must be a string")
        return text

    def _check_names(self, block: Mapping[str, Any], kind: str, path: str) -> None:
        over_unknown(self.notes, block, path, ("type", *_BLOCK_FIELDS[kind]), _WITHOUT_EFFECT)

    # ---- the assistant's

    def _assistant(self, blocks: Sequence[Mapping[str, Any]], path: str, where: str) -> None:
        message: dict[str, Any] = {"role": "assistant", "content": ""}
        for number, block in enumerate(blocks):
            self._assistant_block(block, f"{path}[{number}]", message)
        self.append(message, where)

    def _assistant_block(self, block: Mapping[str, Any], path: str, message: dict[str, Any]) -> None:
        kind = _type(block, path)
        if kind in ("tool_use", "thinking"):
            self._check_names(block, kind, path)
        if kind == "tool_use":
            calls = message.setdefault("tool_calls", [])
            self.names[f"messages[{len(self.messages)}].tool_calls[{len(calls)}]"] = path
            calls.append(self._use(block, path))
        elif kind == "thinking":
            message["reasoning_content"] = message.get("reasoning_content", "") + _thought(block, path)
        elif kind == "text":
            message["content"] += self._text(block, path)
        else:
            over(self.notes, path, f"blocks of type {kind!r} are not supported")

    def _use(self, block: Mapping[str, Any], path: str) -> dict[str, Any]:
        for name in ("id", "name"):
            if not isinstance(block.get(name), str) or not block[name]:
                raise _wrong(f"{path}.{name}", "must be a string")
        if not isinstance(block.get("input"), dict):
            raise _wrong(f"{path}.input", "must be an object")
        self._called[block["id"]] = block["name"]
        arguments = msgspec.json.encode(block["input"]).decode()
        return {"id": block["id"], "type": "function", "function": {"name": block["name"], "arguments": arguments}}


def _thought(block: Mapping[str, Any], path: str) -> str:
    """The thinking, or what was packed into its signature where it was not to be shown."""
    thinking, signature = block.get("thinking"), block.get("signature")
    if not isinstance(thinking, str):
        raise _wrong(f"{path}.thinking", "must be a string")
    return thinking or (unsealed(signature) or "" if isinstance(signature, str) else "")


def _type(block: Any, path: str) -> str:
    kind = block.get("type") if isinstance(block, Mapping) else None
    if not isinstance(kind, str):
        raise _wrong(path, "must be an object with a type")
    return kind


def _blocks(block: Mapping[str, Any], path: str) -> list[Mapping[str, Any]]:
    content = block.get("content")
    if not isinstance(content, list):
        raise _wrong(f"{path}.content", "must be a list of blocks")
    return content


def _about(block: Mapping[str, Any]) -> str:
    named = (block.get(name) for name in ("title", "source", "context"))
    return "\n".join(each for each in named if isinstance(each, str) and each)


def _wrong(where: str, what: str) -> InvalidRequest:
    return InvalidRequest(f"{where} {what}", param=where)
