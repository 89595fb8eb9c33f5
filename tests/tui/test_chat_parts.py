"""Parts of the Chat screen by themselves: files, parameters, budgets, answers on their way."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localllm.client import ChatChunk
from localllm.errors import ContextExceeded, DaemonUnreachable, UsageError
from localllm.history import AnswerStats, Chat, History
from localllm.tui.chat.answering import Answering
from localllm.tui.chat.context import Budget, legend, share_bar
from localllm.tui.chat.files import MAX_BYTES, NoTextFile, completions, expanded, read_text_file
from localllm.tui.chat.panel import answer_facts
from localllm.tui.chat.parameters import PARAMETERS, changed
from localllm.tui.chat.previews import over_budget
from localllm.tui.chat.side import by_day, day_name
from localllm.tui.conversation.turns import Turn
from localllm.tui.palette import DARK, Ink
from tests.tui.chat_client import ChatClient, Script

INK = Ink(DARK)


# ---- files


def test_text_of_several_encodings_is_read(tmp_path: Path) -> None:
    for name, content in (("a", "é".encode()), ("b", b"\xef\xbb\xbf\xc3\xa9"), ("c", "é".encode("utf-16"))):
        (tmp_path / name).write_bytes(content)
        assert read_text_file(tmp_path / name).text == "é"
    (tmp_path / "empty").write_text("")
    assert read_text_file(tmp_path / "empty").text == ""


@pytest.mark.parametrize(
    ("content", "sentence"),
    [(b"\x00\x01", "no text file"), (b"caf\xe9", "not UTF-8"), (b"x" * (MAX_BYTES + 1), "too large")],
)
def test_what_is_no_text_is_refused(tmp_path: Path, content: bytes, sentence: str) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(NoTextFile, match=sentence):
        read_text_file(tmp_path / "x")


def test_folders_and_missing_files_are_refused(tmp_path: Path) -> None:
    for path, sentence in (
        (tmp_path, "is a folder"),
        (tmp_path / "none", "no file none"),
        (Path("/dev/null"), "plain"),
    ):
        with pytest.raises(NoTextFile, match=sentence):
            read_text_file(path)


def test_paths_are_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "folder").mkdir()
    for name in ("folder/b.py", "a.py", ".hidden"):
        (tmp_path / name).write_text("")
    assert completions("", tmp_path) == ["folder/", "a.py"]
    assert completions("folder/", tmp_path) == ["folder/b.py"]
    assert completions(".h", tmp_path) == [".hidden"] and completions("FOL", tmp_path) == ["folder/"]
    assert completions("no/such/", tmp_path) == [] and completions("\0", tmp_path) == []
    monkeypatch.setenv("HOME", str(tmp_path))
    assert expanded("~/a.py", Path("/")) == tmp_path / "a.py"
    assert expanded("'folder/b.py'", tmp_path) == tmp_path / "folder" / "b.py"


@given(st.text(max_size=30))
def test_no_path_that_is_typed_raises(text: str) -> None:
    completions(text, Path("/tmp"))
    expanded(text, Path("/tmp"))


# ---- parameters


@pytest.mark.parametrize("parameter", PARAMETERS, ids=lambda each: each.field)
def test_a_slider_stays_within_its_bounds_and_can_be_read_again(parameter: Any) -> None:
    if parameter.kind != "slider":
        return
    value = None
    for by in [1] * 60 + [-1] * 120:
        value = parameter.moved(value, by)
        assert parameter.low <= value <= parameter.high and 0 <= parameter.share(value) <= 1
        assert isinstance(value, int) == parameter.is_whole
        assert parameter.read(str(value)) == value
    assert parameter.read("") is None and parameter.text(value)


@given(st.text(max_size=12))
def test_any_text_typed_for_a_parameter_is_a_value_or_a_sentence(text: str) -> None:
    for parameter in PARAMETERS:
        try:
            value = parameter.read(text)
        except UsageError as error:
            assert parameter.label in error.message
        else:
            assert parameter.text(value)


def test_a_parameter_that_is_reset_is_not_sent() -> None:
    temperature = PARAMETERS[0]
    assert changed({"top_p": 0.5, "temperature": 1.0}, temperature, None) == {"top_p": 0.5}


# ---- the context bar


@given(
    st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 10**6),
    st.none() | st.integers(1, 10**6), st.integers(1, 200),
)  # fmt: skip
def test_the_bar_is_as_wide_as_its_place(history: int, draft: int, cached: int, total: int | None, width: int) -> None:
    budget = Budget(history=history, draft=draft, cached=min(cached, history + draft), reserve=100, total=total)
    assert share_bar(INK, budget, width).width == width
    assert legend(INK, budget, "", width).width <= width


def test_the_legend_drops_its_parts_then_the_time_then_the_total() -> None:
    budget = Budget(86, 2723, 2104, 31, 2809, 1024, 32768, 0.7)
    told = {width: legend(INK, budget, "", width).text.split("   ")[0].strip() for width in (140, 84, 60, 44)}
    assert told[140].startswith("system 86") and told[84].startswith("5,968 of 32,768")
    assert "≈ 0.7 s" in legend(INK, budget, "", 84).text and "≈" not in legend(INK, budget, "", 60).text
    assert "of 32,768" not in legend(INK, budget, "", 40).text


def test_how_many_messages_are_too_many_is_told_by_their_share(tmp_path: Path) -> None:
    history = History(tmp_path / "chats.db")
    chat = history.new_chat("x")
    parent = None
    for _ in range(10):
        parent = history.add(chat.id, parent, "user", "word " * 100).id
    branch = history.branch(chat.id)
    assert over_budget(ContextExceeded(1000, 700), branch).over in (3, 4)
    assert over_budget(ContextExceeded(1000, 10), branch).over == 10
    history.close()


# ---- chats by day


def test_an_answer_that_is_being_written_has_not_ended() -> None:
    stats = AnswerStats(tokens=48, stop_reason="interrupted")  # as it is kept meanwhile, should the program die
    assert answer_facts(Turn(1, "assistant", stats=stats, state="writing")) == (("tokens", "48"),)
    assert answer_facts(Turn(1, "assistant", stats=stats))[-1] == ("ended", "interrupted")


def test_chats_stand_under_their_days() -> None:
    now = time.mktime((2025, 10, 26, 14, 0, 0, 0, 0, -1))
    hour = 3600
    assert [day_name(now - age * hour, now) for age in (0, 13, 15, 37, 39, 24 * 29, 24 * 32)] == [
        "Today", "Today", "Yesterday", "Yesterday", "This month", "This month", "Earlier",
    ]  # fmt: skip
    chats = [Chat(id=place, title=str(place), updated=now - age * hour) for place, age in enumerate((1, 2, 30), 1)]
    assert [entry.title for entry in by_day(chats, now)] == ["Today", "1", "2", "", "Yesterday", "3"]


# ---- answers on their way


def waited(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_an_answer_is_taken_in_pieces_and_counted(tmp_path: Path) -> None:
    client = ChatClient(Script(["?hm", "a", "b"]))
    answering = Answering(client, lambda: {"model": "tiny"}, model="tiny")  # type: ignore[arg-type]
    waited(lambda: answering.is_done)
    news = answering.take()
    assert (news.text, news.reasoning) == ("ab", "hm") and not answering.take()
    stats = answering.stats()
    assert (stats.thought_tokens, stats.cached_tokens, stats.stop_reason) == (1, 2048, "stop")
    assert client.bodies[0]["request_id"] == answering.request_id == stats.request_id


def test_after_a_stop_nothing_changes() -> None:
    script = Script(["a", "b"], holds_at=1)
    client = ChatClient(script)
    answering = Answering(client, dict, model="tiny")  # type: ignore[arg-type]
    waited(lambda: answering.take().text == "a")
    answering.stop()
    answering.stop()
    assert answering.is_done and answering.stats().stop_reason == "cancelled"
    script.gate.set()
    waited(lambda: client.cancelled == [answering.request_id] and not answering._thread.is_alive())
    assert answering.take().text == "" and answering.error is None


class Broken(ChatClient):
    def chat(self, body: dict[str, Any]) -> Iterator[ChatChunk]:
        yield ChatChunk(content="a")
        raise ConnectionResetError("by peer")


def test_a_connection_that_breaks_in_any_way_is_an_error_of_ours() -> None:
    answering = Answering(Broken(), dict, model="tiny")  # type: ignore[arg-type]
    waited(lambda: answering.is_done)
    assert isinstance(answering.error, DaemonUnreachable) and answering.stats().stop_reason == "interrupted"
