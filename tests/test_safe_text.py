"""Whatever a model says, the terminal gets text and nothing else."""

import os
import re
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from localllm.cli.output import json_text
from localllm.safe_text import StreamSanitizer, one_line, sanitize

HIDING = "\u00ad\u180e\u200b\u2060-\u2065\u206a-\u206f\ufeff\ufff9-\ufffb\U000e0000-\U000e0fff"
FORBIDDEN = re.compile(
    f"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff{HIDING}]"
)
PAYLOADS = [
    "\x1b[31mred\x1b[0m",
    "\x1b]0;title\x07",
    "\x1b]52;c;aGVsbG8=\x1b\\",
    "\x1b[2J\x1b[H",
    "\x9b31m",
    "\x9d0;title\x9c",
    "\x1bPq#0;2;0;0;0\x1b\\",
    "\x1bc",
    "\x1b(0",
    "a\rb",
    "a\x08b",
    "\u202eevil\u202c",
    "\x1b[",
    "\x1b]52;c;never ended",
    "pass\u200bword\ufeff\u2060",
    "a\U000e0049\U000e0067\U000e006e\U000e007fb",
]
hostile = st.lists(st.sampled_from(PAYLOADS) | st.text(max_size=6), max_size=8).map("".join)
C1 = re.compile("[\x80-\x9f]")
LONG_OR_SHORT = int(os.environ.get("LOCALLLM_RANDOM_TEXTS", "2000"))
"""Random texts of one test; 100000 before a release."""
anything = st.text(
    st.sampled_from("\x1b\x1b[]PX^_\\;?0123456789mHJ \x07\x9b\x9c\x9d\x90\r\b\n\t\u202e\u2066\ud800aé日")
    | st.characters()
)


@pytest.mark.parametrize("payload", PAYLOADS)
def test_no_payload_leaves_a_control_character(payload: str) -> None:
    assert not FORBIDDEN.search(sanitize(payload))


def test_text_inside_colours_stays_and_clipboard_writes_vanish_whole() -> None:
    assert sanitize("a\x1b[1;31mb\x1b[0mc") == "abc"
    assert sanitize("a\x1b]52;c;aGVsbG8=\x07b") == "ab"
    assert sanitize("tab\tline\r\nnext") == "tab\tline\nnext"


@given(st.text(alphabet=st.characters(exclude_categories=("Cc", "Cf", "Cs", "Cn"))))
def test_plain_text_is_untouched(text: str) -> None:
    assert sanitize(text) == text.translate(dict.fromkeys(range(0xE0100, 0xE01F0)))


def test_what_only_hides_goes_and_what_joins_letters_stays() -> None:
    assert sanitize("pass\u200bword\u2060\ufeff s\u00ado\U000e0049\U000e007f") == "password so"
    for text in (
        "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",
        "\U0001f468\u200d\U0001f469\u200d\U0001f467",
        "\u2764\ufe0f",
        "e\u0301",
    ):
        assert sanitize(text) == text and one_line(text) == text
    assert one_line("a\u2028b\u2029c\td\ne") == "a b c d e"


@given(hostile)
def test_nothing_forbidden_passes(text: str) -> None:
    assert not FORBIDDEN.search(sanitize(text))


@settings(max_examples=LONG_OR_SHORT, deadline=None)
@given(anything)
def test_random_text_is_free_of_what_moves_a_terminal_and_keeps_what_people_read(text: str) -> None:
    shown = sanitize(text)
    assert not FORBIDDEN.search(shown) and sanitize(shown) == shown
    assert not FORBIDDEN.search(one_line(text)) and not set(one_line(text)) & {"\n", "\t"}
    remaining = iter(text)
    assert all(character in remaining for character in shown), "nothing is added, nothing changes its place"
    if "\x1b" not in text and not C1.search(text):
        assert shown == FORBIDDEN.sub("", text), "without an escape only the controls themselves are missing"


@given(hostile, st.data())
def test_chunks_print_what_the_whole_text_prints(text: str, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=4)))
    edges = [0, *cuts, len(text)]
    stream = StreamSanitizer()
    printed = "".join(stream.feed(text[a:b]) for a, b in pairwise(edges)) + stream.finish()
    assert printed == sanitize(text)


def test_a_sequence_that_never_ends_does_not_hold_the_answer_back() -> None:
    stream = StreamSanitizer()
    printed = stream.feed("\x1b]52;c;") + "".join(stream.feed("word ") for _ in range(200))
    assert printed.count("word") > 100


def test_an_ordinary_chunk_is_never_held_back() -> None:
    assert StreamSanitizer().feed("Hello") == "Hello"


@given(hostile)
def test_json_for_a_terminal_is_safe_and_still_says_the_same(text: str) -> None:
    import json

    shown = json_text({"text": text})
    assert not FORBIDDEN.search(shown)
    assert json.loads(shown) == {"text": text}
