# ruff: noqa: RUF001 (some tags are spelled with full-width bars)
"""What a chat template, and the vocabulary beside it, tell about the markup of their model."""

from collections.abc import Collection

from localllm.tokens.markup.families import ToolFormat
from localllm.tokens.markup.spec import MarkupSpec

_TOLD_BY: tuple[tuple[str, ToolFormat], ...] = (
    ("<|tool_calls_section_begin|>", "kimi"),
    ("<｜tool▁calls▁begin｜>", "deepseek"),
    ("<｜tool▁call▁begin｜>", "deepseek"),
    ("<|tool_call_start|>", "lfm2"),
    ("<|tool_list_start|>", "lfm2"),
    ("<|tool_call>", "gemma4"),
    ("<|START_ACTION|>", "command"),
    ("<minimax:tool_call>", "minimax"),
    ("[TOOL_CALLS]", "mistral"),
    ("<arg_key>", "glm"),
    ("<function=", "xml"),
    ("<tool_call>", "hermes"),
    ("<|/tool|>", "phi"),
    ("<|/tool_call|>", "phi"),
    ("functools[", "phi"),
    ("<|tool_call|>", "granite"),
    ("<|python_start|>", "pythonic"),
    ("func_name1(", "pythonic"),
    ("tool_code", "tool_code"),
    ("<|python_tag|>", "llama3"),
    ('"parameters": dictionary', "llama3"),
)
_REASONING_TAGS = (
    ("<think>", "</think>"),
    ("[THINK]", "[/THINK]"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|channel>thought\n", "<channel|>"),
    ("Here is my thought process:", "Here is my response:"),
)
_ANSWER_TAGS = (("<response>", "</response>"), ("<|START_RESPONSE|>", "<|END_RESPONSE|>"))


def detect_markup(template: str, special_tokens: Collection[str] = ()) -> MarkupSpec:
    """What a chat template says about its model's tags; where it says nothing of calls, what the vocabulary says."""
    if "<|channel|>" in template and "<|message|>" in template:
        return MarkupSpec(is_harmony=True)
    reasoning = next((tags for tags in _REASONING_TAGS if _is_told(tags, template)), None)
    answer = next((tags for tags in _ANSWER_TAGS if tags[0] in template and tags[1] in template), None)
    tools = next((name for tag, name in _TOLD_BY if tag in template), None)
    if tools is None:
        tools = next((name for tag, name in _TOLD_BY if tag in special_tokens), None)
    return MarkupSpec(reasoning, tools, answer=answer)


def _is_told(tags: tuple[str, str], template: str) -> bool:
    return any(tag.strip() in template or tag.replace("\n", "\\n") in template for tag in tags)
