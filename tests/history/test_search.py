"""The search over all chats: with an index, without one, and with questions that look like commands."""

import sqlite3
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localllm.history import History, database
from tests.history.test_chats import talk

ODD = [
    '"',
    "'",
    "*",
    "a AND",
    "NEAR(a b)",
    "content:x",
    "-a",
    "a*",
    '"a',
    "(",
    ")",
    "%",
    "_",
    "\\",
    "\0",
    "^a",
    "{",
    "a OR b",
    "😀",
    "",
]


@pytest.fixture(params=["with an index", "without one"])
def searched(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> History:
    if request.param == "without one":
        monkeypatch.setattr(database, "INDEX", "CREATE VIRTUAL TABLE words USING no_such_module (content)")
    opened = History(tmp_path / "chats.db")
    assert opened._database.has_index == (request.param == "with an index")
    request.addfinalizer(opened.close)
    return opened


def test_chats_are_found_by_what_was_said_in_them(searched: History) -> None:
    first = talk(searched, "Why does it stall?", "The scheduler admits the whole prompt at once.")
    second = talk(searched, "Regex for dates", "Use the scheduler's own format.")
    assert [hit.chat_id for hit in searched.search("scheduler")] == [second, first]
    (hit,) = searched.search("whole prompt")
    assert (hit.chat_id, hit.title) == (first, "Why does it stall?") and "whole prompt" in hit.snippet
    assert [hit.chat_id for hit in searched.search("regex")] == [second]
    assert searched.search("nothing of the kind") == []


def test_parts_of_words_and_words_without_blanks_are_found(searched: History) -> None:
    chat_id = talk(searched, "question", "unbelievable 日本語のテキスト")
    for text in ("believ", "unbel", "本語", "テキスト"):
        assert [hit.chat_id for hit in searched.search(text)] == [chat_id], text


def test_what_was_changed_is_found_as_it_is_now(searched: History) -> None:
    chat_id = talk(searched, "hi", "before")
    assert searched.search("before")
    searched.update(searched.branch(chat_id)[-1].id, content="afterwards")
    assert searched.search("before") == [] and searched.search("afterwards")


@pytest.mark.parametrize("text", ODD)
def test_any_text_is_a_valid_question(searched: History, text: str) -> None:
    chat_id = talk(searched, f"before {text} after", "plain")
    found = [hit.chat_id for hit in searched.search(text)]
    assert found in ([chat_id], []) and (found or not text.strip("\0").isalnum())


def test_wildcards_are_letters_like_others(searched: History) -> None:
    talk(searched, "nothing special")
    chat_id = talk(searched, "it is 50%_done")
    assert [hit.chat_id for hit in searched.search("50%_d")] == [chat_id]
    assert searched.search("5%d") == []


def test_a_file_with_an_index_can_be_used_without_it_and_with_it_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "chats.db"
    first = History(path)
    talk(first, "one apple")
    assert first.search("apple")
    first.close()
    with monkeypatch.context() as patch:
        patch.setattr(database, "INDEX", "CREATE VIRTUAL TABLE w2 USING no_such_module (content)")
        second = History(path)
        talk(second, "two apples")
        assert len(second.search("apple")) == 2
        second.close()
    third = History(path)
    assert len(third.search("apple")) == 2
    third.close()


def test_the_index_is_there_where_sqlite_has_one(history: History) -> None:
    options = {row[0] for row in sqlite3.connect(":memory:").execute("PRAGMA compile_options")}
    if "ENABLE_FTS5" not in options:
        pytest.skip("this SQLite has no FTS5")
    assert history._database.has_index


@given(st.lists(st.text(max_size=12), max_size=4), st.text(max_size=12))
def test_no_text_and_no_question_raises(texts: list[str], question: str) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        opened = History(Path(folder) / "chats.db")
        talk(opened, *texts)
        opened.search(question)
        for word in " ".join(texts).split():
            if word.isascii() and word.isalnum():
                assert opened.search(word), word
        opened.close()
