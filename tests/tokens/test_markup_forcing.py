"""Forced calls: whatever a model says within the grammar of its family is read as calls whose arguments fit."""

import json
import random
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jsonschema
import pytest

from localllm.daemon.formats import constraint_of
from localllm.daemon.grammars import lark_text
from localllm.tokens.markup import MarkupSpec, Piece
from localllm.tokens.markup.families import GRAMMARS
from localllm.tokens.markup.forcing import NO_CALL, call_form, call_grammar, lead_of, trigger_of
from tests.tokens.markup_cases import COMMAND, GEMMA, GRANITE, HARMONY, QWEN, THINK, of, parsed

llguidance = pytest.importorskip("llguidance")

EOS = 256
SCHEMA = {
    "type": "object",
    "properties": {"zip": {"type": "string", "maxLength": 6}, "n": {"enum": [1, 2, 30]}, "deep": {"type": "boolean"}},
    "required": ["zip", "n"],
    "additionalProperties": False,
    "x-guidance": {"whitespace_pattern": " ?"},
}
TOOLS = [{"type": "function", "function": {"name": name, "parameters": SCHEMA}} for name in ("find", "look.up-2")]
SPECS: dict[str, MarkupSpec] = {
    **{name: of(name) for name in GRAMMARS},
    "qwen": QWEN, "granite that thinks": GRANITE, "command that thinks": COMMAND, "gemma": GEMMA, "harmony": HARMONY,
    "mistral that thinks": MarkupSpec(("[THINK]", "[/THINK]"), "mistral"),
    "qwen in thoughts": replace(QWEN, starts_in_reasoning=True),
}  # fmt: skip


class Vocabulary:
    """Bytes, an end, and tags as control tokens."""

    def __init__(self, controls: tuple[str, ...]) -> None:
        self.controls = {tag: EOS + 1 + place for place, tag in enumerate(controls)}
        self.eos_token_id, self.bos_token_id, self.unk_token_id = EOS, None, None
        self.tokens = [*(bytes([byte]) for byte in range(256)), b"<eos>", *(tag.encode() for tag in controls)]
        self.special_token_ids = list(range(EOS, len(self.tokens)))
        self.say: Callable[[str], str] = partial(lark_text, control_ids=self.controls)

    def __call__(self, text: bytes) -> list[int]:
        return list(text)

    def text_of(self, ids: list[int]) -> str:
        return b"".join(self.tokens[token] for token in ids).decode("utf-8", "replace")


def vocabulary(spec: MarkupSpec, *, has_controls: bool) -> Vocabulary:
    return Vocabulary(tuple(tag for tag in spec.visible_tags() if tag.strip() == tag) if has_controls else ())


def walk(words: Vocabulary, grammar: str, seed: int) -> str:
    """What a model might say that chooses at random among what it may."""
    tokenizer = llguidance.LLTokenizer(llguidance.TokenizerWrapper(words), n_vocab=len(words.tokens))
    matcher, chooser, said = llguidance.LLMatcher(tokenizer, grammar), random.Random(seed), []
    likely = {*b'"}{,: abz012'}
    for _ in range(1500):
        mask = matcher.compute_bitmask()
        assert not matcher.is_error(), matcher.get_error()
        allowed = [token for token in range(len(words.tokens)) if mask[token // 8] >> token % 8 & 1]
        if EOS in allowed:
            return words.text_of(said)
        tags = [token for token in allowed if token > EOS]
        liked = tags or [token for token in allowed if token in likely] or allowed
        said.append(chooser.choice(liked))
        matcher.consume_token(said[-1])
    raise AssertionError(f"no end: {words.text_of(said)[:300]}")


def forced(spec: MarkupSpec, words: Vocabulary, *, is_parallel: bool) -> str:
    functions = [(tool["function"]["name"], json.dumps(SCHEMA)) for tool in TOOLS]
    lark = call_grammar(call_form(spec, words.controls), functions, words.say, is_parallel=is_parallel)
    return str(llguidance.LLMatcher.grammar_from_lark(lark))


def check_calls(pieces: list[Piece], text: str) -> int:
    calls = [piece for piece in pieces if piece.kind == "tool_call"]
    assert calls and all(piece.kind != "content" for piece in pieces), (text, pieces)
    for call in calls:
        jsonschema.validate(json.loads(call.text), SCHEMA)
        assert call.name in ("find", "look.up-2")
    return len(calls)


@pytest.mark.parametrize("has_controls", [True, False], ids=["control tokens", "text"])
@pytest.mark.parametrize("family", SPECS)
def test_whatever_is_said_is_calls_that_fit(family: str, has_controls: bool) -> None:
    spec = SPECS[family].for_tools(TOOLS)
    words = vocabulary(spec, has_controls=has_controls)
    for seed in range(6):
        text = walk(words, forced(spec, words, is_parallel=False), seed)
        plain = replace(spec, starts_in_reasoning=False)
        assert check_calls(parsed(plain, [text]), text) == 1
        assert parsed(plain, [text]) == parsed(plain, list(text))


@pytest.mark.parametrize("family", [name for name in SPECS if not SPECS[name].is_harmony])
def test_several_calls_are_read_as_several(family: str) -> None:
    spec = replace(SPECS[family].for_tools(TOOLS), starts_in_reasoning=False)
    words = vocabulary(spec, has_controls=False)
    grammar = forced(spec, words, is_parallel=True)
    form = call_form(spec, words.controls)
    call = f'{form.before_name}find{form.before_arguments}{{"zip": "1", "n": 2}}{form.behind}'
    text = f"{form.opener}{call}{form.between}{call}{form.closer}"
    assert accepts(words, grammar, text), text
    assert check_calls(parsed(spec, [text]), text) == 2


def accepts(words: Vocabulary, grammar: str, text: str) -> bool:
    tokenizer = llguidance.LLTokenizer(llguidance.TokenizerWrapper(words), n_vocab=len(words.tokens))
    matcher = llguidance.LLMatcher(tokenizer, grammar)
    ids, place = [], 0
    tags = sorted(words.controls, key=len, reverse=True)
    while place < len(text):
        tag = next((tag for tag in tags if text.startswith(tag, place)), None)
        ids += list(text[place].encode()) if tag is None else [words.controls[tag]]
        place += 1 if tag is None else len(tag)
    return bool(matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting())


@pytest.mark.parametrize("family", SPECS)
def test_a_call_that_has_begun_goes_on_behind_its_tag(family: str) -> None:
    spec = SPECS[family].for_tools(TOOLS)
    words = vocabulary(spec, has_controls=False)
    form = call_form(spec, words.controls)
    trigger = trigger_of(spec, form)
    assert bool(trigger) == (spec.tools not in ("llama3", "pythonic"))
    lark = call_grammar(form, [("find", json.dumps(SCHEMA))], words.say, is_parallel=False, begun=trigger)
    text = walk(words, lark, 1)
    plain = replace(spec, starts_in_reasoning=False)
    check_calls(parsed(plain, [trigger + text]), text)


def test_where_calls_have_no_tags_words_do_not_begin_like_one() -> None:
    words = vocabulary(MarkupSpec(), has_controls=False)
    assert accepts(words, NO_CALL, "So be it {") and not accepts(words, NO_CALL, '{"name"')


THOUGHTFUL: list[tuple[MarkupSpec, str, list[str], list[str]]] = [
    (QWEN, "<|im_start|>assistant\n", ['<think>\nhm {\n</think>\n\n{"a":1}', '{"a":1}'], ["hm", "<think>hm"]),
    (QWEN, "<|im_start|>assistant\n<think>\n\n</think>\n\n", ['{"a":1}'], ['<think>\nhm\n</think>{"a":1}']),
    (QWEN, "<|im_start|>assistant\n<think>\n", ['\n\n{"a":1}', '{"a":1}'], ["so"]),
    (GRANITE, "x", ['<think>a</think><response>{"a":1}</response>', '{"a":1}'], ["<response>a"]),
    (GEMMA, "<|turn>model\n", ['<|channel>thought\nhm<channel|>{"a":1}', '{"a":1}'], ["hm"]),
    (HARMONY, "<|start|>assistant", [
        '<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>{"a":1}',
        '<|channel|>final<|message|>{"a":1}',
    ], ['{"a":1}', "<|channel|>final<|message|>no"]),
    (HARMONY, "<|start|>assistant<|channel|>final<|message|>", ['{"a":1}'], ["no"]),
    (HARMONY, "<|start|>assistant<|channel|>analysis<|message|>", [
        'so<|end|><|start|>assistant<|channel|>final<|message|>{"a":1}'
    ], ['so{"a":1}<|end|>{']),
    (MarkupSpec(), "x", ['{"a":1}'], ["x"]),
]  # fmt: skip


@pytest.mark.parametrize("has_controls", [True, False], ids=["control tokens", "text"])
@pytest.mark.parametrize(("spec", "prompt", "good", "bad"), THOUGHTFUL, ids=range(len(THOUGHTFUL)))
def test_a_form_holds_behind_the_thoughts(
    spec: MarkupSpec, prompt: str, good: list[str], bad: list[str], has_controls: bool
) -> None:
    words = vocabulary(spec, has_controls=has_controls)
    told = spec.for_prompt(prompt)
    body = json.dumps({"grammars": [{"json_schema": {"type": "object"}}]})
    constraint = constraint_of(body, "", lead_of(told, prompt, words.say))
    assert constraint.after == ("</think>" if told.starts_in_reasoning else "")
    assert [text for text in good if not accepts(words, constraint.grammar, text)] == []
    assert [text for text in bad if accepts(words, constraint.grammar, text)] == []


def test_calls_may_stand_in_the_place_of_the_form() -> None:
    spec = QWEN.for_tools(TOOLS)
    words = vocabulary(spec, has_controls=False)
    body = json.dumps({"grammars": [{"json_schema": {"type": "object"}}]})
    grammar = constraint_of(body, forced(spec, words, is_parallel=True), lead_of(spec, "x", words.say)).grammar
    call: Any = '<tool_call>\n{"name": "find", "arguments": {"zip":"1","n":2}}\n</tool_call>'
    assert accepts(words, grammar, call) and accepts(words, grammar, f"<think>a</think>\n{call}\n{call}")
    assert accepts(words, grammar, '{"a":1}') and not accepts(words, grammar, "words")


def test_the_manner_of_a_family_shows_in_its_control_tokens() -> None:
    assert call_form(of("mistral"), {"[TOOL_CALLS]", "[ARGS]"}).before_arguments == "[ARGS]"
    assert call_form(of("mistral"), {"[TOOL_CALLS]"}).opener == "[TOOL_CALLS]["
    assert call_form(of("phi"), {"<|/tool_call|>"}).opener == "<|tool_call|>["
    assert call_form(MarkupSpec(THINK), ()) == call_form(of("hermes"), ())
