"""The plain types are llama.cpp's bytes; the searching ones are no worse than its; the native encoders are numpy's."""

import hashlib

import numpy as np
import pytest
from numpy.typing import NDArray

from localllm.errors import BadModelFile, UnsupportedModel
from localllm.formats.blocks import BLOCK_LAYOUTS, BlockType, decode, row_bytes
from localllm.quantize.encode import checked_weights, encode, numpy_encode
from localllm.quantize.native import NATIVE, is_built, native_blocks
from tests.quantize.adversarial import COLUMNS, ggml, rows

PLAIN = [BlockType[name] for name in ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")]
SEARCHED = sorted(NATIVE - set(PLAIN))
ROWS_DIGEST = "832a0069833cf862"
THEIR_DIGESTS = {
    "Q4_0": "3427fc1c0be9fc7c",
    "Q4_1": "fbbd46e541cf9924",
    "Q5_0": "8dfd41be7628727d",
    "Q5_1": "e9846a0c16e67cb3",
    "Q8_0": "84104ae40be348e0",
}
"""Of ggml_quantize_chunk's bytes (llama-cpp-python 0.3.36, x86-64) for `rows()`."""
KERNELS = ("portable", "avx2", "avx512")
native_only = pytest.mark.skipif(not is_built(), reason="the native encoders are not built")


def digest(values: NDArray[np.generic]) -> str:
    return hashlib.sha256(np.ascontiguousarray(values).data).hexdigest()[:16]


def importance(columns: int) -> NDArray[np.float32]:
    values: NDArray[np.float32] = np.exp(2 * np.random.default_rng(5).standard_normal(columns)).astype(np.float32)
    values[3] = 0
    return values


@pytest.mark.parametrize("kind", PLAIN, ids=lambda kind: kind.name)
def test_plain_types_are_the_bytes_of_llama_cpp(kind: BlockType) -> None:
    """3010 rows of 256 values: 24080 blocks of each type."""
    values = rows()
    if digest(values) != ROWS_DIGEST:
        pytest.skip("this numpy draws other numbers than the digests were made of")
    assert digest(encode(kind, values)) == THEIR_DIGESTS[kind.name]
    assert digest(numpy_encode(kind, values)) == THEIR_DIGESTS[kind.name]


@pytest.mark.parametrize("kind", PLAIN, ids=lambda kind: kind.name)
def test_plain_types_are_the_bytes_of_llama_cpp_where_that_is_here(kind: BlockType) -> None:
    values = rows()
    assert np.array_equal(encode(kind, values), ggml(kind, values))
    halves = np.clip(values, -65504, 65504).astype(np.float16)
    assert np.array_equal(encode(kind, halves), ggml(kind, halves.astype(np.float32)))


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize("kind", sorted(NATIVE), ids=lambda kind: kind.name)
def test_weighted_errors_are_within_a_hundredth_of_llama_cpps(kind: BlockType, weighted: bool) -> None:
    rng = np.random.default_rng(0)
    columns = importance(512) if weighted else None
    for values in (
        rng.standard_normal((100, 512)),
        0.02 * rng.standard_t(5, (100, 512)) + 0.002,
        rng.standard_normal((100, 512)) * np.exp(rng.standard_normal((1, 512))),
    ):
        exact = values.astype(np.float32)
        ours = decode(kind, encode(kind, exact, columns), exact.shape)
        theirs = decode(kind, ggml(kind, exact, columns), exact.shape)
        heavy = np.ones(512) if columns is None else columns.astype(np.float64)
        assert (heavy * (ours - exact) ** 2).sum() <= 1.01 * (heavy * (theirs - exact) ** 2).sum()


def kernels(name: str) -> str:
    """Skips where the machine has no such instructions."""
    try:
        native_blocks(BlockType.Q8_0, BlockType.F32, np.zeros(128, np.uint8), 32, None, 1.0, 1, name)
    except ValueError as problem:
        pytest.skip(str(problem))
    return name


@native_only
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize("kind", sorted(NATIVE), ids=lambda kind: kind.name)
def test_native_bytes_are_those_of_numpy(kind: BlockType, weighted: bool, kernel: str) -> None:
    values = rows()[::7].reshape(-1, 2 * COLUMNS)  # an odd number of blocks: the last tile of lanes is not full
    columns = importance(2 * COLUMNS) if weighted else None
    line = None if columns is None else checked_weights(columns, values.shape)
    raw = values.view(np.uint8).reshape(-1)
    found, refused = native_blocks(kind, BlockType.F32, raw, 2 * COLUMNS, line, 3e38, 2, kernels(kernel))
    assert refused == -1
    assert np.array_equal(found.reshape(len(values), -1), numpy_encode(kind, values, columns))


@native_only
@pytest.mark.parametrize("source", [BlockType.F16, BlockType.BF16], ids=lambda kind: kind.name)
def test_halves_are_read_as_their_float32_values(source: BlockType) -> None:
    every = np.arange(1 << 16, dtype=np.uint16)
    exact = decode(source, every.view(np.uint8), (1 << 16,))
    every = every[np.isfinite(exact) & (np.abs(exact) < 65504)]
    every = every[: len(every) // 256 * 256]
    raw = every.view(np.uint8)
    values = decode(source, raw, (len(every) // 256, 256))
    for kind in (BlockType.Q8_0, BlockType.Q4_K):
        found, _ = native_blocks(kind, source, raw, 256, None, 65504.0, 1)
        assert np.array_equal(found, numpy_encode(kind, values).reshape(-1))


@native_only
@pytest.mark.parametrize("threads", [1, 3])
def test_the_bytes_do_not_depend_on_threads_and_the_first_bad_block_is_told(threads: int) -> None:
    values = np.random.default_rng(2).standard_normal((600, 512)).astype(np.float32)
    assert np.array_equal(encode(BlockType.Q4_0, values, threads=threads), encode(BlockType.Q4_0, values))
    values[571, 3], values[201, 400], values[599] = np.nan, np.inf, 1e30
    with pytest.raises(BadModelFile, match="row 201"):
        encode(BlockType.Q4_0, values, threads=threads)


@pytest.mark.parametrize("way", [encode, numpy_encode], ids=["native", "numpy"])
@pytest.mark.parametrize("kind", sorted(NATIVE), ids=lambda kind: kind.name)
def test_refusals_name_the_row(kind: BlockType, way: object) -> None:
    assert callable(way)
    values = np.ones((2, 5, 256), np.float32)
    values[1, 2, 200] = np.nan
    with pytest.raises(BadModelFile, match=rf"{kind.name}.*finite.*row 7"):
        way(kind, values)
    if kind is not BlockType.MXFP4:
        values[1, 2, 200] = 1e30
        with pytest.raises(UnsupportedModel, match=r"1e\+30.*row 7"):
            way(kind, values)


@pytest.mark.parametrize("kind", sorted(NATIVE), ids=lambda kind: kind.name)
def test_every_expert_is_weighed_by_its_own_importance(kind: BlockType) -> None:
    values = np.random.default_rng(3).standard_normal((2, 4, 256)).astype(np.float32)
    weights = np.stack([importance(256), importance(256)[::-1]])
    both = encode(kind, values, weights)
    for expert in (0, 1):
        # only proportions matter, and each expert has its own
        assert np.array_equal(both[expert], encode(kind, values[expert], 16 * weights[expert]))
    assert both.shape == (2, 4, row_bytes(kind, 256))


def test_a_weighted_search_errs_less_where_it_matters() -> None:
    values = np.random.default_rng(4).standard_normal((64, 512)).astype(np.float32)
    weights = importance(512)
    for kind in sorted(NATIVE - {BlockType.Q8_0}):
        errors = [
            (weights * (decode(kind, encode(kind, values, columns), values.shape) - values) ** 2).sum()
            for columns in (weights, None)
        ]
        assert errors[0] < errors[1], kind.name


@pytest.mark.parametrize("bad", [np.nan, np.inf, -1.0])
def test_an_importance_that_is_none_is_refused(bad: float) -> None:
    values, weights = np.ones((2, 64), np.float32), np.ones(64, np.float32)
    weights[5] = bad
    with pytest.raises(BadModelFile, match="importance"):
        encode(BlockType.Q4_0, values, weights)
    with pytest.raises(BadModelFile, match=r"shape \(32,\)"):
        encode(BlockType.Q4_0, values, np.ones(32, np.float32))


def test_columns_that_no_text_has_reached_are_encoded_as_if_all_were_equal() -> None:
    values = np.random.default_rng(6).standard_normal((4, 256)).astype(np.float32)
    nothing = encode(BlockType.Q4_K, values, np.zeros(256, np.float32))
    assert np.array_equal(nothing, encode(BlockType.Q4_K, values))
    assert BLOCK_LAYOUTS[BlockType.Q4_K].bytes_per_block == nothing.shape[-1]
