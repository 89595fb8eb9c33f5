"""Blocks decoded on a device are those of formats/blocks.py, bit for bit."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from localllm.backends.torch.blocks import TORCH_DECODABLE, decode_rows  # noqa: E402  # needs torch
from localllm.formats.blocks import BLOCK_LAYOUTS, DECODABLE, BlockType, decode  # noqa: E402
from tests.oracles.random_blocks import random_blocks  # noqa: E402


def test_every_type_that_numpy_decodes_is_decoded_here() -> None:
    assert TORCH_DECODABLE == DECODABLE


@pytest.mark.parametrize("kind", sorted(DECODABLE), ids=lambda kind: kind.name)
@pytest.mark.parametrize("seed", range(2))
def test_random_blocks_decode_to_the_same_bits(device: str, kind: BlockType, seed: int) -> None:
    rows, blocks_per_row = 7, 3
    raw = random_blocks(kind, rows * blocks_per_row, seed).reshape(rows, -1)
    expected = decode(kind, raw, (rows, blocks_per_row * BLOCK_LAYOUTS[kind].values_per_block))
    ours = decode_rows(kind, torch.from_numpy(raw).to(device)).cpu().numpy()
    np.testing.assert_array_equal(ours.view(np.uint32), expected.view(np.uint32))


def test_every_exponent_of_mxfp4_decodes_to_the_same_bits(device: str) -> None:
    raw = np.random.default_rng(0).integers(0, 256, (256, 17), dtype=np.uint8)
    raw[:, 0] = np.arange(256)
    with np.errstate(over="ignore"):
        expected = decode(BlockType.MXFP4, raw, (256, 32))
    ours = decode_rows(BlockType.MXFP4, torch.from_numpy(raw).to(device)).cpu().numpy()
    np.testing.assert_array_equal(ours.view(np.uint32), expected.view(np.uint32))


def test_blocks_that_are_a_part_of_others_decode(device: str) -> None:
    """Rows chosen by index lie anywhere in memory."""
    raw = random_blocks(BlockType.Q4_K, 12, 5).reshape(6, -1)
    ours = decode_rows(BlockType.Q4_K, torch.from_numpy(raw).to(device)[1::2])
    np.testing.assert_array_equal(ours.cpu().numpy(), decode(BlockType.Q4_K, raw[1::2], (3, 512)))
