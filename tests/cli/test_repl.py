"""The conversation, typed into a real terminal (a pseudo one) against a scripted daemon."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from localllm.history import History
from localllm.settings import load_settings
from tests.cli.fake_daemon import FakeDaemon, fake_daemon
from tests.cli.terminal import PATIENCE_S, Terminal

CHAT = "/v1/chat/completions"
PROMPT = ">>> "


@pytest.fixture
def server() -> Iterator[FakeDaemon]:
    with fake_daemon() as running:
        yield running


@pytest.fixture
def terminal(server: FakeDaemon) -> Iterator[Terminal]:
    with Terminal(server.url, "run", "tiny") as opened:
        opened.wait_for(PROMPT)
        yield opened


def asked(server: FakeDaemon) -> list[dict[str, str]]:
    messages: list[dict[str, str]] = server.bodies(CHAT)[-1]["messages"]
    return messages


def test_a_message_is_answered_and_remembered(terminal: Terminal, server: FakeDaemon) -> None:
    terminal.line("Hi")
    terminal.wait_for("Hello there.")
    terminal.wait_for(PROMPT)
    terminal.line("Again")
    terminal.wait_for("Hello there.")
    assert [message["content"] for message in asked(server)] == ["Hi", "Hello there.", "Again"]


def test_bye_and_end_of_input_leave_with_zero(terminal: Terminal, server: FakeDaemon) -> None:
    terminal.line("/bye")
    assert terminal.finish() == 0
    with Terminal(server.url, "run", "tiny") as second:
        second.wait_for(PROMPT)
        second.press("\x04")
        assert second.finish() == 0


def test_control_c_at_the_prompt_says_how_to_leave(terminal: Terminal) -> None:
    terminal.press("\x03")
    # CPython's readline misses a signal that comes in the instant between its prompt and its first wait
    terminal.wait_for("Use Ctrl + d or /bye to exit.", insisting="\x03")
    terminal.wait_for(PROMPT)


def test_control_c_stops_the_answer_and_keeps_what_was_said(terminal: Terminal, server: FakeDaemon) -> None:
    server.hangs = True
    terminal.line("Hi")
    terminal.wait_for("Hello")
    terminal.press("\x03")
    terminal.wait_for(PROMPT)
    assert server.client_left.wait(PATIENCE_S)
    server.hangs = False
    terminal.line("go on")
    terminal.wait_for("Hello there.")
    assert [message["content"] for message in asked(server)] == ["Hi", "Hello", "go on"]


def test_triple_quotes_make_a_message_of_several_lines(terminal: Terminal, server: FakeDaemon) -> None:
    terminal.line('"""one')
    terminal.wait_for("... ")
    terminal.line('two"""')
    terminal.wait_for("Hello there.")
    assert asked(server)[-1]["content"] == "one\ntwo"


def test_a_bracketed_paste_does_not_submit(terminal: Terminal, server: FakeDaemon) -> None:
    terminal.press("\x1b[200~one\ntwo\x1b[201~")
    terminal.wait_for("two")
    assert not server.bodies(CHAT)
    terminal.line("")
    terminal.wait_for("Hello there.")
    assert asked(server)[-1]["content"] == "one\ntwo"


def test_parameters_and_system_message_travel_with_the_next_message(terminal: Terminal, server: FakeDaemon) -> None:
    terminal.line("/set parameter temperature 0.2")
    terminal.wait_for("Set parameter 'temperature' to '0.2'")
    terminal.line("/set parameter stop a b")
    terminal.wait_for("Set parameter 'stop' to 'a, b'")
    terminal.line('/set system """Be')
    terminal.wait_for("... ")
    terminal.line('brief."""')
    terminal.wait_for("Set system message.")
    terminal.line("Hi")
    terminal.wait_for("Hello there.")
    body = server.bodies(CHAT)[-1]
    assert (body["temperature"], body["stop"]) == (0.2, ["a", "b"])
    assert asked(server)[0] == {"role": "system", "content": "Be\nbrief."}


@pytest.mark.parametrize(
    ("line", "reply"),
    [
        ("/set verbose", "Set 'verbose' mode."),
        ("/set quiet", "Set 'quiet' mode."),
        ("/set wordwrap", "Set 'wordwrap' mode."),
        ("/set nohistory", "Set 'nohistory' mode."),
        ("/set format json", "Set format to 'json' mode."),
        ("/set noformat", "Disabled format."),
        ("/set format", "error: there is no format"),
        ("/set format xml", "error: /set format takes `json` or a JSON schema"),
        ("/set format {}", "Set format to a JSON schema."),
        ("/set think", "Set 'think' mode."),
        ("/set think high", "Set 'think' mode to 'high'."),
        ("/set think hard", "error: 'hard' is no level of thinking"),
        ("/set nothink", "Set 'nothink' mode."),
        ("/set nonsense", "Unknown command '/set nonsense'"),
        ("/set parameter warmth 3", "error: unknown parameter 'warmth'"),
        ("/set parameter top_k many", "error: top_k takes a whole number"),
        ("/set parameter num_ctx 4096", "error: num_ctx is a setting of the daemon"),
        ("/clear", "Cleared session context"),
        ("/nonsense", "Unknown command '/nonsense'. Type /? for help"),
        ("/set parameter num_ctx 4096", "`localllm config set context_length 4096`"),
        ("/set parameter num_gpu 1", "`localllm config set backend NAME`"),
        ("/load absent", "error: model 'absent' not found\n  `localllm list` names the models"),
        ("/load tiny", "Loading model 'tiny'"),
        ("/list", "NAME"),
        ("/show nonsense", "/show license"),
        ("/show modelfile", "error: there is no model tiny"),
        ("/?", "Available Commands:"),
        ("/? set", "/set parameter <name> <value>"),
        ("/? shortcuts", "Ctrl + g"),
    ],
)
def test_every_slash_command_replies_and_the_conversation_goes_on(terminal: Terminal, line: str, reply: str) -> None:
    terminal.line(line)
    terminal.wait_for(reply)
    terminal.wait_for(PROMPT)


def test_the_parameters_shown_are_those_in_force(server: FakeDaemon, small_model_home: Path) -> None:
    server.models = {"smollm2:135m"}
    with Terminal(server.url, "run", "smollm2:135m", LOCALLLM_HOME=str(small_model_home)) as terminal:
        terminal.wait_for(PROMPT)
        terminal.line("/set parameter temperature 1")
        terminal.wait_for("Set parameter")
        terminal.line("/show parameters")
        shown = terminal.wait_for("top_p          0.9")
        assert "temperature    1" in shown and "temperature    0.2" not in shown


def test_an_answer_that_was_cut_says_so(terminal: Terminal, server: FakeDaemon) -> None:
    server.finish_reason = "length"
    terminal.line("Hi")
    terminal.wait_for("Warning: the answer is cut off")
    terminal.wait_for(PROMPT)
    terminal.line("/set parameter num_predict 3")
    terminal.wait_for(PROMPT)
    terminal.line("Again")
    assert "Warning" not in terminal.wait_for(PROMPT)


def test_a_path_is_a_message_and_no_command(terminal: Terminal, server: FakeDaemon) -> None:
    terminal.line("/tmp/a.png what is this?")
    terminal.wait_for("Hello there.")
    assert asked(server)[-1]["content"] == "/tmp/a.png what is this?"


def test_an_error_keeps_the_conversation_and_forgets_the_question(terminal: Terminal, server: FakeDaemon) -> None:
    server.answers = [[{"error": {"message": "too long", "code": "context_length_exceeded"}}]]
    terminal.line("Hi")
    terminal.wait_for("error: too long")
    terminal.wait_for(PROMPT)
    terminal.line("Short")
    terminal.wait_for("Hello there.")
    assert [message["content"] for message in asked(server)] == ["Short"]


def test_thinking_is_shown_between_its_marks(terminal: Terminal, server: FakeDaemon) -> None:
    server.answers = [[{"reasoning": "hmm"}, {"content": "42"}]]
    terminal.line("Hi")
    assert "Thinking...\nhmm\n...done thinking.\n\n42" in terminal.wait_for("42")


def test_thinking_can_be_hidden(server: FakeDaemon) -> None:
    server.answers = [[{"reasoning": "hmm"}, {"content": "42"}]]
    with Terminal(server.url, "run", "tiny", "--hidethinking", "--think") as terminal:
        terminal.wait_for(PROMPT)
        terminal.line("Hi")
        assert "hmm" not in terminal.wait_for("42")


def test_format_and_thinking_travel_until_they_are_taken_back(terminal: Terminal, server: FakeDaemon) -> None:
    sent = []
    for line in ("/set format json", "/set think low", "/set nothink", "/set noformat"):
        terminal.line(line)
        terminal.wait_for(PROMPT)
        terminal.line("Hi")
        terminal.wait_for("Hello there.")
        terminal.wait_for(PROMPT)
        body = server.bodies(CHAT)[-1]
        sent.append((body.get("response_format", {}).get("type"), body.get("reasoning_effort")))
    assert sent == [("json_object", None), ("json_object", "low"), ("json_object", "none"), (None, "none")]


def test_a_model_that_cannot_think_is_said_with_the_way_back(terminal: Terminal, server: FakeDaemon) -> None:
    refusal = {"message": "tiny does not reason", "code": "invalid_value", "param": "reasoning_effort"}
    server.answers = [[{"error": refusal}]]
    terminal.line("/set think")
    terminal.wait_for(PROMPT)
    terminal.line("Hi")
    assert "error: tiny does not reason\n  this model cannot: say /set nothink\n" in terminal.wait_for(PROMPT)


def test_the_history_comes_back_in_the_next_conversation(terminal: Terminal, server: FakeDaemon) -> None:
    terminal.line("remember me")
    terminal.wait_for("Hello there.")
    terminal.wait_for(PROMPT)
    terminal.line("/bye")
    assert terminal.finish() == 0
    history = Path(os.environ["LOCALLLM_HOME"]) / "history"
    assert "remember me" in history.read_text() and history.stat().st_mode & 0o077 == 0
    with Terminal(server.url, "run", "tiny") as second:
        second.wait_for(PROMPT)
        second.press("\x1b[A\x1b[A")
        second.wait_for("remember me")


def test_control_g_opens_the_editor_on_the_line_and_brings_its_text_back(server: FakeDaemon, tmp_path: Path) -> None:
    editor = tmp_path / "editor"
    editor.write_text('#!/bin/sh\nprintf " and more" >> "$1"\n')
    editor.chmod(0o755)
    with Terminal(server.url, "run", "tiny", EDITOR=str(editor)) as terminal:
        terminal.wait_for(PROMPT)
        terminal.press("draft\x07")
        terminal.wait_for("draft and more")
        terminal.line("")
        terminal.wait_for("Hello there.")
    assert asked(server)[-1]["content"] == "draft and more"


@pytest.mark.parametrize("editor", ["/no/such/editor", "'unbalanced"])
def test_without_an_editor_the_conversation_goes_on(server: FakeDaemon, editor: str) -> None:
    with Terminal(server.url, "run", "tiny", EDITOR=editor, VISUAL="") as terminal:
        terminal.wait_for(PROMPT)
        terminal.line("/edit")
        assert "error: " in terminal.wait_for("  EDITOR names the program")
        terminal.line("Hi")
        terminal.wait_for("Hello there.")


def test_what_the_system_refuses_keeps_the_conversation(server: FakeDaemon) -> None:
    with Terminal(server.url, "run", "tiny", TMPDIR="/no/such/folder") as terminal:
        terminal.wait_for(PROMPT)
        home = Path(os.environ["LOCALLLM_HOME"])
        (home / "store").write_text("no folder")
        terminal.line("/save mine")
        terminal.wait_for("error: ")
        terminal.line("Hi")
        terminal.wait_for("Hello there.")


@pytest.mark.parametrize("end", [signal.SIGHUP, signal.SIGTERM])
def test_a_terminal_that_is_closed_loses_neither_half_an_answer_nor_the_history(
    server: FakeDaemon, end: signal.Signals
) -> None:
    server.hangs = True
    with Terminal(server.url, "chat", "tiny") as terminal:
        terminal.wait_for(PROMPT)
        terminal.line("Hi")
        terminal.wait_for("Hello")
        os.killpg(terminal.process.pid, end)
        assert terminal.finish() == 128 + end
    history = History(load_settings().chats_file)
    assert [message.prompt for message in history.branch(history.latest().id)] == ["Hi", "Hello"]
    assert "Hi" in load_settings().repl_history_file.read_text()


def test_a_daemon_that_has_ended_is_found_again(tmp_path: Path) -> None:
    with fake_daemon() as later:
        with fake_daemon() as first:
            terminal = Terminal(first.url, "run", "tiny", NEXT_URL=later.url)
            terminal.wait_for(PROMPT)
            terminal.line("Hi")
            terminal.wait_for("Hello there.")
            terminal.wait_for(PROMPT)
        with terminal:
            terminal.line("Again")
            terminal.wait_for("Hello there.")
        assert [message["content"] for message in asked(later)] == ["Hi", "Hello there.", "Again"]
        assert later.bodies("/localllm/v1/load")


def test_control_c_during_a_single_answer_ends_with_130(server: FakeDaemon) -> None:
    server.hangs = True
    with Terminal(server.url, "run", "tiny", "Hi") as terminal:
        terminal.wait_for("Hello")
        os.killpg(terminal.process.pid, signal.SIGINT)
        assert terminal.finish() == 130
    assert server.client_left.wait(PATIENCE_S)
