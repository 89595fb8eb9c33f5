"""`--format` and `--think`: what is sent, and what is said of values that are none."""

import json
from pathlib import Path
from typing import Any

import pytest

from localllm.cli.asking import format_fields, thinking_fields
from localllm.errors import UsageError
from tests.cli.conftest import Cli
from tests.cli.fake_daemon import FakeDaemon

CHAT = "/v1/chat/completions"
SCHEMA = {"type": "object", "properties": {"sky": {"enum": ["blue", "grey"]}}, "required": ["sky"]}
CLOSED = {**SCHEMA, "additionalProperties": False}  # as Ollama takes it: no properties but those it names


def schema_of(body: dict[str, Any]) -> Any:
    assert body["response_format"]["type"] == "json_schema"
    return body["response_format"]["json_schema"]["schema"]


@pytest.mark.parametrize("command", [("run", "tiny", "hi"), ("chat", "tiny")])
def test_json_is_asked_for(cli: Cli, daemon: FakeDaemon, command: tuple[str, ...]) -> None:
    assert cli(*command, "--format", "json", stdin="hello").code == 0
    assert daemon.bodies(CHAT)[0]["response_format"] == {"type": "json_object"}


def test_a_schema_is_given_in_the_line_or_in_a_file(cli: Cli, daemon: FakeDaemon, tmp_path: Path) -> None:
    file = tmp_path / "sky.json"
    file.write_text("\ufeff" + json.dumps(SCHEMA), encoding="utf-8")
    for given in (json.dumps(SCHEMA), f" \n{json.dumps(SCHEMA, indent=2)}\n", str(file), f"@{file}"):
        assert cli("run", "tiny", "hi", "--format", given).code == 0
    assert [schema_of(body) for body in daemon.bodies(CHAT)] == [CLOSED] * 4


def test_an_empty_format_is_any_text(cli: Cli, daemon: FakeDaemon) -> None:
    assert cli("run", "tiny", "hi", "--format", "").code == 0
    assert "response_format" not in daemon.bodies(CHAT)[0]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("xml", "--format takes `json` or a JSON schema, not 'xml'"),
        ('{"type": ', "is no JSON"),
        ("[1, 2]", "a JSON schema is an object, not a list"),
        ("absent.json", "absent.json cannot be read: no such file or directory"),
        ("@absent", "absent cannot be read: no such file or directory"),
        ("@", "--format takes"),
        (".", ". cannot be read: is a directory"),
        ("x" * 5000, "--format takes"),
    ],
)
def test_a_format_that_is_none_is_a_sentence_and_a_next_step(text: str, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        format_fields(text)
    assert says in caught.value.message and caught.value.hint and len(caught.value.message) < 200


@pytest.mark.parametrize(("content", "says"), [(b"\xff\xfe", "is not a text file"), (b"nul", "is no JSON")])
def test_a_file_that_holds_no_schema_is_named(tmp_path: Path, content: bytes, says: str) -> None:
    file = tmp_path / "schema"
    file.write_bytes(content)
    with pytest.raises(UsageError) as caught:
        format_fields(str(file))
    assert str(file) in caught.value.message and says in caught.value.message and caught.value.hint


def test_a_bad_format_is_found_before_the_daemon_is_asked(cli: Cli, daemon: FakeDaemon) -> None:
    outcome = cli("run", "tiny", "hi", "--format", "xml")
    assert outcome.code == 2 and outcome.out == "" and not daemon.requests


@pytest.mark.parametrize(
    ("option", "effort"),
    [
        ("--think", "high"),
        ("--think=true", "high"),
        ("--think=", "high"),
        ("--think=false", "none"),
        ("--think=low", "low"),
        ("--think=Medium", "medium"),
        ("--think=max", "max"),
    ],
)
def test_how_much_to_think_travels(cli: Cli, daemon: FakeDaemon, option: str, effort: str) -> None:
    assert cli("run", "tiny", option, "hi").code == 0
    body = daemon.bodies(CHAT)[0]
    assert (body["reasoning_effort"], body["messages"][0]["content"]) == (effort, "hi")


def test_the_word_behind_a_bare_think_is_the_prompts(cli: Cli, daemon: FakeDaemon) -> None:
    cli("run", "tiny", "--think", "low", "tide?")
    cli("run", "tiny", "hi")
    cli("run", "tiny", "--", "--think", "twice")
    cli("run", "tiny", "hi", "--system", "--think")
    first, second, third, fourth = daemon.bodies(CHAT)
    assert first["messages"][0]["content"] == "low tide?" and first["reasoning_effort"] == "high"
    assert "reasoning_effort" not in second
    assert third["messages"][0]["content"] == "--think twice" and "reasoning_effort" not in third
    assert fourth["messages"][0]["content"] == "--think" and "reasoning_effort" not in fourth


def test_chat_thinks_as_told(cli: Cli, daemon: FakeDaemon) -> None:
    assert cli("chat", "tiny", "--think=false", stdin="hi").code == 0
    assert daemon.bodies(CHAT)[0]["reasoning_effort"] == "none"


def test_a_level_that_is_none_is_a_sentence_and_a_next_step(cli: Cli, daemon: FakeDaemon) -> None:
    with pytest.raises(UsageError) as caught:
        thinking_fields("hard")
    assert "'hard'" in caught.value.message and "low" in caught.value.hint
    assert cli("run", "tiny", "hi", "--think=hard").code == 2 and not daemon.requests


def test_a_model_that_does_not_think_is_said_in_the_words_of_the_command_line(cli: Cli, daemon: FakeDaemon) -> None:
    refusal = {"message": "tiny does not reason", "code": "invalid_value", "param": "reasoning_effort"}
    daemon.answers = [[{"error": {**refusal, "hint": "leave `reasoning_effort` out"}}]]
    outcome = cli("run", "tiny", "hi", "--think")
    assert outcome.err == "Error: tiny does not reason\n  leave --think out\n" and outcome.code != 0
