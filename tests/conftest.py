"""Worlds that several rooms' tests share: an isolated home, the real small model, deterministic hypothesis."""

import fcntl
import os
import signal
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings

from localllm.settings import load_settings
from localllm.store.library import Library

hypothesis_settings.register_profile(
    "house", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
hypothesis_settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "house"))

SMALL_MODEL = "smollm2:135m"


def pytest_configure() -> None:
    """A shell has what it starts in the background pass over Ctrl-C, down to the programs that tests press it for."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def _new_homes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One after another, in one folder: the factory would look through all it has made for each of thousands."""
    folder = tmp_path_factory.mktemp("homes")
    return (folder / str(number) for number in count())


@pytest.fixture(autouse=True)
def _isolated_home(_new_homes: Iterator[Path], monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No test reads this user's settings, models or daemon."""
    for name in [name for name in os.environ if name.startswith(("LOCALLLM_", "OLLAMA_"))]:
        if not name.startswith("LOCALLLM_TEST_"):
            monkeypatch.delenv(name)
    home = next(_new_homes)
    home.mkdir(mode=0o700)
    monkeypatch.setenv("LOCALLLM_HOME", str(home))
    yield


@pytest.fixture(scope="session")
def small_model_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home into which the real SmolLM2-135M was pulled by our own `pull`: the one thing tests fetch.

    Shared by all test processes of a run; LOCALLLM_TEST_HOME keeps it between runs.
    """
    kept = os.environ.get("LOCALLLM_TEST_HOME")
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base
    home = Path(kept) if kept else shared / "small-model-home"
    home.mkdir(parents=True, exist_ok=True)
    with open(home / "pull.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        library = Library(load_settings({"LOCALLLM_HOME": str(home)} | _proxies()))
        if not any(entry.name == SMALL_MODEL for entry in library.entries()):
            library.pull(SMALL_MODEL, lambda event: None)
    return home


def _proxies() -> dict[str, str]:
    return {name: os.environ[name] for name in ("HF_ENDPOINT", "HF_HUB_OFFLINE") if name in os.environ}


@pytest.fixture(scope="session")
def small_model_file(small_model_home: Path) -> Path:
    """The GGUF file of SmolLM2-135M-Instruct Q4_1."""
    library = Library(load_settings({"LOCALLLM_HOME": str(small_model_home)}))
    return Path(library.find(SMALL_MODEL).path)
