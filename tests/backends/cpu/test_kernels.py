"""Every kernel of every set against numpy on the decoded blocks, shapes with tails included."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from localllm.backends.cpu.library import kernel_features
from localllm.backends.formulas import activate, gate_times_up
from localllm.formats.blocks import BlockType, encode
from localllm.models.config import Activation
from tests.backends.cpu.conftest import (
    DRAWN,
    ENCODED,
    FLOATS,
    NONE,
    QUANTIZED,
    Bench,
    Floats,
    Matrix,
    assert_close,
    columns_of,
    matrix_of,
    random_blocks,
    random_matrix,
    rounded,
)

pytest.importorskip("localllm.backends.cpu._native", reason="the native kernels have not been built")
ACTIVATIONS: tuple[Activation, ...] = ("silu", "gelu", "gelu_tanh", "relu", "relu2", "swiglu_oai")
TYPES = (*FLOATS, *QUANTIZED)


def normal(rows: int, columns: int, seed: int = 1) -> Floats:
    return np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)


def seen_by(kind: BlockType, x: Floats) -> Floats:
    return x if kind in FLOATS else rounded(x)


def product(kernels: str, matrix: Matrix, x: Floats, threads: int) -> Floats:
    bench = Bench(kernels, len(x), threads)
    out = bench.buffer(matrix.shape[0])
    bench.program.linear(bench.input_for(matrix.type, x), bench.matrix(matrix), NONE, NONE, 1.0, out, True)
    bench.run()
    return bench.read(out)


@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.name)
@settings(max_examples=12, deadline=None)
@given(rows=st.integers(1, 70), blocks=st.integers(1, 5), tokens=st.integers(1, 11), threads=st.integers(1, 3))
def test_a_product_is_that_of_the_decoded_blocks(
    kind: BlockType, rows: int, blocks: int, tokens: int, threads: int
) -> None:
    for kernels in kernel_features():
        columns = columns_of(kind, blocks * 32)
        matrix, x = random_matrix(kind, rows, columns), normal(tokens, columns)
        assert_close(product(kernels, matrix, x, threads), seen_by(kind, x) @ matrix.values.T)


@pytest.mark.parametrize("kind", QUANTIZED, ids=lambda kind: kind.name)
def test_rows_longer_than_a_strip_have_the_same_bits_in_any_company(kernels: str, kind: BlockType) -> None:
    columns = columns_of(kind, 4128)
    matrix, x = random_matrix(kind, 75, columns), normal(41, columns)
    together = product(kernels, matrix, x, threads=3)
    assert_close(together, rounded(x) @ matrix.values.T)
    for first, last in ((0, 1), (7, 9), (20, 27)):
        assert np.array_equal(product(kernels, matrix, x[first:last], threads=2), together[first:last])


@pytest.mark.parametrize("columns", [1, 2, 7, 33])
@pytest.mark.parametrize("kind", FLOATS, ids=lambda kind: kind.name)
def test_float_rows_may_have_any_length(kernels: str, kind: BlockType, columns: int) -> None:
    matrix, x = random_matrix(kind, 5, columns), normal(3, columns)
    bench = Bench(kernels, 3)
    out = bench.buffer(5)
    bench.program.linear(bench.input(x), bench.matrix(matrix), NONE, NONE, 1.0, out, True)
    bench.run()
    assert_close(bench.read(out), x @ matrix.values.T)


@pytest.mark.parametrize("tokens", [1, 2, 6])
def test_bias_and_scaled_residual_are_added_in_the_product(kernels: str, tokens: int) -> None:
    matrix, x, before = random_matrix(BlockType.Q4_1, 21, 64), normal(tokens, 64), normal(tokens, 21, 3)
    bias = normal(1, 21, 4)[0]
    bench = Bench(kernels, tokens)
    residual = bench.input(before)
    blocks = bench.input_for(matrix.type, x)
    bench.program.linear(blocks, bench.matrix(matrix), bench.vector(bias), residual, 0.5, residual, True)
    bench.run()
    assert_close(bench.read(residual), before + (rounded(x) @ matrix.values.T + bias) * np.float32(0.5))


@pytest.mark.parametrize("tokens", [1, 2, 5, 10])
@pytest.mark.parametrize("width", [32, 96, 40])
@pytest.mark.parametrize("kind", (BlockType.F16, *QUANTIZED), ids=lambda kind: kind.name)
def test_gate_and_up_go_in_one_pass(kernels: str, kind: BlockType, width: int, tokens: int) -> None:
    columns = columns_of(kind, 64)
    gate, up, x = (
        random_matrix(kind, width, columns, 1),
        random_matrix(kind, width, columns, 2),
        normal(tokens, columns),
    )
    bench = Bench(kernels, tokens)
    out = bench.buffer(width)
    matrix = bench.gated_matrix(gate, up)
    bench.program.gated(bench.input_for(kind, x), matrix, 0, NONE, NONE, out, NONE)
    bench.run()
    seen = seen_by(kind, x)
    assert_close(bench.read(out), gate_times_up(seen @ gate.values.T, seen @ up.values.T, "silu"))


@pytest.mark.parametrize("tokens", [1, 3, 7])
@pytest.mark.parametrize("width", [64, 104])
@pytest.mark.parametrize(
    ("gate_type", "up_type"),
    [
        (BlockType.Q4_K, BlockType.Q6_K),
        (BlockType.Q5_0, BlockType.Q4_1),
        (BlockType.Q8_0, BlockType.IQ4_XS),
        (BlockType.F16, BlockType.F32),
    ],
    ids=lambda kind: kind.name,
)
def test_gate_and_up_may_differ_in_type(
    kernels: str, gate_type: BlockType, up_type: BlockType, width: int, tokens: int
) -> None:
    gate, up, x = random_matrix(gate_type, width, 256), random_matrix(up_type, width, 256, 2), normal(tokens, 256)
    bench = Bench(kernels, tokens)
    out = bench.buffer(width)
    matrix = bench.gated_matrix(gate, up)
    bench.program.gated(bench.input_for(gate_type, x), matrix, 0, NONE, NONE, out, NONE)
    bench.run()
    seen = seen_by(gate_type, x)
    assert_close(bench.read(out), gate_times_up(seen @ gate.values.T, seen @ up.values.T, "silu"))


def test_gate_and_up_that_read_different_forms_are_refused(kernels: str) -> None:
    gate, up = random_matrix(BlockType.F16, 8, 256), random_matrix(BlockType.Q4_K, 8, 256)
    with pytest.raises(ValueError, match="form of their inputs"):
        Bench(kernels, 1).gated_matrix(gate, up)


@pytest.mark.parametrize("kind", (*DRAWN, BlockType.Q8_0), ids=lambda kind: kind.name)
def test_activations_that_8_bits_hold_lose_nothing(kernels: str, kind: BlockType) -> None:
    columns = columns_of(kind, 96)
    matrix = random_matrix(kind, 20, columns)
    x = np.random.default_rng(3).integers(-127, 128, (10, columns)).astype(np.float32)
    x[:, ::16] = 127
    bench = Bench(kernels, 10)
    out = bench.buffer(20)
    bench.program.linear(bench.input_for(kind, x), bench.matrix(matrix), NONE, NONE, 1.0, out, True)
    bench.run()
    assert_close(bench.read(out), (x.astype(np.float64) @ matrix.values.T).astype(np.float32), 1e-6)


@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.name)
def test_a_row_s_product_does_not_know_of_other_rows(kernels: str, kind: BlockType) -> None:
    columns = columns_of(kind, 544)  # more than kernels unpack at once, as are the tokens
    matrix, x = random_matrix(kind, 21, columns), normal(139, columns)

    def product(rows: Floats) -> Floats:
        bench = Bench(kernels, len(rows))
        out = bench.buffer(21)
        bench.program.linear(bench.input_for(kind, rows), bench.matrix(matrix), NONE, NONE, 1.0, out, True)
        bench.run()
        return bench.read(out)

    together = product(x)
    for first, last in [(0, 1), (3, 5), (4, 7), (7, 11), (10, 11), (2, 12), (60, 139), (138, 139)]:
        assert np.array_equal(product(x[first:last]), together[first:last])


@pytest.mark.parametrize("kind", QUANTIZED, ids=lambda kind: kind.name)
def test_packed_blocks_take_no_more_room_than_the_file_s(kernels: str, kind: BlockType) -> None:
    matrix = random_matrix(kind, 64, 1024)
    bench = Bench(kernels, 1, threads=1)
    bench.matrix(matrix)
    assert bench.program.weight_bytes == matrix.raw.size


@pytest.mark.parametrize("tokens", [1, 5])
def test_hidden_values_are_quantized_in_the_pass_that_makes_them(kernels: str, tokens: int) -> None:
    kind = BlockType.Q4_1
    gate, up, down = random_matrix(kind, 64, 64, 1), random_matrix(kind, 64, 64, 2), random_matrix(kind, 24, 64, 3)
    x = normal(tokens, 64)
    bench = Bench(kernels, tokens)
    floats, blocks, out = bench.buffer(64), bench.buffer(64, quantized=True), bench.buffer(24)
    matrix = bench.gated_matrix(gate, up)
    bench.program.gated(bench.input_for(kind, x), matrix, 0, NONE, NONE, floats, blocks)
    bench.program.linear(blocks, bench.matrix(down), NONE, NONE, 1.0, out, True)
    bench.run()
    assert_close(bench.read(out), rounded(bench.read(floats)) @ down.values.T)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gated_activations(kernels: str, activation: Activation) -> None:
    gate, up = normal(3, 50, 1) * 4, normal(3, 50, 2) * 4
    bench = Bench(kernels, 3)
    out = bench.buffer(50)
    bench.program.gate_mul(bench.input(gate), bench.input(up), ACTIVATIONS.index(activation), values=out, blocks=NONE)
    bench.run()
    assert_close(bench.read(out), gate_times_up(gate, up, activation), 1e-5)


@pytest.mark.parametrize("activation", ACTIVATIONS[:-1])
def test_activations_also_far_from_zero(kernels: str, activation: Activation) -> None:
    x = np.array([[-200.0, -90.0, -30.0, -1e-3, 0.0, 1e-3, 0.7, 30.0, 90.0, 200.0]], np.float32)
    bench = Bench(kernels, 1)
    out = bench.buffer(10)
    bench.program.activate(bench.input(x), ACTIVATIONS.index(activation), out, NONE)
    bench.run()
    np.testing.assert_allclose(bench.read(out), activate(x, activation), rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize(("width", "length"), [(64, 64), (50, 50), (96, 16), (36, 12)])
def test_rms_norm_over_the_width_or_over_heads(kernels: str, width: int, length: int) -> None:
    x, weight = normal(3, width), normal(1, length, 2)[0]
    bench = Bench(kernels, 3)
    out = bench.buffer(width)
    bench.program.rms_norm(bench.input(x), bench.vector(weight), length, 1e-5, out, NONE)
    bench.run()
    runs = x.reshape(3, -1, length)
    expected = runs / np.sqrt((runs**2).mean(-1, keepdims=True) + 1e-5) * weight
    assert_close(bench.read(out), expected.reshape(3, width))


@pytest.mark.parametrize(("width", "length"), [(64, 0), (50, 0), (96, 16), (36, 12)])
def test_layer_norm_over_the_width_or_over_heads(kernels: str, width: int, length: int) -> None:
    x, weight, bias = normal(3, width) + 5, normal(1, width, 2)[0], normal(1, width, 3)[0]
    bench = Bench(kernels, 3)
    out = bench.buffer(width)
    vectors = bench.vector(weight), bench.vector(bias)
    bench.program.layer_norm(bench.input(x), *vectors, 1e-5, length, values=out, blocks=NONE)
    bench.run()
    runs = x.reshape(3, -1, length or width)
    centred = runs - runs.mean(-1, keepdims=True)
    expected = (centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)).reshape(3, width) * weight + bias
    assert_close(bench.read(out), expected, 1e-5)


def test_rows_behind_a_gate_and_heads_joined(kernels: str) -> None:
    x, y, gate = normal(3, 20, 1), normal(3, 12, 2), normal(3, 1, 3)
    bench = Bench(kernels, 3)
    left, right, opening = bench.input(x), bench.input(y), bench.input(gate)
    gated, joined = bench.buffer(20), bench.buffer(32)
    bench.program.gate_rows(left, opening, gated, NONE)
    bench.program.join(left, right, 4, joined, NONE)
    bench.run()
    assert_close(bench.read(gated), x / (1 + np.exp(-gate)), 1e-6)
    parts = [part.reshape(3, 4, -1) for part in (x, y)]
    assert_close(bench.read(joined), np.concatenate(parts, axis=-1).reshape(3, 32))


def test_sums_scales_and_softcaps(kernels: str) -> None:
    x, y = normal(3, 45, 1) * 10, normal(3, 45, 2)
    bench = Bench(kernels, 3)
    left, right = bench.input(x), bench.input(y)
    added, scaled, capped = (bench.buffer(45) for _ in range(3))
    bench.program.add(left, right, 0.25, added, NONE)
    bench.program.scale(left, 3.0, scaled, NONE)
    bench.program.softcap(left, 5.0, capped, NONE)
    bench.run()
    assert_close(bench.read(added), x + y * np.float32(0.25))
    assert_close(bench.read(scaled), x * 3)
    assert_close(bench.read(capped), np.tanh(x / 5) * 5, 1e-6)


@pytest.mark.parametrize(("head_dim", "dims"), [(16, 16), (24, 12), (10, 6)])
def test_rope_turns_halves_by_position(kernels: str, head_dim: int, dims: int) -> None:
    x = normal(4, 3 * head_dim)
    frequencies = 10000.0 ** (-np.arange(0, dims, 2) / dims)
    bench = Bench(kernels, 4)
    out = bench.buffer(3 * head_dim)
    bench.program.rope(bench.input(x), head_dim, bench.program.angles(frequencies, 1.5), out, NONE)
    bench.run(start=1000)
    angles = np.arange(1000, 1004)[:, None, None] * frequencies
    cos, sin = np.cos(angles) * 1.5, np.sin(angles) * 1.5
    heads = x.reshape(4, 3, head_dim)
    first, second = heads[..., : dims // 2], heads[..., dims // 2 : dims]
    expected = np.concatenate([first * cos - second * sin, second * cos + first * sin, heads[..., dims:]], -1)
    assert_close(bench.read(out), expected.reshape(4, -1).astype(np.float32))


@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.name)
def test_an_embedding_row_is_the_decoded_row(kernels: str, kind: BlockType) -> None:
    columns = columns_of(kind, 96)
    matrix = random_matrix(kind, 64, columns)
    bench = Bench(kernels, 5)
    out = bench.buffer(columns)
    bench.program.embed(bench.matrix(matrix), False, 2.0, out)
    bench.run()
    assert_close(bench.read(out), matrix.values[:5] * 2, 1e-7)
    if kind in DRAWN:
        assert np.array_equal(bench.read(out), matrix.values[:5] * 2)


def test_every_normal_power_of_mxfp4(kernels: str) -> None:
    blocks = random_blocks(BlockType.MXFP4, 8, 1024)
    blocks[:, 0] = np.clip(np.arange(256), 2, 250)  # smaller ones are no normal numbers, larger ones overflow
    matrix = matrix_of(BlockType.MXFP4, blocks, 1024)
    bench = Bench(kernels, 8, vocab_size=8)
    out = bench.buffer(1024)
    bench.program.embed(bench.matrix(matrix), False, 1.0, out)
    bench.run()
    assert np.array_equal(bench.read(out), matrix.values[:8])


@pytest.mark.parametrize("tokens", [1, 3, 9])
@pytest.mark.parametrize("kind", (BlockType.F32, *QUANTIZED), ids=lambda kind: kind.name)
def test_the_head_gives_logits_and_their_largest(kernels: str, kind: BlockType, tokens: int) -> None:
    columns = columns_of(kind, 64)
    matrix, x = random_matrix(kind, 61, columns), normal(tokens, columns) / np.float32(columns**0.5)
    bench = Bench(kernels, tokens, vocab_size=61)
    is_quantized = kind in QUANTIZED
    rows = bench.buffer(columns, is_quantized, is_private=True, taken=True)
    bench.program.take_rows(bench.input(x), *((NONE, rows) if is_quantized else (rows, NONE)))
    bench.program.head(rows, bench.matrix(matrix), 0.5, 4.0)
    taken = list(range(0, tokens, 2))
    chosen = bench.run(taken)
    expected = np.tanh(seen_by(kind, x[taken]) @ matrix.values.T * 0.5 / 4) * 4
    logits = bench.program.logits(len(taken))
    assert_close(logits, expected.astype(np.float32))
    assert chosen == logits.argmax(-1).tolist()


def test_equal_logits_give_the_lowest_id(kernels: str) -> None:
    matrix = random_matrix(BlockType.F32, 61, 8)
    matrix.raw = np.tile(matrix.values[:1], (61, 1)).view(np.uint8).reshape(-1)
    bench = Bench(kernels, 1, threads=3, vocab_size=61)
    rows = bench.buffer(8, taken=True)
    bench.program.take_rows(bench.input(np.ones((1, 8), np.float32)), rows, NONE)
    bench.program.head(rows, bench.matrix(matrix), 1.0, 0.0)
    assert bench.run([0]) == [0]


def test_rows_of_tiny_values_become_zero_instead_of_overflowing(kernels: str) -> None:
    matrix, x = random_matrix(BlockType.Q8_0, 8, 32), np.full((1, 32), 1e-38, np.float32)
    bench = Bench(kernels, 1)
    out = bench.buffer(8)
    bench.program.linear(bench.input_for(matrix.type, x), bench.matrix(matrix), NONE, NONE, 1.0, out, True)
    bench.run()
    assert (bench.read(out) == 0).all()


def test_the_caller_keeps_its_denormals(kernels: str) -> None:
    bench = Bench(kernels, 1)
    bench.program.scale(bench.input(normal(1, 8)), 1.0, bench.buffer(8), NONE)
    bench.run()
    smallest = np.array([math.ldexp(1.0, -140)], np.float32)
    assert (smallest * np.float32(2))[0] == math.ldexp(1.0, -139)


@pytest.mark.parametrize("kind", QUANTIZED, ids=lambda kind: kind.name)
def test_small_activations_beside_a_large_half_keep_their_own_scale(kernels: str, kind: BlockType) -> None:
    columns = columns_of(kind, 64)
    x = normal(3, columns)
    x[:, 16:32] *= 1e-3
    x[:, 32:] = 0
    matrix = random_matrix(kind, 24, columns)
    x[:, :16] = np.sign(x[:, :16])  # exact with any scale: what remains is the rounding of the small half
    bench = Bench(kernels, 3)
    out = bench.buffer(24)
    bench.program.linear(bench.input_for(kind, x), bench.matrix(matrix), NONE, NONE, 1.0, out, True)
    bench.run()
    small = np.abs(x[:, 16:32]).max() * np.abs(matrix.values).max()
    assert np.abs(bench.read(out) - x @ matrix.values.T).max() <= 0.04 * small


def largest_matrix(kind: BlockType, columns: int) -> Matrix:
    """Sixteen rows of quants as far from zero as they get, to either side."""
    if kind in ENCODED:
        return matrix_of(kind, encode(kind, np.repeat([[-1.0], [1.0]] * 8, columns, axis=1)), columns)
    blocks = random_blocks(kind, 16, columns)
    fillers = (0x77, 0xFF) if kind == BlockType.MXFP4 else (0x00, 0xFF)
    first, last = DRAWN[kind].quants
    blocks.reshape(16, -1, blocks.shape[-1])[..., first:last] = np.tile(np.array(fillers, np.uint8), 8)[:, None, None]
    return matrix_of(kind, blocks, columns)


@pytest.mark.parametrize("kind", QUANTIZED, ids=lambda kind: kind.name)
@pytest.mark.parametrize("tokens", [1, 4, 11])
def test_the_largest_sums_do_not_wrap(kernels: str, kind: BlockType, tokens: int) -> None:
    columns = columns_of(kind, 64)
    matrix = largest_matrix(kind, columns)
    for sign in (-1, 1):
        x = np.full((tokens, columns), sign, np.float32)
        bench = Bench(kernels, tokens)
        out = bench.buffer(16)
        bench.program.linear(bench.input_for(kind, x), bench.matrix(matrix), NONE, NONE, 1.0, out, True)
        bench.run()
        assert_close(bench.read(out), x @ matrix.values.T)
