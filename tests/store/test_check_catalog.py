"""`scripts/check_catalog` against the hub on loopback."""

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.store.worlds import FakeHub

SCRIPT = Path(__file__).parents[2] / "scripts" / "check_catalog"
FILE = "SmolLM2-135M-Instruct-Q8_0.gguf"


def run(endpoint: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HF_ENDPOINT": endpoint}
    command = [sys.executable, str(SCRIPT), "--json", "smollm2:135m"]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_an_entry_that_agrees_with_the_hub_is_ok(hub: FakeHub) -> None:
    hub.repos = {
        "unsloth/SmolLM2-135M-Instruct-GGUF": {FILE: b"x"},
        "HuggingFaceTB/SmolLM2-135M-Instruct": {"config.json": b"{}"},
    }
    hub.license = "apache-2.0"
    result = run(hub.endpoint)
    assert [item["kind"] for item in json.loads(result.stdout)] == ["ok"], result.stderr
    assert result.returncode == 0


def test_what_differs_is_named(hub: FakeHub) -> None:
    hub.repos = {"unsloth/SmolLM2-135M-Instruct-GGUF": {"SmolLM2-Q4_0.gguf": b"x"}}
    result = run(hub.endpoint)
    assert [item["kind"] for item in json.loads(result.stdout)] == ["file", "license", "original"]
    assert result.returncode == 1


def test_an_unreachable_hub_is_said_and_nothing_is_claimed() -> None:
    result = run("http://127.0.0.1:9")
    assert (result.returncode, result.stdout) == (7, "")
    assert "cannot be reached" in result.stderr
