"""Every decoder gives what the `gguf` package gives, bit for bit, and what the block's definition says by hand."""

import gguf
import numpy as np
import pytest
from gguf.quants import dequantize, quantize
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from localllm.errors import BadModelFile, UnsupportedModel
from localllm.formats.blocks import BLOCK_LAYOUTS, DECODABLE, PLAINLY_ENCODABLE, BlockType, decode, encode, row_bytes
from tests.oracles.random_blocks import random_blocks, set_scales

ENCODABLE = sorted(PLAINLY_ENCODABLE)
WITHOUT_ORACLE = {BlockType.Q1_0}
"""Types that the package can name but not decode."""


def oracle(block_type: BlockType, raw: NDArray[np.uint8]) -> NDArray[np.float32]:
    return np.asarray(dequantize(raw, gguf.GGMLQuantizationType(block_type)), dtype=np.float32)


def test_the_types_and_their_sizes_are_those_of_the_gguf_package() -> None:
    expected = {kind.name: (kind.value, *sizes) for kind, sizes in gguf.GGML_QUANT_SIZES.items()}
    # the package still has the old Q8_1 with float32 scale and sum; ggml's block_q8_1 has two float16
    expected["Q8_1"] = (9, 32, 36)
    assert {kind.name: (kind.value, *BLOCK_LAYOUTS[kind]) for kind in BlockType} == expected


@pytest.mark.parametrize("block_type", sorted(DECODABLE - WITHOUT_ORACLE), ids=lambda kind: kind.name)
@pytest.mark.parametrize("seed", range(3))
def test_decoding_random_blocks_is_bit_equal_to_the_oracle(block_type: BlockType, seed: int) -> None:
    rows, blocks_per_row = 5, 3
    raw = random_blocks(block_type, rows * blocks_per_row, seed)
    columns = blocks_per_row * BLOCK_LAYOUTS[block_type].values_per_block
    ours = decode(block_type, raw.reshape(-1), (rows, columns))
    theirs = oracle(block_type, raw.reshape(rows, -1))
    assert ours.dtype == np.float32
    assert ours.shape == (rows, columns)
    # + 0.0 turns -0.0 into 0.0: the sign of a zero depends on the order of two products
    assert np.array_equal((ours + 0.0).view(np.uint32), (theirs + 0.0).view(np.uint32))


def test_q4_0_by_hand() -> None:
    raw = np.zeros(18, np.uint8)
    raw[:2] = np.array([2.0], np.float16).view(np.uint8)
    raw[2] = 0xF1  # value 0 has the nibble 1, value 16 the nibble 15
    values = decode(BlockType.Q4_0, raw, (32,))
    assert values[0] == 2.0 * (1 - 8)
    assert values[16] == 2.0 * (15 - 8)
    assert set(np.delete(values, [0, 16])) == {-16.0}


def test_q6_k_by_hand() -> None:
    raw = np.zeros(210, np.uint8)
    raw[192:208] = np.arange(16, dtype=np.int8).view(np.uint8)
    raw[208:] = np.array([0.5], np.float16).view(np.uint8)
    raw[0], raw[128] = 0x02, 0b01  # low nibble and high pair of value 0; the pair 0b01 adds 16
    raw[32] = 0x30  # high nibble of byte 32: value 96
    values = decode(BlockType.Q6_K, raw, (256,))
    assert values[0] == 0.0  # its group has the scale 0
    assert values[96] == 0.5 * 6 * (3 - 32)
    assert values[255] == 0.5 * 15 * -32


def test_q4_k_by_hand() -> None:
    raw = np.zeros(144, np.uint8)
    raw[:4] = np.array([1.0, 2.0], np.float16).view(np.uint8)
    raw[4], raw[8] = 5, 7  # scale and floor of the first 32 values
    raw[16] = 0x09
    values = decode(BlockType.Q4_K, raw, (256,))
    assert values[0] == 5 * 9 - 2 * 7
    assert values[1] == -14
    assert set(values[32:]) == {0.0}


def test_mxfp4_by_hand() -> None:
    raw = np.zeros(17, np.uint8)
    raw[0], raw[1] = 128, 0x97  # exponent 128 is a scale of 2; nibble 7 is 6.0, nibble 9 is -0.5
    values = decode(BlockType.MXFP4, raw, (32,))
    assert values[0] == 12.0
    assert values[16] == -1.0


def test_q1_0_by_hand() -> None:
    raw = np.zeros(18, np.uint8)
    raw[:2] = np.array([0.5], np.float16).view(np.uint8)
    raw[2], raw[17] = 0b101, 0x80
    values = decode(BlockType.Q1_0, raw, (128,))
    assert np.flatnonzero(values == 0.5).tolist() == [0, 2, 127]
    assert set(np.delete(values, [0, 2, 127])) == {-0.5}


def test_iq2_xxs_by_hand() -> None:
    raw = np.zeros(66, np.uint8)
    raw[:2] = np.array([8.0], np.float16).view(np.uint8)  # times the half that every scale has, times a quarter: 1
    raw[3] = 1  # the second entry of the grid: its first value is the larger one
    raw[6] = 0b11  # the first two signs are minus, as many as there must be
    raw[17] = 0x10  # the scale of the second 32 values is 1, and a half
    values = decode(BlockType.IQ2_XXS, raw, (256,))
    assert values[:8].tolist() == [-8, -8, 8, 8, 8, 8, 8, 8]
    assert values[8:16].tolist() == [43, 8, 8, 8, 8, 8, 8, 8]
    assert set(values[32:64]) == {24.0}


def test_iq1_m_by_hand() -> None:
    raw = np.zeros((1, 56), np.uint8)
    set_scales(BlockType.IQ1_M, raw, np.array([0.5], np.float16))
    raw[0, 32] = 0x80  # the second eight values are shifted down
    raw[0, 48] |= 0b001_000  # the second scale is 1, which means 3
    values = decode(BlockType.IQ1_M, raw.reshape(-1), (256,))
    assert set(values[:8]) == {0.5 * (-1 + 0.125)}
    assert set(values[8:16]) == {0.5 * (-1 - 0.125)}
    assert set(values[16:32]) == {0.5 * 3 * (-1 + 0.125)}


def test_an_odd_number_of_signs_is_made_even() -> None:
    raw = np.zeros(74, np.uint8)
    raw[:2] = np.array([8.0], np.float16).view(np.uint8)
    raw[3] = 0b100  # one of seven signs
    values = decode(BlockType.IQ2_XS, raw, (256,))
    assert values[:8].tolist() == [8, -8, 8, 8, 8, 8, 8, -8]


def test_a_type_without_a_decoder_is_named() -> None:
    for block_type in set(BlockType) - DECODABLE:
        layout = BLOCK_LAYOUTS[block_type]
        with pytest.raises(UnsupportedModel, match=block_type.name):
            decode(block_type, np.zeros(layout.bytes_per_block, np.uint8), (layout.values_per_block,))


@pytest.mark.parametrize("shape", [(33,), (2, 32), (64,), ()])
def test_bytes_that_do_not_fit_the_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(BadModelFile):
        decode(BlockType.Q8_0, np.zeros(34, np.uint8), shape)


def test_a_row_is_a_whole_number_of_blocks() -> None:
    assert row_bytes(BlockType.Q4_K, 512) == 288
    assert row_bytes(BlockType.F16, 0) == 0
    with pytest.raises(BadModelFile, match="256"):
        row_bytes(BlockType.Q4_K, 300)


@pytest.mark.parametrize("block_type", ENCODABLE, ids=lambda kind: kind.name)
@settings(max_examples=60, deadline=None)
@given(
    values=hnp.arrays(
        np.float32, (3, 64), elements=st.floats(-1000, 1000, width=32, allow_subnormal=False).map(lambda x: round(x, 3))
    )
)
def test_encoding_is_bit_equal_to_the_oracle(block_type: BlockType, values: NDArray[np.float32]) -> None:
    theirs = np.asarray(quantize(values, gguf.GGMLQuantizationType(block_type))).view(np.uint8)
    assert np.array_equal(encode(block_type, values), theirs.reshape(3, -1))


def test_bf16_rounds_to_even_and_keeps_nan_and_infinity() -> None:
    bits = np.array([0x3F808000, 0x3F818000, 0x7F800000, 0xFF800001, 0x7FFFFFFF], np.uint32)
    packed = encode(BlockType.BF16, bits.view(np.float32)).view(np.uint16)
    assert packed.tolist() == [0x3F80, 0x3F82, 0x7F80, 0xFFC0, 0x7FFF]


@pytest.mark.parametrize("block_type", ENCODABLE, ids=lambda kind: kind.name)
def test_zeros_survive_encoding(block_type: BlockType) -> None:
    zeros = np.zeros((2, 32), np.float32)
    assert np.array_equal(decode(block_type, encode(block_type, zeros), (2, 32)), zeros)


def test_encoding_an_unsupported_type_is_named() -> None:
    with pytest.raises(UnsupportedModel, match="Q6_K"):
        encode(BlockType.Q6_K, np.zeros(256, np.float32))
