"""Tokens as people can read them: whitespace that shows, bytes that are no character, characters that do nothing.

Whatever comes out is one line of plain characters, whoever made the token.
"""

import unicodedata

MARKS = {" ": "·", "\t": "→", "\n": "↵", "\r": "←"}
ASCII_MARKS = {" ": "_", "\t": "\\t", "\n": "\\n", "\r": "\\r"}
_HIDDEN = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp", "Zs")


def visible(raw: bytes, *, ascii_only: bool = False) -> str:
    """`·un` for b" un", `‹e2 80›` for bytes that are no character, `U+202E` for characters that cannot be seen."""
    return "".join(_parts(raw, ASCII_MARKS if ascii_only else MARKS, ascii_only))


def visible_text(text: str, *, ascii_only: bool = False) -> str:
    """The same for what is text already; lone surrogates are shown by their number."""
    marks = ASCII_MARKS if ascii_only else MARKS
    if len(text) == 1:
        return _with_base(text) if _is_seen(text) else _character(text, marks)
    return "".join(_inside(character, marks) for character in _with_base(text))


def _parts(raw: bytes, marks: dict[str, str], ascii_only: bool) -> list[str]:
    parts: list[str] = []
    while raw:
        try:
            return [*parts, visible_text(raw.decode(), ascii_only=ascii_only)]
        except UnicodeDecodeError as error:
            parts.append(visible_text(raw[: error.start].decode(), ascii_only=ascii_only))
            stop = _end_of_broken(raw, error.start)
            shown = raw[error.start : stop].hex(" ")
            parts.append(f"<{shown}>" if ascii_only else f"‹{shown}›")
            raw = raw[stop:]
    return parts


def _end_of_broken(raw: bytes, start: int) -> int:
    """Bytes that are no character stand in one pair of marks."""
    stop = start
    while stop < len(raw):
        try:
            raw[stop:].decode()
            break
        except UnicodeDecodeError as error:
            if error.start:
                break
            stop += error.end
    return stop


def _with_base(text: str) -> str:
    """A combining mark that begins a token would sit on whatever stands before it: it gets a place of its own."""
    return "◌" + text if text and unicodedata.combining(text[0]) else text


def _inside(character: str, marks: dict[str, str]) -> str:
    """A number among letters stands in the same marks as bytes, so that no letter is read as a part of it."""
    shown = _character(character, marks)
    if len(shown) < 6:
        return shown
    return f"‹{shown}›" if marks is MARKS else f"<{shown}>"


def _character(character: str, marks: dict[str, str]) -> str:
    return marks[character] if character in marks else character if _is_seen(character) else f"U+{ord(character):04X}"


def _is_seen(character: str) -> bool:
    if character.isascii():
        return character.isprintable() and character != " "
    return not (unicodedata.category(character) in _HIDDEN or _is_filler(character))


def _is_filler(character: str) -> bool:
    """Characters that count as letters and draw nothing, and those that pick a glyph for the one before."""
    return character in "\u034f\u115f\u1160\u17b4\u17b5\u3164\uffa0" or _is_selector(character)


def _is_selector(character: str) -> bool:
    return "\ufe00" <= character <= "\ufe0f" or "\U000e0100" <= character <= "\U000e01ef"
