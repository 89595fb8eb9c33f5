"""`ps --requests` and `cancel`, with a scripted daemon and without any."""

import json
from typing import Any

import pytest

from tests.cli.conftest import Cli
from tests.cli.fake_daemon import FakeDaemon


def request(name: str, state: str = "writing", **fields: Any) -> dict[str, Any]:
    row = {
        "id": name,
        "model": "qwen3:8b",
        "state": state,
        "age_s": 12.3,
        "prompt_tokens": 812,
        "completion_tokens": 40,
        "verdict": "Read 812 tokens in 400 ms; it is under way.",
        "a_field_of_the_future": 1,
    }
    return row | fields


def test_requests_are_listed_with_a_sentence_on_where_their_time_went(cli: Cli, daemon: FakeDaemon) -> None:
    daemon.under_way = [
        request("0123456789abcdef"),
        request("b", "failed", model="tiny", verdict="It came\x1b[31m red."),
    ]
    lines = [line.rstrip() for line in cli("ps", "--requests").out.splitlines()]
    assert lines[0].split() == ["ID", "MODEL", "STATE", "TIME", "PROMPT", "ANSWER", "WHERE", "THE", "TIME", "WENT"]
    assert lines[1].startswith(
        "0123456789ab    qwen3:8b    writing    12 seconds    812       40        Read 812 tokens"
    )
    assert "\x1b" not in lines[2] and lines[2].endswith("red.")


def test_requests_of_one_model_as_json(cli: Cli, daemon: FakeDaemon) -> None:
    daemon.under_way = [request("a"), request("b", model="tiny")]
    (row,) = json.loads(cli("ps", "ti", "--requests", "--json").out)
    assert (row["id"], row["model"], row["completion_tokens"]) == ("b", "tiny", 40)


def test_a_request_is_cancelled_by_the_beginning_of_its_id(cli: Cli, daemon: FakeDaemon) -> None:
    daemon.under_way = [request("0123456789abcdef"), request("0199", "finished"), request("9/9")]
    assert cli("cancel", "01").code == 0
    assert cli("cancel", "9/9").code == 0
    asked = [path for path, _ in daemon.requests if path.endswith("/cancel")]
    assert asked == ["/v1/requests/0123456789abcdef/cancel", "/v1/requests/9%2F9/cancel"]


def test_an_id_that_could_be_two_requests_cancels_neither(cli: Cli, daemon: FakeDaemon) -> None:
    daemon.under_way = [request("01"), request("02")]
    outcome = cli("cancel", "0")
    assert outcome.code == 2 and "2 requests begin with '0'" in outcome.err
    assert not [path for path, _ in daemon.requests if path.endswith("/cancel")]


@pytest.mark.parametrize("command", [("ps", "--requests"), ("cancel", "x")])
def test_without_a_daemon_none_is_started(cli: Cli, no_daemon: None, command: tuple[str, ...]) -> None:
    outcome = cli(*command)
    assert outcome.code == (3 if command[0] == "cancel" else 0)
    assert "no daemon runs" in outcome.err or outcome.out.startswith("ID")


def test_watching_lists_again_every_second_until_it_is_stopped(
    cli: Cli, daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon.under_way = [request("first")]
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        daemon.under_way = [request("second")]
        if len(slept) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr("localllm.cli.loaded.time.sleep", sleep)
    outcome = cli("ps", "--requests", "--watch")
    assert [line.split()[0] for line in outcome.out.splitlines()] == ["ID", "first", "ID", "second"]
    assert slept == [1.0, 1.0] and "\x1b" not in outcome.out and outcome.code == 130
