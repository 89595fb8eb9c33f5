# ruff: noqa: RUF001, RUF002 (some tags are spelled with full-width bars)
"""Bodies of tool calls, one function per manner of writing them. Each raises ValueError for what is no call."""

import json
import re
from collections.abc import Callable, Iterable
from math import isinf
from typing import Any, NoReturn

from localllm.tokens.markup.literals import gemma_call, python_calls
from localllm.tokens.markup.pieces import Piece, call_piece

TextParameters = frozenset[tuple[str, str]]
CallReader = Callable[[str, TextParameters], list[Piece]]

_SEPARATOR = re.compile(r"[\s;,]*")
_NAME = re.compile(r"[\w.:-]+")
_XML_CALL = re.compile(r"\s*<function=([^>\n]+)>(.*?)(?:</function>|\Z)(?=\s*(?:<function=|\Z))", re.DOTALL)
_XML_PARAMETER = re.compile(  # a model may forget to close one before the next
    r"\s*<parameter=([^>\n]+)>\n?(.*?)(?:\n?</parameter>(?=\s*(?:<parameter=|\Z))|(?=\n<parameter=[^>\n]+>\n))",
    re.DOTALL,
)
_INVOKE = re.compile(r"\s*<invoke name=\"([^\"\n]+)\">(.*?)</invoke>(?=\s*(?:<invoke |\Z))", re.DOTALL)
_INVOKE_PARAMETER = re.compile(
    r"\s*<parameter name=\"([^\"\n]+)\">\n?(.*?)\n?</parameter>(?=\s*(?:<parameter |\Z))", re.DOTALL
)  # fmt: skip
_KEYED_PARAMETER = re.compile(
    r"\s*<arg_key>(.*?)</arg_key>\s*<arg_value>(.*?)</arg_value>(?=\s*(?:<arg_key>|\Z))", re.DOTALL
)  # fmt: skip
_FENCED = re.compile(r"([^\n]+)\n```(?:json)?\n(.*?)\n?```\s*", re.DOTALL)
_GEMMA_JSON = re.compile(r"\s*call:([\w.:-]+)\s*(\{\s*\".*\})\s*", re.DOTALL)
_PYTHON_WORDS = {"True": True, "False": False, "None": None}


def tagged_calls(body: str, texts: TextParameters) -> list[Piece]:
    """What stands in `<tool_call>`: JSON, `<function=...>`, or a name with `<arg_key>`s."""
    body = body.strip()
    if body.startswith("<function="):
        return xml_calls(body, texts)
    return keyed_call(body, texts) if "<arg_key>" in body and body[0] not in "{[" else json_calls(body, texts)


def json_calls(body: str, texts: TextParameters = frozenset()) -> list[Piece]:
    """An object, a list of objects, or several objects: `{"name": ..., "arguments": {...}}`."""
    entries: list[Any] = []
    for value in _json_values(body):
        entries += value if isinstance(value, list) else [value]
    return [_json_call(entry) for entry in entries]


def bare_calls(body: str, texts: TextParameters) -> list[Piece]:
    """Without any tags: JSON with both a name and arguments, or Python's manner."""
    if not body.lstrip().startswith("{") and not re.match(r"\s*\[\s*\{", body):
        return pythonic_calls(body, texts)
    if any(word in body for word in ('"parameters"', '"arguments"')):
        return json_calls(body)
    raise ValueError("no call")


def pythonic_calls(body: str, texts: TextParameters) -> list[Piece]:
    """`[f(a=1), g()]`; JSON, too, which some of these models write when they are asked for it."""
    if re.match(r"\s*(\[\s*)?\{", body):
        return json_calls(body)
    return [call_piece(name, arguments) for name, arguments in python_calls(body)]


def python_tag_calls(body: str, texts: TextParameters) -> list[Piece]:
    """Behind `<|python_tag|>`: JSON, or `brave_search.call(query="...")`."""
    if body.lstrip().startswith("{"):
        return json_calls(body)
    return [call_piece(name.removesuffix(".call"), arguments) for name, arguments in python_calls(body)]


def gemma_calls(body: str, texts: TextParameters) -> list[Piece]:
    """`call:name{key:value}`, or JSON behind the name."""
    plain = _GEMMA_JSON.fullmatch(body)
    name, arguments = (plain[1], json_arguments(plain[2])) if plain else gemma_call(body)
    return [call_piece(name, arguments)]


def xml_calls(body: str, texts: TextParameters) -> list[Piece]:
    """`<function=name><parameter=key>value</parameter></function>`; values without types."""
    return [
        call_piece(name.strip(), _xml_arguments(name.strip(), inner, texts)) for name, inner in _all_of(_XML_CALL, body)
    ]


def _xml_arguments(name: str, inner: str, texts: TextParameters) -> dict[str, Any]:
    if inner.lstrip().startswith("{"):
        return json_arguments(inner)
    return _typed_pairs(name, _all_of(_XML_PARAMETER, inner), texts)


def invoke_calls(body: str, texts: TextParameters) -> list[Piece]:
    """MiniMax: `<invoke name="f"><parameter name="key">value</parameter></invoke>`, or JSON inside."""
    return [call_piece(name, _invoke_arguments(name, inner, texts)) for name, inner in _all_of(_INVOKE, body)]


def _invoke_arguments(name: str, inner: str, texts: TextParameters) -> dict[str, Any]:
    if inner.lstrip().startswith("{"):
        return json_arguments(inner)
    return _typed_pairs(name, _all_of(_INVOKE_PARAMETER, inner), texts)


def keyed_call(body: str, texts: TextParameters) -> list[Piece]:
    """GLM: `name<arg_key>key</arg_key><arg_value>value</arg_value>...`."""
    name, found, rest = body.strip().partition("<arg_key>")
    name = name.strip()
    if not _NAME.fullmatch(name):
        raise ValueError("no name")
    return [call_piece(name, _typed_pairs(name, _all_of(_KEYED_PARAMETER, found + rest), texts))]


def glm_calls(body: str, texts: TextParameters) -> list[Piece]:
    """As `keyed_call`, or what else stands in `<tool_call>`."""
    return tagged_calls(body, texts) if body.lstrip()[:1] in ("{", "[", "<") else keyed_call(body, texts)


def named_calls(body: str, texts: TextParameters) -> list[Piece]:
    """Mistral: a list in JSON, or `name[ARGS]{...}`, perhaps with `[CALL_ID]...` behind the name."""
    name, found, arguments = body.partition("[ARGS]")
    if not found or body.lstrip()[:1] in ("{", "["):
        return json_calls(body)
    return [call_piece(_checked_name(name.partition("[CALL_ID]")[0]), json_arguments(arguments))]


def kimi_calls(body: str, texts: TextParameters) -> list[Piece]:
    """`functions.name:0<|tool_call_argument_begin|>{...}`."""
    name, found, arguments = body.partition("<|tool_call_argument_begin|>")
    bare = re.sub(r":\d+\Z", "", name.strip()).removeprefix("functions.")
    if not found:
        raise ValueError("no arguments")
    return [call_piece(_checked_name(bare), json_arguments(arguments))]


def deepseek_calls(body: str, texts: TextParameters) -> list[Piece]:
    """`name<｜tool▁sep｜>{...}` (V3.1), or `function<｜tool▁sep｜>name` with the arguments in a code block (R1, V3)."""
    name, found, rest = body.partition("<｜tool▁sep｜>")
    if not found:
        raise ValueError("no arguments")
    fenced = _FENCED.fullmatch(rest)
    if fenced is not None:
        name, rest = fenced[1], fenced[2]
    return [call_piece(_checked_name(name), json_arguments(rest))]


# --- parts


def _json_values(text: str) -> Iterable[Any]:
    decoder = json.JSONDecoder(strict=False, parse_constant=_refuse_constant, parse_float=_finite)
    place = _skip_separator(text, 0)
    while place < len(text):
        value, place = decoder.raw_decode(text, place)
        place = _skip_separator(text, place)
        yield value


def _skip_separator(text: str, place: int) -> int:
    match = _SEPARATOR.match(text, place)
    return match.end() if match else place


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"JSON has no {name}")


def _finite(digits: str) -> float:
    number = float(digits)
    if isinf(number):
        raise ValueError("a number out of range")
    return number


def _json_call(entry: Any) -> Piece:
    if not isinstance(entry, dict):
        raise ValueError("no object")
    inner = entry.get("function")
    if isinstance(inner, dict):  # as OpenAI's API writes it
        return _json_call(inner)
    name = next((entry[key] for key in ("name", "tool_name", "function") if entry.get(key) is not None), None)
    said: Any = next((entry[key] for key in ("arguments", "parameters") if entry.get(key) is not None), {})
    arguments = json_arguments(said) if isinstance(said, str) else said
    if not isinstance(name, str) or not isinstance(arguments, dict):
        raise ValueError("no call")
    return call_piece(name, arguments)


def json_arguments(text: str) -> dict[str, Any]:
    values = list(_json_values(text))
    if len(values) > 1 or not all(isinstance(value, dict) for value in values):
        raise ValueError("arguments are one object")
    return values[0] if values else {}


def _checked_name(name: str) -> str:
    if not _NAME.fullmatch(name.strip()):
        raise ValueError("no name")
    return name.strip()


def _all_of(pattern: re.Pattern[str], text: str) -> list[tuple[str, str]]:
    """The pairs of the matches, which must cover the text: nothing is passed over."""
    pairs, place = [], 0
    while (match := pattern.match(text, place)) is not None and match.end() > place:
        pairs.append((match[1], match[2]))
        place = match.end()
    if text[place:].strip():
        raise ValueError(f"something else at {place}")
    return pairs


def _typed_pairs(name: str, pairs: Iterable[tuple[str, str]], texts: TextParameters) -> dict[str, Any]:
    return {key.strip(): _typed(value, (name, key.strip()) in texts) for key, value in pairs}


def _typed(value: str, is_text: bool) -> Any:
    """A value of a format without types: text where the tool says so, else what it looks like."""
    if is_text:
        return value
    if value in _PYTHON_WORDS:
        return _PYTHON_WORDS[value]
    try:
        read = list(_json_values(value)) if value[:1] not in ("", ",", ";") else []
    except (ValueError, RecursionError):
        return value
    return read[0] if len(read) == 1 else value
