"""The native library: is it there, what does it run, how many threads suit this machine."""

from __future__ import annotations

import ctypes
import importlib
import os
import sys

import psutil

from localllm.errors import UnsupportedModel, UsageError

KERNEL_SETS = ("avx512", "avx2", "neon_dotprod", "neon", "portable")
"""Fastest first; "auto" takes the first that this machine runs."""


def native_problem() -> str:
    """Why the native library cannot be used; empty when it can."""
    try:
        importlib.import_module("localllm.backends.cpu._native")  # deferred: it may not have been built
    except ImportError as error:
        return f"the native kernels are not there ({error}): they need a C++17 compiler when localllm is installed"
    return ""


def require_native() -> None:
    """UnsupportedModel with the reason where the native library cannot be loaded."""
    if problem := native_problem():
        raise UnsupportedModel(problem, hint="install a C++17 compiler and install localllm again")


def kernel_features() -> list[str]:
    """The kernel sets that this machine runs, fastest first."""
    require_native()
    from localllm.backends.cpu._native import has_kernels  # deferred: see native_problem

    return [name for name in KERNEL_SETS if has_kernels(name)]


def require_kernels(name: str) -> None:
    """UsageError for a kernel set that is unknown, or that this machine does not run."""
    known = ("auto", *kernel_features())
    if name not in known:
        choice = ", ".join(known)
        raise UsageError(f"this machine does not run the kernels called {name!r}", hint=f"choose one of {choice}")


def default_threads() -> int:
    """One per physical core that this process may use; on Apple silicon one per performance core."""
    physical = _performance_cores() or psutil.cpu_count(logical=False) or os.cpu_count() or 1
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else physical
    return max(1, min(physical, allowed))


def _performance_cores() -> int:
    """0 where cores are all alike, or nobody says."""
    if sys.platform != "darwin":
        return 0
    count, size = ctypes.c_int(0), ctypes.c_size_t(4)
    system = ctypes.CDLL(None)
    failed = system.sysctlbyname(b"hw.perflevel0.physicalcpu", ctypes.byref(count), ctypes.byref(size), None, 0)
    return 0 if failed else count.value
