"""Which backend runs a model, and why. Falls back loudly: the reason travels to doctor, `ps` and the log."""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from localllm.engine.step import Backend
from localllm.errors import UnsupportedModel, UsageError
from localllm.models.config import ModelConfig
from localllm.models.source import WeightSource

PREFERENCE = ("cpu", "reference")
"""Fastest first."""


@dataclass(frozen=True, slots=True)
class BackendOptions:
    """`threads` 0: the backend chooses. `context_length` and `max_tokens_per_step` are in tokens.

    `kv_type`: how keys and values are kept; `auto` is what suits the backend. `device`: of those torch sees; empty: the
    best one. `cache_dir`: where the speeds of backends are remembered; empty: `auto` measures nothing.
    """

    page_size: int = 16
    threads: int = 0
    max_tokens_per_step: int = 512
    context_length: int = 0
    kv_type: Literal["auto", "f16", "f32"] = "auto"
    device: str = ""
    cache_dir: str = ""


@dataclass(frozen=True, slots=True)
class BackendRow:
    """One backend as doctor prints it: may it be used here, and the reason."""

    name: str
    available: bool
    reason: str
    details: tuple[str, ...] = ()


def describe(wanted: str = "auto") -> tuple[str, list[BackendRow]]:
    """The backend that would be chosen, and all of them with their reasons."""
    rows = [_describe_cpu(), BackendRow("reference", True, "numpy, slow: the judge of the others")]
    return (wanted if wanted != "auto" else next(row.name for row in rows if row.available)), rows


def native_problem() -> str:
    """Why the native kernels cannot be used here; empty when they can."""
    # deferred: loads the shared library
    from localllm.backends.cpu.library import native_problem as problem

    return problem()


def _describe_cpu() -> BackendRow:
    problem = native_problem()
    if problem:
        return BackendRow("cpu", False, problem)
    from localllm.backends.cpu.library import kernel_features

    return BackendRow("cpu", True, f"native kernels for {platform.machine()}", tuple(kernel_features()))


def open_backend(name: str, config: ModelConfig, source: WeightSource, options: BackendOptions) -> Backend:
    """The named backend with its weights loaded; `auto` takes the first of PREFERENCE that can run this model here.

    UsageError for an unknown name, UnsupportedModel when the named backend cannot run the model.
    """
    if name != "auto":
        return _opener(name)(config, source, options, ())
    notes: list[str] = []
    for candidate in PREFERENCE:
        try:
            return _opener(candidate)(config, source, options, tuple(notes))
        except UnsupportedModel as error:
            notes.append(f"the {candidate} backend was passed over: {error.message}")
    raise UnsupportedModel("no backend can run this model: " + "; ".join(notes), hint="see `localllm doctor`")


Opener = Callable[[ModelConfig, WeightSource, BackendOptions, tuple[str, ...]], Backend]


def _opener(name: str) -> Opener:
    openers: dict[str, Opener] = {
        "cpu": _open_cpu,
        "torch": _open_torch,
        "metal": _open_metal,
        "reference": _open_reference,
    }
    if name not in openers:
        raise UsageError(f"there is no backend {name!r}", hint=f"choose one of auto, {', '.join(openers)}")
    return openers[name]


def _open_cpu(config: ModelConfig, source: WeightSource, options: BackendOptions, notes: tuple[str, ...]) -> Backend:
    if problem := native_problem():
        raise UnsupportedModel(problem, hint="install a C++17 compiler and install localllm again")
    # deferred: the recorder binds the shared library
    from localllm.backends.cpu.backend import CpuBackend

    return CpuBackend(
        config,
        source,
        page_size=options.page_size,
        threads=options.threads,
        max_tokens_per_step=options.max_tokens_per_step,
        context_length=options.context_length or config.context_length,
        notes=notes,
    )


def _open_torch(config: ModelConfig, source: WeightSource, options: BackendOptions, notes: tuple[str, ...]) -> Backend:
    from localllm.backends.torch.library import torch_problem  # deferred: imports nothing heavy itself

    if problem := torch_problem():
        raise UnsupportedModel(problem, hint="install localllm with its `torch` extra")
    from localllm.backends.torch.backend import TorchBackend  # deferred: imports torch, which takes seconds

    return TorchBackend(
        config,
        source,
        page_size=options.page_size,
        threads=options.threads,
        device=options.device,
        kv_type=options.kv_type,
        notes=notes,
    )


def _open_metal(config: ModelConfig, source: WeightSource, options: BackendOptions, notes: tuple[str, ...]) -> Backend:
    from localllm.backends.metal.library import metal_problem  # deferred: imports nothing heavy itself

    if problem := metal_problem():
        raise UnsupportedModel(problem, hint="install localllm with its `metal` extra")
    from localllm.backends.metal.backend import MetalBackend  # deferred: imports mlx

    return MetalBackend(config, source, page_size=options.page_size, kv_type=options.kv_type, notes=notes)


def _open_reference(
    config: ModelConfig, source: WeightSource, options: BackendOptions, notes: tuple[str, ...]
) -> Backend:
    # deferred: only the slow path needs it
    import numpy as np

    from localllm.backends.reference import ReferenceBackend

    kv_type = np.float16 if options.kv_type == "f16" else np.float32
    return ReferenceBackend(config, source, page_size=options.page_size, kv_type=kv_type, notes=notes)
