"""Answers arrive in pieces: whatever the pieces, nothing raises, nothing jumps, and the end is the whole text."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from localllm.safe_text import sanitize
from localllm.tui.markdown.document import MarkdownText
from localllm.tui.markdown.tree import parse, tree
from tests.tui.markdown_world import READER, look, styled, texts, whole, writing

FORBIDDEN = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
FRAGMENTS = (
    "word ", "two words ", "\n", "\n\n", "- ", "  - ", "1. ", "10) ", "> ", "# ", "## ", "---\n", "===\n", "**", "*",
    "_", "~~", "`", "```", "```py\n", "~~~\n", "    ", "[", "](", ")", "]", "[a]: http://x.y\n", "[a]", "![i](u)",
    "| a | b |\n", "|---|:-:|\n", "|", "<br>", "<details>\n", "<!--", "-->", "\\[", "\\]", "\\(", "\\)", "$", "$$",
    "&amp;",
    "&#x202e;", "\\", "- [x] ", "- [ ] ", "日本語、", "👩\u200d👩\u200d👧", "é", "\u202e", "\x1b[31m", "\u200b", "\t",
    "http://a.b/c ",
    "def f(x):\n    return 1\n", '"', "'", "(", "x" * 30, "\U000e0041", "\r\n", "\u2028", "\u200d", "\ufe0f",
)  # fmt: skip
markdown = st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=4), max_size=24).map("".join)
widths = st.integers(8, 60)


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
            assert not FORBIDDEN.search(row.text)


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(), max_size=60), widths)
def test_no_text_at_all_raises_or_leaves_its_width(text: str, width: int) -> None:
    for row in whole(text, look(width)):
        assert row.width <= width or row.code
        assert not FORBIDDEN.search(row.text)


# ---- an open end is drawn as it will stay


@pytest.mark.parametrize(
    ("text", "wanted", "inside"),
    [
        ("a **bold te", "bold", "bold te"),
        ("a **bold te**", "bold", "bold te"),
        ("a **bold te*", "bold", "bold te"),
        ("*it", "italic", "it"),
        ("***both", "italic", "both"),
        ("~~gone", "strike", "gone"),
        ("use `co", "ground", "co"),
        ("use ``c`o", "ground", "c`o"),
        ("- item with **bo", "bold", "bo"),
        ("> quote _it", "italic", "it"),
        ("| a | b |\n|--|--|\n| x | **bo", "bold", "bo"),
        ("## Head", "bold", "Head"),
        ("see [the te", "underline", "the te"),
        ("see [the text", "underline", "the text"),
        ("see [the text]", "underline", "the text"),
        ("see [the text](http://exa", "underline", "the text"),
        ('see [the text](http://exa.mple "tit', "underline", "the text"),
    ],
)
def test_what_was_opened_is_drawn_closed(text: str, wanted: str, inside: str) -> None:
    rows = writing(text)
    assert inside in styled(rows, wanted)
    assert not set("*_~`[](") & set("".join(texts(rows)).replace("c`o", ""))


@pytest.mark.parametrize(
    "text",
    ["one\n", "one\n-", "one\n=", "one\n- ", "one\n#", "one\n1", "one\n12.", "one\n>", "one\n`", "one\n```",
    "one\n```py",
     "one\n*", "one\n**", "one\n|", "one\n\\", "one *", "one **", "one `", "one\n  - "],
)  # fmt: skip
def test_a_sign_that_may_still_mean_anything_is_not_shown_yet(text: str) -> None:
    rows = writing(text)
    assert texts(rows) == ["one"] and not styled(rows, "bold")


def test_a_fence_is_code_from_its_first_line_on_and_its_end_is_never_seen() -> None:
    for end in ("", "\n", "\n`", "\n``", "\n```", "\n```\n"):
        rows = writing("```py\nx = 1" + end)
        assert [text for text in texts(rows) if text] == ["  py", "  x = 1"]


def test_a_table_is_a_table_from_its_head_on() -> None:
    for end in ("", "\n", "\n|", "\n|-", "\n|--|", "\n|--|--", "\n|--|--|", "\n|--|--|\n"):
        assert texts(writing("| a | b |" + end)) == ["a   b", "─" * 5], end


def test_several_signs_of_one_word_are_no_emphasis() -> None:
    assert texts(writing("snake_case and 2*3")) == ["snake_case and 2*3"]


def test_a_formula_is_not_read_before_it_is_closed() -> None:
    assert texts(writing("so \\( a_1 * b"))[0].startswith("so \\( a_1 * b")


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from(["**a b**", "*c*", "`d e`", "word", "~~f~~", "[g](h)"]), min_size=1, max_size=6))
def test_no_sign_of_balanced_text_ever_shows(words: list[str]) -> None:
    text = " ".join(words)
    for stop in range(1, len(text) + 1):
        assert not set("*`~[") & set("".join(texts(writing(text[:stop], look(80)))))
