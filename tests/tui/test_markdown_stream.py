"""Answers arrive in pieces: whatever the pieces, nothing raises, nothing jumps, and the end is the whole text."""

import re

from hypothesis import given, settings
from hypothesis import strategies as st

from localllm.safe_text import sanitize
from localllm.tui.markdown import MarkdownText
from localllm.tui.markdown_rows import Look, Row
from localllm.tui.markdown_tree import parse, parser, tree
from localllm.tui.palette import DARK, Ink

FORBIDDEN = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
INK = Ink(DARK)
READER = parser()
FRAGMENTS = (
    "word ", "two words ", "\n", "\n\n", "- ", "  - ", "1. ", "10) ", "> ", "# ", "## ", "---\n", "===\n", "**", "*",
    "_", "~~", "`", "```", "```py\n", "~~~\n", "    ", "[", "](", ")", "]", "[a]: http://x.y\n", "[a]", "![i](u)",
    "| a | b |\n", "|---|:-:|\n", "|", "<br>", "<details>\n", "<!--", "-->", "\\[", "\\]", "\\(", "\\)", "$", "$$", "&amp;",
    "&#x202e;", "\\", "- [x] ", "- [ ] ", "日本語、", "👩‍👩‍👧", "é", "\u202e", "\x1b[31m", "\u200b", "\t", "http://a.b/c ",
    "def f(x):\n    return 1\n", '"', "'", "(", "x" * 30, "\U000e0041", "\r\n", "\u2028", "‍", "️",
)  # fmt: skip
markdown = st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=4), max_size=24).map("".join)
widths = st.integers(8, 60)


def look(width: int = 40, is_compact: bool = False, ink: Ink = INK) -> Look:
    return Look(ink, width, is_compact)


def whole(text: str, at: Look) -> list[Row]:
    made = MarkdownText(READER)
    made.feed(text)
    made.finish()
    return made.rows(at)


def texts(rows: list[Row]) -> list[str]:
    return [row.strip.text.rstrip() for row in rows]


@settings(max_examples=300, deadline=None)
@given(markdown, widths, st.data())
def test_however_a_text_is_cut_its_rows_are_those_of_the_whole(text: str, width: int, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    made, start = MarkdownText(READER), 0
    for cut in cuts:
        made.feed(text[start:cut])
        start = cut
        if data.draw(st.booleans()):
            made.rows(look(width))
    made.feed(text[start:])
    made.finish()
    assert made.rows(look(width)) == whole(text, look(width))


@settings(max_examples=300, deadline=None)
@given(markdown)
def test_what_is_sealed_bit_by_bit_is_what_markdown_it_reads_at_once(text: str) -> None:
    made = MarkdownText(READER)
    for character in text:
        made.feed(character)
    made.finish()
    clean = sanitize(text)
    at_once = tree(parse(READER, clean, {}), clean)
    assert [placed.block for placed in made.blocks] == [placed.block for placed in at_once]
    assert [placed.is_apart for placed in made.blocks[1:]] == [placed.is_apart for placed in at_once[1:]]


@settings(max_examples=200, deadline=None)
@given(markdown, widths, st.booleans())
def test_every_beginning_of_a_text_can_be_drawn_in_its_width(text: str, width: int, is_compact: bool) -> None:
    made = MarkdownText(READER)
    for character in text:
        made.feed(character)
        for row in made.rows(look(width, is_compact)):
            assert row.width <= width or row.code
            assert not FORBIDDEN.search(row.strip.text)


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(), max_size=60), widths)
def test_no_text_at_all_raises_or_leaves_its_width(text: str, width: int) -> None:
    for row in whole(text, look(width)):
        assert row.width <= width or row.code
        assert not FORBIDDEN.search(row.strip.text)
