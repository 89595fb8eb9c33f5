"""What people type by mistake, or by way of an empty variable: one sentence, one next step, and nothing done."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from localllm.cli import connect
from localllm.daemon.home import Address
from localllm.settings import load_settings
from tests.cli.conftest import ROOT, Cli, in_new_process
from tests.cli.fake_daemon import FakeDaemon
from tests.cli.test_requests import request

MAIN = "from localllm.cli.app import main; main()"


@pytest.mark.parametrize(
    "line",
    [
        ("run", "", "hi"),
        ("stop", ""),
        ("embed", "", "hi"),
        ("show", ""),
        ("where", " "),
        ("rm", ""),
        ("cp", "a", ""),
        ("fit", ""),
        ("pull", ""),
        ("verify", ""),
        ("update", ""),
        ("create", "", "-f", "Modelfile"),
        ("bench", ""),
    ],
    ids=" ".join,
)
def test_an_empty_name_is_no_name_and_does_not_mean_all(
    cli: Cli, daemon: FakeDaemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "Modelfile").write_text("FROM tiny")
    outcome = cli(*line)
    assert outcome.code == 2 and outcome.out == "" and not daemon.requests
    assert outcome.err.startswith("Error: the model name is empty\n  names look like")


def test_an_empty_id_cancels_nobody(cli: Cli, daemon: FakeDaemon) -> None:
    daemon.under_way = [request("only-one")]
    outcome = cli("cancel", "")
    assert outcome.code == 2 and "`localllm ps --requests` lists" in outcome.err
    assert not [path for path, _ in daemon.requests if path.endswith("/cancel")]


@pytest.mark.parametrize("text", ["FRM x", "FROM tiny\nPARAMETER temperature hot", 'FROM tiny\nSYSTEM """a'])
def test_a_line_of_a_modelfile_that_is_none_is_named_with_a_way_on(cli: Cli, text: str) -> None:
    outcome = cli("create", "mine", "-f", "-", stdin=text)
    assert outcome.code == 2 and outcome.err.startswith("Error: (line ") and "\n  mend that line" in outcome.err


@pytest.mark.parametrize(
    "line",
    [
        ("imatrix", "tiny", "-o", "{folder}/absent/x.gguf"),
        ("imatrix", "tiny", "-o", "{folder}"),
        ("attention", "tiny", "hi", "--out", "{folder}/absent/x.png"),
        ("attention", "tiny", "hi", "--out", "{folder}/absent/x.html"),
        ("batch", "run", "{folder}/in", "{folder}/absent/out"),
        ("batch", "run", "{folder}/in", "{folder}"),
        ("bench", "serve", "--save-result", "{folder}/absent/x.json"),
    ],
    ids=" ".join,
)
def test_where_nothing_can_be_written_is_said_before_the_work(
    cli: Cli, daemon: FakeDaemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: tuple[str, ...]
) -> None:
    monkeypatch.setattr("localllm.runtime.names.model_path", lambda name, settings: tmp_path / "tiny.gguf")
    (tmp_path / "in").write_text("")
    outcome = cli(*(word.format(folder=tmp_path) for word in line))
    assert outcome.code == 2 and not daemon.requests
    assert ("does not exist\n  " in outcome.err or "is a folder\n  " in outcome.err) and outcome.err.count("\n") == 2


def test_a_chat_without_a_name_begins_no_other(cli: Cli, daemon: FakeDaemon) -> None:
    outcome = cli("chat", "tiny", "--chat", "", stdin="hi")
    assert outcome.code == 2 and "`localllm chats list`" in outcome.err and not daemon.requests


def test_whoever_stops_a_pull_or_a_batch_is_told_how_it_goes_on(
    cli: Cli, daemon: FakeDaemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pressed(*args: object, **named: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("localllm.store.library.Library.pull", pressed)
    outcome = cli("pull", "smollm2:135m")
    assert (outcome.code, outcome.err) == (130, "stopped; the same command goes on from here\n")
    monkeypatch.setattr("localllm.cli.batch._answer_all", pressed)
    (tmp_path / "in").write_text('{"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": {}}\n')
    outcome = cli("batch", "run", str(tmp_path / "in"), str(tmp_path / "out"))
    assert (outcome.code, outcome.err) == (130, "stopped with 0 of 1 answered; go on with --resume\n")


def test_a_batch_is_kept_in_files(
    cli: Cli, daemon: FakeDaemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").write_text("")
    for line in (("in", "-"), ("-", "out"), ("in", "/dev/null")):
        outcome = cli("batch", "run", *line)
        assert outcome.code == 2 and outcome.err.count("\n") == 2
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_an_option_without_its_value_says_where_help_is(cli: Cli) -> None:
    outcome = cli("run", "tiny", "hi", "--system")
    assert outcome.code == 2 and "Try 'localllm run -h' for help." in outcome.err and "--system" in outcome.err


def test_no_types_cannot_be_compared(cli: Cli) -> None:
    outcome = cli("quantize", "tiny", "--compare", " ,")
    assert outcome.code == 2 and outcome.err == "Error: --compare names no type\n  for example --compare q4_0,q4_k_m\n"


def test_help_may_be_asked_for_by_its_word(cli: Cli) -> None:
    for line in ((), ("run",), ("daemon",), ("daemon", "logs")):
        asked, usual = cli("help", *line), cli(*line, "--help")
        assert asked == usual and asked.code == 0
    assert cli("daemon", "help").out == cli("daemon", "--help").out


@pytest.mark.parametrize("host", ["203.0.113.1:0", "no-such-host.invalid:0"])
def test_an_address_that_cannot_be_listened_on_is_called_that(cli: Cli, host: str) -> None:
    outcome = cli("serve", "--host", host)
    assert outcome.code == 2 and "is no address" in outcome.err and "\n  127.0.0.1 is for" in outcome.err


def test_no_text_has_no_attention(cli: Cli) -> None:
    assert cli("attention", "tiny", "").err.startswith("Error: there is no text\n  give one")


@pytest.mark.parametrize("line", [("chats", "export", "\udcff"), ("config", "set", "default_model", "\udcff")])
def test_bytes_that_are_no_text_are_the_command_lines_fault(line: tuple[str, ...]) -> None:
    outcome = in_new_process(*line, code=MAIN)
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.startswith("Error: the command line holds bytes that are no text in UTF-8\n  ")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
def test_a_key_that_could_not_be_shown_is_no_key(cli: Cli) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", MAIN, "keys", "create", "mine"],
            stdout=full, stderr=subprocess.PIPE, text=True, env=environment, timeout=60,
        )  # fmt: skip
    assert done.returncode == 1 and done.stderr.count("\n") == 2
    assert "mine" not in cli("keys", "list").out


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
def test_an_error_that_cannot_be_said_keeps_its_exit_code() -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-c", MAIN, "show", "nope"], stderr=full, env=environment, timeout=60)
    assert done.returncode == 4


@pytest.mark.parametrize("host", ["::::", "[::1", "1:2:3"])
def test_an_address_that_is_none_is_refused(cli: Cli, host: str) -> None:
    outcome = cli("--host", host, "ps")
    assert outcome.code == 2 and "is no address\n  addresses look like" in outcome.err


def test_a_host_with_a_port_means_that_daemon_and_no_other_of_this_machine(
    daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = load_settings({"LOCALLLM_HOME": "/nowhere"}, host=daemon.url)
    assert connect.elsewhere(settings) == daemon.url, "a localllm answers there, and it is not this home's"
    for port, url in ((daemon.server_address[1], None), (1, daemon.url)):
        own = Address("127.0.0.1", port, 1, "0", 0.0, "instance")
        monkeypatch.setattr("localllm.daemon.lifecycle.find_daemon", lambda settings, own=own: own)
        assert connect.elsewhere(settings) == url


def test_a_host_without_a_daemon_may_get_this_homes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("localllm.daemon.lifecycle.find_daemon", lambda settings: None)
    assert connect.elsewhere(load_settings({"LOCALLLM_HOME": "/nowhere"}, host="127.0.0.1:1")) is None
