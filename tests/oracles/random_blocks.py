"""Blocks of random bits, whose scales are numbers that one can compute with."""

from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from localllm.formats.blocks import BLOCK_LAYOUTS, BlockType, decode

# where the float16 scales lie in a block
HALF_OFFSETS = MappingProxyType(
    {
        BlockType.F16: (0,),
        BlockType.Q4_0: (0,),
        BlockType.Q4_1: (0, 2),
        BlockType.Q5_0: (0,),
        BlockType.Q5_1: (0, 2),
        BlockType.Q8_0: (0,),
        BlockType.Q2_K: (80, 82),
        BlockType.Q3_K: (108,),
        BlockType.Q4_K: (0, 2),
        BlockType.Q5_K: (0, 2),
        BlockType.Q6_K: (208,),
        BlockType.IQ4_NL: (0,),
        BlockType.IQ4_XS: (0,),
        BlockType.Q1_0: (0,),
        BlockType.IQ1_S: (0,),
        BlockType.IQ2_XXS: (0,),
        BlockType.IQ2_XS: (0,),
        BlockType.IQ2_S: (0,),
        BlockType.IQ3_XXS: (0,),
        BlockType.IQ3_S: (0,),
        BlockType.TQ1_0: (52,),
        BlockType.TQ2_0: (64,),
    }
)


def random_blocks(block_type: BlockType, num_blocks: int, seed: int) -> NDArray[np.uint8]:
    """Random bytes (num_blocks, bytes_per_block), with scales that are finite."""
    random = np.random.default_rng(seed)
    if block_type in (BlockType.F32, BlockType.BF16):
        numbers = random.normal(size=num_blocks).astype(np.float32)
        return numbers.view(np.uint8).reshape(num_blocks, 4)[:, -BLOCK_LAYOUTS[block_type].bytes_per_block :].copy()
    blocks = random.integers(0, 256, (num_blocks, BLOCK_LAYOUTS[block_type].bytes_per_block), dtype=np.uint8)
    for place in range(num_scales(block_type)):
        set_scales(block_type, blocks, random.normal(size=num_blocks).astype(np.float16), place)
    if block_type is BlockType.MXFP4:
        blocks[:, 0] %= 250  # larger exponents overflow float32
    return blocks


def num_scales(block_type: BlockType) -> int:
    """How many float16 numbers a block has."""
    return 1 if block_type is BlockType.IQ1_M else len(HALF_OFFSETS.get(block_type, ()))


def set_scales(block_type: BlockType, blocks: NDArray[np.uint8], scales: NDArray[np.float16], place: int = 0) -> None:
    """Write a float16 number (n,) of each block (n, bytes): the one at `place` of those it has."""
    if block_type is not BlockType.IQ1_M:
        offset = HALF_OFFSETS[block_type][place]
        blocks[:, offset : offset + 2] = scales[:, None].view(np.uint8)
        return
    # upper nibbles of every other one of the last eight bytes
    nibbles = scales.view(np.uint16)[:, None] >> np.arange(0, 16, 4, dtype=np.uint16) & 15
    blocks[:, 49:56:2] = blocks[:, 49:56:2] & 15 | (nibbles << 4).astype(np.uint8)


def blocks_like(block_type: BlockType, values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Random blocks in place of `values` (..., columns), which spread as wide; for types that nothing encodes."""
    blocks = random_blocks(block_type, values.size // BLOCK_LAYOUTS[block_type].values_per_block, values.size)
    scales = np.ones(len(blocks), np.float16)
    set_scales(block_type, blocks, scales)
    wide = decode(block_type, blocks, values.shape).std()
    set_scales(block_type, blocks, (scales * np.float16(values.std() / wide)))
    return blocks
