"""What encoders promise: small errors, the same bytes in any company, and a named refusal of what cannot be held."""

import gguf
import numpy as np
import pytest
from gguf.quants import quantize
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from localllm.errors import BadModelFile, UnsupportedModel
from localllm.formats.blocks import BLOCK_LAYOUTS, DECODABLE, BlockType, decode
from localllm.quantize.encode import CHUNK_VALUES, ENCODABLE, encode

TYPES = sorted(ENCODABLE)
SCALED = [kind for kind in TYPES if BLOCK_LAYOUTS[kind].values_per_block > 1]
HALF_SCALED = [kind for kind in SCALED if kind is not BlockType.MXFP4]
each_type = pytest.mark.parametrize("block_type", TYPES, ids=lambda kind: kind.name)

# relative RMS errors of ggml's own quantizer (llama-cpp-python 0.3.36: ggml_quantize_chunk, no importance matrix)
# on `normal(256, 512)` and on `heavy_tailed()`
GGML_ERRORS = {
    BlockType.F32: (0.0, 0.0),
    BlockType.F16: (0.00021, 0.00021),
    BlockType.BF16: (0.00166, 0.00166),
    BlockType.Q8_0: (0.00536, 0.00678),
    BlockType.Q4_0: (0.08602, 0.10810),
    BlockType.Q4_1: (0.07829, 0.08946),
    BlockType.Q5_0: (0.04282, 0.05378),
    BlockType.Q5_1: (0.03798, 0.04327),
    BlockType.Q2_K: (0.29697, 0.33200),
    BlockType.Q3_K: (0.15092, 0.17623),
    BlockType.Q4_K: (0.07155, 0.08269),
    BlockType.Q5_K: (0.03626, 0.04180),
    BlockType.Q6_K: (0.01775, 0.02151),
    BlockType.IQ4_NL: (0.07621, 0.08886),
    BlockType.IQ4_XS: (0.07679, 0.08967),
    BlockType.MXFP4: (0.11513, 0.12671),
}
ROUNDING = 1e-5  # of the table


def normal(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def heavy_tailed() -> NDArray[np.float32]:
    """As weights are, and not centred."""
    return (0.02 * np.random.default_rng(3).standard_t(5, (256, 512)) + 0.002).astype(np.float32)


def there_and_back(block_type: BlockType, values: NDArray[np.float32]) -> NDArray[np.float32]:
    return decode(block_type, encode(block_type, values), values.shape)


def relative_rms(values: NDArray[np.float32], found: NDArray[np.float32]) -> float:
    return float(np.sqrt(np.square(values - found, dtype=np.float64).sum() / np.square(values, dtype=np.float64).sum()))


def test_every_type_that_can_be_read_can_be_written_or_needs_knowledge_of_the_data() -> None:
    """Grids of so few bits lose too much without the importance of each weight; ternary models are trained as such."""
    without = {name for name in BlockType.__members__ if name.startswith(("IQ1", "IQ2", "IQ3", "TQ", "Q1"))}
    assert {kind.name for kind in DECODABLE - ENCODABLE} == without
    assert ENCODABLE < DECODABLE
    for kind in DECODABLE - ENCODABLE:
        with pytest.raises(UnsupportedModel, match=kind.name) as refusal:
            encode(kind, normal(1, 256))
        assert "q8_0" in refusal.value.hint


@each_type
def test_errors_are_not_above_those_of_ggml(block_type: BlockType) -> None:
    for values, theirs in zip((normal(256, 512), heavy_tailed()), GGML_ERRORS[block_type], strict=True):
        assert relative_rms(values, there_and_back(block_type, values)) <= theirs + ROUNDING


@pytest.mark.parametrize("name", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "BF16", "F16", "F32"])
def test_plain_types_are_bit_equal_to_the_oracle(name: str) -> None:
    values = normal(16, 512, seed=1)
    theirs = np.asarray(quantize(values, gguf.GGMLQuantizationType[name])).view(np.uint8)
    assert np.array_equal(encode(BlockType[name], values), theirs.reshape(16, -1))


@each_type
def test_zeros_are_zeros(block_type: BlockType) -> None:
    assert not there_and_back(block_type, np.zeros((3, 512), np.float32)).any()


@each_type
def test_a_row_has_the_same_bytes_alone_and_among_others(block_type: BlockType) -> None:
    values = normal(2 * CHUNK_VALUES // 768 + 5, 768, seed=2)  # so many that chunks begin inside a row
    together = encode(block_type, values)
    for row in (0, 41, 42, 43, len(values) - 1):
        assert np.array_equal(together[row], encode(block_type, values[row]))


@each_type
@pytest.mark.parametrize("shape", [(512,), (1, 512), (3, 2, 256), (2, 1, 2, 256), (0, 256), (4, 0)])
def test_any_leading_shape(block_type: BlockType, shape: tuple[int, ...]) -> None:
    values = normal(*shape)
    packed = encode(block_type, values)
    layout = BLOCK_LAYOUTS[block_type]
    assert packed.dtype == np.uint8
    assert packed.shape == (*shape[:-1], shape[-1] // layout.values_per_block * layout.bytes_per_block)
    assert np.array_equal(packed.reshape(-1), encode(block_type, values.reshape(-1)))


@each_type
@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_floats_are_encoded_as_their_float32_values(block_type: BlockType, dtype: type) -> None:
    values = normal(4, 256).astype(dtype)
    assert np.array_equal(encode(block_type, values), encode(block_type, values.astype(np.float32)))


def test_a_view_with_strides_is_encoded_as_its_copy() -> None:
    values = normal(256, 64)
    assert np.array_equal(encode(BlockType.Q4_K, values.T), encode(BlockType.Q4_K, values.T.copy()))


@each_type
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(block_type: BlockType, bad: float) -> None:
    values = normal(3, 256)
    values[1, 17] = bad
    with pytest.raises(BadModelFile, match=f"{block_type.name}.*finite"):
        encode(block_type, values)


@pytest.mark.parametrize("block_type", [*HALF_SCALED, BlockType.F16], ids=lambda kind: kind.name)
@pytest.mark.parametrize("sign", [1, -1])
def test_what_float16_scales_cannot_hold_is_refused(block_type: BlockType, sign: int) -> None:
    values = normal(2, 256)
    values[1, 3] = sign * 1e30
    with pytest.raises(UnsupportedModel, match=rf"{block_type.name}.*1e\+30"):
        encode(block_type, values)


def test_bf16_does_not_round_to_infinity() -> None:
    with pytest.raises(UnsupportedModel, match="BF16"):
        encode(BlockType.BF16, np.array([3.4e38], np.float32))
    with pytest.raises(BadModelFile, match="finite"):
        encode(BlockType.F32, np.array([1e300]))


@pytest.mark.parametrize("block_type", SCALED, ids=lambda kind: kind.name)
@pytest.mark.parametrize("size", [65504.0, 1e-3, 6e-8, 1e-20, 1e-38, 1e-45])
def test_the_extremes_stay_finite_and_in_proportion(block_type: BlockType, size: float) -> None:
    values = np.clip(normal(4, 256) / 3, -1, 1) * np.float32(size)
    values[0, 0], values[3, 255] = size, -size
    found = there_and_back(block_type, values)
    assert np.isfinite(found).all()
    assert np.abs(found).max() <= 1.2 * np.float32(size) + 2.0**-24 * 255  # a float16 scale has steps of 2**-24


def test_mxfp4_reaches_over_all_of_float32() -> None:
    for size in (3.4e38, 1.0, 1e-30, 1e-37):
        values = np.full((1, 32), np.float32(size))
        assert np.abs(there_and_back(BlockType.MXFP4, values) / values - 1).max() < 0.26


def test_mxfp4_takes_the_upper_exponent_where_it_clips_less() -> None:
    values = np.zeros(32, np.float32)
    values[0] = 7.9  # 6 is the nearest under the proposed exponent, 8 under the next
    assert there_and_back(BlockType.MXFP4, values)[0] == 8.0
    values[0] = 6.5
    assert there_and_back(BlockType.MXFP4, values)[0] == 6.0


def test_mxfp4_ties_go_to_even_codes() -> None:
    values = np.zeros(32, np.float32)
    values[:8] = (6, 0.25, 0.75, 1.25, 1.75, 2.5, 3.5, -5)
    assert there_and_back(BlockType.MXFP4, values)[:8].tolist() == [6, 0, 1, 1, 2, 2, 4, -4]


@pytest.mark.parametrize("name", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q5_0", "MXFP4"])
def test_encoding_what_was_decoded_changes_nothing(name: str) -> None:
    once = there_and_back(BlockType[name], normal(64, 256, seed=4))
    assert np.array_equal(there_and_back(BlockType[name], once), once)


@pytest.mark.parametrize("name", ["Q4_K", "Q5_K", "Q6_K", "IQ4_NL"])
def test_a_constant_is_nearly_kept(name: str) -> None:
    for constant in (0.37, -0.37):
        values = np.full((1, 256), constant, np.float32)
        assert np.abs(there_and_back(BlockType[name], values) - values).max() < 4e-3


def test_a_tiny_group_beside_a_large_one_does_no_harm() -> None:
    values = normal(1, 256)
    values[0, 32:64] *= np.float32(1e-42)
    for block_type in SCALED:
        found = there_and_back(block_type, values)
        assert np.isfinite(found).all()
        assert np.abs(found[0, 32:64]).max() < 0.02


@pytest.mark.parametrize("value", [52329.625, 0.1, 3.3333333, 777.7])
@pytest.mark.parametrize("block_type", SCALED, ids=lambda kind: kind.name)
def test_equal_values_stay_what_they_are(block_type: BlockType, value: float) -> None:
    values = np.full((1, 256), value, np.float32)
    assert np.allclose(there_and_back(block_type, values), values, rtol=0.15)


@pytest.mark.parametrize("block_type", SCALED, ids=lambda kind: kind.name)
@settings(max_examples=40, deadline=None)
@given(values=hnp.arrays(np.float32, (2, 256), elements=st.floats(-60000, 60000, width=32)))
def test_no_value_is_further_off_than_two_steps_of_its_block(
    block_type: BlockType, values: NDArray[np.float32]
) -> None:
    found = there_and_back(block_type, values)
    steps = {BlockType.Q2_K: 3, BlockType.Q3_K: 4, BlockType.Q8_0: 127}.get(block_type, 5)
    largest = np.abs(values).max(axis=1, keepdims=True)
    assert (np.abs(found - values) <= 2 * largest / steps + 1e-4).all()


def test_a_row_that_is_not_whole_blocks_is_refused() -> None:
    with pytest.raises(BadModelFile, match="300"):
        encode(BlockType.Q4_K, normal(2, 300))


def test_a_type_without_an_encoder_is_named() -> None:
    with pytest.raises(UnsupportedModel, match="IQ2_XS"):
        encode(BlockType.IQ2_XS, normal(1, 256))
