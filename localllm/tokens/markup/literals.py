"""Calls and values in the manner of Python, `f(a='x', b=[1, True])`, and in Gemma 4's, `call:f{a:<|"|>x<|"|>}`.

Values are literals only; anything else is a ValueError. Recursive descent with a bound on its depth.
"""

import re
from collections.abc import Callable
from typing import Any

Call = tuple[str, dict[str, Any]]

_MAX_DEPTH = 64
_NAME = re.compile(r"[A-Za-z_][\w.\-]*")
_PARAMETER = re.compile(r"([A-Za-z_]\w*)\s*=(?!=)\s*")
_NUMBER = re.compile(r"-?\d+(\.\d*)?([eE][+-]?\d+)?(?![\w.])")
_SPACE = re.compile(r"\s*")
_SEPARATOR = re.compile(r"[\s,;]*")
_CLOSES_STRING = re.compile(r"\s*([,)\]}:;]|\Z)")
_ESCAPE = re.compile(r"\\(x[0-9A-Fa-f]{2}|u[0-9A-Fa-f]{4}|U[0-9A-Fa-f]{8}|.)", re.DOTALL)
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "\\": "\\", "'": "'", '"': '"', "\n": "", "/": "/"}
_WORDS = {"true": True, "True": True, "false": False, "False": False, "null": None, "None": None}
_GEMMA_QUOTE = '<|"|>'
_GEMMA_BARE = re.compile(r"[^,:{}\[\]]+")


def python_calls(text: str) -> list[Call]:
    """`[f(a=1), g()]`, with or without the brackets, by commas, semicolons or lines; `print(f())` is `f()`."""
    return _Python(text).calls()


def gemma_call(text: str) -> Call:
    """`call:name{key:value,...}`."""
    return _Gemma(text).call()


class _Reader:
    """What both manners share: a place in a text, lists, and the bound on depth."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._place = 0
        self._depth = 0

    def value(self) -> Any:
        raise NotImplementedError

    def _peek(self) -> str:
        return self._text[self._place : self._place + 1]

    def _skip(self, pattern: re.Pattern[str] = _SPACE) -> None:
        match = pattern.match(self._text, self._place)
        self._place = match.end() if match else self._place

    def _take(self, wanted: str) -> bool:
        self._skip()
        found = self._text.startswith(wanted, self._place)
        self._place += len(wanted) if found else 0
        return found

    def _expect(self, wanted: str) -> None:
        if not self._take(wanted):
            raise ValueError(f"no {wanted!r} at {self._place}")

    def _match(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        self._skip()
        match = pattern.match(self._text, self._place)
        if match:
            self._place = match.end()
        return match

    def _series(self, closer: str, entry: Callable[[], None]) -> None:
        """Entries with commas between them, up to the closing bracket; a comma may stand before it."""
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise ValueError("nested too deeply")
        while not self._take(closer):
            entry()
            if not self._take(","):
                self._expect(closer)
                break
        self._depth -= 1

    def _list(self, closer: str) -> list[Any]:
        entries: list[Any] = []
        self._series(closer, lambda: entries.append(self.value()))
        return entries

    def _number(self) -> int | float | None:
        match = self._match(_NUMBER)
        if match is None:
            return None
        return float(match[0]) if match[1] is not None or match[2] is not None else int(match[0])

    def _check_end(self) -> None:
        self._skip()
        if self._place != len(self._text):
            raise ValueError(f"something behind the end at {self._place}")


class _Python(_Reader):
    def calls(self) -> list[Call]:
        is_list = self._take("[")
        found: list[Call] = []
        self._skip(_SEPARATOR)
        while self._place < len(self._text) and self._peek() != "]":
            found.append(self._call())
            self._skip(_SEPARATOR)
        if is_list:
            self._expect("]")
        self._check_end()
        return found

    def _call(self) -> Call:
        name = self._match(_NAME)
        if name is None:
            raise ValueError(f"no name at {self._place}")
        self._expect("(")
        if name[0] == "print":
            inner = self._call()
            self._expect(")")
            return inner
        arguments: dict[str, Any] = {}
        self._series(")", lambda: self._argument(arguments))
        return name[0], arguments

    def _argument(self, arguments: dict[str, Any]) -> None:
        parameter = self._match(_PARAMETER)
        if parameter is None or parameter[1] in arguments:
            raise ValueError(f"no argument by name at {self._place}")
        arguments[parameter[1]] = self.value()

    def value(self) -> Any:
        self._skip()
        first = self._peek()
        if first and first in "'\"":
            return self._string(first)
        if first and first in "[(":
            self._place += 1
            return self._list("]" if first == "[" else ")")
        if first == "{":
            self._place += 1
            return self._mapping()
        number = self._number()
        return self._word() if number is None else number

    def _mapping(self) -> dict[str, Any]:
        entries: dict[str, Any] = {}

        def entry() -> None:
            self._skip()
            if self._peek() not in ("'", '"'):
                raise ValueError(f"no key at {self._place}")
            key = self._string(self._peek())
            self._expect(":")
            entries[key] = self.value()

        self._series("}", entry)
        return entries

    def _word(self) -> Any:
        word = self._match(_NAME)
        if word is None or word[0] not in _WORDS:
            raise ValueError(f"no value at {self._place}")
        return _WORDS[word[0]]

    def _string(self, quote: str) -> str:
        """A quote inside is taken for a letter where nothing follows that could follow a string: models forget."""
        if self._text.startswith(quote * 3, self._place):
            return self._long_string(quote * 3)
        place = self._place + 1
        while place < len(self._text):
            if self._text[place] == "\\":
                place += 2
            elif self._text[place] == quote and _CLOSES_STRING.match(self._text, place + 1):
                said = self._text[self._place + 1 : place]
                self._place = place + 1
                return _unescaped(said)
            else:
                place += 1
        raise ValueError("a string without an end")

    def _long_string(self, quotes: str) -> str:
        end = self._text.find(quotes, self._place + 3)
        if end < 0:
            raise ValueError("a string without an end")
        said = self._text[self._place + 3 : end]
        self._place = end + 3
        return _unescaped(said)


class _Gemma(_Reader):
    def call(self) -> Call:
        self._expect("call:")
        name = self._match(_NAME)
        if name is None:
            raise ValueError("no name")
        self._expect("{")
        arguments = self._mapping()
        self._check_end()
        return name[0], arguments

    def value(self) -> Any:
        self._skip()
        if self._text.startswith(_GEMMA_QUOTE, self._place):
            return self._string()
        if self._take("["):
            return self._list("]")
        if self._take("{"):
            return self._mapping()
        number = self._number()
        return self._bare() if number is None else number

    def _mapping(self) -> dict[str, Any]:
        entries: dict[str, Any] = {}

        def entry() -> None:
            self._skip()
            is_quoted = self._text.startswith(_GEMMA_QUOTE, self._place)
            key = self._string() if is_quoted else str(self._plain())
            self._expect(":")
            entries[key] = self.value()

        self._series("}", entry)
        return entries

    def _string(self) -> str:
        start = self._place + len(_GEMMA_QUOTE)
        end = self._text.find(_GEMMA_QUOTE, start)
        if end < 0:
            raise ValueError("a string without an end")
        self._place = end + len(_GEMMA_QUOTE)
        return self._text[start:end]

    def _bare(self) -> Any:
        word = self._plain()
        return _WORDS.get(word, word)

    def _plain(self) -> str:
        match = self._match(_GEMMA_BARE)
        if match is None:
            raise ValueError(f"no word at {self._place}")
        return match[0].strip()


def _unescaped(said: str) -> str:
    return _ESCAPE.sub(_unescape, said) if "\\" in said else said


def _unescape(match: re.Match[str]) -> str:
    escape = match[1]
    if escape[0] in "xuU" and len(escape) > 1:
        return chr(int(escape[1:], 16))  # ValueError past the last character
    return _ESCAPES.get(escape, match[0])
