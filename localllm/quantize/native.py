"""The native encoders, where they are built: the bytes of the numpy ones, many times faster, on several threads."""

import numpy as np
from numpy.typing import NDArray

from localllm.formats.blocks import BLOCK_LAYOUTS, BlockType

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]

NATIVE = frozenset(
    BlockType[name]
    for name in (
        *("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"),
        *("IQ4_NL", "IQ4_XS", "MXFP4"),
    )
)
READABLE = frozenset(BlockType[name] for name in ("F32", "F16", "BF16"))


def is_built() -> bool:
    """Whether this installation has them; numpy serves where not."""
    try:
        from localllm.quantize import _encoders  # noqa: F401  # deferred: absent without a C++ compiler
    except ImportError:
        return False
    return True


def native_blocks(
    kind: BlockType,
    source: BlockType,
    raw: Bytes,
    columns: int,
    importance: Floats | None,
    limit: float,
    threads: int,
    kernels: str = "",
) -> tuple[Bytes, int]:
    """Blocks, uint8 (bytes,), of rows that are F32, F16 or BF16; and the first block that is not held, or -1.

    `kernels` names a set of instructions (portable, avx2, avx512), for tests. ValueError for sizes that do not fit.
    """
    from localllm.quantize import _encoders  # deferred: absent without a C++ compiler

    values, size = BLOCK_LAYOUTS[kind]
    out = np.empty(len(raw) // BLOCK_LAYOUTS[source].bytes_per_block // values * size, np.uint8)
    weights = np.empty(0, np.float32) if importance is None else np.ascontiguousarray(importance)
    refused = _encoders.encode(
        kind, source, np.ascontiguousarray(raw), columns, weights, limit, out, max(1, min(threads, 256)), kernels
    )
    return out, refused
