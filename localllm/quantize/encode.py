"""Float values to blocks of any type that the decoder knows; the numpy twin that native encoders are judged against.

Refuses by name: values that are not finite, and values that the scales of a block type cannot hold.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from localllm.errors import BadModelFile, UnsupportedModel
from localllm.formats import blocks as plain
from localllm.formats.blocks import BLOCK_LAYOUTS, PLAINLY_ENCODABLE, BlockType, row_bytes
from localllm.quantize.codebooks import encode_iq4_nl, encode_iq4_xs, encode_mxfp4
from localllm.quantize.k_quants import encode_q2_k, encode_q3_k, encode_q4_k, encode_q5_k, encode_q6_k

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]

CHUNK_VALUES = 1 << 15  # what a search works on at a time: its arrays stay in the cache of one core

_SEARCHING: Mapping[BlockType, Callable[[Floats], Bytes]] = MappingProxyType(
    {
        BlockType.Q2_K: encode_q2_k,
        BlockType.Q3_K: encode_q3_k,
        BlockType.Q4_K: encode_q4_k,
        BlockType.Q5_K: encode_q5_k,
        BlockType.Q6_K: encode_q6_k,
        BlockType.IQ4_NL: encode_iq4_nl,
        BlockType.IQ4_XS: encode_iq4_xs,
        BlockType.MXFP4: encode_mxfp4,
    }
)
ENCODABLE: frozenset[BlockType] = PLAINLY_ENCODABLE | frozenset(_SEARCHING)

_LARGEST_HALF = 65504.0
# where no scale is a float16, the largest float32 that is not rounded to infinity
_LARGEST: Mapping[BlockType, float] = MappingProxyType(
    {BlockType.F32: 3.4028235e38, BlockType.BF16: 3.3961775e38, BlockType.MXFP4: 3.4028235e38}
)
_SMALLEST_HALF = 2.0**-24


def encode(block_type: BlockType, values: NDArray[Any]) -> Bytes:
    """Pack float values (..., columns) of any float dtype; returns uint8 (..., row_bytes).

    The same values give the same bytes, whatever is encoded beside them. Raises UnsupportedModel for a type without an
    encoder and for values too large for it, BadModelFile for values that are not finite and for rows that are not whole
    blocks.
    """
    if block_type not in ENCODABLE:
        raise UnsupportedModel(
            f"values cannot be encoded as {block_type.name} by this build", hint="choose q8_0 or q4_k"
        )
    columns = values.shape[-1] if values.ndim else 1
    shape = (*values.shape[:-1], row_bytes(block_type, columns))
    per_block, block_bytes = BLOCK_LAYOUTS[block_type]
    blocks = values.reshape(-1, per_block)
    packed = np.empty((len(blocks), block_bytes), np.uint8)
    step = CHUNK_VALUES // per_block
    for start in range(0, len(blocks), step):
        packed[start : start + step] = _encode_chunk(block_type, blocks[start : start + step])
    return packed.reshape(shape)


def _encode_chunk(block_type: BlockType, blocks: NDArray[Any]) -> Bytes:
    with np.errstate(over="ignore"):  # float64 beyond float32 becomes infinite, and is refused as that
        chunk = np.ascontiguousarray(blocks, dtype=np.float32)
    largest = np.abs(chunk).max(axis=1)
    _check(block_type, float(largest.max()))
    pack = _SEARCHING.get(block_type)
    if BLOCK_LAYOUTS[block_type].values_per_block > 1 and block_type not in _LARGEST:
        # such a block has a scale of zero in any case, but 1 / scale would overflow on the way
        chunk = np.where(largest[:, None] < np.float32(_SMALLEST_HALF / 2), np.float32(0), chunk)
    return plain.encode(block_type, chunk) if pack is None else pack(chunk)


def _check(block_type: BlockType, largest: float) -> None:
    if not np.isfinite(largest):
        raise BadModelFile(f"values to be encoded as {block_type.name} are not all finite numbers")
    limit = _LARGEST.get(block_type, _LARGEST_HALF)
    if largest > limit:
        raise UnsupportedModel(
            f"{block_type.name} holds values up to {limit:g}, but one of {largest:g} is to be encoded",
            hint="keep this tensor as F32 or BF16",
        )
