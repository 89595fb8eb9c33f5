"""MLX: is it installed, and on which device does it run.

What is checked where there is no Apple silicon is everything that MLX's CPU device computes: the graph of a step, the
repacked weights, memory, and the rounding of half precision. What is not: MLX's Metal kernels, their speed, and how
much memory a Mac lends to its GPU.
"""

from __future__ import annotations

import importlib.util

from localllm.errors import UnsupportedModel

HINT = "pip install 'localllm[metal]', or choose another backend"


def metal_problem() -> str:
    """Why this backend cannot be used here; empty when MLX is installed. A broken install shows when it is opened."""
    try:
        found = importlib.util.find_spec("mlx.core")
    except ModuleNotFoundError:  # not even the package above it
        found = None
    return "" if found else "MLX is not installed"


def metal_device() -> str:
    """What MLX computes on: "gpu" on Apple silicon, "cpu" elsewhere. UnsupportedModel where MLX does not load."""
    try:
        import mlx.core as mx  # deferred: loads the shared library
    except ImportError as error:
        raise broken(error) from None
    return "gpu" if mx.metal.is_available() else "cpu"


def broken(error: ImportError) -> UnsupportedModel:
    """MLX is there but does not load."""
    return UnsupportedModel(f"MLX does not load: {error}", hint=HINT)
