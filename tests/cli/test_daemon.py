"""`daemon` commands: what they say when nothing runs, and the end of the log."""

import json
import os
from pathlib import Path

import pytest

from localllm.cli.daemon import print_new, print_tail
from tests.cli.conftest import Cli


def test_status_without_a_daemon_ends_with_three(cli: Cli) -> None:
    outcome = cli("daemon", "status")
    assert (outcome.code, outcome.out) == (3, "no daemon runs\n")
    assert json.loads(cli("daemon", "status", "--json").out)["running"] is False


def test_stop_without_a_daemon_is_fine(cli: Cli) -> None:
    outcome = cli("daemon", "stop")
    assert (outcome.code, outcome.out) == (0, "no daemon runs\n")


def test_logs_prints_the_end_and_takes_escape_sequences_out(cli: Cli) -> None:
    assert cli("daemon", "logs").code == 1
    log = Path(os.environ["LOCALLLM_HOME"]) / "logs" / "daemon.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_bytes(b"one\ntwo \x1b[2J\xff\nthree\n")
    assert cli("daemon", "logs", "-n", "2").out == "two \ufffd\nthree\n"


def test_following_prints_what_is_new_and_starts_over_with_a_new_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "log"
    log.write_text("one\n")
    end = print_tail(log, 10)
    log.write_text("one\ntwo\n")
    end = print_new(log, end)
    log.write_text("new\n")
    print_new(log, end)
    assert capsys.readouterr().out == "one\ntwo\nnew\n"
