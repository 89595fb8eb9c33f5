"""Native encoders; built with the CPU backend's kernels, see localllm/backends/cpu/native/encode.cpp."""

import numpy as np
from numpy.typing import NDArray

def encode(
    kind: int,
    source: int,
    values: NDArray[np.uint8],
    columns: int,
    importance: NDArray[np.float32],
    limit: float,
    out: NDArray[np.uint8],
    threads: int,
    kernels: str,
) -> int:
    """Rows of F32, F16 or BF16 to blocks in `out`; the first block with a value beyond `limit`, or -1.

    importance: of the columns, or empty. kernels: a set by name, or empty for the machine's best.
    """
