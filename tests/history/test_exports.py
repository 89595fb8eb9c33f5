"""Chats that leave: as JSON they come back the same; as Markdown and HTML they are for people."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localllm.errors import UsageError
from localllm.history import AnswerStats, Attachment, History, SampledToken
from localllm.history.document import document_of, from_json, keep, to_json
from localllm.history.exports import FORMATS, as_html, as_markdown, exported, file_name
from tests.history.test_chats import talk

EVIL = '<script>alert(1)</script> & "quoted" </pre></style> \x1b[31mred\x1b[0m \u202eabc'


def test_a_chat_comes_back_from_json_with_all_its_branches(history: History, tmp_path: Path) -> None:
    chat = history.new_chat("tiny", system="Be brief.", parameters={"top_p": 0.9}, preset="careful")
    question = history.add(chat.id, None, "user", "Why?", attachments=(Attachment("a", "b", 1),))
    stats = AnswerStats(tokens=1, stop_reason="stop")
    history.add(chat.id, question.id, "assistant", "A", stats=stats, tokens=[SampledToken(1, b"\xff", -0.5, (), 0.25)])
    other = history.add(chat.id, question.id, "assistant", "B", reasoning="hm", origin="again")
    history.change_chat(chat.id, active_leaf=other.id - 1)
    document = document_of(history, chat.id)
    elsewhere = History(tmp_path / "other.db")
    talk(elsewhere, "something else")
    copied = keep(elsewhere, from_json(to_json(document)))
    assert document_of(elsewhere, copied.id) == document
    assert [message.content for message in elsewhere.branch(copied.id)] == ["Why?", "A"]
    elsewhere.close()


@given(
    st.lists(st.tuples(st.integers(-1, 9), st.sampled_from(["user", "assistant"]), st.text()), max_size=8), st.text()
)
def test_any_chat_round_trips(turns: list[tuple[int, str, str]], system: str) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        history = History(Path(folder) / "chats.db")
        chat = history.new_chat("tiny", system=system)
        ids: list[int] = []
        for choice, role, text in turns:
            parent = None if choice < 0 or not ids else ids[choice % len(ids)]
            ids.append(history.add(chat.id, parent, role, text).id)
        first = document_of(history, chat.id)
        assert document_of(history, keep(history, from_json(to_json(first))).id) == first
        for kind in FORMATS:
            exported(history, chat.id, kind)
        history.close()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[]",
        b"\xff",
        "[" * 100_000,
        '{"format": "other/1", "title": "", "created": 0, "messages": []}',
        '{"title": "", "created": 0, "active": 0, "messages": []}',
        '{"title": "", "created": 0, "messages": [{"parent": 0, "role": "user", "content": "", "created": 0}]}',
    ],
)
def test_what_is_no_exported_chat_is_refused_in_a_sentence(text: str | bytes) -> None:
    with pytest.raises(UsageError):
        from_json(text)


def test_markdown_holds_the_active_branch(history: History) -> None:
    chat = history.new_chat("tiny", system="Be *brief*.")
    file = Attachment("x.md", "```\ncode\n```")
    question = history.add(chat.id, None, "user", "Why?", attachments=(file,))
    history.add(chat.id, question.id, "assistant", "Old")
    stats = AnswerStats(tokens=412, tokens_per_s=62.4, first_token_s=0.184, prompt_tokens=9, stop_reason="stop")
    history.add(chat.id, question.id, "assistant", "**New**", reasoning="a\nb", model="tiny", stats=stats)
    text = as_markdown(history, chat.id)
    assert text.startswith("# Why?\n") and "**New**" in text and "Old" not in text
    assert "> Be *brief*." in text and "> a\n> b" in text and "````\n```\ncode\n```\n````" in text
    assert "*412 tokens   62.4 tok/s   184 ms first token   0 of 9 cached   stop*" in text


class Seen(HTMLParser):
    """Tags and text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        assert not any(name.startswith("on") or name in ("src", "href") for name, _ in attrs)

    def handle_data(self, data: str) -> None:
        self.text += data


def test_a_page_holds_text_and_nothing_that_runs_or_loads(history: History) -> None:
    chat = history.new_chat("m<b>", title=EVIL, system=EVIL)
    question = history.add(chat.id, None, "user", EVIL, attachments=(Attachment(EVIL, EVIL),))
    answer = f"{EVIL}\n\n```python\nif a < b: {EVIL}\n```\n"
    history.add(chat.id, question.id, "assistant", answer, reasoning=EVIL, model=EVIL)
    page = as_html(history, chat.id)
    seen = Seen(page)
    assert "script" not in seen.tags and {"pre", "code", "details"} <= seen.tags
    assert page.count("</style>") == 1 and "<script>alert(1)</script>" in seen.text and "if a < b" in seen.text
    assert not re.search("[\x00-\x08\x0b-\x1f\u202e]", page)
    assert "http" not in page.replace("http-equiv", "")


def test_a_kind_that_is_none_is_a_sentence(history: History) -> None:
    with pytest.raises(UsageError, match="'pdf'"):
        exported(history, talk(history, "x"), "pdf")


def test_file_names_suit_every_system(history: History) -> None:
    names = {
        file_name(history.chat(talk(history, text)), "md") for text in ("Why / does: it?", "../../etc", "??", "a" * 200)
    }
    assert all(re.fullmatch(r"[\w-]{1,60}\.md", name) for name in names) and "why-does-it.md" in names
