"""Which backend runs a model, and why. Falls back loudly: the reason travels to doctor, `ps` and the log."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from localllm.backends.speeds import CPU_MARGIN, Speed, Speeds, Work
from localllm.backends.trial import kind_of
from localllm.engine.step import Backend
from localllm.errors import LocalLLMError, NotEnoughMemory, UnsupportedModel, UsageError
from localllm.models.config import ModelConfig
from localllm.models.source import WeightSource

PREFERENCE = ("cpu", "torch", "metal", "reference")
"""The order where nothing was measured. The reference is never measured: it is the judge."""


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
    kv_type: Literal["auto", "f16", "f32", "q8_0"] = "auto"
    device: str = ""
    cache_dir: str = ""


def native_problem() -> str:
    """Why the native kernels cannot be used here; empty when they can."""
    # deferred: loads the shared library
    from localllm.backends.cpu.library import native_problem as problem

    return problem()


def problem_of(backend: str) -> str:
    """Why a backend cannot be used here, as far as can be told without importing its library; empty when it may."""
    if backend == "cpu":
        return native_problem()
    if backend == "torch":
        from localllm.backends.torch.library import torch_problem  # deferred: for those who ask

        return torch_problem()
    if backend == "metal":
        from localllm.backends.metal.library import metal_problem  # deferred: as above

        return metal_problem()
    return ""


def candidates() -> list[str]:
    """The backends that a self-test may compare here: all that are installed, without the reference."""
    return [name for name in PREFERENCE if name != "reference" and not problem_of(name)]


@dataclass(frozen=True, slots=True)
class Choice:
    """A backend to try, on a device (empty: its own choice)."""

    backend: str
    device: str = ""


def open_backend(name: str, config: ModelConfig, source: WeightSource, options: BackendOptions) -> Backend:
    """The named backend with its weights loaded; `auto` takes the fastest that can run this model here.

    A device that is named is torch's, so `auto` then means torch. UsageError for an unknown name, UnsupportedModel when
    the named backend cannot run the model.
    """
    if name == "auto" and options.device:
        name = "torch"
    if name != "auto":
        return _opener(name)(config, source, options, ())
    choices, notes = _ranked(config, source, options)
    last: LocalLLMError | None = None
    for choice in choices:
        try:
            return _opener(choice.backend)(config, source, replace(options, device=choice.device), tuple(notes))
        except (UnsupportedModel, NotEnoughMemory) as error:
            notes.append(f"the {choice.backend} backend was passed over: {error.message}")
            last = error
    if isinstance(last, NotEnoughMemory):
        raise last
    raise UnsupportedModel("no backend can run this model: " + "; ".join(notes), hint="see `localllm doctor`")


def _ranked(config: ModelConfig, source: WeightSource, options: BackendOptions) -> tuple[list[Choice], list[str]]:
    """The backends to try, fastest first, and what is to be said of those that failed their self-test."""
    installed = candidates()
    absent = [f"the {name} backend was passed over: {problem_of(name)}" for name in ("cpu",) if name not in installed]
    if not options.cache_dir or len(installed) < 2:  # nothing to compare
        return [*map(Choice, installed), Choice("reference")], absent
    kind, speeds = kind_of(source), Speeds(options.cache_dir, options.threads)
    if not speeds.known(kind):
        speeds.measure((kind,), installed)
    choices, notes = ranked(speeds.known(kind), work_of(config, source))
    return [*choices, Choice("reference")], absent + notes


def has_to_measure(name: str, source: WeightSource, options: BackendOptions) -> bool:
    """Whether opening this model will first take the seconds of a self-test."""
    if name != "auto" or options.device or not options.cache_dir or len(candidates()) < 2:
        return False
    return not Speeds(options.cache_dir, options.threads).known(kind_of(source))


def ranked(speeds: Sequence[Speed], work: Work) -> tuple[list[Choice], list[str]]:
    """Choices for such a model, fastest first, and a sentence for each that failed its self-test.

    Others than the CPU backend must be faster than it by a margin.
    """
    sound = [speed for speed in speeds if not speed.problem]
    sound.sort(key=lambda speed: speed.turn_s(work) * (1 if speed.backend == "cpu" else CPU_MARGIN))
    notes = [f"the {speed.backend} backend was passed over: {speed.problem}" for speed in speeds if speed.problem]
    return [Choice(speed.backend, speed.device) for speed in sound], notes


def work_of(config: ModelConfig, source: WeightSource) -> Work:
    """Layers and weights that a token meets; of experts only those that are chosen."""
    total = 0.0
    moe = next((layer.moe for layer in config.layers if layer.moe), None)
    for info in filter(None, map(source.info, source.names())):
        is_expert = len(info.shape) == 3 and moe is not None
        share = moe.num_used / moe.num_experts if is_expert and moe else 1.0
        total += math.prod(info.shape) * share if info.name.startswith("blk.") else 0
    return Work(len(config.layers), int(total))


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


def _unrounded(options: BackendOptions, backend: str) -> Literal["auto", "f16", "f32"]:
    """The KV type, for a backend that keeps none in blocks. UnsupportedModel, naming it, for a type in blocks."""
    if options.kv_type == "q8_0":
        hint = "choose the cpu backend, or the KV type f16"
        raise UnsupportedModel(f"the {backend} backend does not keep keys and values as q8_0", hint=hint)
    return options.kv_type


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
        kv_type=options.kv_type,
        notes=notes,
    )


def _open_torch(config: ModelConfig, source: WeightSource, options: BackendOptions, notes: tuple[str, ...]) -> Backend:
    from localllm.backends.torch.library import torch_problem  # deferred: imports nothing heavy itself

    if problem := torch_problem():
        raise UnsupportedModel(problem, hint="pip install 'localllm[torch]', or choose another backend")
    from localllm.backends.torch.backend import TorchBackend  # deferred: imports torch, which takes seconds

    backend = TorchBackend(
        config,
        source,
        page_size=options.page_size,
        threads=options.threads,
        device=options.device,
        kv_type=_unrounded(options, "torch"),
        notes=notes,
    )
    backend.info = replace(backend.info, free_bytes=_free_on(backend.info.device.partition(" ")[0]))
    return backend


def _free_on(device: str) -> int | None:
    """Bytes that are free on a device of torch with memory of its own."""
    if device == "cpu":
        return None
    import torch  # the backend has imported it

    from localllm.backends.torch.library import free_bytes

    return free_bytes(torch.device(device))


def _open_metal(config: ModelConfig, source: WeightSource, options: BackendOptions, notes: tuple[str, ...]) -> Backend:
    from localllm.backends.metal.library import metal_problem  # deferred: imports nothing heavy itself

    if problem := metal_problem():
        raise UnsupportedModel(problem, hint="pip install 'localllm[metal]', or choose another backend")
    from localllm.backends.metal.backend import MetalBackend  # deferred: imports mlx

    return MetalBackend(config, source, page_size=options.page_size, kv_type=_unrounded(options, "metal"), notes=notes)


def _open_reference(
    config: ModelConfig, source: WeightSource, options: BackendOptions, notes: tuple[str, ...]
) -> Backend:
    # deferred: only the slow path needs it
    import numpy as np

    from localllm.backends.reference import ReferenceBackend

    kv_type = np.float16 if _unrounded(options, "reference") == "f16" else np.float32
    return ReferenceBackend(config, source, page_size=options.page_size, kv_type=kv_type, notes=notes)
