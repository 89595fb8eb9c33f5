# ruff: noqa: RUF001 (some tags are spelled with full-width bars)
"""Calls that are shown while they are still being written: the name first, then the arguments as they come.

Only JSON can be: its end is certain, and what was shown is never taken back. A call begins once its name and the
opening of its arguments are there; what the model writes between that and the arguments' last bracket is passed on,
without the white space between values, whether it turns out to be JSON or not.
"""

import re
from collections.abc import Callable, Sequence

from localllm.tokens.markup.pieces import Piece

_STARTS = r"(?=\{\s*[\"}])"
_BEFORE = r"[\s\[]*"  # nothing, or a list's beginning
_NEXT = r"[\s,;\]}]*"
_OBJECT = (
    r"\{\s*(?:\"(?:type|id|tool_call_id)\"\s*:\s*\"[^\"\\]*\"\s*,\s*)?"
    r"\"(?:name|tool_name)\"\s*:\s*\"(?P<name>[\w.:-]+)\"\s*,\s*\"(?:arguments|parameters)\"\s*:\s*" + _STARTS
)
JSON_HEAD = re.compile(_BEFORE + _OBJECT)
_NEXT_HEAD = re.compile(_NEXT + _OBJECT)
NAMED_HEAD = re.compile(r"\s*(?P<name>[\w.:-]+)\s*(?:\[CALL_ID\][^\[\]{}]*)?\[ARGS\]\s*" + _STARTS)
KIMI_HEAD = re.compile(
    r"\s*(?:functions\.)?(?P<name>[\w.-]+(?::(?!\d+\s*<)[\w.-]+)*)(?::\d+)?\s*<\|tool_call_argument_begin\|>\s*"
    + _STARTS
)
DEEPSEEK_HEAD = re.compile(r"\s*(?P<name>[\w.:-]+)\s*<｜tool▁sep｜>\s*" + _STARTS)
FENCED_HEAD = re.compile(r"\s*[^\n<]+<｜tool▁sep｜>(?P<name>[\w.:-]+)\s*\n```(?:json)?\n\s*" + _STARTS)
GEMMA_HEAD = re.compile(r"\s*call:(?P<name>[\w.:-]+)\s*(?=\{\s*\")")
XML_HEAD = re.compile(r"\s*<function=(?P<name>[\w.:-]+)>\s*" + _STARTS)
INVOKE_HEAD = re.compile(r"\s*<invoke name=\"(?P<name>[\w.:-]+)\">\s*" + _STARTS)
_TAIL = re.compile(r"[\s,;\]}`]*(?:</function>|</invoke>)?\s*")
_STRUCTURE = frozenset('{}[],:"')
_CONTROLS = {chr(code): f"\\u{code:04x}" for code in range(32)} | {"\t": "\\t", "\n": "\\n", "\r": "\\r"}


class ArgumentsText:
    """One JSON object as it is written, made compact. It is complete with the bracket that closes the first one."""

    def __init__(self) -> None:
        self.is_complete = False
        self.is_quoted = False
        self._depth = 0
        self._is_escaped = False
        self._has_gap = False
        self._last = "{"

    def take(self, text: str) -> tuple[str, int]:
        """What to pass on of this text, and how many of its characters belong to the object."""
        shown: list[str] = []
        for place, letter in enumerate(text):
            shown.append(self._quoted(letter) if self.is_quoted else self._bare(letter))
            if self.is_complete:
                return "".join(shown), place + 1
        return "".join(shown), len(text)

    def _quoted(self, letter: str) -> str:
        if self._is_escaped:
            self._is_escaped = False
        elif letter == '"':
            self.is_quoted = False
        else:
            self._is_escaped = letter == "\\"
        return _CONTROLS.get(letter, letter)

    def _bare(self, letter: str) -> str:
        if letter.isspace():
            self._has_gap = True
            return ""
        is_apart = self._has_gap and letter not in _STRUCTURE and self._last not in _STRUCTURE
        self._has_gap, self._last = False, letter
        self.is_quoted = letter == '"'
        self._depth += (letter in "{[") - (letter in "}]")
        self.is_complete = self._depth <= 0
        return " " + letter if is_apart else letter


class EarlyCalls:
    """Reads the body of a call while it grows. `heads` are ways to begin; `is_known` tells names that may be shown."""

    def __init__(self, heads: Sequence[re.Pattern[str]], is_known: Callable[[str], bool]) -> None:
        self._heads = heads
        self._is_known = is_known
        self._arguments: ArgumentsText | None = None
        self._place = 0
        self._has_failed = False
        self.num_begun = 0
        self.num_complete = 0

    @property
    def is_quoted(self) -> bool:
        """What was read so far ends inside a string, where a closing tag is only text."""
        return self._arguments is not None and self._arguments.is_quoted

    def read(self, body: str, limit: int) -> list[Piece]:
        """What the body, known up to `limit`, adds: parts of calls, the first of each with the name."""
        parts: list[Piece] = []
        while not self._has_failed:
            if self._arguments is None and not self._begin(body, limit, parts):
                break
            if not self._go_on(body, limit, parts):
                break
        return parts

    def _begin(self, body: str, limit: int, parts: list[Piece]) -> bool:
        heads = (_NEXT_HEAD,) if self.num_begun else self._heads
        matches = (head.match(body, self._place, limit) for head in heads)
        match = next((match for match in matches if match is not None), None)
        if match is None:
            return False
        if not self._is_known(match["name"]):
            self._has_failed = True
            return False
        parts.append(Piece("tool_call", "", match["name"]))
        self._arguments, self._place = ArgumentsText(), match.end()
        self.num_begun += 1
        return True

    def _go_on(self, body: str, limit: int, parts: list[Piece]) -> bool:
        """Whether the arguments are complete."""
        assert self._arguments is not None
        shown, used = self._arguments.take(body[self._place : limit])
        self._place += used
        if shown:
            first = parts[-1:] and parts[-1].name and not parts[-1].text
            parts[-1:] = (
                [Piece("tool_call", shown, parts[-1].name)] if first else [*parts[-1:], Piece("tool_call", shown)]
            )
        if not self._arguments.is_complete:
            return False
        self._arguments = None
        self.num_complete += 1
        return True

    def tail(self, body: str) -> str:
        """What stands behind the last call and is no part of the notation of calls."""
        rest = body[self._place :]
        match = _TAIL.match(rest)
        return rest[match.end() :] if match and self._arguments is None else ""
