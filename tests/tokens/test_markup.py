# ruff: noqa: RUF001 (some tags are spelled with full-width bars)
"""Streamed text to content, reasoning and tool calls: what each family writes, and what only looks like it."""

from typing import Any

import pytest

from localllm.tokens.markup import MarkupParser, MarkupSpec, Piece, detect_markup
from localllm.tokens.specials import TokenType
from localllm.tokens.stream import TokenStream
from localllm.tokens.tokenizer import Tokenizer
from tests.tokens.markup_cases import (
    CASES,
    COMMAND,
    FOUND,
    GEMMA,
    GRANITE,
    HARMONY,
    HERMES_CALL,
    JSON_CALL,
    KIMI_CALL,
    QWEN,
    SEP,
    THINK,
    joined,
    of,
    parsed,
    words,
)
from tests.tokens.material import gguf_metadata
from tests.tokens.published import source_of

ALL = [(family, *case) for family, cases in CASES.items() for case in cases]


@pytest.mark.parametrize(
    ("spec", "text", "pieces"), [case[1:] for case in ALL], ids=[f"{case[0]}: {case[2][:60]!r}" for case in ALL]
)
def test_markup_is_split_the_same_whole_and_letter_by_letter(spec: MarkupSpec, text: str, pieces: list[Piece]) -> None:
    assert parsed(spec, [text]) == pieces
    assert parsed(spec, list(text)) == pieces


# --- while it streams


def test_content_streams_at_once_and_only_a_possible_tag_waits() -> None:
    parser = MarkupParser(QWEN)
    assert parser.push("Hello") == [words("Hello")]
    assert parser.push(" there <tool") == [words(" there")]
    assert parser.push("box>") == [words(" <toolbox>")]


def test_what_cannot_become_a_call_is_released_at_once() -> None:
    for spec, chunks in (
        (of("llama3"), ['{"na', 'tion', '": 1']),
        (of("llama3"), ["[1", "]"]),
        (QWEN, ["<tool_call>", " is a tag"]),
        (of("mistral"), ["[TOOL_CALLS]", " are tags"]),
    ):  # fmt: skip
        parser = MarkupParser(spec)
        got = "".join(piece.text for chunk in chunks for piece in parser.push(chunk))
        assert got == "".join(chunks)


STREAMED = (
    (QWEN, HERMES_CALL),
    (of("llama3", knows_tools=True), '{"name": "find", "parameters": {"zip": "01234"}}'),
    (of("mistral"), 'x[TOOL_CALLS]find[ARGS]{"zip": "01234"}'),
    (of("deepseek"), f'<｜tool▁call▁begin｜>find{SEP}{{"zip": "01234"}}<｜tool▁call▁end｜>'),
    (of("kimi"), KIMI_CALL.format(3)),
    (GRANITE, f"<|tool_call|>[{JSON_CALL}]"),
    (COMMAND, '<|START_ACTION|>[{"tool_call_id": "0", "tool_name": "find", "parameters": {"zip": "01234"}}]'),
    (HARMONY, '<|channel|>commentary to=functions.find<|message|>{"zip": "01234"}<|call|>'),
)


CUT_IN_ITS_TAG = (
    (QWEN, HERMES_CALL),
    (QWEN, '<tool_call>\n{"arguments": {"zip": "01234"}, "name": "find"}\n</tool_call>'),  # not shown before its end
    (of("deepseek"), f'<｜tool▁call▁begin｜>find{SEP}{{"zip": "01234"}}<｜tool▁call▁end｜>'),
    (of("kimi"), KIMI_CALL.format(3)),
)


@pytest.mark.parametrize(("spec", "text"), CUT_IN_ITS_TAG, ids=lambda value: str(value)[:40])
def test_an_answer_that_ends_within_a_closing_tag_has_its_call_and_no_half_tag(spec: MarkupSpec, text: str) -> None:
    whole = parsed(spec, [text])
    for end in range(text.rindex("}") + 1, len(text)):
        assert parsed(spec, [text[:end]]) == whole
        assert parsed(spec, list(text[:end])) == whole


def test_half_a_tag_in_a_string_of_a_call_that_was_cut_is_text() -> None:
    assert parsed(QWEN, ['<tool_call>\n{"name": "find", "arguments": {"zip": "a </tool'])[0].text == '{"zip":"a </tool'


@pytest.mark.parametrize(("spec", "text"), STREAMED, ids=lambda value: str(value)[:40])
def test_a_call_is_there_with_its_name_and_grows_with_its_arguments(spec: MarkupSpec, text: str) -> None:
    parser = MarkupParser(spec)
    opened = [piece for letter in text[: text.index('"01234"')] for piece in parser.push(letter) if piece.text != "x"]
    assert (opened[0].name, joined(opened)[0].text) == ("find", '{"zip":')
    assert [parser.push(letter) for letter in '"01'] == [[Piece("tool_call", letter)] for letter in '"01']
    assert parser.num_calls == 0
    assert [piece.text for letter in '234"}' for piece in parser.push(letter)] == list('234"}')
    assert parser.num_calls == 1


def test_a_call_that_cannot_be_shown_early_comes_when_it_ends() -> None:
    for spec, text in (
        (of("llama3"), '{"name": "find", "parameters": {"zip": "01234"}}'),  # no tools to know it by
        (of("lfm2"), "<|tool_call_start|>[find(zip='01234')]<|tool_call_end|>"),
        (of("xml"), "<tool_call><function=find><parameter=zip>\n'01234\n</parameter></function></tool_call>"),
    ):
        parser = MarkupParser(spec)
        assert parser.push(text[:-1]) == []
        (call,) = parser.push(text[-1])
        assert call.name == "find" and parser.num_calls == 1


def test_arguments_that_break_off_stay_what_was_said_of_them() -> None:
    text = '<tool_call>{"name": "find", "arguments": {"zip": "01'
    assert parsed(QWEN, [text]) == parsed(QWEN, list(text)) == [Piece("tool_call", '{"zip":"01', "find")]


def test_a_second_call_in_one_body_streams_like_the_first() -> None:
    parser = MarkupParser(QWEN)
    parts = [piece for letter in f"<tool_call>[{JSON_CALL}, {JSON_CALL}" for piece in parser.push(letter)]
    assert [piece.name for piece in parts if piece.name] == ["find", "find"]
    assert parser.num_calls == 2


def test_a_model_that_only_begins_calls_is_not_heard_forever() -> None:
    text = '<tool_call>{"' * 200
    assert parsed(QWEN, [text, HERMES_CALL]) == [words(text + HERMES_CALL)]
    assert parsed(QWEN, [text[: len(text) // 10], HERMES_CALL])[-1] == FOUND


# --- what a prompt, the tools and a template tell


def test_a_prompt_that_opens_the_reasoning_is_noticed() -> None:
    assert QWEN.for_prompt("...assistant\n<think>\n").starts_in_reasoning
    assert not QWEN.for_prompt("...assistant\n<think>\n\n</think>\n\n").starts_in_reasoning
    assert GEMMA.for_prompt("<|turn>model\n<|channel>thought\n").starts_in_reasoning
    assert not GEMMA.for_prompt("<|turn>model\n<|channel>thought\n<channel|>").starts_in_reasoning


def test_without_tools_no_calls_are_looked_for() -> None:
    assert parsed(QWEN.for_tools(None), [HERMES_CALL]) == [words(HERMES_CALL)]


def test_tools_tell_which_values_are_text() -> None:
    properties = {
        "a": {"type": "string"}, "b": {"type": ["string", "null"]}, "c": {"enum": ["1", "2"]},
        "d": {"type": ["string", "integer"]}, "e": {}, "f": "nonsense",
    }  # fmt: skip
    tools: list[dict[str, Any]] = [{"name": "bare", "parameters": {"properties": properties}}, {"function": 5}, {}]
    spec = MarkupSpec().for_tools(tools)
    assert spec.text_parameters == {("bare", "a"), ("bare", "b"), ("bare", "c")}
    assert spec.tool_names == {"bare"}


@pytest.mark.parametrize(
    ("name", "spec"),
    [
        ("CohereForAI-c4ai-command-r7b-12-2024-tool_use", COMMAND),
        ("GLM-4.7-Flash", MarkupSpec(THINK, "glm")),
        ("HuggingFaceTB-SmolLM3-3B", MarkupSpec(THINK)),
        ("Kimi-K2-Instruct", MarkupSpec(tools="kimi")),
        ("LFM2.5-8B-A1B", MarkupSpec(THINK, "lfm2")),
        ("NVIDIA-Nemotron-3-Nano-30B-A3B-BF16", MarkupSpec(THINK, "xml")),
        ("NousResearch-Hermes-3-Llama-3.1-8B-tool_use", MarkupSpec(tools="hermes")),
        ("Qwen-QwQ-32B", QWEN),
        ("Qwen-Qwen2.5-7B-Instruct", MarkupSpec(tools="hermes")),
        ("Qwen-Qwen3-0.6B", QWEN),
        ("Qwen3-Coder", MarkupSpec(tools="xml")),
        ("Qwen3.5-4B", MarkupSpec(THINK, "xml")),
        ("deepseek-ai-DeepSeek-R1-Distill-Qwen-32B", MarkupSpec(THINK, "deepseek")),
        ("deepseek-ai-DeepSeek-V3.1", MarkupSpec(THINK, "deepseek")),
        ("google-gemma-2-2b-it", MarkupSpec()),
        ("google-gemma-4-31B-it", GEMMA),
        ("ibm-granite-granite-3.3-2B-Instruct", GRANITE),
        ("ibm-granite-granite-4.0", MarkupSpec(tools="hermes")),
        ("meta-llama-Llama-3.1-8B-Instruct", MarkupSpec(tools="llama3")),
        ("meta-llama-Llama-3.2-3B-Instruct", MarkupSpec(tools="llama3")),
        ("microsoft-Phi-3.5-mini-instruct", MarkupSpec()),
        ("mistralai-Ministral-3-14B-Reasoning-2512", MarkupSpec(("[THINK]", "[/THINK]"), "mistral")),
        ("mistralai-Mistral-Nemo-Instruct-2407", MarkupSpec(tools="mistral")),
        ("openai-gpt-oss-120b", HARMONY),
        ("unsloth-mistral-Devstral-Small-2507", MarkupSpec(tools="mistral")),
    ],
)
def test_published_templates_tell_their_markup(name: str, spec: MarkupSpec) -> None:
    assert detect_markup(source_of(name)) == spec


def test_a_vocabulary_tells_where_the_template_does_not() -> None:
    assert detect_markup("{{ messages }}", ["<s>", "<|tool_call|>"]).tools == "granite"
    assert detect_markup("{{ messages }}", ["<|tool_call|>", "<|/tool_call|>"]).tools == "phi"
    assert detect_markup("[TOOL_CALLS]", ["<tool_call>"]).tools == "mistral"
    assert detect_markup("{{ messages }}", ["<s>"]) == MarkupSpec()


def test_tags_to_keep_in_sight_are_all_that_the_parser_looks_for() -> None:
    assert set(QWEN.visible_tags()) == {"<think>", "</think>", "<tool_call>", "</tool_call>"}
    assert {"<|channel>", "<channel|>", "<|tool_call>", '<|"|>'} <= set(GEMMA.visible_tags())
    assert {"[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"} == set(of("mistral").visible_tags())
    assert {SEP, "<｜tool▁calls▁begin｜>", "<｜tool▁call▁end｜>"} <= set(of("deepseek").visible_tags())
    assert "<|message|>" in HARMONY.visible_tags()
    assert MarkupSpec().visible_tags() == ()


def with_control_tokens(texts: list[str]) -> dict[str, Any]:
    metadata = gguf_metadata("tiny")
    return metadata | {
        "tokenizer.ggml.tokens": [*metadata["tokenizer.ggml.tokens"], *texts],
        "tokenizer.ggml.token_type": [*metadata["tokenizer.ggml.token_type"], *[TokenType.CONTROL] * len(texts)],
    }


def test_tags_that_are_control_tokens_reach_the_parser_and_no_others() -> None:
    tags = ["<|tool_call>", "<tool_call|>", '<|"|>', "<|turn>", "<|channel>", "<channel|>"]
    tokenizer = Tokenizer.from_gguf(with_control_tokens(tags))
    text = '<|turn><|channel>thought\nhm<channel|>Ok.<|tool_call>call:find{zip:<|"|>01234<|"|>}<tool_call|><|turn>'
    seen = [tokenizer.encode(tag, add_special=False) for tag in GEMMA.visible_tags()]
    stream = TokenStream(tokenizer, keep_special=[ids[0] for ids in seen if len(ids) == 1])
    chunks = [stream.push([token]).text for token in tokenizer.encode(text, add_special=False)]
    assert parsed(GEMMA, [*chunks, stream.finish().text]) == [Piece("reasoning", "hm"), words("Ok."), FOUND]
