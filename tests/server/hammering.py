"""schemathesis against a daemon over toy models: every route as `/openapi.json` describes it, all phases, good data and
bad. `scripts/hammer` runs it for long, test_schemathesis.py for a minute."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import schemathesis

from tests.server.world import World, daemon

CONFIG = Path(__file__).with_name("schemathesis.toml")
KEY = "hammer"


@dataclass(frozen=True, slots=True)
class Found:
    """`calls`: cases that were sent. `text`: what schemathesis printed."""

    calls: int
    failures: list[str]
    seconds: float
    text: str


def hammer(home: Path, max_examples: int, *phases: str, seed: int = 1, limit_s: int = 0) -> Found:
    """`max_examples` bounds the cases of an operation in one phase of chance, `limit_s` the whole run (0: not)."""
    with daemon(home, api_keys=KEY, default_model="toy:1b", max_queue=64) as world:
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


@schemathesis.hook
def map_body(context, body):  # type: ignore[no-untyped-def]  # schemathesis calls it by these names
    """Half of the names become that of a model that is there: what chance makes never is."""
    if isinstance(body, dict) and isinstance(body.get("model"), str) and len(body["model"]) % 2:
        return body | {"model": "toy:1b"}
    return body
