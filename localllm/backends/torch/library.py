"""Torch: can it be used, which devices does it see, how many threads suit it. Only some functions import it."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from localllm.backends.cpu.library import default_threads
from localllm.errors import NotEnoughMemory, UnsupportedModel, UsageError

if TYPE_CHECKING:
    import torch

INSTALL_HINT = "pip install 'localllm[torch]', or choose another backend"
SMALL_MACHINE = 2
"""With so few cores two threads of torch wait for each other longer than they compute."""


def torch_problem() -> str:
    """Why torch cannot be used; empty when it is installed. A broken install shows when it is opened."""
    # the check must not import torch, which takes seconds
    return "" if importlib.util.find_spec("torch") is not None else "torch is not installed"


def require_torch() -> None:
    """UnsupportedModel with the reason where torch cannot be imported."""
    try:
        importlib.import_module("torch")
    except (ImportError, OSError) as error:  # OSError: a shared library of it is missing
        raise UnsupportedModel(f"torch cannot be loaded: {error}", hint=INSTALL_HINT) from None


def device_names() -> list[str]:
    """As torch calls them, best first; the last is always `cpu`."""
    require_torch()
    import torch  # deferred: takes seconds

    names = [f"cuda:{index}" for index in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    if torch.backends.mps.is_available():
        names.append("mps")
    return [*names, "cpu"]


def describe(name: str) -> str:
    """The device with its maker's name and memory, where torch tells."""
    if not name.startswith("cuda"):
        return name
    import torch  # deferred: takes seconds

    properties = torch.cuda.get_device_properties(name)
    return f"{name} {properties.name} ({properties.total_memory / 1e9:.0f} GB)"


def open_device(name: str) -> torch.device:
    """The named device, or the best one for an empty name. UsageError for one that torch does not see."""
    names = device_names()
    wanted = "cuda:0" if name == "cuda" else name or names[0]
    if wanted not in names:
        raise UsageError(f"torch sees no device {name!r} here", hint=f"choose one of {', '.join(names)}")
    import torch  # deferred: takes seconds

    return torch.device(wanted)


def suitable_threads(wanted: int) -> int:
    """`wanted`, 0: one per physical core; never more than the cores, and one on a small machine."""
    cores = default_threads()
    return 1 if cores <= SMALL_MACHINE else min(wanted or cores, cores)


def free_bytes(device: torch.device) -> int:
    """Memory that may still be taken on the device, in bytes."""
    import torch  # deferred: takes seconds

    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    import psutil  # deferred: with torch, for the one function that asks

    available = int(psutil.virtual_memory().available)
    if device.type != "mps":
        return available
    # memory is shared, but the driver lends only a part of it
    return min(available, torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory())


@contextmanager
def memory_named(what: str, hint: str) -> Iterator[None]:
    """NotEnoughMemory for whatever torch raises when an allocation fails."""
    import torch  # deferred: takes seconds

    try:
        yield
    except (torch.OutOfMemoryError, MemoryError):
        raise NotEnoughMemory(f"there is no memory for {what}", hint=hint) from None
    except RuntimeError as error:
        if not _speaks_of_memory(str(error)):
            raise
        raise NotEnoughMemory(f"there is no memory for {what}", hint=hint) from None


def _speaks_of_memory(message: str) -> bool:
    """The processor's and Metal's allocators have no class of error of their own."""
    lowered = message.lower()
    return any(words in lowered for words in ("out of memory", "not enough memory", "can't allocate memory"))
