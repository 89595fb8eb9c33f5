"""Blocks of Markdown as rows of a width."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar, cast

from markdown_it import MarkdownIt
from rich.style import Style

from localllm.safe_text import one_line, sanitize
from localllm.tui.lines import Line
from localllm.tui.markdown.code_colours import CodeInk, chunks, language_of
from localllm.tui.markdown.inline import Marks, pieces, runs
from localllm.tui.markdown.rows import BLANK, Look, Row, row
from localllm.tui.markdown.table import table_lines
from localllm.tui.markdown.tree import (
    Block,
    Bullets,
    Code,
    Environment,
    Heading,
    Item,
    Paragraph,
    Placed,
    Plain,
    Quote,
    Rule,
    Table,
)
from localllm.tui.markdown.wrap import Span, drawable, wrap, wrap_plain

T = TypeVar("T")
NARROWEST = 10
"""Cells that are left for text: what is nested so deep that it would get less is not indented any more."""


class Painter:
    """Draws for one look. What was drawn for the last picture is used again for this one: call `turn_over` between
    them."""

    def __init__(self, parser: MarkdownIt, look: Look) -> None:
        self.look = look
        self._parser = parser
        self._env: Environment = {}
        self._code_ink = CodeInk(look.ink)
        self._now: dict[object, Any] = {}
        self._before: dict[object, Any] = {}

    def turn_over(self, env: Environment) -> None:
        """A new picture. `env` knows the targets of links."""
        if len(env.get("references", ())) != len(self._env.get("references", ())):
            self._now = {}
        self._env, self._before, self._now = env, self._now, {}

    def blocks(self, blocks: Sequence[Placed], look: Look, after: Block | None = None) -> list[Row]:
        """Blocks below each other, with the blank rows between them; `after` stands above the first one."""
        rows: list[Row] = []
        for placed in blocks:
            made = self.block(placed.block, look)
            if not made:
                continue
            if after is not None:
                rows += [BLANK] * _gap(after, placed, look)
            rows += made
            after = placed.block
        return rows

    def block(self, block: Block, look: Look) -> list[Row]:
        return self._kept((block, look), lambda: self._block(block, look))

    def _kept(self, key: object, make: Callable[[], T]) -> T:
        """From the picture before, if it was there: most of what is drawn again did not change."""
        made: T | None = self._now.get(key)
        if made is None:
            made = self._before.get(key)
        self._now[key] = make() if made is None else made
        return cast("T", self._now[key])

    def _block(self, block: Block, look: Look) -> list[Row]:
        match block:
            case Paragraph(text):
                return self._paragraph(text, look)
            case Heading(level, text):
                return [row(line) for line in wrap(self._heading(level, text, look), look.width)] if text else []
            case Code(language, text):
                return self._code(language, text, look)
            case Plain(text):
                return [row(line) for line in wrap_plain(drawable(sanitize(text)), look.ink(look.role), look.width)]
            case Rule():
                return [row(Line(("─" * look.width, look.ink("line"))))]
            case Quote(blocks):
                return self._quote(blocks, look)
            case Bullets(items, start):
                return self._bullets(items, start, look)
            case Table():
                return [row(line) for line in table_lines(block, look, self._cell(look), self._kept)]

    # ---- text

    def _cell(self, look: Look) -> Callable[[str], list[Span]]:
        return lambda text: self._kept(("cell", text, look), lambda: self.spans(text, look))

    def spans(self, text: str, look: Look, role: str = "", is_strong: bool = False) -> list[Span]:
        return [
            (shown, self._style(marks, look, role or look.role, is_strong))
            for shown, marks in _shown(runs(self._parser, text, self._env), look)
        ]

    def _paragraph(self, text: str, look: Look) -> list[Row]:
        parts = pieces(text)
        if len(parts) > 1:
            return [each for part in parts for each in self.block(Paragraph(part.rstrip(" ")), look)]
        return [row(line) for line in wrap(self.spans(text, look), look.width)] if text else []

    def _heading(self, level: int, text: str, look: Look) -> list[Span]:
        role = "bright" if level < 4 else "muted"
        underline = Style(underline=True) if level == 1 else Style()
        spans = self.spans(text[: len(pieces(text)[0])], look, role, is_strong=True)
        return [(shown, style + underline) for shown, style in spans]

    def _style(self, marks: Marks, look: Look, role: str, is_strong: bool) -> Style:
        if marks.is_target:
            return look.ink("muted")
        is_bold = is_strong or marks.is_strong
        return look.ink(
            "bright" if marks.is_strong and role == "text" else role,
            on="raised" if marks.is_code else None,
            bold=is_bold,
            italic=marks.is_emphasis,
            underline=marks.is_link,
            strike=marks.is_struck,
        )

    # ---- blocks

    def _code(self, language: str, text: str, look: Look) -> list[Row]:
        ground = look.ink("text", on="panel")
        name = one_line(drawable(sanitize(language_of(language)))) or "text"
        head = Line(("  ", ground)).put(name, look.ink("muted", on="panel"))
        rows = [row(head.fit(look.width).on(ground))._replace(code=1, is_head=True)]
        for before, part in chunks(text):
            rows += self._kept((name, before, part, look), partial(self._chunk, name, before, part, look))
        return rows

    def _chunk(self, name: str, before: str, part: str, look: Look) -> list[Row]:
        ground = look.ink("text", on="panel")
        return [_code_row(line, ground, look.width) for line in self._code_ink.lines(name, before, part)]

    def _quote(self, blocks: tuple[Placed, ...], look: Look) -> list[Row]:
        bar = _prefix(Line(("│ ", look.ink("line"))), look)
        inner = replace(look, width=look.width - bar.width, role="muted")
        return _indented(self.blocks(blocks, inner), bar, bar)

    def _bullets(self, items: tuple[Item, ...], start: int | None, look: Look) -> list[Row]:
        rows: list[Row] = []
        for number, item in enumerate(items):
            shown = None if start is None else start + number
            made = self._kept((item, shown, look), partial(self._item, item, shown, look))
            if rows and item.is_apart and not look.is_compact:
                rows.append(BLANK)
            rows += made
        return rows

    def _item(self, item: Item, number: int | None, look: Look) -> list[Row]:
        mark = _prefix(_mark(item, number, look), look)
        inner = replace(look, width=look.width - mark.width)
        rows = self.blocks(item.blocks, inner) or [BLANK]
        return _indented(rows, mark, Line((" " * mark.width, look.ink())))


def _gap(above: Block, placed: Placed, look: Look) -> int:
    """Blank rows between two blocks: a heading belongs to what follows; a list may belong to what stands above it."""
    below = placed.block
    if isinstance(above, Heading):
        return 0
    if isinstance(below, Bullets) and not placed.is_apart:
        return 0
    if look.is_compact and (isinstance(above, Code) or isinstance(below, Code)):
        return 0
    return 1


def _mark(item: Item, number: int | None, look: Look) -> Line:
    ink = look.ink
    if item.is_done is not None:
        return Line(("✓ ", ink("accent"))) if item.is_done else Line(("○ ", ink("muted")))
    return Line(("· " if number is None else f"{number}. ", ink("muted", bold=number is None)))


def _prefix(prefix: Line, look: Look) -> Line:
    """What stands before nested text, as long as room is left for the text."""
    return prefix if look.width - prefix.width >= NARROWEST else Line()


def _indented(rows: list[Row], first: Line, others: Line) -> list[Row]:
    if not first.width:
        return rows
    return [each.behind(others if number else first) for number, each in enumerate(rows)]


def _code_row(line: Line, ground: Style, width: int) -> Row:
    """Two cells of ground on both sides; wider than the look when the code is."""
    whole = Line(("  ", ground)).add(line)
    used = whole.width
    whole.put("  ", ground).pad_to(width)
    whole = whole.on(ground)
    return Row(whole.segments, whole.width, used, code=1)


def _shown(found: Sequence[tuple[str, Marks]], look: Look) -> Iterator[tuple[str, Marks]]:
    """Inline code gets air on its ground; without colours it keeps its backticks."""
    for text, marks in found:
        if not marks.is_code:
            yield text, marks
        elif look.ink.is_mono:
            yield f"`{text}`", marks
        else:
            yield text, marks
