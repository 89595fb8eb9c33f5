"""Tokens as people read them: one line, nothing hidden, nothing that a terminal would obey."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localllm.safe_text import sanitize
from localllm.visible import visible, visible_text


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        (b" un", "·un"),
        (b",\n", ",↵"),
        (b"\t", "→"),
        (b"\xe2\x80", "‹e2 80›"),
        (b"a\xe2\x80\xff b", "a‹e2 80 ff›·b"),
        ("\u202e".encode(), "U+202E"),
        ("\u202eabc".encode(), "‹U+202E›abc"),
        (b"\x1b[31m", "‹U+001B›[31m"),
        ("\u0301x".encode(), "◌\u0301x"),
        ("Привет".encode(), "Привет"),
        (b"", ""),
    ],
)
def test_a_token_is_shown_as(raw: bytes, shown: str) -> None:
    assert visible(raw) == shown


@given(raw=st.binary() | st.text().map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_nothing_but_seen_characters_comes_out(raw: bytes) -> None:
    shown = visible(raw)
    assert sanitize(shown) == shown and "\n" not in shown and "\t" not in shown
    assert not any(
        unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp", "Zs") for character in shown.replace(" ", "-")
    )


@given(text=st.text(st.characters()))
def test_text_with_lone_surrogates_is_shown_too(text: str) -> None:
    assert bool(visible_text(text)) == bool(text)
