"""A second port, for programs that look for Ollama where it always is."""

import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from localllm.daemon.lifecycle import ensure_daemon, stop_daemon
from localllm.settings import Settings, load_settings
from tests.server.toy_daemon import COMMAND


@pytest.fixture
def settings(tmp_path: Path) -> Iterator[Settings]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (tmp_path / "config.toml").write_text(f"ollama_port = {port}\n")
    settings = load_settings({"LOCALLLM_HOME": str(tmp_path)}, port=0)
    yield settings
    stop_daemon(settings)


def version_at(port: int) -> str:
    with httpx.Client(trust_env=False, timeout=10) as client:
        return str(client.get(f"http://127.0.0.1:{port}/api/version").json()["version"])


def test_both_ports_lead_to_one_daemon(settings: Settings) -> None:
    address = ensure_daemon(settings, command=COMMAND)
    assert address.port != settings.ollama_port
    assert version_at(address.port) == version_at(settings.ollama_port)
    assert stop_daemon(settings)
    with pytest.raises(httpx.ConnectError):
        version_at(settings.ollama_port)


def test_a_port_that_another_program_has_keeps_no_daemon_from_running(settings: Settings) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", settings.ollama_port))
        other.listen()
        assert version_at(ensure_daemon(settings, command=COMMAND).port)
    log = settings.log_file.read_text()
    assert f"{settings.ollama_port} is in use by another program" in log and "do not find localllm" in log
