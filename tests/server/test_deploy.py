"""The files under scripts/deploy: that their owners can read them, and that they say what the daemon does."""

import configparser
import json
import plistlib
import re
import shlex
from pathlib import Path

import pytest

from localllm.errors import UsageError
from localllm.server.guard import callers_for
from localllm.server.serving import DRAIN_S
from localllm.settings import DEFAULT_PORT, SETTINGS, load_settings

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "scripts" / "deploy"
DOCUMENT = (ROOT / "docs" / "deploy.md").read_text()
FILES = {path.name: path.read_text() for path in sorted(DEPLOY.iterdir())}


def instructions() -> list[tuple[str, str]]:
    """Of the container file: name and argument, continued lines joined."""
    text = re.sub(r"\\\n\s*", "", FILES["Containerfile"])
    lines = (line for line in text.splitlines() if line and not line.startswith("#"))
    return [(line.split()[0], line.partition(" ")[2].strip()) for line in lines]


def environment() -> dict[str, str]:
    return dict(
        pair.split("=", 1) for name, argument in instructions() if name == "ENV" for pair in shlex.split(argument)
    )


def unit() -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None, strict=True)
    parser.optionxform = str  # type: ignore[assignment,method-assign]  # systemd's names have capitals
    parser.read_string(FILES["localllm.service"])
    return parser


def test_the_unit_runs_the_daemon_and_gives_answers_their_time() -> None:
    service = unit()["Service"]
    assert service["ExecStart"].endswith("/localllm serve") and service["Type"] == "exec"
    assert int(service["TimeoutStopSec"]) > DRAIN_S and service["KillMode"] == "mixed"
    assert service["Restart"] == "on-failure" and service["OOMPolicy"] == "continue"
    assert unit()["Install"]["WantedBy"] == "default.target"


def test_what_trying_again_cannot_mend_is_not_tried_again() -> None:
    from localllm.errors import DaemonUnreachable

    never = unit()["Service"]["RestartPreventExitStatus"].split()
    assert set(never) == {str(UsageError.exit_code), str(DaemonUnreachable.exit_code)}


def test_the_property_list_is_one_and_says_the_same() -> None:
    listed = plistlib.loads(FILES["localllm.plist"].encode())
    assert listed["Label"] == "localllm" and listed["RunAtLoad"] is True
    assert "exec localllm serve" in listed["ProgramArguments"][-1]
    assert listed["KeepAlive"] == {"SuccessfulExit": False} and listed["ExitTimeOut"] > DRAIN_S
    assert listed["Umask"] == 0o077


def test_the_container_runs_the_daemon_as_nobody_in_particular() -> None:
    names = [name for name, _ in instructions()]
    found = dict(instructions())
    assert found["USER"] not in ("root", "0") and names.index("USER") < names.index("CMD")
    assert json.loads(found["ENTRYPOINT"]) + json.loads(found["CMD"]) == ["localllm", "serve"]
    assert found["EXPOSE"] == environment()["LOCALLLM_PORT"] == str(DEFAULT_PORT)
    assert found["VOLUME"] == environment()["LOCALLLM_HOME"] and found["STOPSIGNAL"] == "SIGTERM"
    assert all(re.search(r":\d", argument.split()[0]) for name, argument in instructions() if name == "FROM")


def test_the_container_asks_for_its_health_where_the_daemon_tells_it() -> None:
    command = json.loads(dict(instructions())["HEALTHCHECK"].partition("CMD ")[2])
    compile(command[2], "healthcheck", "exec")
    assert f"127.0.0.1:{DEFAULT_PORT}/health" in command[2]


def test_the_container_does_not_start_open_to_everybody(tmp_path: Path) -> None:
    given = {**environment(), "LOCALLLM_HOME": str(tmp_path)}
    with pytest.raises(UsageError, match="needs an API key"):
        callers_for(load_settings(given))
    assert callers_for(load_settings(given | {"LOCALLLM_API_KEYS": "choose-one"})).are_named


@pytest.mark.parametrize("name", sorted(FILES))
def test_every_setting_that_is_named_exists_and_every_file_is_explained(name: str) -> None:
    known = {row.env for row in SETTINGS} | {"LOCALLLM_HOME"}
    assert set(re.findall(r"LOCALLLM_[A-Z_]+", FILES[name] + DOCUMENT)) <= known
    assert f"scripts/deploy/{name}" in DOCUMENT


def test_what_the_document_says_of_exit_statuses_is_so() -> None:
    rows = dict(re.findall(r"^\| (\d) \| ([^|]+?) \|$", DOCUMENT, re.MULTILINE))
    assert set(rows) == {"0", "1", "2", "3"}
    from localllm.errors import DaemonUnreachable, PortInUse

    assert (UsageError.exit_code, DaemonUnreachable.exit_code, PortInUse.exit_code) == (2, 3, 1)
