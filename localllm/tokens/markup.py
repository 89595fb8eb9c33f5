"""Streamed text to content, reasoning and tool calls, by the tags that a model's template speaks of.

A tag that never closes loses nothing: its text comes out as what it looks like (reasoning, or content).
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

PieceKind = Literal["content", "reasoning", "tool_call"]
ToolFormat = Literal["hermes", "llama3", "mistral"]


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of an answer. For a tool call `name` is the function and `text` its arguments as compact JSON."""

    kind: PieceKind
    text: str
    name: str = ""


@dataclass(frozen=True, slots=True)
class MarkupSpec:
    """How a model marks what it writes. `starts_in_reasoning`: the prompt has already opened the reasoning.

    `text_parameters` are the (function, parameter) pairs whose values are strings even if they look like numbers;
    formats without types (XML) need them.
    """

    reasoning: tuple[str, str] | None = None
    tools: ToolFormat | None = None
    starts_in_reasoning: bool = False
    is_harmony: bool = False
    text_parameters: frozenset[tuple[str, str]] = frozenset()

    def visible_tags(self) -> tuple[str, ...]:
        """Tags that the parser must see even where special tokens are left out of the text."""
        if self.is_harmony:
            return HARMONY_TAGS
        return (*(self.reasoning or ()), *_OPENERS.get(self.tools or "", ()))

    def for_prompt(self, prompt: str) -> "MarkupSpec":
        """The spec of the answer to this prompt."""
        is_open = self.reasoning is not None and prompt.rstrip().endswith(self.reasoning[0])
        return replace(self, starts_in_reasoning=is_open)

    def for_tools(self, tools: Sequence[Mapping[str, Any]] | None) -> "MarkupSpec":
        """The spec of an answer that may use these tools (OpenAI's shape); without tools none are looked for."""
        if not tools:
            return replace(self, tools=None)
        return replace(self, text_parameters=frozenset(_text_parameters(tools)))


HARMONY_TAGS = ("<|start|>", "<|channel|>", "<|constrain|>", "<|message|>", "<|end|>", "<|call|>", "<|return|>")
_REASONING_TAGS = (
    ("<think>", "</think>"),
    ("[THINK]", "[/THINK]"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
)
_OPENERS: Mapping[str, tuple[str, ...]] = {
    "hermes": ("<tool_call>", "</tool_call>"),
    "mistral": ("[TOOL_CALLS]", "[ARGS]"),
    "llama3": ("<|python_tag|>",),
}


def detect_markup(template: str) -> MarkupSpec:
    """What a chat template says about its model's tags."""
    if "<|channel|>" in template and "<|message|>" in template:
        return MarkupSpec(is_harmony=True)
    reasoning = next((tags for tags in _REASONING_TAGS if tags[0] in template or tags[1] in template), None)
    return MarkupSpec(reasoning, _tool_format(template))


def _tool_format(template: str) -> ToolFormat | None:
    if "[TOOL_CALLS]" in template:
        return "mistral"
    if "<tool_call>" in template:
        return "hermes"
    return "llama3" if "<|python_tag|>" in template or '"parameters": dictionary' in template else None


def _text_parameters(tools: Sequence[Mapping[str, Any]]) -> Iterable[tuple[str, str]]:
    for tool in tools:
        function = tool.get("function")
        schema = function.get("parameters") if isinstance(function, Mapping) else None
        properties = schema.get("properties") if isinstance(schema, Mapping) else None
        for name, kind in properties.items() if isinstance(properties, Mapping) else ():
            if isinstance(kind, Mapping) and kind.get("type") == "string":
                yield str(function.get("name")), str(name)  # type: ignore[union-attr]  # a schema came from it


# --- the parser


class Parser(Protocol):
    """Takes text as it streams in and gives pieces as soon as they are certain."""

    def push(self, text: str) -> list[Piece]: ...

    def finish(self) -> list[Piece]: ...


class MarkupParser:
    """The parser of a spec. Pieces of one kind follow each other as they stream; a tool call is one piece."""

    def __init__(self, spec: MarkupSpec) -> None:
        self._parser: Parser = _HarmonyParser() if spec.is_harmony else _TagParser(spec)

    def push(self, text: str) -> list[Piece]:
        """What has become certain with this text."""
        return self._parser.push(text)

    def finish(self) -> list[Piece]:
        """What was held back; an unclosed tool call counts if its body is complete."""
        return self._parser.finish()


class _TagParser:
    def __init__(self, spec: MarkupSpec) -> None:
        self._spec = spec
        self._buffer = ""
        self._searched = 0  # up to here the buffer holds no closing tag
        self._state: Literal["start", "reasoning", "content", "tool", "rest"] = (
            "reasoning" if spec.starts_in_reasoning else "start"
        )
        self._skips_space = spec.starts_in_reasoning
        self._pieces: list[Piece] = []

    def push(self, text: str) -> list[Piece]:
        self._buffer += text
        while self._step():
            pass
        pieces, self._pieces = self._pieces, []
        return pieces

    def finish(self) -> list[Piece]:
        if self._state in ("tool", "rest"):
            self._emit_calls(self._buffer, verbatim=self._opening_tag() + self._buffer)
        else:
            self._emit("reasoning" if self._state == "reasoning" else "content", self._buffer)
        self._buffer = ""
        pieces, self._pieces = self._pieces, []
        return pieces

    def _step(self) -> bool:
        """Advance by one tag; False if that needs more text."""
        if self._state == "start":
            return self._step_start()
        if self._state == "reasoning":
            return self._step_reasoning()
        if self._state == "content":
            return self._step_content()
        return self._state == "tool" and self._step_tool()

    def _step_start(self) -> bool:
        """Only the beginning of an answer can open the reasoning; later the tag is something talked about."""
        begun = self._buffer.lstrip()
        tag = self._spec.reasoning[0] if self._spec.reasoning else ""
        if tag and begun.startswith(tag):
            self._enter("reasoning", begun[len(tag) :], skips_space=True)
            return True
        if not begun or tag.startswith(begun):
            return False
        if self._spec.tools == "llama3" and begun.startswith("{"):
            self._state = "rest"
            return True
        self._state = "content"
        return True

    def _step_reasoning(self) -> bool:
        assert self._spec.reasoning is not None  # the state is entered only with tags
        tag = self._spec.reasoning[1]
        before, found, after = self._buffer.partition(tag)
        if found:
            self._emit("reasoning", before.rstrip())
            self._enter("content", after, skips_space=True)
            return True
        self._release("reasoning", (tag,))
        return False

    def _step_content(self) -> bool:
        tag = self._opening_tag()
        if not tag:
            self._emit("content", self._buffer)
            self._buffer = ""
            return False
        before, found, after = self._buffer.partition(tag)
        if found:
            self._emit("content", before.rstrip())
            self._enter("tool" if self._spec.tools == "hermes" else "rest", after, skips_space=False)
            return True
        self._release("content", (tag,))
        return False

    def _step_tool(self) -> bool:
        opener, closer = _OPENERS["hermes"]
        place = self._buffer.find(closer, max(0, self._searched - len(closer)))
        if place < 0:
            self._searched = len(self._buffer)
            return False
        body, after = self._buffer[:place], self._buffer[place + len(closer) :]
        self._emit_calls(body, verbatim=opener + body + closer)
        self._enter("content", after, skips_space=True)
        return True

    def _enter(self, state: Literal["reasoning", "content", "tool", "rest"], buffer: str, *, skips_space: bool) -> None:
        self._state, self._buffer, self._skips_space, self._searched = state, buffer, skips_space, 0

    def _opening_tag(self) -> str:
        if self._state == "rest" and self._spec.tools == "llama3" and self._buffer.lstrip().startswith("{"):
            return ""
        return _OPENERS[self._spec.tools][0] if self._spec.tools else ""

    def _release(self, kind: PieceKind, tags: Sequence[str]) -> None:
        """Emit what can be no part of a tag; white space waits, because before a tag it means nothing."""
        end = len(self._buffer) - max(_overlap(self._buffer, tag) for tag in tags)
        end = len(self._buffer[:end].rstrip())
        self._emit(kind, self._buffer[:end])
        self._buffer = self._buffer[end:]

    def _emit(self, kind: PieceKind, text: str) -> None:
        if self._skips_space:
            text = text.lstrip()
        if text:
            self._skips_space = False
            self._pieces.append(Piece(kind, text))

    def _emit_calls(self, body: str, *, verbatim: str) -> None:
        calls = read_calls(body, self._spec.text_parameters)
        if calls:
            self._pieces.extend(calls)
        else:
            self._emit("content", verbatim)


def _overlap(text: str, tag: str) -> int:
    """How many characters at the end of the text may be the beginning of the tag."""
    return next((size for size in range(min(len(tag) - 1, len(text)), 0, -1) if text.endswith(tag[:size])), 0)


# --- tool calls


def read_calls(body: str, text_parameters: frozenset[tuple[str, str]] = frozenset()) -> list[Piece]:
    """The calls in a body: JSON object or list, Qwen's XML, GLM's keys, Mistral's `name[ARGS]{}`; [] if it is none."""
    body = body.strip()
    if body.startswith("<function="):
        return [_xml_call(match[1], match[2], text_parameters) for match in _XML_CALL.finditer(body)]
    if "<arg_key>" in body:
        return [_keyed_call(body, text_parameters)]
    if "[ARGS]" in body:
        return _named_calls(body)
    return _json_calls(body)


_XML_CALL = re.compile(r"<function=([^>\n]+)>(.*?)(?:</function>|\Z)", re.DOTALL)
_XML_PARAMETER = re.compile(r"<parameter=([^>\n]+)>\n?(.*?)\n?</parameter>", re.DOTALL)
_KEYED_PARAMETER = re.compile(r"<arg_key>(.*?)</arg_key>\s*<arg_value>(.*?)</arg_value>", re.DOTALL)


def _call(name: str, arguments: Any) -> Piece:
    return Piece("tool_call", json.dumps(arguments, ensure_ascii=False, separators=(",", ":")), name)


def _xml_call(name: str, body: str, text_parameters: frozenset[tuple[str, str]]) -> Piece:
    pairs = _XML_PARAMETER.findall(body)
    return _call(name, {key: _typed(value, (name, key) in text_parameters) for key, value in pairs})


def _keyed_call(body: str, text_parameters: frozenset[tuple[str, str]]) -> Piece:
    name = body.partition("<arg_key>")[0].strip()
    pairs = _KEYED_PARAMETER.findall(body)
    return _call(name, {key: _typed(value, (name, key) in text_parameters) for key, value in pairs})


def _typed(value: str, is_text: bool) -> Any:
    if is_text:
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def _named_calls(body: str) -> list[Piece]:
    calls = []
    for part in body.split("[TOOL_CALLS]"):
        name, _, arguments = part.partition("[ARGS]")
        value = _typed(arguments, is_text=False)
        if not isinstance(value, dict):
            return []
        calls.append(_call(name.strip(), value))
    return calls


def _json_calls(body: str) -> list[Piece]:
    try:
        value = json.loads(body, strict=False)
    except (ValueError, RecursionError):
        return []
    calls = [_json_call(entry) for entry in (value if isinstance(value, list) else [value])]
    return [call for call in calls if call is not None] if None not in calls else []


def _json_call(entry: Any) -> Piece | None:
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
        return None
    arguments = entry.get("arguments", entry.get("parameters"))
    if isinstance(arguments, str):
        arguments = _typed(arguments, is_text=False)
    return _call(entry["name"], arguments) if isinstance(arguments, dict) else None


# --- harmony


class _HarmonyParser:
    """gpt-oss: `<|channel|>analysis<|message|>...<|end|><|start|>assistant<|channel|>final<|message|>...`."""

    def __init__(self) -> None:
        self._buffer = ""
        self._header: str | None = ""  # None while a message's body streams
        self._channel = ""
        self._call_name = ""
        self._arguments = ""

    def push(self, text: str) -> list[Piece]:
        self._buffer += text
        pieces: list[Piece] = []
        while (place := self._next_tag()) is not None:
            start, tag = place
            pieces += self._take(self._buffer[:start])
            self._buffer = self._buffer[start + len(tag) :]
            pieces += self._turn(tag)
        end = len(self._buffer) - max(_overlap(self._buffer, tag) for tag in HARMONY_TAGS)
        pieces += self._take(self._buffer[:end])
        self._buffer = self._buffer[end:]
        return pieces

    def finish(self) -> list[Piece]:
        pieces = self._take(self._buffer)
        self._buffer = ""
        if self._header and not self._channel:  # it never spoke harmony
            pieces.append(Piece("content", self._header))
            self._header = ""
        return [*pieces, *self._turn("<|end|>")]

    def _next_tag(self) -> tuple[int, str] | None:
        found = [(self._buffer.find(tag), tag) for tag in HARMONY_TAGS if tag in self._buffer]
        return min(found, default=None)

    def _take(self, text: str) -> list[Piece]:
        if not text:
            return []
        if self._header is not None:
            self._header += text
            return []
        if self._call_name:
            self._arguments += text
            return []
        return [Piece("reasoning" if self._channel == "analysis" else "content", text)]

    def _turn(self, tag: str) -> list[Piece]:
        if tag == "<|message|>":
            self._read_header()
        elif tag in ("<|channel|>", "<|constrain|>"):
            self._header = (self._header or "") + "\n"
        elif tag in ("<|end|>", "<|call|>", "<|return|>", "<|start|>"):
            return self._close()
        return []

    def _read_header(self) -> None:
        """`assistant to=functions.f` LF `commentary` LF `json`, where LF stands for a tag."""
        header = self._header or ""
        recipient = re.search(r"to=(?:functions\.)?([\w.-]+)", header)
        self._call_name = recipient[1] if recipient else ""
        self._channel = next((name for name in ("analysis", "commentary", "final") if name in header), "final")
        self._header, self._arguments = None, ""

    def _close(self) -> list[Piece]:
        name, arguments = self._call_name, self._arguments
        self._header, self._channel, self._call_name, self._arguments = "", "", "", ""
        if not name:
            return []
        value = _typed(arguments, is_text=False)
        return [_call(name, value) if isinstance(value, dict) else Piece("content", arguments)]
