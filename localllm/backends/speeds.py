"""How fast the backends are on this machine: asked of a self-test once, then remembered in the home's cache.

The self-test runs each backend in a process of its own (see measure.py). What was measured holds as long as program,
machine, and the versions of the libraries stay the same.
"""

from __future__ import annotations

import contextlib
import glob
import logging
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import msgspec

from localllm.backends.trial import OVERHEAD, WEIGHTS

logger = logging.getLogger("localllm.backends")

FILE_NAME = "backends.json"
TRIALS_VERSION = "1"
"""Rises with every change of what is measured."""
TIMEOUT_S = 60.0
"""Of one backend's self-test, most of which is the import of its library."""
PROMPT_STEPS, DECODE_STEPS = 8, 128
"""What backends are compared by: a prompt of eight chunks, and an answer."""
CPU_MARGIN = 1.25
"""How much faster than the CPU backend another one must be: it costs seconds of imports and much memory."""


@dataclass(frozen=True, slots=True)
class Work:
    """A model as far as time goes: the weights of its layers that one token meets."""

    num_layers: int
    num_weights: int


BILLION = Work(16, 10**9)
"""What doctor speaks of: a model like Llama 3.2 1B."""


class Speed(msgspec.Struct, frozen=True):
    """Seconds per step of the two trials of trial.py, decoding a token and reading a chunk of a prompt. `problem`: why
    there are none."""

    backend: str
    device: str = ""
    decode_small_s: float = 0.0
    decode_large_s: float = 0.0
    prompt_small_s: float = 0.0
    prompt_large_s: float = 0.0
    problem: str = ""

    def decode_s(self, work: Work) -> float:
        """Seconds for one token of such a model."""
        return _extrapolated(self.decode_small_s, self.decode_large_s, work)

    def turn_s(self, work: Work) -> float:
        """Seconds for a question and its answer."""
        prompt_s = _extrapolated(self.prompt_small_s, self.prompt_large_s, work)
        return PROMPT_STEPS * prompt_s + DECODE_STEPS * self.decode_s(work)


def _extrapolated(small_s: float, large_s: float, work: Work) -> float:
    """From the two trials the seconds per layer and per weight, and from these the seconds of `work`."""
    small, large = (Work(trial.num_layers, trial.num_weights) for trial in (OVERHEAD, WEIGHTS))
    determinant = small.num_layers * large.num_weights - large.num_layers * small.num_weights
    per_layer = (small_s * large.num_weights - large_s * small.num_weights) / determinant
    per_weight = (small.num_layers * large_s - large.num_layers * small_s) / determinant
    if per_layer < 0:
        per_layer, per_weight = 0.0, large_s / large.num_weights
    if per_weight < 0:
        per_layer, per_weight = small_s / small.num_layers, 0.0
    return work.num_layers * per_layer + work.num_weights * per_weight


class _Table(msgspec.Struct):
    """The file: facts of the machine, and per block type (and threads) what was measured."""

    facts: dict[str, str]
    speeds: dict[str, list[Speed]] = {}


class Speeds:
    """The remembered speeds of one home. `threads` as in the settings: another number is another measurement."""

    def __init__(self, cache_dir: str | Path, threads: int = 0) -> None:
        self._path = Path(cache_dir) / FILE_NAME
        self._threads = threads
        self._unwritten: _Table | None = None

    def known(self, kind: str) -> list[Speed]:
        """What was measured for weights of this block type; empty when nothing was, or on another machine."""
        return self._read().speeds.get(self._key(kind), [])

    def measure(self, kinds: Sequence[str], backends: Sequence[str]) -> None:
        """Run the self-tests, one backend after another, and remember what they say."""
        tables = [self_test(backend, kinds, self._threads) for backend in backends]
        table = self._read()
        for kind in kinds:
            table.speeds[self._key(kind)] = [speed for found in tables for speed in found[kind]]
        self._write(table)

    def _key(self, kind: str) -> str:
        return f"{kind}/{self._threads}"

    def _read(self) -> _Table:
        if self._unwritten is not None:
            return self._unwritten
        facts = machine_facts()
        try:
            table = msgspec.json.decode(self._path.read_bytes(), type=_Table)
        except (OSError, msgspec.DecodeError):
            return _Table(facts)
        return table if table.facts == facts else _Table(facts)

    def _write(self, table: _Table) -> None:
        partial = self._path.with_name(f".{FILE_NAME}.{os.getpid()}.tmp")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            partial.write_bytes(msgspec.json.format(msgspec.json.encode(table), indent=1))
            os.replace(partial, self._path)
        except OSError as error:  # a read-only home costs each load the time of measuring, and nothing else
            self._unwritten = table
            with contextlib.suppress(OSError):
                partial.unlink()
            logger.warning("the speeds of backends cannot be remembered: %s", error)


def machine_facts() -> dict[str, str]:
    """What a speed depends on. Imports none of the libraries it names."""
    return {
        "localllm": package_version("localllm"),
        "trials": TRIALS_VERSION,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cpu": _cpu_name(),
        "cores": str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()),
        "torch": package_version("torch"),
        "mlx": package_version("mlx"),
        "gpus": " ".join(sorted(glob.glob("/dev/nvidia[0-9]*"))),
        "visible": os.environ.get("CUDA_VISIBLE_DEVICES", "all"),
    }


def package_version(name: str) -> str:
    """Empty when it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _cpu_name() -> str:
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
        for line in file:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def self_test(backend: str, kinds: Sequence[str], threads: int) -> Mapping[str, list[Speed]]:
    """What a backend's own process says of it, per block type; a crash or silence is a problem of the backend."""
    command = [sys.executable, "-m", "localllm.backends.measure", backend, ",".join(kinds), str(threads)]
    logger.info("measuring the %s backend", backend)
    try:
        done = subprocess.run(command, capture_output=True, timeout=TIMEOUT_S, env=_environment(), check=False)
        return msgspec.json.decode(done.stdout.splitlines()[-1], type=dict[str, list[Speed]])
    except subprocess.TimeoutExpired:
        problem = f"its self-test did not end within {TIMEOUT_S:.0f} s"
    except (OSError, IndexError, msgspec.DecodeError) as error:
        problem = f"its self-test failed ({error or type(error).__name__})"
        with contextlib.suppress(NameError):
            problem = f"its self-test ended with status {done.returncode}{_last_line(done.stderr)}"
    return {kind: [Speed(backend, problem=problem)] for kind in kinds}


def _last_line(said: bytes) -> str:
    lines = said.decode("utf-8", "replace").strip().splitlines()
    return f" ({lines[-1][:200]})" if lines else ""


def _environment() -> Mapping[str, str]:
    """Ours, made so that the child finds this package wherever it was started from."""
    root = Path(__file__).resolve().parents[2]
    if root.name in ("site-packages", "dist-packages"):
        return os.environ
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))}
