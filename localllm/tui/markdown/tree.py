"""Markdown as blocks: what markdown-it finds, as plain frozen data. Texts in it are not read yet (markdown_inline.py).

CommonMark with tables, strikethrough and task lists; formulas stay as they were written; HTML is text.
"""

from __future__ import annotations

import re
from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.rules_block import StateBlock
from markdown_it.rules_inline import StateInline
from markdown_it.token import Token

DEEPEST = 12
"""Quotes and lists inside each other; what stands deeper is shown as it was written."""
CLOSERS = {"$$": "$$", "\\[": "\\]", "\\(": "\\)"}
_BLANK = re.compile(r"[>\s]*")
_TASK = re.compile(r"\[([ xX])\](?:\s+|$)")
Environment = MutableMapping[str, Any]


@dataclass(frozen=True, slots=True)
class Paragraph:
    text: str


@dataclass(frozen=True, slots=True)
class Heading:
    level: int
    text: str


@dataclass(frozen=True, slots=True)
class Code:
    """`language` as it was written, may be empty."""

    language: str
    text: str


@dataclass(frozen=True, slots=True)
class Plain:
    """Shown as it was written: HTML, formulas, what is nested too deep."""

    text: str


@dataclass(frozen=True, slots=True)
class Rule:
    """A thematic break."""


@dataclass(frozen=True, slots=True)
class Placed:
    """A block, and whether its author left a line blank before it."""

    block: Block
    is_apart: bool


@dataclass(frozen=True, slots=True)
class Quote:
    blocks: tuple[Placed, ...]


@dataclass(frozen=True, slots=True)
class Item:
    """`is_done` None: not a task."""

    blocks: tuple[Placed, ...]
    is_done: bool | None = None
    is_apart: bool = False


@dataclass(frozen=True, slots=True)
class Bullets:
    """A list. `start` is its first number; None for one without numbers."""

    items: tuple[Item, ...]
    start: int | None = None


@dataclass(frozen=True, slots=True)
class Table:
    """`aligns` are "left", "center" or "right"; the first of `rows` is the head."""

    aligns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


Block = Paragraph | Heading | Code | Plain | Rule | Quote | Bullets | Table


def parser() -> MarkdownIt:
    """The one that reads everything here."""
    made = MarkdownIt("commonmark", {"maxNesting": 10 * DEEPEST}).enable(["table", "strikethrough"])
    block, inline = made.block.ruler, made.inline.ruler
    block.before("table", "too_deep", _too_deep)
    block.before("fence", "formula", _formula_block, {"alt": ["paragraph", "reference", "blockquote", "list"]})
    inline.before("escape", "formula", _formula)
    return made


def parse(parser: MarkdownIt, source: str, env: Environment) -> list[Token]:
    """Blocks only. Definitions of links go to `env`."""
    tokens: list[Token] = []
    parser.block.parse(source, parser, env, tokens)
    return tokens


def tree(tokens: Sequence[Token], source: str) -> tuple[Placed, ...]:
    """What the tokens of `parse` mean."""
    return _Reader(tokens, source.split("\n")).blocks("")


def tops(tokens: Sequence[Token]) -> list[int]:
    """The lines where the outermost blocks begin."""
    return [token.map[0] for token in tokens if token.level == 0 and token.nesting >= 0 and token.map]


def codes(blocks: Sequence[Placed]) -> list[str]:
    """The texts of all code blocks, in order."""
    found: list[str] = []
    for placed in blocks:
        match placed.block:
            case Code(_, text):
                found.append(text)
            case Quote(inner):
                found += codes(inner)
            case Bullets(items):
                for item in items:
                    found += codes(item.blocks)
    return found


class _Reader:
    def __init__(self, tokens: Sequence[Token], lines: list[str]) -> None:
        self._tokens, self._lines, self._at = tokens, lines, 0

    def blocks(self, end: str) -> tuple[Placed, ...]:
        """Up to the token that closes what they stand in."""
        found: list[Placed] = []
        while self._at < len(self._tokens):
            token = self._tokens[self._at]
            self._at += 1
            if token.type == end:
                break
            if (block := self._block(token)) is not None:
                found.append(Placed(block, bool(found) and self._is_apart(token)))
        return tuple(found)

    def _block(self, token: Token) -> Block | None:
        match token.type:
            case "paragraph_open":
                return Paragraph(self._text("paragraph_close"))
            case "heading_open":
                return Heading(int(token.tag[1:]), self._text("heading_close"))
            case "fence":
                return Code(token.info.strip(), token.content)
            case "code_block":
                return Code("", token.content)
            case "html_block" | "plain":
                return Plain(token.content.rstrip("\n"))
            case "hr":
                return Rule()
            case "blockquote_open":
                return Quote(self.blocks("blockquote_close"))
            case "bullet_list_open":
                return Bullets(self._items("bullet_list_close"))
            case "ordered_list_open":
                return Bullets(
                    self._items("ordered_list_close"), int(token.attrGet("start") or 0) if token.attrs else 1
                )
            case "table_open":
                return self._table()
        return None

    def _is_apart(self, token: Token) -> bool:
        line = token.map[0] if token.map else 0
        return line > 0 and _BLANK.fullmatch(self._lines[line - 1]) is not None

    def _text(self, end: str) -> str:
        text = ""
        while (token := self._tokens[self._at]).type != end:
            text += token.content
            self._at += 1
        self._at += 1
        return text

    def _items(self, end: str) -> tuple[Item, ...]:
        items: list[Item] = []
        while (token := self._tokens[self._at]).type != end:
            self._at += 1
            items.append(_item(self.blocks("list_item_close"), bool(items) and self._is_apart(token)))
        self._at += 1
        return tuple(items)

    def _table(self) -> Table:
        rows: list[list[str]] = []
        aligns: list[str] = []
        while (token := self._tokens[self._at]).type != "table_close":
            self._at += 1
            if token.type == "tr_open":
                rows.append([])
            elif token.type == "inline":
                rows[-1].append(token.content)
            elif token.type == "th_open":
                aligns.append(str(token.attrGet("style") or "left").removeprefix("text-align:"))
        self._at += 1
        return Table(tuple(aligns), tuple(map(tuple, rows)))


def _item(blocks: tuple[Placed, ...], is_apart: bool) -> Item:
    first = blocks[0].block if blocks else None
    if not isinstance(first, Paragraph) or not (mark := _TASK.match(first.text)):
        return Item(blocks, None, is_apart)
    rest = replace(blocks[0], block=Paragraph(first.text[mark.end() :]))
    return Item((rest, *blocks[1:]), mark.group(1) != " ", is_apart)


def _too_deep(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    """markdown-it drops what is nested deeper than its limit: nothing of an answer may get lost."""
    if state.level <= 2 * DEEPEST:
        return False
    if not silent:
        token = state.push("plain", "", 0)
        token.content = state.getLines(start, end, state.blkIndent, False)
        token.map = [start, end]
        state.line = end
    return True


def _formula_block(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    """`$$ … $$` or `\\[ … \\]` from a line's begin to a line's end. It ends before a blank line at the latest."""
    if state.is_code_block(start):
        return False
    first = state.src[state.bMarks[start] + state.tShift[start] : state.eMarks[start]].rstrip()
    closer = CLOSERS.get(first[:2])
    if closer is None or first[:2] == "\\(":
        return False
    stop, is_closed = start + 1, first.endswith(closer) and len(first) >= 4
    while not is_closed and stop < end and not state.isEmpty(stop) and state.sCount[stop] >= state.blkIndent:
        is_closed = state.src[state.bMarks[stop] : state.eMarks[stop]].rstrip().endswith(closer)
        stop += 1
    if not is_closed and len(first) > 2:
        return False
    if not silent:
        token = state.push("plain", "", 0)
        token.content = state.getLines(start, stop, state.blkIndent, False)
        token.map = [start, stop]
        state.line = stop
    return True


def _formula(state: StateInline, silent: bool) -> bool:
    """A formula in a sentence, up to its closing sign: signs of Markdown mean nothing in it."""
    source, start = state.src, state.pos
    stop = _end_of_formula(source, start, state.posMax)
    if stop is None:
        return False
    if not silent:
        state.push("formula", "", 0).content = source[start:stop]
    state.pos = stop
    return True


def _end_of_formula(source: str, start: int, end: int) -> int | None:
    closer = CLOSERS.get(source[start : start + 2])
    if closer is not None:
        at = source.find(closer, start + 2, end)
        return None if at < 0 or at == start + 2 else at + 2
    if source[start] != "$" or start + 2 >= end or source[start + 1].isspace():
        return None
    at = source.find("$", start + 1, end)
    if at < 0 or source[at - 1].isspace() or source[at + 1 : at + 2].isdigit():
        return None  # two prices, not a formula
    return at + 1
