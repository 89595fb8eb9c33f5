"""The part of an answer that is still being written, closed as if it were whole.

What is not decided yet (is `-` a bullet, a rule, or a line under a heading?) is not shown; what is decided is shown as
it will stay: a fence is code from its first line on, a table is a table from its first row on.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace

from markdown_it import MarkdownIt
from markdown_it.rules_block.table import escapedSplit
from markdown_it.token import Token

from localllm.tui.markdown.inline import completed
from localllm.tui.markdown.tree import (
    Block,
    Bullets,
    Environment,
    Heading,
    Paragraph,
    Placed,
    Quote,
    Table,
    parse,
    tree,
)

LONGEST_SIGN = 200
_PREFIX = r"(?:[ \t>]|[-*+][ \t]|\d{1,9}[.)][ \t])*"
_UNDECIDED = re.compile(rf"{_PREFIX}(?:[-=*+_#`~]+|\d{{1,9}}[.)]?|\[[ xX]?\]?|\||\\|\$\$?|<)?[ \t]*")
_ROW = re.compile(rf"({_PREFIX})(\|.*)")
_RULING = re.compile(r"[\s|:-]+")
_LEAVES = ("inline", "fence", "code_block", "html_block", "plain", "hr")


def open_tree(parser: MarkdownIt, source: str, env: Environment) -> tuple[Placed, ...]:
    """The blocks of a text that goes on."""
    tokens = parse(parser, source, env)
    leaf = next((token for token in reversed(tokens) if token.type in _LEAVES), None)
    start = source.rfind("\n") + 1
    if _is_hidden(tokens, leaf, source, start):
        source = source[:start]
        tokens = parse(parser, source, env)
    if (ruled := _with_ruling(tokens, source)) is not None:
        source = ruled
        tokens = parse(parser, source, env)
    return _opened(tree(tokens, source), lambda text: completed(parser, text, env))


def _is_hidden(tokens: Sequence[Token], leaf: Token | None, source: str, start: int) -> bool:
    """Whether the last line is not shown yet. `start` is where it begins."""
    line = source[start:]
    if not line or len(line) > LONGEST_SIGN:
        return False
    if leaf is not None and leaf.type == "fence" and leaf.map:
        is_opening = leaf.map[0] == source.count("\n")
        return is_opening or line.strip().strip(leaf.markup[0]) == ""
    if leaf is not None and (leaf.type in ("code_block", "html_block", "plain") or _is_in_table(tokens)):
        return False
    return _UNDECIDED.fullmatch(line) is not None


def _is_in_table(tokens: Sequence[Token]) -> bool:
    for token in reversed(tokens):
        if token.type == "table_close":
            return True
        if token.type in _LEAVES:
            return False
    return False


def _with_ruling(tokens: Sequence[Token], source: str) -> str | None:
    """With the line under the head of a table, when the head is all there is of it; else None."""
    if not tokens or _is_in_table(tokens) or not any(token.type == "inline" for token in tokens[-8:]):
        return None
    *before, last = source.removesuffix("\n").split("\n")
    match = _ROW.fullmatch(last) if len(last) < 10 * LONGEST_SIGN else None
    if match is None:
        return None
    above = _ROW.fullmatch(before[-1]) if before and len(before[-1]) < 10 * LONGEST_SIGN else None
    if above is not None:
        if not _RULING.fullmatch(match.group(2)):
            return None
        return "\n".join([*before, _ruling(match.group(1), above.group(2))])
    return "\n".join([*before, last, _ruling(match.group(1), match.group(2))])


def _ruling(prefix: str, head: str) -> str:
    columns = escapedSplit(head.strip())
    num_columns = len(columns) - (not columns[0]) - (len(columns) > 1 and not columns[-1])
    return re.sub(r"[^>\t ]", " ", prefix) + "|" + "-|" * max(1, num_columns)


def _opened(blocks: tuple[Placed, ...], complete: Callable[[str], str]) -> tuple[Placed, ...]:
    """The same blocks, the last text of them completed."""
    if not blocks:
        return ()
    return (*blocks[:-1], replace(blocks[-1], block=_opened_block(blocks[-1].block, complete)))


def _opened_block(block: Block, complete: Callable[[str], str]) -> Block:
    match block:
        case Paragraph(text):
            return Paragraph(complete(text))
        case Heading(level, text):
            return Heading(level, complete(text))
        case Quote(blocks):
            return Quote(_opened(blocks, complete))
        case Bullets(items, start):
            last = replace(items[-1], blocks=_opened(items[-1].blocks, complete))
            return Bullets((*items[:-1], last), start)
        case Table(aligns, rows):
            *filled, last_row = rows
            at = max((column for column, text in enumerate(last_row) if text), default=0)
            cells = tuple(complete(text) if column == at else text for column, text in enumerate(last_row))
            return Table(aligns, (*filled, cells))
    return block
