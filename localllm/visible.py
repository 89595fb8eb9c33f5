"""Tokens as people can read them: whitespace that shows, bytes that are no character, characters that do nothing.

Whatever comes out is one line of plain characters, whoever made the token.
"""

import unicodedata

MARKS = {" ": "·", "\t": "→", "\n": "↵", "\r": "←"}
_HIDDEN = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp", "Zs")


def visible(raw: bytes) -> str:
    """`·un` for b" un", `‹e2 80›` for bytes that are no character, `U+202E` for characters that cannot be seen."""
    parts: list[str] = []
    while raw:
        try:
            return "".join([*parts, visible_text(raw.decode())])
        except UnicodeDecodeError as error:
            stop = _end_of_broken(raw, error.start)
            parts += [visible_text(raw[: error.start].decode()), f"‹{raw[error.start : stop].hex(' ')}›"]
            raw = raw[stop:]
    return "".join(parts)


def visible_text(text: str) -> str:
    """The same for what is text already; lone surrogates are shown by their number."""
    if len(text) == 1:
        return _with_base(text) if _is_seen(text) else _character(text)
    return "".join(map(_inside, _with_base(text)))


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


def _inside(character: str) -> str:
    """A number among letters stands in the same marks as bytes, so that no letter is read as a part of it."""
    shown = _character(character)
    return f"‹{shown}›" if len(shown) > 1 else shown


def _character(character: str) -> str:
    return MARKS.get(character) or (character if _is_seen(character) else f"U+{ord(character):04X}")


def _is_seen(character: str) -> bool:
    if character.isascii():
        return character.isprintable() and character != " "
    return not (unicodedata.category(character) in _HIDDEN or _is_filler(character))


def _is_filler(character: str) -> bool:
    """Characters that count as letters and draw nothing, and those that pick a glyph for the one before."""
    return character in "\u034f\u115f\u1160\u17b4\u17b5\u3164\uffa0" or _is_selector(character)


def _is_selector(character: str) -> bool:
    return "\ufe00" <= character <= "\ufe0f" or "\U000e0100" <= character <= "\U000e01ef"
