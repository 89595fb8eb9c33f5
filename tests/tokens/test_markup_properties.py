# ruff: noqa: RUF001 (some tags are spelled with full-width bars)
"""What holds for any text and any family: cuts change nothing, nothing is lost, and every call comes back."""

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from localllm.tokens.markup import MarkupSpec, ToolFormat
from localllm.tokens.markup.families import GRAMMARS
from tests.tokens.markup_cases import COMMAND, GEMMA, GRANITE, HARMONY, QWEN, SEP, THINK, of, parsed

BITS = (
    *('{"name": "f", "arguments": {"a": "b"}}', '{"name": "f", "parameters": {}}', "[", "]", "{", "}", '"', "'", "\\"),
    *("f", "f(a='x')", "call:f{a:1}", "<function=f>", "</function>", "<parameter=a>", "</parameter>", "functions.f:0"),
    *("<arg_key>a</arg_key>", "<arg_value>1</arg_value>", '<invoke name="f">', "</invoke>", "[ARGS]", ";", ",", "`"),
    *("```json\n", "```", "\n", " ", "words", "<", "<|", "猫", "🐈"),
)
SPECS: dict[str, MarkupSpec] = {
    **{name: replace(of(name), reasoning=THINK) for name in GRAMMARS},
    "harmony": HARMONY,
    "granite with an answer": GRANITE,
    "command with an answer": COMMAND,
    "gemma4 with thoughts": GEMMA,
    "qwen in thoughts": replace(QWEN, starts_in_reasoning=True),
}
few = settings(max_examples=40)  # for each of the families
CUTS = st.lists(st.integers(0, 400), max_size=12)


def texts_of(spec: MarkupSpec) -> st.SearchStrategy[str]:
    """The family's own tags among pieces of calls and words."""
    tags = [tag for tag in spec.visible_tags() if tag]
    return st.lists(st.sampled_from((*tags, *tags, *BITS, "analysis", "final", " to=functions.f")), max_size=14).map(
        "".join
    )


def cut(text: str, cuts: list[int]) -> list[str]:
    places = [0, *sorted(place for place in cuts if place < len(text)), len(text)]
    return [text[start:end] for start, end in pairwise(places)]


@pytest.mark.parametrize("family", SPECS)
@few
@given(data=st.data(), cuts=CUTS)
def test_how_text_is_cut_changes_nothing(family: str, data: st.DataObject, cuts: list[int]) -> None:
    spec = SPECS[family]
    text = data.draw(texts_of(spec))
    whole = parsed(spec, [text])
    assert parsed(spec, cut(text, cuts)) == whole
    assert parsed(spec, list(text)) == whole


@pytest.mark.parametrize("family", GRAMMARS)
@few
@given(data=st.data())
def test_what_holds_no_call_is_content_to_the_letter(family: ToolFormat, data: st.DataObject) -> None:
    text = data.draw(texts_of(of(family)))
    pieces = parsed(of(family), [text])
    if all(piece.kind == "content" for piece in pieces):
        assert "".join(piece.text for piece in pieces) == text


@pytest.mark.parametrize("family", GRAMMARS)
@few
@given(data=st.data())
def test_words_around_a_call_are_not_lost(family: ToolFormat, data: st.DataObject) -> None:
    before, after = (data.draw(st.text("abc .,<|>[]{}'\"\n")) for _ in range(2))
    text = WRITERS[family]("find", {"n": 1})
    pieces = parsed(of(family), [before + text + after])
    said = "".join(piece.text if piece.kind == "content" else text for piece in pieces)
    assert "".join(said.split()) == "".join((before + text + after).split())


@given(text=st.text(), cuts=CUTS)
def test_text_without_tags_passes_unchanged_and_hardly_waits(text: str, cuts: list[int]) -> None:
    text = text.replace("<", "").replace("[", "").replace("{", "")
    for family in ("hermes", "llama3", "mistral", "deepseek", "lfm2"):
        pieces = parsed(of(family), cut(text, cuts))
        assert "".join(piece.text for piece in pieces) == text


# --- calls, written as each family writes them


def _json(name: str, arguments: dict[str, Any]) -> str:
    return json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False)


def _python(name: str, arguments: dict[str, Any]) -> str:
    return f"{name}({', '.join(f'{key}={value!r}' for key, value in arguments.items())})"


def _gemma(value: Any) -> str:
    if isinstance(value, str):
        return f'<|"|>{value}<|"|>'
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{_gemma(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(_gemma(one) for one in value) + "]"
    return json.dumps(value)


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _xml(name: str, arguments: dict[str, Any], key: str = "parameter={}", outer: str = "function={}") -> str:
    inner = "".join(f"<{key.format(one)}>\n{_plain(value)}\n</parameter>\n" for one, value in arguments.items())
    return f"<{outer.format(name)}>\n{inner}</{outer.split('=')[0].split(' ')[0]}>"


def _glm(name: str, arguments: dict[str, Any]) -> str:
    return name + "".join(
        f"<arg_key>{key}</arg_key><arg_value>{_plain(value)}</arg_value>" for key, value in arguments.items()
    )


WRITERS: dict[str, Callable[[str, dict[str, Any]], str]] = {
    "hermes": lambda name, said: f"<tool_call>\n{_json(name, said)}\n</tool_call>",
    "xml": lambda name, said: f"<tool_call>\n{_xml(name, said)}\n</tool_call>",
    "glm": lambda name, said: f"<tool_call>{_glm(name, said)}</tool_call>",
    "mistral": lambda name, said: f"[TOOL_CALLS]{name}[ARGS]{json.dumps(said)}",
    "llama3": lambda name, said: f"<|python_tag|>{_json(name, said)}",
    "pythonic": lambda name, said: f"<|python_start|>[{_python(name, said)}]<|python_end|>",
    "deepseek": lambda name, said: f"<｜tool▁call▁begin｜>{name}{SEP}{json.dumps(said)}<｜tool▁call▁end｜>",
    "kimi": lambda name, said: (
        f"<|tool_call_begin|>functions.{name}:0<|tool_call_argument_begin|>{json.dumps(said)}<|tool_call_end|>"
    ),
    "gemma4": lambda name, said: f"<|tool_call>call:{name}{_gemma(said)}<tool_call|>",
    "tool_code": lambda name, said: f"```tool_code\n{_python(name, said)}\n```",
    "granite": lambda name, said: f"<|tool_call|>[{_json(name, said)}]",
    "phi": lambda name, said: f"<|tool_call|>[{_json(name, said)}]<|/tool_call|>",
    "lfm2": lambda name, said: f"<|tool_call_start|>[{_python(name, said)}]<|tool_call_end|>",
    "command": lambda name, said: (
        f'<|START_ACTION|>[{{"tool_name": "{name}", "parameters": {json.dumps(said)}}}]<|END_ACTION|>'
    ),
    "minimax": lambda name, said: (
        "<minimax:tool_call>" + _xml(name, said, 'parameter name="{}"', 'invoke name="{}"') + "</minimax:tool_call>"
    ),
    "harmony": lambda name, said: (
        f"<|channel|>commentary to=functions.{name} <|constrain|>json<|message|>{json.dumps(said)}<|call|>"
    ),
}
NAMES = st.from_regex(r"[A-Za-z_]\w{0,10}", fullmatch=True).filter(str.isascii).filter(lambda name: name != "print")
NUMBERS = st.integers(-(10**12), 10**12) | st.floats(allow_nan=False, allow_infinity=False)
SAID = st.text() | st.sampled_from(
    ["01234", "true", "</tool_call>", "a 'b' \"c\"", "[TOOL_CALLS]", "\\n", "x\n", "```"]
)
VALUES = st.recursive(
    SAID | NUMBERS | st.booleans() | st.none(), lambda inner: st.lists(inner) | st.dictionaries(NAMES, inner)
)
VERBATIM = ("xml", "glm", "minimax", "gemma4")  # nothing is escaped there, so that a closing tag ends the value
UNSCANNED = ("tool_code", "lfm2", "pythonic")  # the first closing tag ends the call, wherever it stands


def is_writable(family: str, text: str) -> bool:
    """Whether the family's grammar can tell such a value from what ends it."""
    if family in VERBATIM:
        return not any(tag in text for tag in ("</parameter>", "</arg_value>", '<|"|>'))
    return family not in UNSCANNED or not any(tag in text for tag in ("```", "_end|>"))


@pytest.mark.parametrize("family", WRITERS)
@few
@given(name=NAMES, arguments=st.dictionaries(NAMES, VALUES, max_size=4), cuts=CUTS)
def test_any_call_comes_back(family: str, name: str, arguments: dict[str, Any], cuts: list[int]) -> None:
    text = WRITERS[family](name, arguments)
    if not is_writable(family, json.dumps(arguments, ensure_ascii=False)):
        return
    texts = frozenset((name, key) for key, value in arguments.items() if isinstance(value, str))
    spec = replace(SPECS[family], text_parameters=texts)
    (call,) = parsed(spec, cut(text, cuts))
    assert (call.kind, call.name) == ("tool_call", name)
    assert json.loads(call.text) == arguments
