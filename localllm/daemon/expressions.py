"""Regular expressions of requests, looked at and never run: what their classes mean, and how short a match can be.

The syntax is that of Rust's regex crate.
"""

import re
from collections.abc import Iterator

_ASCII = {"d": "[0-9]", "D": "[^0-9]", "w": "[0-9A-Za-z_]", "W": "[^0-9A-Za-z_]"}
"""Sets may stand within sets."""
_WIDTHLESS = frozenset("bBAzZ<>")
_ESCAPE = re.compile(r"\\(?:[pPxuU]\{[^}]*\}|x[0-9A-Fa-f]{2}|u[0-9A-Fa-f]{4}|U[0-9A-Fa-f]{8}|[pP].|.)", re.DOTALL)
_COUNT = re.compile(r"\{\s*(\d+)\s*(?:,\s*\d*\s*)?\}")
_OPENING = re.compile(r"\((?:\?(?:P?<[^>]*>|[a-zA-Z-]*:))?")
_FLAGS = re.compile(r"\(\?[a-zA-Z-]*\)")


def ascii_classes(pattern: str) -> str:
    r"""With `\d` and `\w` as JSON schema, Python's bytes and other servers have them: no digits of other scripts."""
    return re.sub(r"\\(.)", lambda found: _ASCII.get(found[1], found[0]), pattern, flags=re.DOTALL)


def shortest(pattern: str) -> int:
    """No match has fewer characters. Never too many, if perhaps too few: 0 for what is no expression."""
    groups: list[tuple[int | None, int]] = []
    best, before, last = None, 0, 0  # the shortest of the alternatives so far; and of this one, before its last part
    for kind, number in _parts(pattern):
        if kind == "text":
            before, last = before + last, number
        elif kind == "times":
            last *= number
        elif kind == "(":
            groups.append((best, before + last))
            best, before, last = None, 0, 0
        else:
            here = before + last if best is None else min(best, before + last)
            if kind == "|":
                best, before, last = here, 0, 0
            elif not groups:
                return 0
            else:
                (best, before), last = groups.pop(), here
    if groups:
        return 0
    return before + last if best is None else min(best, before + last)


def _parts(pattern: str) -> Iterator[tuple[str, int]]:
    """What stands in it, from left to right: `text` of a width, `times` for what is before it, `(`, `|` and `)`."""
    place, is_counted = 0, True
    while place < len(pattern):
        kind, number, end = _part(pattern, place)
        is_lazy = is_counted and pattern[place] == "?"  # says nothing about the count, only which match is taken
        if not is_lazy:
            yield kind, number
        is_counted = kind == "times" and not is_lazy
        place = end


def _part(pattern: str, place: int) -> tuple[str, int, int]:
    """One of them, and where it ends."""
    match pattern[place]:
        case "\\":
            found = _ESCAPE.match(pattern, place)
            end = found.end() if found else place + 1
            return "text", int(pattern[place + 1 : place + 2] not in _WIDTHLESS), end
        case "[":
            return "text", 1, _end_of_set(pattern, place)
        case "(":
            flags = _FLAGS.match(pattern, place)
            opening = _OPENING.match(pattern, place)
            assert opening is not None  # the bracket alone is one
            return ("text", 0, flags.end()) if flags else ("(", 0, opening.end())
        case "|" | ")" as kind:
            return kind, 0, place + 1
        case "*" | "?":
            return "times", 0, place + 1
        case "+":
            return "times", 1, place + 1
        case "{":
            count = _COUNT.match(pattern, place)
            return ("times", int(count[1][:12]), count.end()) if count else ("text", 1, place + 1)
        case char:
            return "text", int(char not in "^$"), place + 1


def _end_of_set(pattern: str, place: int) -> int:
    """Behind the bracket that closes the one at `place`; one that stands first in a set is a character."""
    depth, first = 0, -1
    while place < len(pattern):
        char = pattern[place]
        if char == "\\":
            place += 1
        elif char == "[":
            depth += 1
            first = place + 1 + pattern.startswith("^", place + 1)
        elif char == "]" and place != first:
            depth -= 1
            if not depth:
                return place + 1
        place += 1
    return place
