# ruff: noqa: RUF001 (some tags are spelled with full-width bars)
"""How the families mark their tool calls: a family is a row, not a branch."""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from localllm.tokens.markup import calls
from localllm.tokens.markup.calls import CallReader
from localllm.tokens.markup.early import (
    DEEPSEEK_HEAD,
    FENCED_HEAD,
    GEMMA_HEAD,
    INVOKE_HEAD,
    JSON_HEAD,
    KIMI_HEAD,
    NAMED_HEAD,
    XML_HEAD,
)
from localllm.tokens.markup.ends import (
    GEMMA_QUOTES,
    JSON_QUOTES,
    NO_QUOTES,
    XML_QUOTES,
    CloserEnd,
    EndFinder,
    Quotes,
    ValueEnd,
)

ToolFormat = Literal[
    "hermes", "xml", "glm", "mistral", "llama3", "pythonic", "deepseek", "kimi", "gemma4", "tool_code", "granite",
    "phi", "lfm2", "command", "minimax",
]  # fmt: skip
_JSON_BODY = r"\s*([\[{].*)?"
_TAGGED_BODY = r"\s*([\[{].*|<function=.*|[\w.:-]+\s*(<.*)?)?"
_PYTHON_BODY = r"\s*(\[\s*)?([\[{].*|[A-Za-z_][\w.\-]*\s*(\(.*)?)?"
_TOLD_BY_PREFIX = 64  # characters of a body that tell whether it may be a call


@dataclass(frozen=True, slots=True)
class Mark:
    """One way to open a call. `may_be` is matched against the body's beginning: what does not match is no call.

    `keeps_opener`: the reader wants to see it. `is_bare`: there is no tag, so that only known tools count. `heads` are
    the beginnings of bodies that can be shown as they are written.
    """

    opener: str
    reader: CallReader
    end: Callable[[], EndFinder]
    closer: str = ""
    may_be: str = ".*"
    keeps_opener: bool = False
    is_bare: bool = False
    heads: tuple[re.Pattern[str], ...] = (JSON_HEAD,)

    def is_plausible(self, body: str) -> bool:
        begun = body[:_TOLD_BY_PREFIX]
        if "<function=".startswith(begun.lstrip()):
            return True
        return re.fullmatch(self.may_be, begun, re.DOTALL) is not None


@dataclass(frozen=True, slots=True)
class Grammar:
    """The marks of a family. `section` encloses calls and means nothing by itself; `bare` opens an answer untagged."""

    marks: tuple[Mark, ...]
    section: tuple[str, str] = ("", "")
    inner_tags: tuple[str, ...] = ()
    bare: Mark | None = None

    def all_tags(self) -> Iterator[str]:
        """Everything that the parser or a reader looks for."""
        yield from self.section
        yield from self.inner_tags
        for mark in self.marks:
            yield from (mark.opener, mark.closer)


def _closed(
    opener: str,
    closer: str,
    reader: CallReader,
    quotes: Quotes,
    may_be: str = ".*",
    *,
    keeps_opener: bool = False,
    heads: tuple[re.Pattern[str], ...] = (JSON_HEAD,),
) -> Mark:
    return Mark(opener, reader, lambda: CloserEnd(closer, quotes), closer, may_be, keeps_opener, heads=heads)


def _tagged(reader: CallReader) -> Mark:
    """`<tool_call>`: what its first character tells decides what is quoted."""
    by_first = {"{": JSON_QUOTES, "[": JSON_QUOTES}
    end = lambda: CloserEnd("</tool_call>", XML_QUOTES, by_first)  # noqa: E731 (a factory in a row of a table)
    return Mark("<tool_call>", reader, end, "</tool_call>", _TAGGED_BODY, heads=(JSON_HEAD, XML_HEAD))


def _valued(opener: str, reader: CallReader, may_be: str = _JSON_BODY, *, behind: str = "") -> Mark:
    heads = (JSON_HEAD, NAMED_HEAD) if behind else (JSON_HEAD,)
    return Mark(opener, reader, lambda: ValueEnd(behind), may_be=may_be, heads=heads)


_BARE_JSON = r"\{\s*(\"(name|type|function|parameters|arguments)\"\s*:.*|\"[a-z]*\"?\s*)?"
_BARE = Mark(
    "",
    calls.bare_calls,
    lambda: ValueEnd(quotes="\"'"),
    may_be=rf"({_BARE_JSON}|\[\s*({_BARE_JSON}|[A-Za-z_][\w.\-]*\s*(\(.*)?)?)",
    is_bare=True,
)
GRAMMARS: Mapping[ToolFormat, Grammar] = {
    "hermes": Grammar((_tagged(calls.tagged_calls),)),
    "xml": Grammar(
        (
            _tagged(calls.tagged_calls),
            _closed("<function=", "</function>", calls.xml_calls, XML_QUOTES, keeps_opener=True),
        ),
        section=("", "</tool_call>"),  # Qwen3-Coder forgets to open it
    ),
    "glm": Grammar((_tagged(calls.glm_calls),)),
    "mistral": Grammar(
        (_valued("[TOOL_CALLS]", calls.named_calls, r"\s*([\[{].*|[\w.:-]+\s*(\[.*)?)?", behind="[ARGS]"),),
        inner_tags=("[ARGS]", "[CALL_ID]"),
    ),
    "llama3": Grammar(
        (
            Mark(
                "<|python_tag|>",
                calls.python_tag_calls,
                lambda: ValueEnd(quotes="\"'"),
                may_be=r"\s*(\{.*|[A-Za-z_][\w.]*\s*(\(.*)?)?",
            ),
        ),
        bare=_BARE,
    ),
    "pythonic": Grammar(
        (_closed("<|python_start|>", "<|python_end|>", calls.pythonic_calls, NO_QUOTES, _PYTHON_BODY),), bare=_BARE
    ),
    "deepseek": Grammar(
        (
            _closed(
                "<｜tool▁call▁begin｜>",
                "<｜tool▁call▁end｜>",
                calls.deepseek_calls,
                JSON_QUOTES,
                heads=(DEEPSEEK_HEAD, FENCED_HEAD),
            ),
        ),
        section=("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"),
        inner_tags=("<｜tool▁sep｜>",),
    ),
    "kimi": Grammar(
        (_closed("<|tool_call_begin|>", "<|tool_call_end|>", calls.kimi_calls, JSON_QUOTES, heads=(KIMI_HEAD,)),),
        section=("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"),
        inner_tags=("<|tool_call_argument_begin|>",),
    ),
    "gemma4": Grammar(
        (_closed("<|tool_call>", "<tool_call|>", calls.gemma_calls, GEMMA_QUOTES, heads=(GEMMA_HEAD,)),),
        inner_tags=('<|"|>',),
    ),
    "tool_code": Grammar((_closed("```tool_code", "```", calls.pythonic_calls, NO_QUOTES, _PYTHON_BODY),)),
    "granite": Grammar((_valued("<|tool_call|>", calls.json_calls), _valued("<tool_call>", calls.json_calls))),
    "phi": Grammar(
        (
            _closed("<|tool_call|>", "<|/tool_call|>", calls.json_calls, JSON_QUOTES, _JSON_BODY),
            _valued("functools", calls.json_calls, r"(\[.*)?"),
        )
    ),
    "lfm2": Grammar(
        (_closed("<|tool_call_start|>", "<|tool_call_end|>", calls.pythonic_calls, NO_QUOTES, _PYTHON_BODY),)
    ),
    "command": Grammar((_closed("<|START_ACTION|>", "<|END_ACTION|>", calls.json_calls, JSON_QUOTES, _JSON_BODY),)),
    "minimax": Grammar(
        (_closed("<minimax:tool_call>", "</minimax:tool_call>", calls.invoke_calls, XML_QUOTES, heads=(INVOKE_HEAD,)),)
    ),
}
