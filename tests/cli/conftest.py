"""A command line to type into, in this process or in a new one, and a scripted daemon to talk to."""

import io
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import pytest

from localllm.cli.commands import build_app
from localllm.cli.failures import run_guarded
from localllm.client import Client
from tests.cli.fake_daemon import FakeDaemon, fake_daemon

ROOT = Path(__file__).parents[2]
TALKERS = ("connect", "run", "loaded", "requests", "version", "doctor", "embed", "batch", "bench_serve")


@dataclass(frozen=True, slots=True)
class Outcome:
    code: int
    out: str
    err: str


Cli = Callable[..., Outcome]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Types a command line; `stdin` is what is piped in."""

    def typed(*args: str, stdin: str = "") -> Outcome:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode()), encoding="utf-8"))
        code = run_guarded(lambda: build_app()(args=list(args), prog_name="localllm"))
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return typed


@pytest.fixture
def daemon(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeDaemon]:
    """A scripted daemon that the command line finds as this home's own."""
    for module in TALKERS:
        import_module(f"localllm.cli.{module}")  # what is imported under the patches below would keep them
    with fake_daemon() as server:
        for module in TALKERS:
            for name in ("started_client", "running_client"):
                monkeypatch.setattr(
                    f"localllm.cli.{module}.{name}", lambda settings: Client(server.url), raising=module == "connect"
                )
        yield server


@pytest.fixture
def no_daemon(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("connect", "loaded", "requests", "version", "doctor"):
        monkeypatch.setattr(f"localllm.cli.{module}.running_client", lambda settings: None)


def in_new_process(*args: str, code: str = "from localllm.cli.app import main; main()", stdin: str = "") -> Outcome:
    """The same command line in a process of its own: for imports, exit codes and pipes."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code, *args], input=stdin, capture_output=True, text=True, env=environment, timeout=60
    )
    return Outcome(done.returncode, done.stdout, done.stderr)
