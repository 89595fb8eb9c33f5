"""Where the body of a call ends while it streams in: searched once, not again from the start with every push."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

End = tuple[int, int]


class EndFinder(Protocol):
    def find(self, buffer: str) -> End | None:
        """End of the body and start of what follows, in the buffer that only grows; None: not there yet."""


@dataclass(frozen=True, slots=True)
class Quotes:
    """Marks between which a closing tag is only text. `escapes`: a backslash takes the next character along."""

    marks: Mapping[str, str]
    escapes: bool = False


NO_QUOTES = Quotes({})
JSON_QUOTES = Quotes({'"': '"'}, escapes=True)
XML_QUOTES = Quotes({"<parameter=": "</parameter>", "<arg_value>": "</arg_value>", "<parameter name=": "</parameter>"})
GEMMA_QUOTES = Quotes({'<|"|>': '<|"|>'})
_BRACKETS = {"(": 1, "[": 1, "{": 1, ")": -1, "]": -1, "}": -1}


class _Scanner:
    """Steps over quoted text. Tokens that the end of the buffer cuts in half are looked at again with the next push."""

    def __init__(self, outside: tuple[str, ...], quotes: Quotes) -> None:
        self._quotes = quotes
        self._outside = _any_of((*outside, *quotes.marks))
        self._inside = {
            mark: re.compile((r"\\.|" if quotes.escapes else "") + re.escape(quotes.marks[mark]), re.DOTALL)
            for mark in quotes.marks
        }
        longest = max(len(token) for token in (*outside, *quotes.marks, *quotes.marks.values(), "\\x"))
        self._overlap = longest - 1
        self._quote = ""
        self.place = 0

    def next(self, buffer: str) -> re.Match[str] | None:
        """The next token of `outside` that is not quoted."""
        while True:
            pattern = self._inside[self._quote] if self._quote else self._outside
            match = pattern.search(buffer, self.place)
            if match is None:
                self.place = max(self.place, len(buffer) - self._overlap)
                return None
            self.place = match.end()
            if self._quote:
                self._quote = "" if match[0] == self._quotes.marks[self._quote] else self._quote
            elif match[0] in self._quotes.marks:
                self._quote = match[0]
            else:
                return match


def _any_of(tokens: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(re.escape(token) for token in sorted(tokens, key=len, reverse=True)))


class CloserEnd:
    """Up to a closing tag outside of quotes. `by_first` chooses the quotes by the body's first character."""

    def __init__(self, closer: str, quotes: Quotes, by_first: Mapping[str, Quotes] | None = None) -> None:
        self._closer = closer
        self._otherwise = quotes
        self._by_first = by_first or {}
        self._scanner: _Scanner | None = None

    def find(self, buffer: str) -> End | None:
        if self._scanner is None:
            begun = buffer.lstrip()
            if not begun:
                return None
            self._scanner = _Scanner((self._closer,), self._by_first.get(begun[0], self._otherwise))
        match = self._scanner.next(buffer)
        return None if match is None else (match.start(), match.end())


class ValueEnd:
    """Up to the bracket that closes the first one; `behind`: only brackets behind this tag count, if a name begins."""

    def __init__(self, behind: str = "", quotes: str = '"') -> None:
        self._behind = behind
        self._scanner = _Scanner(tuple(_BRACKETS), Quotes({quote: quote for quote in quotes}, escapes=True))
        self._has_begun = False
        self._depth = 0

    def find(self, buffer: str) -> End | None:
        if not self._has_begun and not self._begin(buffer):
            return None
        while (match := self._scanner.next(buffer)) is not None:
            self._depth += _BRACKETS[match[0]]
            if self._depth <= 0:
                return match.end(), match.end()
        return None

    def _begin(self, buffer: str) -> bool:
        begun = buffer.lstrip()
        if begun and self._behind and begun[0] not in "[{":
            place = buffer.find(self._behind)
            self._scanner.place = place + len(self._behind)
            self._has_begun = place >= 0
        else:
            self._has_begun = bool(begun)
        return self._has_begun
