"""GPTQ: blocks that any reader decodes, with less error in the products than rounding leaves."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from localllm.errors import BadModelFile, UnsupportedModel
from localllm.formats.blocks import BLOCK_LAYOUTS, BlockType, decode, row_bytes
from localllm.quantize.encode import encode
from localllm.quantize.gptq import GPTQ_TYPES, gptq_encode, inverse_factor

Floats = NDArray[np.float32]
KINDS = sorted(GPTQ_TYPES)


def world(columns: int, rows: int = 48, tokens: int = 600, seed: int = 0) -> tuple[Floats, Floats]:
    """A weight (rows, columns) and inputs (tokens, columns) that depend on each other, of very different sizes."""
    rng = np.random.default_rng(seed)
    mix = np.eye(columns) + 0.5 * rng.standard_normal((columns, columns)) / np.sqrt(columns)
    inputs = rng.standard_normal((tokens, columns)) @ mix * np.exp(rng.standard_normal(columns))
    return rng.standard_normal((rows, columns)).astype(np.float32), inputs.astype(np.float32)


def decoded(kind: BlockType, blocks: NDArray[np.uint8], values: Floats) -> Floats:
    return decode(kind, blocks.reshape(-1), values.shape)


def loss(kind: BlockType, blocks: NDArray[np.uint8], values: Floats, inputs: Floats) -> float:
    return float(
        np.linalg.norm(inputs @ (decoded(kind, blocks, values) - values).T) / np.linalg.norm(inputs @ values.T)
    )


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_products_lose_less_than_by_rounding_and_than_by_importance(kind: BlockType) -> None:
    values, inputs = world(512)
    hessian = inputs.T @ inputs
    found = loss(kind, gptq_encode(kind, values, hessian), values, inputs)
    assert found < 0.95 * loss(kind, encode(kind, values, hessian.diagonal()), values, inputs)
    assert found < (0.96 if kind is BlockType.Q8_0 else 0.8) * loss(kind, encode(kind, values), values, inputs)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_without_correlation_every_number_is_the_nearest_of_its_grid(kind: BlockType) -> None:
    values, _ = world(256)
    blocks = gptq_encode(kind, values, np.eye(256, dtype=np.float32))
    assert blocks.shape == (48, row_bytes(kind, 256)) and blocks.dtype == np.uint8
    assert np.array_equal(blocks, gptq_encode(kind, values, 1000 * np.eye(256, dtype=np.float32)))
    even = np.ones(256, np.float32)
    # the same head, as columns matter alike, and so the same numbers: but for those halfway between two
    assert (blocks != encode(kind, values, even)).mean() < 0.01


def test_a_columns_error_goes_to_those_that_come_with_it() -> None:
    """Two equal inputs: what one column loses, the other takes."""
    rng = np.random.default_rng(2)
    inputs = rng.standard_normal((400, 32)).astype(np.float32)
    inputs[:, 1] = inputs[:, 0]
    values = rng.standard_normal((16, 32)).astype(np.float32)
    blocks = gptq_encode(BlockType.Q4_0, values, inputs.T @ inputs)
    missed = decoded(BlockType.Q4_0, blocks, values) - values
    grid = np.abs(decode(BlockType.Q4_0, blocks.reshape(-1), values.shape)).max(axis=1) / 8
    assert (np.abs(missed[:, 0] + missed[:, 1]) < 0.8 * grid).all()


def test_the_factor_is_that_of_the_inverse() -> None:
    _, inputs = world(300)
    hessian = inputs.T @ inputs
    factor = inverse_factor(hessian, damping=0.01)
    damped = hessian.astype(np.float64) + 0.01 * hessian.diagonal().mean() * np.eye(300)
    assert np.array_equal(factor, np.triu(factor))
    assert np.abs(factor.T.astype(np.float64) @ factor @ damped - np.eye(300)).max() < 1e-2


def test_fewer_inputs_than_columns_and_columns_without_inputs_are_no_obstacle() -> None:
    values, inputs = world(256, tokens=20)
    inputs[:, 100:140] = 0
    blocks = gptq_encode(BlockType.Q4_0, values, inputs.T @ inputs)
    found = decoded(BlockType.Q4_0, blocks, values)
    assert np.isfinite(found).all()
    assert np.abs(found[:, 100:140] - values[:, 100:140]).max() < 0.6
    assert np.isfinite(gptq_encode(BlockType.Q4_0, values, np.zeros((256, 256), np.float32))).all()


def test_rows_do_not_know_of_each_other() -> None:
    values, inputs = world(256)
    hessian = inputs.T @ inputs
    whole = gptq_encode(BlockType.Q4_K, values, hessian)
    assert (gptq_encode(BlockType.Q4_K, values[20:30], hessian) != whole[20:30]).mean() < 0.01


@settings(max_examples=25)
@given(seed=st.integers(0, 50), size=st.sampled_from([-30, -8, 0, 8]), kind=st.sampled_from(KINDS))
def test_any_sizes_of_weights_and_inputs_make_blocks_near_the_weights(seed: int, size: int, kind: BlockType) -> None:
    rng = np.random.default_rng(seed)
    columns = BLOCK_LAYOUTS[kind].values_per_block
    values = (rng.standard_normal((5, columns)) * np.exp2(float(min(size, 8)))).astype(np.float32)
    inputs = (rng.standard_normal((7, columns)) * np.exp2(rng.integers(-20, 20, columns))).astype(np.float32)
    found = decoded(kind, gptq_encode(kind, values, inputs.T @ inputs), values)
    assert np.isfinite(found).all() and np.abs(found).max() <= 4 * np.abs(values).max()


def test_what_it_cannot_do_is_refused_by_name() -> None:
    values, inputs = world(64)
    hessian = inputs.T @ inputs
    with pytest.raises(UnsupportedModel, match="GPTQ does not round to Q6_K"):
        gptq_encode(BlockType.Q6_K, values, hessian)
    with pytest.raises(BadModelFile, match="does not belong to rows of 64 values"):
        gptq_encode(BlockType.Q4_0, values, hessian[:32, :32])
    with pytest.raises(BadModelFile):
        gptq_encode(BlockType.Q4_K, values, hessian)  # rows of 64 are no whole blocks
    values[40, 3] = np.nan
    with pytest.raises(BadModelFile, match="not all finite"):
        gptq_encode(BlockType.Q4_0, values, hessian)
