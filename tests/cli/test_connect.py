"""Where commands look for their daemon: LOCALLLM_HOST, then OLLAMA_HOST as far as a localllm answers there."""

import socket
from collections.abc import Iterator

import pytest

from localllm.cli import connect
from localllm.cli.connect import address_url, elsewhere
from localllm.client import Client, transport
from localllm.errors import DaemonUnreachable
from localllm.settings import Settings, load_settings
from tests.cli.conftest import Cli
from tests.cli.fake_daemon import FakeDaemon


@pytest.fixture(autouse=True)
def _asks_anew() -> Iterator[None]:
    connect._answers_as_ours.cache_clear()
    yield
    connect._answers_as_ours.cache_clear()


def settings_of(**env: str) -> Settings:
    return load_settings({"LOCALLLM_HOME": "/nowhere", **env})


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("192.0.2.1", "http://192.0.2.1:11434"),
        ("192.0.2.1:8080", "http://192.0.2.1:8080"),
        ("http://192.0.2.1", "http://192.0.2.1:80"),
        ("http://192.0.2.1:1/", "http://192.0.2.1:1"),
        (":8080", "http://127.0.0.1:8080"),
        ("", "http://127.0.0.1:11434"),
        ('"192.0.2.1"', "http://192.0.2.1:11434"),
        ("[2001:db8::1]", "http://[2001:db8::1]:11434"),
        ("[2001:db8::1]:9", "http://[2001:db8::1]:9"),
        ("https://192.0.2.1", None),
        ("192.0.2.1/path", None),
        ("192.0.2.1:port", None),
        ("user:secret@192.0.2.1", None),
    ],
)
def test_addresses_are_read_as_ollama_reads_them(text: str, url: str | None) -> None:
    assert address_url(text, 11434) == url


def test_no_setting_means_this_machine() -> None:
    assert elsewhere(settings_of()) is None


def test_our_own_variable_wins_over_ollamas() -> None:
    assert elsewhere(settings_of(LOCALLLM_HOST="192.0.2.1:1", OLLAMA_HOST="192.0.2.2")) == "http://192.0.2.1:1"
    assert elsewhere(settings_of(LOCALLLM_HOST="127.0.0.1", OLLAMA_HOST="192.0.2.2")) is None


@pytest.mark.parametrize("host", ["0.0.0.0", "127.0.0.1:11434", "localhost", "http://0.0.0.0:11434"])
def test_an_ollama_of_this_machine_changes_nothing(host: str) -> None:
    settings = settings_of(OLLAMA_HOST=host)
    assert elsewhere(settings) is None
    assert (settings.host, settings.port) == ("127.0.0.1", 11435), "the daemon listens where it always does"


def test_a_daemon_at_ollamas_address_is_used(daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connect, "is_this_machine", lambda host: False)
    assert elsewhere(settings_of(OLLAMA_HOST=daemon.url)) == daemon.url


def test_another_server_at_ollamas_address_is_passed_over_and_that_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(connect, "is_this_machine", lambda host: False)
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{nobody.getsockname()[1]}"
        settings = settings_of(OLLAMA_HOST=address)
        assert [elsewhere(settings), elsewhere(settings)] == [None, None]
    assert capsys.readouterr().err.count(f"OLLAMA_HOST leads to http://{address}, where no localllm answers") == 1


def test_a_program_that_says_nothing_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "HEALTH_TIMEOUT_S", 0.1)
    monkeypatch.setattr(connect, "is_this_machine", lambda host: False)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        assert elsewhere(settings_of(OLLAMA_HOST=address)) is None
        with pytest.raises(DaemonUnreachable, match="does not answer"):
            Client(f"http://{address}").health()


def test_an_address_that_is_none_keeps_nobody_from_working(capsys: pytest.CaptureFixture[str]) -> None:
    assert elsewhere(settings_of(OLLAMA_HOST="https://example.org/ollama")) is None
    assert "cannot be talked to" in capsys.readouterr().err


def test_our_own_setting_is_believed_without_asking() -> None:
    assert elsewhere(settings_of(LOCALLLM_REMOTE="192.0.2.1")) == "http://192.0.2.1:11435"


def test_the_setting_says_what_it_does_not_do(cli: Cli) -> None:
    assert "the daemon itself never listens there" in cli("config", "list").out.replace("\n", " ")
