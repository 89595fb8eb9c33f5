"""`config`: what is set is read back, comments survive, mistakes name the next step."""

import json
import os
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localllm.cli.config_file import set_in_file, unset_in_file
from localllm.settings import SETTINGS, load_settings
from tests.cli.conftest import Cli


def config_file() -> Path:
    return Path(os.environ["LOCALLLM_HOME"]) / "config.toml"


def test_a_value_that_was_set_is_in_force_and_its_origin_is_the_file(cli: Cli) -> None:
    assert cli("config", "set", "keep_alive", "1h").code == 0
    assert cli("config", "get", "keep_alive").out == "1h\n"
    assert cli("config", "get", "keep_alive", "--origin").out == "1h    config file\n"


def test_for_ever_is_minus_one_and_no_option(cli: Cli) -> None:
    assert cli("config", "set", "keep_alive", "-1").code == 0
    assert cli("config", "get", "keep_alive").out == "-1\n"


def test_unset_brings_the_default_back(cli: Cli) -> None:
    cli("config", "set", "port", "12000")
    assert cli("config", "unset", "port").code == 0
    assert cli("config", "get", "port").out == "11435\n"
    assert cli("config", "unset", "port").code == 2


def test_environment_wins_and_says_so(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCALLLM_THREADS", "3")
    shown = json.loads(cli("config", "get", "threads", "--json").out)
    assert shown["value"] == 3 and shown["origin"] == "environment (LOCALLLM_THREADS)"


@pytest.mark.parametrize(("name", "value"), [("BACKEND", "nonsense"), ("THREADS", "many"), ("PORT", "-1")])
def test_a_wrong_environment_is_named(name: str, value: str, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"LOCALLLM_{name}", value)
    wrong = cli("config", "list")
    assert wrong.code == 2 and f"correct or unset LOCALLLM_{name}" in wrong.err


def test_the_list_names_every_setting(cli: Cli) -> None:
    rows = json.loads(cli("config", "list", "--json").out)
    assert [row["name"] for row in rows] == [row.name for row in SETTINGS]
    assert all(row.name in cli("config", "list").out for row in SETTINGS)


def test_a_wrong_type_and_a_wrong_name_are_refused(cli: Cli) -> None:
    wrong = cli("config", "set", "port", "many")
    assert wrong.code == 2 and "port must be a whole number" in wrong.err and not config_file().exists()
    unknown = cli("config", "get", "keep_alve")
    assert unknown.code == 2 and "did you mean keep_alive?" in unknown.err


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("port", "70000", "between 0 and 65535"),
        ("threads", "-1", "between 0 and 256"),
        ("page_size", "0", "at least 1"),
        ("hub_timeout_s", "nan", "at least 0.1"),
        ("offline", "maybe", "true or false"),
        ("log_level", "loud", "one of debug, info, warning, error"),
        ("keep_alive", "soon", "a duration such as 5m"),
        ("backend", "abacus", "one of auto, cpu, torch, metal, reference, not 'abacus'"),
    ],
)
def test_a_value_that_makes_no_sense_is_not_written(cli: Cli, name: str, value: str, said: str) -> None:
    refused = cli("config", "set", name, value)
    assert refused.code != 0 and said in refused.err and not config_file().exists()


@pytest.mark.parametrize("host", ["nonsense:::", "127.0.0.1:99999", "two words"])
def test_an_address_that_cannot_be_one_is_named(cli: Cli, host: str) -> None:
    refused = cli("--host", host, "list")
    assert refused.code == 2 and host.rpartition(":")[2] in refused.err


@pytest.mark.parametrize(
    ("host", "address"),
    [("[::1]:80", ("::1", 80)), ("http://box.local:81/", ("box.local", 81)), ("fe80::1", ("fe80::1", 11435))],
)
def test_addresses_come_with_and_without_scheme_and_port(host: str, address: tuple[str, int]) -> None:
    settings = load_settings({"LOCALLLM_HOST": host, "LOCALLLM_HOME": "/nowhere"})
    assert (settings.host, settings.port) == address


def test_comments_order_and_tables_survive_an_edit(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text('# mine\nport = 1 # odd\nhost = "a#b"  # remark\n')
    set_in_file(path, "port", 2)
    set_in_file(path, "host", "c")
    set_in_file(path, "offline", True)
    assert path.read_text() == '# mine\nport = 2 # odd\nhost = "c"  # remark\noffline = true\n'
    assert unset_in_file(path, "port") and not unset_in_file(path, "port")
    assert path.read_text() == '# mine\nhost = "c"  # remark\noffline = true\n'


def test_a_broken_file_is_not_overwritten(cli: Cli) -> None:
    config_file().parent.mkdir(parents=True, exist_ok=True)
    config_file().write_text("port = = 1\n")
    outcome = cli("config", "set", "threads", "2")
    assert outcome.code == 2 and "not valid TOML" in outcome.err
    assert config_file().read_text() == "port = = 1\n"


printable = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=30)


@given(printable, printable)
def test_any_text_is_read_back_as_it_was_set(tmp_path_factory: pytest.TempPathFactory, first: str, second: str) -> None:
    path = tmp_path_factory.mktemp("config") / "config.toml"
    set_in_file(path, "host", first)
    set_in_file(path, "host", second)
    assert tomllib.loads(path.read_text()) == {"host": second}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"port = " + b"[" * 100_000, "nested too deeply"),
        (b"port = " + b"9" * 5000, "thousands of digits"),
        (b"\xff\xfe", "not valid TOML"),
        (b"#" * 2_000_000, "larger than"),
        (b'keep_alive = "bananas"', "a duration such as 5m"),
        (b"kv_pages = 99999999999999999999", "between 0 and 2147483647"),
        (b"context_length = 4294967296", "between 0 and 2147483647"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_config_file_that_makes_no_sense_is_one_sentence(cli: Cli, content: bytes, said: str) -> None:
    config_file().write_bytes(content)
    refused = cli("list")
    assert refused.code == 2 and said in refused.err and len(refused.err) < 500


def test_a_config_file_may_begin_with_the_mark_that_some_editors_write(cli: Cli) -> None:
    config_file().write_bytes(b"\xef\xbb\xbfport = 12000\r\n")
    assert cli("config", "get", "port").out == "12000\n"
    assert cli("config", "set", "port", "12001").code == 0
    assert cli("config", "get", "port").out == "12001\n"


def test_a_home_that_is_a_file_is_called_so(cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    home = tmp_path / "file"
    home.write_text("no folder")
    monkeypatch.setenv("LOCALLLM_HOME", str(home))
    refused = cli("list")
    assert refused.code == 2 and f"{home} is no folder" in refused.err and "LOCALLLM_HOME" in refused.err


@pytest.mark.parametrize("kind", ["folder", "pipe", "loop", "zeros"])
def test_what_is_no_file_is_no_config_file(cli: Cli, kind: str) -> None:
    path = config_file()
    make = {"folder": path.mkdir, "pipe": lambda: os.mkfifo(path), "loop": lambda: path.symlink_to(path.name)}
    make.get(kind, lambda: path.symlink_to("/dev/zero"))()
    refused = cli("list")
    assert refused.code == 2 and "config.toml cannot be read" in refused.err
