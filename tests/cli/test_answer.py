"""How a streamed answer looks: words wrapped in place, thinking set apart, exactly one newline at the end of a pipe."""

import io
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localllm.cli.answer import AnswerWriter, Look, Words
from localllm.cli.human import display_width
from localllm.cli.invocation import Invocation
from localllm.client import ChatChunk
from tests.cli.test_progress import Screen

WIDTH = 12


def screen_of(text: str) -> list[str]:
    """The lines after the escapes that wrapping uses: cursor back by n columns, clear to the end of the line."""
    lines = [""]
    for part in re.split(r"(\x1b\[\d+D\x1b\[K|\n)", text):
        back = re.fullmatch(r"\x1b\[(\d+)D\x1b\[K", part)
        if back:
            columns = int(back[1])
            while columns > 0:
                columns -= display_width(lines[-1][-1])
                lines[-1] = lines[-1][:-1]
        elif part == "\n":
            lines.append("")
        else:
            lines[-1] += part
    return lines


words = st.lists(st.sampled_from(["a", "word", "longer", "日本", "very-long-word-indeed", "\n"]), max_size=12)


@given(words)
def test_no_line_is_wider_than_the_terminal_and_no_word_is_lost(parts: list[str]) -> None:
    text = " ".join(parts)
    lines = screen_of(Words(WIDTH).wrap(text))
    assert all(display_width(line) <= WIDTH for line in lines)
    assert "".join("".join(lines).split()) == "".join(text.split())


def test_a_word_that_crosses_the_edge_moves_to_the_next_line() -> None:
    assert screen_of(Words(WIDTH).wrap("aaaa bbbb cccc dd")) == ["aaaa bbbb ", "cccc dd"]


@given(words, st.data())
def test_wrapping_does_not_depend_on_the_chunks(parts: list[str], data: st.DataObject) -> None:
    text = " ".join(parts)
    cut = data.draw(st.integers(0, len(text)))
    chunked = Words(WIDTH)
    assert chunked.wrap(text[:cut]) + chunked.wrap(text[cut:]) == Words(WIDTH).wrap(text)


def written(look: Look, *chunks: ChatChunk) -> str:
    stream = io.StringIO()
    writer = AnswerWriter(stream, look)
    for chunk in chunks:
        writer.write(chunk)
    writer.finish()
    return stream.getvalue()


@pytest.mark.parametrize("text", ["answer", "answer\n"])
def test_a_pipe_gets_one_newline_at_the_end(text: str) -> None:
    assert written(Look(), ChatChunk(text)) == "answer\n"


def test_a_terminal_gets_an_empty_line_after_the_answer() -> None:
    assert written(Look(is_terminal=True), ChatChunk("answer")) == "answer\n\n"


def test_thinking_is_grey_where_there_is_colour() -> None:
    look = Look(is_terminal=True, has_color=True)
    shown = written(look, ChatChunk(reasoning="hm"), ChatChunk("42"))
    assert shown == "\x1b[90mThinking...\nhm\n...done thinking.\n\x1b[0m\n42\n\n"
    assert "\x1b" not in written(Look(is_terminal=True), ChatChunk(reasoning="hm"), ChatChunk("42"))


def test_an_answer_that_is_thought_only_still_closes_its_block() -> None:
    shown = written(Look(is_terminal=True, has_color=True), ChatChunk(reasoning="hm"))
    assert shown.rstrip("\n").endswith("\x1b[0m")


@pytest.mark.parametrize(
    ("environment", "may_color", "expected"),
    [({}, True, True), ({"NO_COLOR": "1"}, True, False), ({"TERM": "dumb"}, True, False), ({}, False, False)],
)
def test_colour_needs_a_terminal_and_nobody_who_objects(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], may_color: bool, expected: bool
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert Invocation(may_color=may_color).has_color(Screen()) is expected
    assert Invocation(may_color=may_color).has_color(io.StringIO()) is False
