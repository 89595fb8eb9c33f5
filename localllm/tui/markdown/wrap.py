"""Text of several styles broken into lines of a width: at spaces, between wide characters, or where nothing else helps.

Breaking is greedy, so lines before the last one never change when text is added at the end.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from rich.cells import cell_len, split_graphemes
from rich.style import Style

from localllm.tui.lines import Line, without_loose

Span = tuple[str, Style]
TAB = "    "
_WIDE = (
    "\u1100-\u115f\u2e80-\ua4cf\ua960-\ua97f\uac00-\ud7a3\uf900-\ufaff"
    "\ufe30-\ufe6f\uff00-\uff60\uffe0-\uffe6\U00020000-\U0003fffd"
)
_CLOSING = (
    "\u3001\u3002\uff0c\uff0e\uff1a\uff1b\uff1f\uff01\uff09\u300d\u300f\u3011\u3009\u300b\u3015\uff5d\uff3d\u30fc\u3005"
)
"""Punctuation that never begins a line."""
_PIECES = re.compile(f"( +)|((?=[{_WIDE}]).[{_CLOSING}\u0300-\u036f\ufe00-\ufe0f]*)|((?:[^ {_WIDE}])+)")
_ASCII_PIECES = re.compile("( +)|([^ ]+)")


def cells(text: str) -> int:
    return len(text) if text.isascii() else cell_len(text)


def drawable(text: str) -> str:
    """Sanitized text with its separators of lines as newlines and its tabs as blanks."""
    if not text.isascii():
        text = without_loose(text.replace("\u2028", "\n").replace("\u2029", "\n"))
    return text.replace("\t", TAB) if "\t" in text else text


def wrap(spans: Iterable[Span], width: int) -> list[Line]:
    """Lines of at most `width` cells; a newline in a span ends its line. `width` is at least 2."""
    lines: list[Line] = []
    current: list[Span] = []
    for text, style in spans:
        first, *others = text.split("\n")
        current.append((first, style))
        for other in others:
            lines += _wrap_one(current, width)
            current = [(other, style)]
    return lines + _wrap_one(current, width)


def wrap_plain(text: str, style: Style, width: int) -> list[Line]:
    """The lines of a text in one style."""
    return wrap([(drawable(text), style)], width)


def _wrap_one(spans: list[Span], width: int) -> list[Line]:
    if sum(cells(text) for text, _ in spans) <= width:
        return [Line(*spans)]
    lines: list[Line] = []
    line = Line()
    for word in _words(spans):
        size = sum(cells(text) for text, _ in word)
        is_space = word[0][0][0] == " "
        if is_space and lines and not line.width:
            continue  # the rest of a break
        if line.width + size <= width:
            _put(line, word)
        elif is_space:
            lines.append(line)
            line = Line()
        else:
            if line.width:
                _strip_end(line)
                lines.append(line)
                line = Line()
            if size <= width:
                _put(line, word)
                continue
            *full, line = _cut(word, width)
            lines += full
    return [*lines, line]


def _words(spans: list[Span]) -> Iterator[list[Span]]:
    """Runs that stay together; a word may have several styles. Blanks come as runs of their own."""
    word: list[Span] = []
    for text, style in spans:
        for match in (_ASCII_PIECES if text.isascii() else _PIECES).finditer(text):
            piece = match.group()
            if match.lastindex == 3 or (match.lastindex == 2 and text.isascii()):
                word.append((piece, style))
                continue
            if word:
                yield word
                word = []
            yield [(piece, style)]
    if word:
        yield word


def _put(line: Line, word: list[Span]) -> None:
    for text, style in word:
        line.put(text, style)


def _strip_end(line: Line) -> None:
    """A blank before a break is not drawn: it would carry underlines and grounds to the margin."""
    while line.segments and line.segments[-1].text.isspace() and line.segments[-1].text.isascii():
        line.width -= len(line.segments.pop().text)


def _cut(word: list[Span], width: int) -> list[Line]:
    """A word wider than a line, in pieces; characters of several code points stay whole."""
    lines, line = [], Line()
    for text, style in word:
        for piece in _chopped(text, width, width - line.width):
            if piece is None:
                lines.append(line)
                line = Line()
            else:
                line.put(piece, style)
    return [*lines, line]


def _chopped(text: str, width: int, room: int) -> Iterator[str | None]:
    """Pieces that fill the room that is left, and then whole lines; None where a line ends."""
    if text.isascii():
        starts = range(room, len(text), width)
        yield text[:room]
        for start in starts:
            yield None
            yield text[start : start + width]
        return
    start = 0
    spans, _ = split_graphemes(text)
    for begin, _end, size in spans:
        if size > room:
            yield text[start:begin]
            yield None
            start, room = begin, width
        room -= size
    yield text[start:]
