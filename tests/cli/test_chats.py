"""Conversations that are kept: `chat` writes them, `chat --continue` takes them up, `chats` lists and exports them."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from localllm.history import History
from localllm.settings import load_settings
from tests.cli.conftest import Cli
from tests.cli.fake_daemon import FakeDaemon, fake_daemon
from tests.cli.terminal import Terminal

CHAT = "/v1/chat/completions"
PROMPT = ">>> "


@pytest.fixture
def history() -> Iterator[History]:
    opened = History(load_settings().chats_file)
    yield opened
    opened.close()


@pytest.fixture
def server() -> Iterator[FakeDaemon]:
    with fake_daemon() as running:
        yield running


def said(history: History, chat_id: int) -> list[str]:
    return [message.content for message in history.branch(chat_id)]


def asked(server: FakeDaemon) -> list[str]:
    return [message["content"] for message in server.bodies(CHAT)[-1]["messages"]]


def test_a_conversation_is_kept_and_taken_up_again(server: FakeDaemon, history: History) -> None:
    with Terminal(server.url, "chat", "tiny", "--system", "Be brief.") as terminal:
        terminal.wait_for(PROMPT)
        terminal.line("/set parameter top_k 5")
        terminal.wait_for(PROMPT)
        terminal.line("Hi you")
        terminal.wait_for("Hello there.")
        terminal.wait_for(PROMPT)
        terminal.line("/bye")
        assert terminal.finish() == 0
    chat = history.latest()
    assert (chat.title, chat.model, chat.system, chat.parameters) == ("Hi you", "tiny", "Be brief.", {"top_k": 5})
    stats = history.branch(chat.id)[-1].stats
    assert stats is not None and (stats.tokens, stats.stop_reason) == (298, "stop")
    with Terminal(server.url, "chat", "--continue") as terminal:
        terminal.wait_for("going on with chat 1, 'Hi you' (2 messages)")
        terminal.wait_for(PROMPT)
        terminal.line("Again")
        terminal.wait_for("Hello there.")
        terminal.wait_for(PROMPT)
    assert asked(server) == ["Be brief.", "Hi you", "Hello there.", "Again"]
    assert server.bodies(CHAT)[-1]["top_k"] == 5
    assert said(history, chat.id) == ["Hi you", "Hello there.", "Again", "Hello there."]


def test_clear_begins_a_new_chat(server: FakeDaemon, history: History) -> None:
    with Terminal(server.url, "chat", "tiny") as terminal:
        for line in ("one", "/clear", "two"):
            terminal.wait_for(PROMPT)
            terminal.line(line)
        terminal.wait_for("Hello there.")
        terminal.wait_for(PROMPT)
    assert [chat.title for chat in history.chats()] == ["two", "one"]


def test_a_stopped_answer_is_kept_as_far_as_it_went(server: FakeDaemon, history: History) -> None:
    server.hangs = True
    with Terminal(server.url, "chat", "tiny") as terminal:
        terminal.wait_for(PROMPT)
        terminal.line("Hi")
        terminal.wait_for("Hello")
        terminal.press("\x03")
        terminal.wait_for(PROMPT)
    assert said(history, 1) == ["Hi", "Hello"] and history.branch(1)[-1].is_cut


def test_a_question_without_an_answer_is_taken_back(cli: Cli, daemon: FakeDaemon, history: History) -> None:
    daemon.answers = [[{"error": {"message": "out of pages", "code": "not_enough_memory"}}]]
    assert cli("chat", "tiny", stdin="Hi").code == 5
    assert said(history, 1) == []


def test_a_piped_question_goes_on_with_the_chat_named(cli: Cli, daemon: FakeDaemon, history: History) -> None:
    assert cli("chat", "tiny", stdin="First things").code == 0
    assert cli("chat", "tiny", stdin="Second").code == 0
    outcome = cli("chat", "--chat", "first th", stdin="And then?")
    assert (outcome.code, outcome.out, outcome.err) == (0, "Hello there.\n", "")
    assert asked(daemon) == ["First things", "Hello there.", "And then?"]
    assert cli("chat", "--chat", "nothing like it", stdin="x").code == 4


def test_a_chat_is_sampled_as_told_and_goes_on_so(cli: Cli, daemon: FakeDaemon, history: History) -> None:
    assert cli("chat", "tiny", "--temperature", "0", "--max-tokens", "9", "--stop", "a", stdin="Hi").code == 0
    assert cli("chat", "--continue", "--seed", "7", "--max-tokens", "5", stdin="Again").code == 0
    first, second = daemon.bodies(CHAT)
    assert (first["temperature"], first["max_tokens"], first["stop"]) == (0.0, 9, ["a"])
    assert (second["temperature"], second["max_tokens"], second["stop"], second["seed"]) == (0.0, 5, ["a"], 7)


def test_what_a_shell_would_split_or_expand_is_quoted_in_the_next_step(cli: Cli, daemon: FakeDaemon) -> None:
    assert 'echo "Why is the sky blue?" | localllm chat\n' in cli("chat", "tiny").err


def test_nothing_is_kept_where_nobody_wants_it(
    cli: Cli, daemon: FakeDaemon, history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli("chat", "tiny", "--no-keep", stdin="Hi").code == 0
    assert cli("chat", "--continue", "--no-keep", stdin="Hi").code == 2
    assert cli("run", "tiny", "Hi").code == 0
    monkeypatch.setenv("LOCALLLM_NOHISTORY", "1")
    assert cli("chat", "tiny", stdin="Hi").code == 0
    assert history.chats() == []
    outcome = cli("chat", "--continue", stdin="Hi")
    assert outcome.code == 4 and "no chat is kept yet" in outcome.err


def test_what_cannot_be_kept_can_still_be_said(cli: Cli, daemon: FakeDaemon) -> None:
    load_settings().chats_file.mkdir(parents=True)
    outcome = cli("chat", "tiny", stdin="Hi")
    assert (outcome.code, outcome.out) == (0, "Hello there.\n") and "not kept" in outcome.err


def talk(history: History, *texts: str) -> int:
    chat = history.new_chat("tiny")
    leaf = None
    for place, text in enumerate(texts):
        leaf = history.add(chat.id, leaf, "assistant" if place % 2 else "user", text).id
    return chat.id


def test_chats_are_listed_and_searched(cli: Cli, history: History) -> None:
    talk(history, "Why does it \x1b[31mstall?", "The scheduler does.")
    talk(history, "Regex")
    listed = cli("chats", "list").out.splitlines()
    assert listed[0].split() == ["ID", "TITLE", "MODEL", "MESSAGES", "USED"]
    assert listed[1].split()[:4] == ["2", "Regex", "tiny", "1"] and "Why does it stall?" in listed[2]
    assert [row["id"] for row in json.loads(cli("chats", "list", "--json", "-n", "1").out)] == [2]
    assert "scheduler does" in cli("chats", "search", "scheduler").out
    assert json.loads(cli("chats", "search", "--json", "nothing", "like").out) == []


def test_an_exported_chat_can_be_imported(cli: Cli, history: History, tmp_path: Path) -> None:
    chat_id = talk(history, "Why?", "So.")
    file = tmp_path / "chat.json"
    assert cli("chats", "export", str(chat_id), "-o", str(file)).code == 0
    assert "kept 'Why?' as chat 2" in cli("chats", "import", str(file)).out
    assert said(history, 2) == ["Why?", "So."]
    assert cli("chats", "export", "why").out.startswith("# Why?\n")
    assert cli("chats", "export", "why", "--format", "html").out.startswith("<!doctype html>")
    assert cli("chats", "export", "why", "-o", str(tmp_path / "x.pdf")).code == 2
    broken = tmp_path / "broken.json"
    broken.write_text("{}")
    assert cli("chats", "import", str(file), str(broken)).code == 2 and history.num_chats() == 2, "all or none"
    file.write_text("{}")
    assert "no exported chat" in cli("chats", "import", str(file)).err
    assert cli("chats", "import", str(tmp_path / "none")).code == 2
    assert cli("chats", "export", "why", "-o", str(tmp_path / "no" / "x.md")).code == 2


def test_chats_are_renamed_and_removed(cli: Cli, history: History) -> None:
    chat_id = talk(history, "Why?")
    assert cli("chats", "rename", "why", "Stalls").code == 0
    assert history.chat(chat_id).title == "Stalls"
    assert cli("chats", "rm", str(chat_id), "99").code == 4 and history.num_chats() == 1
    assert cli("chats", "rename", "stalls", " ").code == 2 and history.chat(chat_id).title == "Stalls"
    assert cli("chats", "rm", str(chat_id), str(chat_id)).out == "deleted 'Stalls'\n" and history.num_chats() == 0
