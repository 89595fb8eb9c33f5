"""How a model marks what it writes."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from localllm.tokens.markup.families import GRAMMARS, ToolFormat

HARMONY_TAGS = ("<|start|>", "<|channel|>", "<|constrain|>", "<|message|>", "<|end|>", "<|call|>", "<|return|>")
_TOKEN = re.compile(r"<\|?[^<>\s]+\|?>")  # a tag such as "<|channel>thought" is a token and more


@dataclass(frozen=True, slots=True)
class MarkupSpec:
    """`reasoning` and `answer` are pairs of tags around the two parts of an answer.

    `starts_in_reasoning`: the prompt has already opened the reasoning. `opening`: what the prompt has said of a harmony
    message. `tool_names` (empty: unknown) and `text_parameters`, the (function, parameter) pairs whose values are
    strings even if they look like numbers, come from the tools; formats without tags or types need them. `one_call`: an
    answer ends behind its first call.
    """

    reasoning: tuple[str, str] | None = None
    tools: ToolFormat | None = None
    starts_in_reasoning: bool = False
    is_harmony: bool = False
    text_parameters: frozenset[tuple[str, str]] = frozenset()
    answer: tuple[str, str] | None = None
    tool_names: frozenset[str] = frozenset()
    opening: str = ""
    one_call: bool = False

    def visible_tags(self) -> tuple[str, ...]:
        """Tags that the parser must see even where special tokens are left out of the text."""
        if self.is_harmony:
            return HARMONY_TAGS
        tags = [*(self.reasoning or ()), *(self.answer or ()), *(GRAMMARS[self.tools].all_tags() if self.tools else ())]
        inside = [token for tag in tags for token in _TOKEN.findall(tag)]
        return tuple(dict.fromkeys(tag for tag in (*tags, *inside) if tag))

    def for_prompt(self, prompt: str) -> "MarkupSpec":
        """The spec of the answer to this prompt."""
        if self.is_harmony:
            _, found, opening = prompt.rpartition("<|start|>")
            return replace(self, opening=opening if found else "")
        is_open = self.reasoning is not None and prompt.rstrip().endswith(self.reasoning[0].rstrip())
        return replace(self, starts_in_reasoning=is_open)

    def for_tools(self, tools: Sequence[Mapping[str, Any]] | None) -> "MarkupSpec":
        """The spec of an answer that may use these tools (OpenAI's shape); without tools none are looked for."""
        if not tools:
            return replace(self, tools=None)
        functions = [_function(tool) for tool in tools]
        names = frozenset(str(function["name"]) for function in functions if function.get("name"))
        texts = frozenset(pair for function in functions for pair in _text_parameters(function))
        return replace(self, tool_names=names, text_parameters=texts)


def _function(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    function = tool.get("function", tool)
    return function if isinstance(function, Mapping) else {}


def _text_parameters(function: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    schema = function.get("parameters")
    properties = schema.get("properties") if isinstance(schema, Mapping) else None
    for name, kind in properties.items() if isinstance(properties, Mapping) else ():
        if isinstance(kind, Mapping) and _is_text(kind):
            yield str(function.get("name")), str(name)


def _is_text(kind: Mapping[str, Any]) -> bool:
    said = kind.get("type")
    if said is None:
        choices = kind.get("enum")
        return bool(choices) and isinstance(choices, list) and all(isinstance(choice, str) for choice in choices)
    return said == "string" or (isinstance(said, list) and "string" in said and set(said) <= {"string", "null"})
