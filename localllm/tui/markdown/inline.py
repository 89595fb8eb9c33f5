"""The text of a paragraph, a heading or a cell as runs of marked text; and how an unfinished one would go on."""

from __future__ import annotations

import re
from typing import NamedTuple

from markdown_it import MarkdownIt
from markdown_it.rules_inline import StateInline
from markdown_it.rules_inline.balance_pairs import link_pairs
from markdown_it.token import Token

from localllm.safe_text import sanitize
from localllm.tui.markdown.tree import CLOSERS, Environment
from localllm.tui.markdown.wrap import drawable

PIECE = 2000
"""Characters of a text that are read together: reading is quadratic in the worst case."""
MANY_BRACKETS = 60
TILDE = ord("~")
PENDING = "pending:"
"""The target of a link that has none yet."""
_LINE_BREAK = re.compile(r"<br\s*/?>", re.IGNORECASE)
_OPEN_TARGET = re.compile(r"\]\([^()\s]*(?:\([^()\s]*(?:\)[^()\s]*)?)*(?:\s+[\"'(][^\"')]*[\"')]?)?$")
_OPEN_LABEL = re.compile(r"(?:^|[\s(*_~])!?\[(?=[^\W\d]|[`*_~])[^\[\]\n]{0,200}\]?$")
_OPEN_BRACKET = re.compile(r"(?:(?<=[\s(*_~])|^)!?\[$")
_OPEN_ADDRESS = re.compile(r"<[a-zA-Z][a-zA-Z0-9+.-]{1,31}:[^\s<>]*$")
_BACKTICKS = re.compile(r"\\?`+")


class Marks(NamedTuple):
    """How a run of text is meant."""

    is_strong: bool = False
    is_emphasis: bool = False
    is_struck: bool = False
    is_code: bool = False
    is_link: bool = False
    is_target: bool = False


class Run(NamedTuple):
    text: str
    marks: Marks


def pieces(text: str) -> list[str]:
    """`text` in parts that are read one by one; most texts are one part."""
    found = []
    while len(text) > PIECE:
        cut = max(text.rfind(" ", 0, PIECE), text.rfind("\n", 0, PIECE)) + 1 or PIECE
        found.append(text[:cut])
        text = text[cut:]
    return [*found, text]


def runs(parser: MarkdownIt, text: str, env: Environment) -> list[Run]:
    """Safe to draw: nothing but text and newlines."""
    tokens: list[Token] = []
    if text.count("[") > MANY_BRACKETS:  # brackets that never close are searched for each of them
        return [Run(drawable(sanitize(text)), Marks())]
    parser.inline.parse(text, parser, env, tokens)
    return _Runs().read(tokens)


class _Runs:
    def __init__(self) -> None:
        self._found: list[Run] = []
        self._marks = [Marks()]
        self._targets: list[tuple[str, int]] = []

    def read(self, tokens: list[Token]) -> list[Run]:
        for token in tokens:
            self._read(token)
        return self._found

    def _read(self, token: Token) -> None:
        match token.type:
            case "strong_open":
                self._enter(is_strong=True)
            case "em_open":
                self._enter(is_emphasis=True)
            case "s_open":
                self._enter(is_struck=True)
            case "link_open":
                self._targets.append((str(token.attrGet("href") or ""), len(self._found)))
                self._enter(is_link=True)
            case "link_close":
                self._leave()
                self._target(*self._targets.pop())
            case "strong_close" | "em_close" | "s_close":
                self._leave()
            case "code_inline":
                self._put(token.content, self._marks[-1]._replace(is_code=True))
            case "softbreak" | "hardbreak":
                self._put("\n", Marks())
            case "image":
                start = len(self._found)
                self._put(token.content or "image", self._marks[-1]._replace(is_link=True))
                self._target(str(token.attrGet("src") or ""), start)
            case "html_inline" if _LINE_BREAK.fullmatch(token.content):
                self._put("\n", Marks())
            case _:
                self._put(token.content, self._marks[-1])

    def _enter(self, **marks: bool) -> None:
        self._marks.append(self._marks[-1]._replace(**marks))

    def _leave(self) -> None:
        self._marks.pop()

    def _put(self, text: str, marks: Marks) -> None:
        if text := drawable(sanitize(text)):
            self._found.append(Run(text, marks))

    def _target(self, target: str, start: int) -> None:
        """After the text of a link, unless the text is the target: nothing here can be followed by a click."""
        label = "".join(run.text for run in self._found[start:])
        if target and target != PENDING and label not in (target, target.removeprefix("mailto:")):
            self._put(f" ({target})", self._marks[-1]._replace(is_target=True))


def completed(parser: MarkdownIt, text: str, env: Environment) -> str:
    """A text that goes on, closed as it will probably be: what is bold stays bold while it is written."""
    head = "".join(pieces(text)[:-1])
    return head + _completed(parser, text[len(head) :], env)


def _completed(parser: MarkdownIt, text: str, env: Environment) -> str:
    text = text.rstrip()
    if text.endswith("\\") and not text.endswith("\\\\"):
        text = text[:-1]
    for opener, closer in CLOSERS.items():
        if text.rfind(opener) > text.rfind(closer) or (opener == closer and text.count(opener) % 2):
            return text + closer
    text = _closed_code(text)
    if match := _OPEN_TARGET.search(text):
        return f"{text[: match.start()]}]({PENDING})"
    if _OPEN_ADDRESS.search(text):
        return text + ">"
    if text[-1:] in ("*", "_", "~") and (bare := text.rstrip("*_~")) is not text:
        text = bare.rstrip() if not bare[-1:].isalnum() else bare
    text = _OPEN_BRACKET.sub("", text).rstrip()
    text += _closers(parser, text, env)
    if match := _OPEN_LABEL.search(text):
        text = text.removesuffix("]") + f"]({PENDING})"
    return text


def _closed_code(text: str) -> str:
    """With the backticks that are missing; an opening one with nothing after it is not shown yet."""
    at = 0
    while match := _BACKTICKS.search(text, at):
        if match.group()[0] == "\\":
            at = match.start() + 2
            continue
        ticks = match.group()
        close = re.compile(f"(?<!`){ticks}(?!`)").search(text, match.end())
        if close is None:
            inside = text[match.end() :].rstrip("`")
            return text[: match.end()] + inside + ticks if inside.strip() else text[: match.start()]
        at = close.end()
    return text


def _closers(parser: MarkdownIt, text: str, env: Environment) -> str:
    """What closes the emphasis that is open at the end of a text."""
    if text.count("[") > MANY_BRACKETS:
        return ""
    tokens: list[Token] = []
    state = StateInline(text, parser, env, tokens)
    parser.inline.tokenize(state)
    link_pairs(state)
    missing = ""
    for delimiter in state.delimiters:
        if delimiter.open and delimiter.end < 0 and not _before(tokens, delimiter.token).isalnum():
            missing = (chr(delimiter.marker) * (2 if delimiter.marker == TILDE else 1)) + missing
    return missing


def _before(tokens: list[Token], at: int) -> str:
    """The character before a run of delimiters: after a letter they are more often signs than the begin of emphasis."""
    marker = tokens[at].content[:1]
    while at and tokens[at - 1].content.strip(marker) == "":
        at -= 1
    return tokens[at - 1].content[-1:] if at else ""
