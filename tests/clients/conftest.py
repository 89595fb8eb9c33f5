"""One real daemon with the real small model, for other people's clients. One test process owns it."""

import gc
import json
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from localllm.errors import LocalLLMError
from localllm.settings import load_settings
from localllm.store.library import Library

COMMAND = [sys.executable, "-c", "from localllm.cli.app import main; main()"]
MODEL = "smollm2:135m"
DEFAULT_TOKENS = 48
"""Of an answer whose request sets no limit."""
STARTUP_S = 60


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All of this folder in one process, so that there is one daemon."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.xdist_group("clients"))


@pytest.fixture(scope="session")
def model() -> str:
    """The name of the small model."""
    return MODEL


@pytest.fixture(scope="session")
def model_path(request: pytest.FixtureRequest) -> Path:
    """The file of the small model; without it, or without the kernels that run it in reasonable time, there is nothing
    to test."""
    pytest.importorskip("localllm.backends.cpu._native", reason="the native kernels have not been built")
    try:
        home: Path = request.getfixturevalue("small_model_home")
    except LocalLLMError as error:
        pytest.skip(f"the small model is not here: {error}")
    return Path(Library(load_settings({"LOCALLLM_HOME": str(home)})).find(MODEL).path)


@pytest.fixture(scope="session")
def daemon_url(model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address, without a path, of `localllm serve` in a home of its own, offline, on a free port."""
    home = tmp_path_factory.mktemp("clients-home")
    foreign = ("LOCALLLM_", "OLLAMA_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    env = {**kept, "LOCALLLM_HOME": str(home), "LOCALLLM_PORT": "0", "LOCALLLM_OFFLINE": "1"}
    env["LOCALLLM_BACKEND"] = "cpu"  # a fresh home would measure all of them before the first answer
    _create_model(model_path, home, env)
    with open(home / "output.txt", "w") as output:
        process = subprocess.Popen([*COMMAND, "serve"], env=env, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    try:
        yield _url(process, home, load_settings(env).address_file)
    finally:
        process.terminate()
        process.wait(30)


def _create_model(file: Path, home: Path, env: dict[str, str]) -> None:
    modelfile = home / "Modelfile"
    modelfile.write_text(f"FROM {file}\nPARAMETER num_predict {DEFAULT_TOKENS}\n")
    done = subprocess.run(
        [*COMMAND, "create", MODEL, "-f", str(modelfile)], env=env, capture_output=True, text=True, timeout=STARTUP_S
    )
    assert done.returncode == 0, done.stderr


def _url(process: "subprocess.Popen[bytes]", home: Path, address_file: Path) -> str:
    """Where the daemon listens, as soon as it says so."""
    deadline = time.monotonic() + STARTUP_S
    while not address_file.exists():
        assert process.poll() is None and time.monotonic() < deadline, (home / "output.txt").read_text()
        time.sleep(0.05)
    address = json.loads(address_file.read_text())
    return f"http://{address['host']}:{address['port']}"


@pytest.fixture(autouse=True, scope="module")
def _leftovers() -> Iterator[None]:
    """Sockets that other people's clients leave open are collected here, not in the middle of somebody's test."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@pytest.fixture(scope="session")
def client(daemon_url: str) -> Iterator[openai.OpenAI]:
    """OpenAI's own client; what it gets has to fit its types. It tries nothing twice."""
    with openai.OpenAI(**_own(daemon_url), _strict_response_validation=True) as client:
        yield client


@pytest.fixture(scope="session")
def lax_client(daemon_url: str) -> Iterator[openai.OpenAI]:
    """For answers that do not fit the types of OpenAI's client, and would not if OpenAI wrote them."""
    with openai.OpenAI(**_own(daemon_url)) as client:
        yield client


def _own(daemon_url: str) -> dict[str, Any]:
    return {"base_url": f"{daemon_url}/v1", "api_key": "any", "max_retries": 0, "timeout": 60}
