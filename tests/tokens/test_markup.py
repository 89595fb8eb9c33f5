"""Streamed text to content, reasoning and tool calls."""

import json
from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localllm.tokens.markup import MarkupParser, MarkupSpec, Piece, detect_markup
from tests.tokens.worlds import data_folder

THINK = ("<think>", "</think>")
QWEN = MarkupSpec(THINK, "hermes")
HARMONY = MarkupSpec(is_harmony=True)
TOOL = {
    "type": "function",
    "function": {"name": "find", "parameters": {"properties": {"zip": {"type": "string"}, "n": {"type": "integer"}}}},
}


def parsed(spec: MarkupSpec, chunks: Sequence[str]) -> list[Piece]:
    """All pieces, neighbours of one kind joined."""
    parser = MarkupParser(spec)
    pieces = [piece for chunk in chunks for piece in parser.push(chunk)] + parser.finish()
    joined: list[Piece] = []
    for piece in pieces:
        if joined and joined[-1].kind == piece.kind != "tool_call":
            joined[-1] = Piece(piece.kind, joined[-1].text + piece.text)
        else:
            joined.append(piece)
    return joined


def by_letter(text: str) -> list[str]:
    return list(text)


HERMES_CALL = '<tool_call>\n{"name": "find", "arguments": {"zip": "01234"}}\n</tool_call>'
FOUND = Piece("tool_call", '{"zip":"01234"}', "find")

CASES = [
    (QWEN, "Hello <b>you</b> < 3", [Piece("content", "Hello <b>you</b> < 3")]),
    (QWEN, "<think>\nhm, a < b\n</think>\n\nSo: yes", [Piece("reasoning", "hm, a < b"), Piece("content", "So: yes")]),
    (QWEN, "\n <think></think>\nyes", [Piece("content", "yes")]),
    (QWEN, "The tag <think> opens it", [Piece("content", "The tag <think> opens it")]),
    (QWEN, "<think>never ends", [Piece("reasoning", "never ends")]),
    (QWEN, "<thi", [Piece("content", "<thi")]),
    (QWEN, "trailing space \n", [Piece("content", "trailing space \n")]),
    (QWEN, HERMES_CALL, [FOUND]),
    (QWEN, f"<think>x</think>Look:\n{HERMES_CALL}\n{HERMES_CALL}", [
        Piece("reasoning", "x"), Piece("content", "Look:"), FOUND, FOUND,
    ]),
    (QWEN, HERMES_CALL.removesuffix("</tool_call>"), [FOUND]),
    (QWEN, "<tool_call>not json</tool_call> ok", [Piece("content", "<tool_call>not json</tool_call>ok")]),
    (QWEN, '<tool_call>{"name": 3}', [Piece("content", '<tool_call>{"name": 3}')]),
    (QWEN, "<tool_call>[1, 2]</tool_call>", [Piece("content", "<tool_call>[1, 2]</tool_call>")]),
    (MarkupSpec(THINK, starts_in_reasoning=True), "\nso\n</think>\n\nyes", [
        Piece("reasoning", "so"), Piece("content", "yes"),
    ]),
    (MarkupSpec(), f"<think>{HERMES_CALL}", [Piece("content", f"<think>{HERMES_CALL}")]),
    (QWEN.for_tools([TOOL]), "<tool_call>\n<function=find>\n<parameter=zip>\n01234\n</parameter>\n<parameter=n>\n5\n"
     "</parameter>\n</function>\n</tool_call>", [Piece("tool_call", '{"zip":"01234","n":5}', "find")]),
    (QWEN.for_tools([TOOL]), "<tool_call>find\n<arg_key>zip</arg_key>\n<arg_value>9</arg_value>\n</tool_call>", [
        Piece("tool_call", '{"zip":"9"}', "find"),
    ]),
    (MarkupSpec(tools="llama3"), '{"name": "find", "parameters": {"zip": "01234"}}', [FOUND]),
    (MarkupSpec(tools="llama3"), '<|python_tag|>{"name": "find", "parameters": {"zip": "01234"}}', [FOUND]),
    (MarkupSpec(tools="llama3"), '{"just": "json"}', [Piece("content", '{"just": "json"}')]),
    (MarkupSpec(tools="llama3"), "plain {text}", [Piece("content", "plain {text}")]),
    (MarkupSpec(tools="mistral"), '[TOOL_CALLS][{"name": "find", "arguments": {"zip": "01234"}}]', [FOUND]),
    (MarkupSpec(tools="mistral"), 'ok[TOOL_CALLS]find[ARGS]{"zip": "01234"}', [Piece("content", "ok"), FOUND]),
    (MarkupSpec(("[THINK]", "[/THINK]"), "mistral"), "[THINK]a[/THINK]b", [
        Piece("reasoning", "a"), Piece("content", "b"),
    ]),
    (HARMONY, "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>yes<|return|>", [
        Piece("reasoning", "hm"), Piece("content", "yes"),
    ]),
    (HARMONY, "<|channel|>commentary to=functions.find <|constrain|>json<|message|>{\"zip\": \"01234\"}<|call|>",
     [FOUND]),
    (HARMONY, "no channel", [Piece("content", "no channel")]),
]  # fmt: skip


@pytest.mark.parametrize(("spec", "text", "pieces"), CASES, ids=[text[:40] for _, text, _ in CASES])
def test_markup_is_split_the_same_whole_and_letter_by_letter(spec: MarkupSpec, text: str, pieces: list[Piece]) -> None:
    assert parsed(spec, [text]) == pieces
    assert parsed(spec, by_letter(text)) == pieces


@given(text=st.text("<think>/tol_ca \n{}"), cuts=st.lists(st.integers(0, 40)))
def test_how_text_is_chunked_changes_nothing(text: str, cuts: list[int]) -> None:
    places = [0, *sorted(cut for cut in cuts if cut < len(text)), len(text)]
    chunks = [text[start:end] for start, end in pairwise(places)]
    assert parsed(QWEN, chunks) == parsed(QWEN, [text])


@given(st.text())
def test_text_without_tags_is_content_to_the_letter(text: str) -> None:
    if "<" not in text:
        assert "".join(piece.text for piece in parsed(QWEN, by_letter(text))) == text


@given(name=st.text(min_size=1), arguments=st.dictionaries(st.text(), st.integers() | st.text() | st.none()))
def test_any_hermes_call_comes_back(name: str, arguments: dict[str, object]) -> None:
    body = json.dumps({"name": name, "arguments": arguments})
    if "</tool_call>" in body:
        return
    (call,) = parsed(QWEN, ["<tool_call>", body, "</tool_call>"])
    assert (call.kind, call.name, json.loads(call.text)) == ("tool_call", name, arguments)


def test_content_streams_at_once_and_only_a_possible_tag_waits() -> None:
    parser = MarkupParser(QWEN)
    assert parser.push("Hello") == [Piece("content", "Hello")]
    assert parser.push(" there <tool") == [Piece("content", " there")]
    assert parser.push("box>") == [Piece("content", " <toolbox>")]


def test_a_prompt_that_opens_the_reasoning_is_noticed() -> None:
    assert QWEN.for_prompt("...assistant\n<think>\n").starts_in_reasoning
    assert not QWEN.for_prompt("...assistant\n<think>\n\n</think>\n\n").starts_in_reasoning


def test_without_tools_no_calls_are_looked_for() -> None:
    assert parsed(QWEN.for_tools(None), [HERMES_CALL]) == [Piece("content", HERMES_CALL)]


@pytest.mark.parametrize(
    ("file", "spec"),
    [
        ("Qwen-Qwen3-0.6B", QWEN),
        ("Qwen-Qwen2.5-7B-Instruct", MarkupSpec(tools="hermes")),
        ("Qwen3-Coder", MarkupSpec(tools="hermes")),
        ("meta-llama-Llama-3.2-3B-Instruct", MarkupSpec(tools="llama3")),
        ("mistralai-Mistral-Nemo-Instruct-2407", MarkupSpec(tools="mistral")),
        ("deepseek-ai-DeepSeek-R1-Distill-Qwen-32B", MarkupSpec(THINK)),
        ("openai-gpt-oss-120b", HARMONY),
        ("google-gemma-2-2b-it", MarkupSpec()),
    ],
)
def test_published_templates_tell_their_markup(file: str, spec: MarkupSpec) -> None:
    assert detect_markup((data_folder("templates") / f"{file}.jinja").read_text(encoding="utf-8")) == spec
