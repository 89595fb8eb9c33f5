"""Markdown as the tests look at it: rows of a text, and what stands in them."""

from localllm.tui.markdown.document import MarkdownText
from localllm.tui.markdown.rows import Look, Row
from localllm.tui.markdown.tree import parser
from localllm.tui.palette import DARK, Ink

INK = Ink(DARK)
READER = parser()


def look(width: int = 40, is_compact: bool = False, ink: Ink = INK) -> Look:
    return Look(ink, width, is_compact)


def whole(text: str, at: Look | None = None) -> list[Row]:
    """The rows of a text that is finished."""
    made = MarkdownText(READER)
    made.feed(text)
    made.finish()
    return made.rows(at or look())


def writing(text: str, at: Look | None = None) -> list[Row]:
    """The rows of a text that goes on."""
    made = MarkdownText(READER)
    made.feed(text)
    return made.rows(at or look())


def texts(rows: list[Row]) -> list[str]:
    return [row.text.rstrip() for row in rows]


def styled(rows: list[Row], wanted: str) -> set[str]:
    """The texts that are drawn bold, italic, underlined, struck or on a ground."""
    found = set()
    for row in rows:
        for text, style, _ in row.segments:
            if style and ((wanted == "ground" and style.bgcolor) or (wanted != "ground" and getattr(style, wanted))):
                found.add(text.strip())
    return found
