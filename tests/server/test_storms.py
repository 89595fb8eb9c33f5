"""The storms of `scripts/storm`, short: what they promise holds for seconds, too."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
TIMING = {"refusals took longer than 20 ms"}
"""Promises of an idle machine, which one that runs tests is not."""


def storm(tmp_path: Path, *args: str) -> dict[str, Any]:
    """The figures of a storm that broke no promise but one of an idle machine."""
    figures = tmp_path / "figures.json"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "scripts" / "storm"), *args, "--json", str(figures)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=100, check=False)
    assert figures.exists(), done.stderr
    told: dict[str, Any] = json.loads(figures.read_text())
    assert set(told["broken"]) <= TIMING, done.stdout
    assert done.returncode == (1 if told["broken"] else 0)
    return told


def test_clients_that_leave_at_any_moment_cost_no_page(tmp_path: Path) -> None:
    told = storm(tmp_path, "aborts", "--count", "200")
    assert told["aborts"] == 200 and told["answers finished meanwhile"] >= 4


def test_every_stream_of_a_killed_worker_is_told_and_service_comes_back(tmp_path: Path) -> None:
    told = storm(tmp_path, "kills", "--count", "2", "--streams", "16")
    assert told["streams told, worst s"] <= 1.0


def test_under_overload_whoever_is_let_in_gets_an_answer(tmp_path: Path) -> None:
    told = storm(tmp_path, "overload", "--seconds", "3", "--factor", "10")
    assert told["refused"] > told["accepted"] > 0
