"""schemathesis against a daemon over toy models: every route as `/openapi.json` describes it, all phases, good data and
bad. `scripts/hammer` runs it for long, test_schemathesis.py for a minute.

What the description allows is to be accepted. What no schema can say may be refused, each refusal with its reason in
REASONS: one that is not there is a gap in the description, and fails.
"""

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import schemathesis

from tests.server.world import World, daemon

CONFIG = Path(__file__).with_name("schemathesis.toml")
KEY = "hammer"
MODEL = "toy:1b"


@dataclass(frozen=True, slots=True)
class Found:
    """`calls`: cases that were sent. `text`: what schemathesis printed."""

    calls: int
    failures: list[str]
    seconds: float
    text: str


def hammer(home: Path, max_examples: int, *phases: str, seed: int = 1, limit_s: int = 0) -> Found:
    """`max_examples` bounds the cases of an operation in one phase of chance, `limit_s` the whole run (0: not)."""
    with daemon(home, api_keys=KEY, default_model=MODEL, max_queue=64, max_tokens=16) as world:
        found = _run(world, home, max_examples, phases, seed, limit_s)
        assert world.client.get("/health").json()["status"] == "ok", "the daemon is not well"
        return found


def _run(world: World, home: Path, max_examples: int, phases: tuple[str, ...], seed: int, limit_s: int) -> Found:
    report = home / "report.json"
    command = [
        sys.executable, "-m", "schemathesis.cli", "--config-file", str(CONFIG), "run", world.url + "/openapi.json",
        "--checks", "all", "--mode", "all", "--max-examples", str(max_examples), "--seed", str(seed), "--no-color",
        "--request-timeout", "30", "--phases", ",".join(phases or ("examples", "coverage", "fuzzing", "stateful")),
        "--generation-database", "none", "--no-shrink", "--continue-on-failure", "--report-json-path", str(report),
        "-H", f"Authorization: Bearer {KEY}",
    ]  # fmt: skip
    command += ["--max-time", str(limit_s)] if limit_s else []
    environment = os.environ | {"SCHEMATHESIS_HOOKS": "tests.server.hammering", "PYTHONPATH": os.getcwd()}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if not report.exists():
        return Found(0, [f"schemathesis did not run: {done.stdout[-2000:]}{done.stderr[-2000:]}"], 0.0, done.stdout)
    told = json.loads(report.read_text())
    failures = [f"{each['code']} {each['title']}: {', '.join(each['operations'])}" for each in told["failures"]]
    failures += [str(error) for error in told["errors"]]
    return Found(told["test_cases"]["generated"], failures, told["running_time"], done.stdout)


# ---- what schemathesis calls while it runs


@schemathesis.hook
def map_body(context, body):  # type: ignore[no-untyped-def]  # schemathesis calls it by these names
    """Most names become that of a model that is there: what chance makes never is."""
    if isinstance(body, dict) and isinstance(body.get("model"), str) and len(body["model"]) % 8:
        return body | {"model": MODEL}
    return body


ASKING = r"/(completions|responses|responses/input_tokens|messages|messages/count_tokens|generate|chat)$"
TEMPLATES = r"/(tokenize|apply-template)$"
VECTORS = r"/(embeddings|rerank|score|embed)$"
REASONS: tuple[tuple[str, int, str], ...] = (
    (r".", 404, r"there is no|not found"),  # which names are known, no schema says
)
"""Paths, a status and how the message of a refusal begins or what is in it: what may be said to good data."""


@schemathesis.check
def refusals_of_good_data_have_a_reason(ctx: Any, response: Any, case: Any) -> bool | None:
    meta = case.meta
    if meta is None or not meta.generation.mode.is_positive or response.status_code < 400:
        return None
    message = _message_of(response)
    path, status = case.operation.path, response.status_code
    if any(re.search(where, path) and code == status and re.search(text, message) for where, code, text in REASONS):
        return None
    raise AssertionError(f"{status} without a reason known to {Path(__file__).name}: {message}")


def _message_of(response: Any) -> str:
    try:
        error = response.json()["error"]
    except (ValueError, KeyError, TypeError):
        return response.text[:200]
    return error if isinstance(error, str) else error["message"]
