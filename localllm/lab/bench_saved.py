"""Benchmark runs kept under names in the home, and whether two of them differ by more than their noise."""

from __future__ import annotations

import math
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from localllm.backends.speeds import machine_facts
from localllm.errors import StoreError, UsageError
from localllm.lab.bench_rows import Row

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
STANDARD_ERRORS = 2.0
COMPARED = ("model", "quantization", "size", "params", "backend", "device", "kv_type", "speculation")
COMPARED_FACTS = ("cpu", "cores", "localllm")


class Run(msgspec.Struct, frozen=True):
    """A kept run: when (seconds since the epoch), on what machine, and its rows."""

    saved_at: float
    machine: dict[str, str]
    rows: list[Row]


class SavedRuns:
    """The runs in one folder, a JSON file each."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def path_of(self, name: str) -> Path:
        """Where a run of this name is kept; UsageError for a name that is none."""
        if not NAME.fullmatch(name):
            raise UsageError(
                f"{name!r} is no name for a run",
                hint="take letters, digits, dots, dashes and underscores, 64 at most, and begin with a letter or digit",
            )
        return self._folder / f"{name}.json"

    def save(self, name: str, rows: Sequence[Row], machine: Mapping[str, str] | None = None) -> Path:
        """Keep a run, in place of an older one of that name."""
        path = self.path_of(name)
        run = Run(time.time(), dict(machine_facts() if machine is None else machine), list(rows))
        self._folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{name}.{os.getpid()}.tmp")
        partial.write_bytes(msgspec.json.format(msgspec.json.encode(run), indent=1) + b"\n")
        os.replace(partial, path)
        return path

    def load(self, name: str) -> Run:
        """UsageError when there is none, with the names that there are; StoreError when it cannot be read."""
        path = self.path_of(name)
        try:
            return msgspec.json.decode(path.read_bytes(), type=Run)
        except FileNotFoundError:
            known = ", ".join(self.names())
            raise UsageError(
                f"no run is kept as {name!r}", hint=f"there are: {known}" if known else "keep one with --save NAME"
            ) from None
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise StoreError(f"{path} holds no run: {error}", hint="remove it, and measure again") from None

    def names(self) -> list[str]:
        return sorted(path.stem for path in self._folder.glob("*.json") if NAME.fullmatch(path.stem))


@dataclass(frozen=True, slots=True)
class Pair:
    """The same work in two runs. `is_outside_noise` None: a run of one repetition does not know its noise."""

    test: str
    threads: int
    new_ts: float
    new_stddev_ts: float
    old_ts: float
    old_stddev_ts: float
    is_outside_noise: bool | None

    @property
    def ratio(self) -> float:
        return self.new_ts / self.old_ts if self.old_ts else math.nan

    @property
    def verdict(self) -> str:
        if self.is_outside_noise is None:
            return "one repetition: noise unknown"
        return ("faster" if self.new_ts > self.old_ts else "slower") if self.is_outside_noise else "within the noise"

    def as_json(self) -> dict[str, Any]:
        return {
            "ratio": self.ratio,
            "avg_ts": self.old_ts,
            "stddev_ts": self.old_stddev_ts,
            "is_outside_noise": self.is_outside_noise,
        }


@dataclass(frozen=True, slots=True)
class Comparison:
    """Pairs of rows with the same test and threads, and in words everything else that is not the same."""

    pairs: tuple[Pair, ...]
    differences: tuple[str, ...]

    def pair_of(self, row: Row) -> Pair | None:
        return next((pair for pair in self.pairs if (pair.test, pair.threads) == _key(row)), None)


def compare(new: Sequence[Row], old: Run, machine: Mapping[str, str] | None = None) -> Comparison:
    """The new rows beside those of an older run."""
    then = {_key(row): row for row in old.rows}
    pairs = tuple(_pair(row, then[_key(row)]) for row in new if _key(row) in then)
    facts = machine_facts() if machine is None else machine
    return Comparison(pairs, tuple(_differences(new, old, facts)))


def _key(row: Row) -> tuple[str, int]:
    return row.test, row.threads


def _pair(new: Row, old: Row) -> Pair:
    return Pair(
        new.test,
        new.threads,
        new.avg_ts,
        new.stddev_ts,
        old.avg_ts,
        old.stddev_ts,
        is_outside_noise(new, old),
    )


def is_outside_noise(new: Row, old: Row) -> bool | None:
    """Whether the means differ by more than two standard errors of their difference (Welch's: each run has its own
    variance). None where a run has a single sample."""
    counts = len(new.samples_ts), len(old.samples_ts)
    if min(counts) < 2:
        return None
    error = math.sqrt(new.stddev_ts**2 / counts[0] + old.stddev_ts**2 / counts[1])
    return abs(new.avg_ts - old.avg_ts) > STANDARD_ERRORS * error


def _differences(new: Sequence[Row], old: Run, facts: Mapping[str, str]) -> Iterator[str]:
    for name in COMPARED:
        theirs, ours = (_values(rows, name) for rows in (old.rows, new))
        if theirs != ours:
            yield f"{name.replace('_', ' ')} {theirs} (now {ours})"
    for name in COMPARED_FACTS:
        if old.machine.get(name, "") != facts.get(name, ""):
            yield f"{name} {old.machine.get(name, '') or 'unknown'} (now {facts.get(name, '') or 'unknown'})"
    then, now = {_key(row) for row in old.rows}, {_key(row) for row in new}
    for where, keys in (("only in this run", now - then), ("only in that run", then - now)):
        if keys:
            yield f"{where}: {', '.join(_named(key) for key in sorted(keys))}"


def _values(rows: Sequence[Row], name: str) -> str:
    return ", ".join(sorted({str(getattr(row, name)) for row in rows})) or "none"


def _named(key: tuple[str, int]) -> str:
    return f"{key[0]} on {key[1]} threads"
