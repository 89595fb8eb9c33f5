"""Rows that quantizers may stumble over, and llama.cpp's own encoders for who has them."""

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from localllm.formats.blocks import BlockType, row_bytes

Floats = NDArray[np.float32]
COLUMNS = 256


def rows() -> Floats:
    """(3010, 256): normal, of all sizes, heavy-tailed, zeros of both signs, constants, ties, outliers, denormals."""
    rng = np.random.default_rng(1)

    def size(low: float, high: float, count: int) -> NDArray[np.float64]:
        return 10.0 ** rng.uniform(low, high, (count, 1))

    signed = np.zeros((40, COLUMNS))
    signed[10:20], signed[20:30, ::2], signed[30:, 1::3] = -0.0, -0.0, -0.0
    outliers = rng.standard_normal((200, COLUMNS)) * 1e-3
    outliers[np.arange(200), rng.integers(0, COLUMNS, 200)] = 6e4 * np.sign(rng.standard_normal(200))
    kinds = [
        rng.standard_normal((800, COLUMNS)),
        rng.standard_normal((300, COLUMNS)) * size(-45, 4, 300),
        rng.standard_t(2, (300, COLUMNS)).clip(-6e4, 6e4),
        signed,
        np.repeat(rng.standard_normal((150, 1)) * size(-44, 4, 150), COLUMNS, axis=1),
        rng.integers(-8, 8, (250, COLUMNS)),
        rng.integers(-127, 128, (250, COLUMNS)) / 2,
        rng.integers(-31, 32, (120, COLUMNS)) / 4,
        outliers,
        rng.integers(-50, 50, (200, COLUMNS)) * 2.0**-149,
        rng.integers(-50, 50, (150, COLUMNS)) * 2.0**-130,
        rng.standard_normal((150, COLUMNS)).astype(np.float16),
        np.tile([1.0, -1.0], (100, COLUMNS // 2)) * rng.standard_normal((100, 1)),
    ]
    return np.concatenate([np.asarray(kind, np.float32) for kind in kinds])


def ggml(kind: BlockType, values: Floats, weights: Floats | None = None) -> NDArray[np.uint8]:
    """ggml_quantize_chunk of llama-cpp-python, what llama-quantize calls; skips the test where it is missing."""
    llama_cpp = pytest.importorskip("llama_cpp", reason="the oracle is llama-cpp-python")
    libraries = sorted(Path(llama_cpp.__file__).parent.joinpath("lib").glob("libggml-base.*"))
    library: Any = ctypes.CDLL(str(libraries[0]))
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    library.ggml_quantize_chunk.argtypes = [ctypes.c_int, pointer, pointer, number, number, number, pointer]
    out = np.zeros((len(values), row_bytes(kind, values.shape[1])), np.uint8)
    importance = None if weights is None else weights.ctypes.data
    library.ggml_quantize_init(int(kind))
    size = library.ggml_quantize_chunk(
        int(kind), np.ascontiguousarray(values).ctypes.data, out.ctypes.data, 0, *values.shape, importance
    )
    assert size == out.size
    return out
