"""A mend of rich's cutting of text at a cell: on broken clusters (a lone half of a flag, joiners that join nothing) its
two ways of counting cells disagree, and it runs off the end of its own list. Anybody may paste such a text."""

from __future__ import annotations

from collections.abc import Callable

import rich.cells as cells

Split = Callable[..., tuple[str, str]]


def mend() -> None:
    """Once, before anything is drawn."""
    theirs: Split | None = getattr(cells, "_split_text", None)
    if theirs is not None and getattr(theirs, "__module__", "") == cells.__name__:
        cells._split_text = _mended(theirs)


def _mended(theirs: Split) -> Split:
    def split_text(text: str, cell_position: int, unicode_version: str = "auto") -> tuple[str, str]:
        try:
            return theirs(text, cell_position, unicode_version)
        except (IndexError, ZeroDivisionError):
            return _by_characters(text, cell_position)

    return split_text


def _by_characters(text: str, cell_position: int) -> tuple[str, str]:
    """As rich does it, with every character for itself: one of two cells that is cut becomes two spaces."""
    taken = 0
    for index, character in enumerate(text):
        width = cells.get_character_cell_size(character)
        if taken + width > cell_position:
            if taken == cell_position:
                return text[:index], text[index:]
            return text[:index] + " ", " " + text[index + 1 :]
        taken += width
    return text, ""
