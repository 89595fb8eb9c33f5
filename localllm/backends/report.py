"""What doctor says of the backends: may each be used here, how fast it was measured, which one is taken and why."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from localllm.backends.select import PREFERENCE, candidates, problem_of, ranked
from localllm.backends.speeds import BILLION, Speed, Speeds, package_version
from localllm.backends.trial import KINDS

HINTS = {
    "cpu": "install a C++17 compiler, then localllm again",
    "torch": "pip install 'localllm[torch]'",
    "metal": "pip install 'localllm[metal]', on Apple silicon",
}
LIBRARIES = {"torch": "torch", "metal": "mlx"}


@dataclass(frozen=True, slots=True)
class BackendRow:
    """One backend: may it be used here, is it sound as far as anybody measured, and that in words."""

    name: str
    available: bool
    is_sound: bool
    detail: str


@dataclass(frozen=True, slots=True)
class Report:
    """`chosen` says what `auto` takes, and why."""

    rows: list[BackendRow]
    chosen: str


def describe(cache_dir: Path, threads: int = 0, *, measure: bool = False) -> Report:
    """The backends of this machine from what is remembered; imports no library of theirs, and runs the self-tests only
    with `measure`."""
    speeds = Speeds(cache_dir, threads)
    if measure:
        speeds.measure(KINDS, candidates())
    known = {kind: found for kind in (*KINDS, "F16", "F32") if (found := speeds.known(kind))}
    return Report([_row(name, known) for name in PREFERENCE], _chosen(known))


def _row(name: str, known: dict[str, list[Speed]]) -> BackendRow:
    if name == "reference":
        return BackendRow(name, True, True, "numpy, slow: the judge of the others")
    if problem := problem_of(name):
        return BackendRow(name, False, False, f"{problem}: {HINTS[name]}")
    own = {kind: [speed for speed in found if speed.backend == name] for kind, found in known.items()}
    problems = [speed.problem for found in own.values() for speed in found if speed.problem]
    what = _what(name)
    if problems:
        return BackendRow(name, True, False, f"{what}: passed over, {problems[0]}")
    measured = "; ".join(_measured(own))
    measured = (
        f"{measured}, with a billion weights" if measured else "not yet measured, `localllm doctor --measure` does that"
    )
    return BackendRow(name, True, True, f"{what}: {measured}")


def _what(name: str) -> str:
    if name == "cpu":
        from localllm.backends.cpu.library import kernel_features  # deferred: loads the shared library

        return f"native kernels for {platform.machine()} ({', '.join(kernel_features())})"
    return f"{LIBRARIES[name]} {package_version(LIBRARIES[name])}".strip()


def _measured(own: dict[str, list[Speed]]) -> list[str]:
    """Per device the tokens a second of a model with a billion weights."""
    devices = {speed.device for found in own.values() for speed in found}
    return [
        (f"on {device} " if device else "")
        + ", ".join(
            f"{1 / speed.decode_s(BILLION):.0f} tokens/s in {kind}"
            for kind, found in own.items()
            for speed in found
            if speed.device == device
        )
        for device in sorted(devices)
    ]


def _chosen(known: dict[str, list[Speed]]) -> str:
    usable = [*candidates(), "reference"]
    if len(usable) <= 2:
        return f"{usable[0]}: there is no other to choose from"
    if not known:
        return "the fastest one: the first model that is loaded has them measured"
    return "; ".join(f"{kind}: {_winner(found)}" for kind, found in known.items())


def _winner(speeds: Sequence[Speed]) -> str:
    """The fastest for a model of a billion weights, and how many times the CPU backend that is."""
    choices, _ = ranked(speeds, BILLION)
    if not choices:
        return "reference, as the others failed their self-test"
    best = choices[0]
    by_name = {(speed.backend, speed.device): speed.turn_s(BILLION) for speed in speeds if not speed.problem}
    others = [seconds for name, seconds in by_name.items() if name != (best.backend, best.device)]
    taken = by_name[best.backend, best.device]
    name = f"{best.backend} on {best.device}" if best.device else best.backend
    if best.backend != "cpu" and ("cpu", "") in by_name:
        return f"{name}, {by_name['cpu', ''] / taken:.1f} times cpu"
    return f"{name}, {min(others) / taken:.1f} times the next" if others else name
