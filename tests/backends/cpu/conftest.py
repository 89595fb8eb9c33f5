"""Programs of a few instructions, so that each kernel can be held against numpy by itself."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

from localllm.backends.cpu.library import KERNEL_SETS, native_problem
from localllm.formats.blocks import BLOCK_LAYOUTS, BlockType, decode, encode, row_bytes
from tests.oracles.random_blocks import set_scales

NONE = -1
FLOATS = (BlockType.F32, BlockType.F16, BlockType.BF16)
ENCODED = (BlockType.Q4_0, BlockType.Q4_1, BlockType.Q8_0)


class Fields(NamedTuple):
    """Where a block keeps its half-precision numbers, and [first, last) bytes of quants."""

    halves: tuple[int, ...]
    quants: tuple[int, int]


DRAWN = {
    BlockType.Q5_0: Fields((0,), (2, 22)),
    BlockType.Q5_1: Fields((0, 2), (4, 24)),
    BlockType.Q2_K: Fields((80, 82), (16, 80)),
    BlockType.Q3_K: Fields((108,), (0, 96)),
    BlockType.Q4_K: Fields((0, 2), (16, 144)),
    BlockType.Q5_K: Fields((0, 2), (16, 176)),
    BlockType.Q6_K: Fields((208,), (0, 192)),
    BlockType.IQ4_NL: Fields((0,), (2, 18)),
    BlockType.IQ4_XS: Fields((0,), (8, 136)),
    BlockType.MXFP4: Fields((), (1, 17)),
    BlockType.IQ1_S: Fields((0,), (2, 34)),
    BlockType.IQ1_M: Fields((), (0, 48)),
    BlockType.IQ2_XXS: Fields((0,), (2, 66)),
    BlockType.IQ2_XS: Fields((0,), (2, 66)),
    BlockType.IQ2_S: Fields((0,), (2, 74)),
    BlockType.IQ3_XXS: Fields((0,), (2, 98)),
    BlockType.IQ3_S: Fields((0,), (2, 106)),
    BlockType.TQ1_0: Fields((52,), (0, 52)),
    BlockType.TQ2_0: Fields((64,), (0, 64)),
    BlockType.Q1_0: Fields((0,), (2, 18)),
}
"""Any bytes are a block of these types, as long as the halves are finite: so every bit of them is tried."""
QUANTIZED = (*ENCODED, *DRAWN)
Floats = NDArray[np.float32]


@pytest.fixture(params=KERNEL_SETS)
def kernels(request: pytest.FixtureRequest) -> str:
    if problem := native_problem():
        pytest.skip(problem)
    from localllm.backends.cpu import _native

    name = str(request.param)
    if not _native.has_kernels(name):
        pytest.skip(f"this machine does not run the {name} kernels")
    return name


@dataclass
class Matrix:
    """A random matrix in blocks, and what it means."""

    raw: NDArray[np.uint8]
    values: Floats
    type: BlockType

    @property
    def shape(self) -> tuple[int, int]:
        rows, columns = self.values.shape
        return rows, columns


def columns_of(kind: BlockType, columns: int) -> int:
    """The nearest row length, not shorter, that the type can have."""
    size = BLOCK_LAYOUTS[kind].values_per_block
    return -(-columns // size) * size


def random_matrix(kind: BlockType, rows: int, columns: int, seed: int = 0) -> Matrix:
    if kind in DRAWN:
        return matrix_of(kind, random_blocks(kind, rows, columns, seed), columns)
    values = np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)
    return matrix_of(kind, encode(kind, values), columns)


def matrix_of(kind: BlockType, blocks: NDArray[np.uint8], columns: int) -> Matrix:
    return Matrix(blocks.reshape(-1), decode(kind, blocks, (blocks.size // row_bytes(kind, columns), columns)), kind)


def random_blocks(kind: BlockType, rows: int, columns: int, seed: int = 0) -> NDArray[np.uint8]:
    """Blocks (rows * columns / values, bytes) of random bits, whose halves are finite and of either sign."""
    size, num_bytes = BLOCK_LAYOUTS[kind]
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (rows * columns // size, num_bytes), np.uint8)
    for offset in DRAWN[kind].halves:
        halves = rng.uniform(0.002, 0.01, (len(blocks), 1)) * rng.choice([-1, 1], (len(blocks), 1))
        blocks[:, offset : offset + 2] = halves.astype("<f2").view(np.uint8)
    if kind == BlockType.MXFP4:
        blocks[:, 0] = rng.integers(120, 128, len(blocks))
    if kind == BlockType.IQ1_M:
        set_scales(kind, blocks, rng.uniform(-0.01, 0.01, len(blocks)).astype(np.float16))
    return blocks


def rounded(x: Floats) -> Floats:
    """What the activations of quantized products become: 8 bits with a scale per 16 values.

    A scale is a whole multiple, up to 4095, of a unit that two such halves share.
    """
    halves = x.reshape(*x.shape[:-1], -1, 2, 16)
    largest = np.abs(halves).max(axis=-1, keepdims=True)
    most = largest.max(axis=-2, keepdims=True)
    to_ratio = np.divide(np.float32(4095), most, out=np.zeros_like(most), where=most > 1e-30)
    ratio = np.minimum(np.floor(largest * to_ratio) + 1, np.float32(4095))
    values = np.rint(halves * (np.float32(127) * to_ratio / ratio)) * (ratio * (most / np.float32(127 * 4095)))
    return np.asarray(values, np.float32).reshape(x.shape)


class Bench:
    """A program with inputs of `num_tokens` rows that can be written, run and read."""

    def __init__(self, kernels: str, num_tokens: int, threads: int = 2, vocab_size: int = 64) -> None:
        from localllm.backends.cpu import _native

        self.num_tokens = num_tokens
        self.program = _native.Program(
            threads=threads,
            kernels=kernels,
            max_tokens=max(num_tokens, 1),
            context_length=4096,
            vocab_size=vocab_size,
            page_size=16,
            kv_type="f16",
            page_bytes=0,
            windows=[],
            state_floats=0,
        )

    def buffer(self, width: int, quantized: bool = False, is_private: bool = False, taken: bool = False) -> int:
        return self.program.buffer(width, quantized, is_private, taken)

    def input(self, x: Floats) -> int:
        buffer = self.buffer(x.shape[1])
        self.program.values(buffer, len(x))[:] = x
        return buffer

    def input_for(self, kind: BlockType, x: Floats) -> int:
        """`x` in the form that products with `kind` read."""
        floats = self.input(x)
        if kind in FLOATS:
            return floats
        blocks = self.buffer(x.shape[1], quantized=True, is_private=True)
        self.program.quantize(floats, blocks)
        return blocks

    def matrix(self, matrix: Matrix) -> int:
        return self.program.matrix(matrix.raw, int(matrix.type), *matrix.shape)

    def gated_matrix(self, gate: Matrix, up: Matrix) -> int:
        return self.program.gated_matrix(gate.raw, up.raw, int(gate.type), int(up.type), *gate.shape)

    def vector(self, values: Floats) -> int:
        return self.program.vector(np.ascontiguousarray(values, np.float32))

    def run(self, taken: list[int] | None = None, start: int = 0) -> list[int]:
        tokens = np.arange(self.num_tokens, dtype=np.int32)
        rows = 1 if self.num_tokens else 0
        wanted = np.array(taken or [], np.int32)
        return self.program.step(
            tokens % 8,
            tokens + start,
            np.array([0, self.num_tokens][: rows + 1], np.int32),
            [],
            np.full(rows, -1, np.int32),
            np.zeros(rows, np.bool_),
            wanted,
            np.ones(len(wanted), np.bool_),
            False,
            False,
        )

    def read(self, buffer: int) -> Floats:
        return self.program.values(buffer, self.num_tokens).copy()


def assert_close(ours: Floats, expected: Floats, tolerance: float = 2e-5) -> None:
    """The largest difference, relative to the largest value."""
    assert ours.shape == expected.shape
    assert np.abs(ours - expected).max() <= tolerance * max(np.abs(expected).max(), 1e-30)
