"""Code in colours: what Pygments finds, in a small set of the theme's own. Any language, any text, bounded time."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

from pygments.lexer import Lexer
from pygments.lexers import get_lexer_by_name
from pygments.token import Token, _TokenType
from pygments.util import ClassNotFound
from rich.style import Style

from localllm.tui.colour import mix
from localllm.tui.lines import Line
from localllm.tui.markdown.wrap import drawable
from localllm.tui.palette import Ink

CHUNK = 48
"""Lines that are coloured together. They are read with as many before them, so a text in quotes that began there is
still one; code that grows costs no more than this."""
LARGEST_CHUNK = 8_000
"""Characters; more than that in so few lines is data, and stays plain."""
LONGEST_LINE = 4_000
"""Characters of one line that are drawn; the rest is counted."""
LONGEST_NAME = 40


def language_of(info: str) -> str:
    """The first word after a fence, `{.python}` and `python:file.py` included."""
    words = info.replace("{", " ").replace("}", " ").split()
    return words[0].lstrip(".").split(":")[0].split(",")[0][:LONGEST_NAME] if words else ""


def chunks(text: str) -> Iterator[tuple[str, str]]:
    """Parts of a code with the lines before them."""
    lines = text.removesuffix("\n").split("\n")
    for start in range(0, len(lines), CHUNK):
        yield "\n".join(lines[max(0, start - CHUNK) : start]), "\n".join(lines[start : start + CHUNK])


class CodeInk:
    """Colours of code for one ink, and lines in them."""

    def __init__(self, ink: Ink) -> None:
        self._plain = ink("text")
        self._faint = ink("faint")
        self._styles = _styles(ink)

    def lines(self, language: str, before: str, text: str) -> list[Line]:
        """A line for each line of `text`; `before` is only read."""
        lexer = _lexer(language)
        if lexer is None or len(before) + len(text) > LARGEST_CHUNK:
            return [self._line([(line, self._plain)]) for line in text.split("\n")]
        whole = f"{before}\n{text}" if before else text
        found: list[list[tuple[str, Style]]] = [[]]
        for kind, value in lexer.get_tokens(whole):
            style = self._style(kind)
            first, *others = value.split("\n")
            found[-1].append((first, style))
            found += [[(other, style)] for other in others]
        wanted = text.count("\n") + 1
        skipped = before.count("\n") + 1 if before else 0
        return [self._line(parts) for parts in (found + [[]] * wanted)[skipped : skipped + wanted]]

    def _style(self, kind: _TokenType) -> Style:
        at: _TokenType | None = kind
        while at is not None:
            if (style := self._styles.get(at)) is not None:
                return style
            at = at.parent
        return self._plain

    def _line(self, parts: list[tuple[str, Style]]) -> Line:
        line, room = Line(), LONGEST_LINE
        for text, style in parts:
            line.put(drawable(text[:room].expandtabs(4)).replace("\n", " "), style)
            room -= min(room, len(text))
        left_out = sum(len(text) for text, _ in parts) - LONGEST_LINE
        return line.put(f" … {left_out:,} more characters", self._faint) if left_out > 0 else line


def _styles(ink: Ink) -> dict[_TokenType, Style]:
    """Few kinds: what the language says, what was named, texts, numbers, and what is only for people."""
    roles = ink.roles

    def near_text(slot: int, share: float) -> Style:
        return ink(mix(roles.owners[slot], roles.text, share), bold=False)

    keyword = near_text(5, 0.35) if not ink.is_mono else ink("text", bold=True)
    comment = ink("muted", italic=ink.is_mono)
    return {
        Token.Keyword: keyword,
        Token.Operator.Word: keyword,
        Token.Name.Tag: keyword,
        Token.Name.Function: ink("bright"),
        Token.Name.Class: ink("bright"),
        Token.Name.Decorator: ink("bright"),
        Token.Name.Attribute: near_text(0, 0.3),
        Token.Name.Builtin: near_text(0, 0.3),
        Token.Literal.String: near_text(2, 0.25),
        Token.Literal.Number: near_text(1, 0.2),
        Token.Comment: comment,
        Token.Generic.Inserted: near_text(2, 0.25),
        Token.Generic.Deleted: ink("err"),
        Token.Generic.Heading: ink("bright", bold=True),
    }


@lru_cache(256)
def _lexer(language: str) -> Lexer | None:
    if not language:
        return None
    try:
        return get_lexer_by_name(language.lower(), stripnl=False, ensurenl=False)
    except ClassNotFound:
        return None
