"""Weights of every block type mean in MLX what formats/blocks.py says they mean, and multiply as such."""

import numpy as np
import pytest
from numpy.typing import NDArray

mx = pytest.importorskip("mlx.core")

from localllm.backends.metal.load import Tensors, load  # noqa: E402  # needs MLX
from localllm.backends.metal.precision import Precision, precision_for  # noqa: E402
from localllm.backends.metal.repack import AFFINE_BITS, affine, pack  # noqa: E402
from localllm.backends.metal.weights import Dense, OnUse, Quantized, Weight  # noqa: E402
from localllm.errors import BadModelFile, UnsupportedModel  # noqa: E402
from localllm.formats.blocks import BLOCK_LAYOUTS, DECODABLE, BlockType, decode  # noqa: E402
from tests.contract.worlds import BY_NAME, build  # noqa: E402
from tests.oracles.random_blocks import random_blocks  # noqa: E402

EXACT, HALF = Precision(half=False), Precision(half=True)
FLOATS = (BlockType.F32, BlockType.F16, BlockType.BF16)
EXPERTS, OUT, WIDTH = 5, 24, 512
KINDS = sorted(DECODABLE)
Raw = NDArray[np.uint8]


def some_blocks(kind: BlockType, num_values: int) -> Raw:
    blocks = random_blocks(kind, num_values // BLOCK_LAYOUTS[kind].values_per_block, seed=int(kind))
    if kind == BlockType.MXFP4:
        blocks[:, 0] = 118 + blocks[:, 0] % 8  # so that sums are of numbers of one size
    return blocks.reshape(-1)


def matrix(kind: BlockType) -> tuple[Raw, NDArray[np.float32]]:
    raw = some_blocks(kind, OUT * WIDTH)
    return raw, decode(kind, raw, (OUT, WIDTH))


def inputs(count: int) -> NDArray[np.float32]:
    return np.random.default_rng(3).standard_normal((count, WIDTH)).astype(np.float32)


def check_product(ours: object, x: NDArray[np.float32], values: NDArray[np.float32], tolerance: float) -> None:
    """Within rounding of the terms that were added."""
    exact = x.astype(np.float64) @ values.astype(np.float64).T
    size = np.abs(x).astype(np.float64) @ np.abs(values).astype(np.float64).T
    assert (np.abs(np.array(ours) - exact) <= tolerance * size).all()


def ways(kind: BlockType, raw: Raw, shape: tuple[int, ...]) -> list[Weight]:
    return [load(kind, raw, shape, EXACT), OnUse(kind, raw, shape)]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_every_value_is_the_decoded_one_to_the_bit(kind: BlockType) -> None:
    raw, values = matrix(kind)
    for weight in ways(kind, raw, (OUT, WIDTH)):
        np.testing.assert_array_equal(np.array(weight.values()), values)
        picked = np.array([7, 0, 23, 7], np.int32)
        np.testing.assert_array_equal(np.array(weight.rows(picked)), values[picked])


@pytest.mark.parametrize("num_tokens", [1, 9])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_products_are_those_of_the_decoded_matrix(kind: BlockType, num_tokens: int) -> None:
    raw, values = matrix(kind)
    x = inputs(num_tokens)
    for weight in ways(kind, raw, (OUT, WIDTH)):
        check_product(weight.product(mx.array(x)), x, values, 2e-6)


@pytest.mark.parametrize("are_sorted", [False, True])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_each_line_meets_its_own_expert(kind: BlockType, are_sorted: bool) -> None:
    shape = (EXPERTS, OUT, WIDTH)
    raw = some_blocks(kind, EXPERTS * OUT * WIDTH)
    values, x = decode(kind, raw, shape), inputs(6)
    experts = np.array([1, 1, 2, 4, 4, 4] if are_sorted else [4, 1, 4, 2, 1, 4], np.int32)
    for weight in ways(kind, raw, shape):
        ours = np.array(weight.by_expert(mx.array(x), mx.array(experts), are_sorted))
        for line, expert in enumerate(experts):
            check_product(ours[line : line + 1], x[line : line + 1], values[expert], 2e-6)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_products_in_half_precision_are_near(kind: BlockType) -> None:
    """As on a GPU, on whose float32 sums the CPU device falls short: it adds in half precision."""
    raw, values = matrix(kind)
    x = inputs(3) / np.float32(32)  # so that sums of random blocks are float16 numbers
    tolerance = {BlockType.F32: 2e-6, BlockType.BF16: 2e-2}.get(kind, 6e-3)
    check_product(load(kind, raw, (OUT, WIDTH), HALF).product(mx.array(x)), x, values, tolerance)


@pytest.mark.parametrize("kind", sorted(AFFINE_BITS), ids=lambda kind: kind.name)
def test_quantized_weights_stay_small(kind: BlockType) -> None:
    raw, values = matrix(kind)
    weight = load(kind, raw, (OUT, WIDTH), HALF)
    assert isinstance(weight, Quantized)
    assert weight.size_bytes == values.size * (AFFINE_BITS[kind] / 8 + 2 * 2 / 32)


def test_a_scale_beyond_float16_is_kept_in_float32() -> None:
    raw = random_blocks(BlockType.Q8_0, OUT * WIDTH // 32, 0)
    raw[3, :2] = np.array([60000.0], np.float16).view(np.uint8)  # whose bias, 128 times as large, is no float16
    values = decode(BlockType.Q8_0, raw, (OUT, WIDTH))
    weight = load(BlockType.Q8_0, raw.reshape(-1), (OUT, WIDTH), HALF)
    np.testing.assert_array_equal(np.array(weight.values()), values)


def test_matrices_are_unpacked_in_slices_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    raw, _ = matrix(BlockType.Q5_K)
    whole = affine(BlockType.Q5_K, raw, (OUT, WIDTH))
    monkeypatch.setattr("localllm.backends.metal.repack.VALUES_AT_ONCE", 5 * WIDTH)
    sliced = affine(BlockType.Q5_K, raw, (OUT, WIDTH))
    np.testing.assert_array_equal(sliced.words, whole.words)
    np.testing.assert_array_equal(sliced.biases, whole.biases)


@pytest.mark.parametrize("bits", [4, 5, 8])
def test_packed_quants_are_read_by_mlx_as_they_were(bits: int) -> None:
    quants = np.random.default_rng(bits).integers(0, 1 << bits, (3, 96)).astype(np.uint8)
    ones, zeros = mx.ones((3, 3)), mx.zeros((3, 3))
    read = mx.dequantize(mx.array(pack(quants, bits)), ones, zeros, group_size=32, bits=bits)
    np.testing.assert_array_equal(np.array(read), quants)


@pytest.mark.parametrize("kind", FLOATS, ids=lambda kind: kind.name)
def test_floats_keep_their_type(kind: BlockType) -> None:
    raw, values = matrix(kind)
    weight = load(kind, raw, (OUT, WIDTH), EXACT)
    assert isinstance(weight, Dense) and weight.size_bytes == raw.nbytes
    np.testing.assert_array_equal(np.array(weight.values()), values)


def test_a_type_without_a_decoder_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedModel, match="NVFP4"):
        load(BlockType.NVFP4, np.zeros(36, np.uint8), (1, 64), EXACT)


def test_what_was_copied_is_released_and_what_is_missing_is_named() -> None:
    _, source = build(BY_NAME["llama"])
    released: list[str] = []
    source.release = released.append  # type: ignore[method-assign, assignment]  # to see the calls
    tensors = Tensors(source, EXACT)
    assert sorted(released) == sorted(source.names())
    assert tensors.get("blk.9.attn_q.weight") is None
    with pytest.raises(BadModelFile, match=r"blk\.9\.attn_q\.weight"):
        tensors["blk.9.attn_q.weight"]


def test_models_that_scale_their_embedding_stay_float32_on_a_gpu() -> None:
    llama, gemma = (build(BY_NAME[name])[0] for name in ("llama", "embedding and residual scales"))
    assert precision_for(llama, "gpu").half and not precision_for(llama, "cpu").half
    assert not precision_for(gemma, "gpu").half
