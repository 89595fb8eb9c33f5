"""With float32 weights and float32 pages nothing but single precision separates the backend from float64."""

from dataclasses import replace

import numpy as np
import pytest

from localllm.backends.cpu.backend import CpuBackend
from localllm.backends.layout import cache_layout
from localllm.engine.step import Want
from localllm.formats.blocks import BlockType
from localllm.models.config import LayerSpec, ModelConfig, PositionGrowth
from tests.backends.cpu.conftest import NONE, Bench
from tests.contract.test_odd_shapes import SHAPES, Shape
from tests.contract.walk import Walk
from tests.contract.worlds import ATTENTION, BY_NAME, WORLDS, MemorySource, World, build, draw, plain, shapes

pytest.importorskip("localllm.backends.cpu._native", reason="the native kernels have not been built")

ALL = Want(logits="all")
EXACT = 1e-5
FLOAT_WORLDS = tuple(world for world in WORLDS if world.type in (BlockType.F32, BlockType.F16, BlockType.BF16))
FLOAT_SHAPES = tuple(shape for shape in SHAPES if shape.type == BlockType.F32)


def distance(
    config: ModelConfig, source: MemorySource, kernels: str, page_size: int, chunks: tuple[int, ...] = (17, 8, 1, 1)
) -> float:
    """The largest difference from the plain transformer over the largest logit."""
    tokens = np.random.default_rng(2).integers(0, config.vocab_size, sum(chunks)).tolist()
    backend = CpuBackend(config, source, page_size=page_size, threads=2, kernels=kernels, kv_type="f32")
    walk, seen, first = Walk(backend), [], 0
    for size in chunks:
        (result,) = walk.step((1, tokens[first : first + size], ALL))
        assert result.logits is not None
        seen.append(result.logits)
        first += size
    expected = plain(config, source).logits(tokens)
    return float(np.abs(np.concatenate(seen) - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("world", FLOAT_WORLDS, ids=lambda world: world.name)
def test_every_world_is_exact_with_float32_pages(kernels: str, world: World) -> None:
    assert distance(*build(world), kernels, page_size=16) <= EXACT


@pytest.mark.parametrize("page_size", [8, 16])
@pytest.mark.parametrize("shape", FLOAT_SHAPES, ids=lambda shape: shape.name)
def test_odd_sizes_are_exact_with_whole_lanes_of_positions(kernels: str, shape: Shape, page_size: int) -> None:
    assert distance(*shape.build(), kernels, page_size) <= EXACT


@pytest.mark.parametrize("page_size", [4, 8, 64])
@pytest.mark.parametrize("num_heads", [2, 4, 6, 8, 10])
def test_long_contexts_are_exact_however_many_heads_share(kernels: str, num_heads: int, page_size: int) -> None:
    spec = replace(ATTENTION, num_heads=num_heads, num_kv_heads=2, value_dim=20, softcap=8.0)
    config, _ = build(World("long", (LayerSpec(spec),)))
    config = replace(config, context_length=256)
    rng = np.random.default_rng(7)
    source = MemorySource({name: draw(rng, name, shape) for name, shape in shapes(config, ("sinks",))})
    assert distance(config, source, kernels, page_size, (150, 1, 20, 1)) <= EXACT


def test_float32_pages_are_twice_as_large() -> None:
    config, source = build(BY_NAME["windows in some layers"])
    sizes = {kv: CpuBackend(config, source, kv_type=kv).layout.page_bytes for kv in ("auto", "f16", "f32")}
    assert sizes["auto"] == sizes["f16"] == cache_layout(config, 16).page_bytes
    assert sizes["f32"] == 2 * sizes["f16"]


def test_a_softcap_far_above_the_numbers_costs_no_digits(kernels: str) -> None:
    x = np.concatenate([np.linspace(-200, 200, 4001), np.geomspace(1e-12, 100, 999)]).astype(np.float32)[None]
    bench = Bench(kernels, 1)
    out = bench.buffer(x.shape[1])
    bench.program.softcap(bench.input(x), 50.0, out, NONE)
    bench.run()
    np.testing.assert_allclose(bench.read(out), np.tanh(x.astype(np.float64) / 50) * 50, rtol=1e-6, atol=0)


def test_a_rotation_that_grows_is_the_rotation_times_the_growth(kernels: str) -> None:
    growth, frequencies = PositionGrowth(0.4, 6), 100.0 ** (-np.arange(4) / 4)
    x = np.random.default_rng(1).standard_normal((9, 16)).astype(np.float32)
    bench = Bench(kernels, 9)
    still, grown = bench.buffer(16), bench.buffer(16)
    source = bench.input(x)
    bench.program.rope(source, 8, bench.program.angles(frequencies, 1.5), still, NONE)
    bench.program.rope(source, 8, bench.program.angles(frequencies, 1.5, growth.beta, growth.every), grown, NONE)
    bench.run(start=40)
    factor = 1 + growth.beta * np.log1p(np.arange(40, 49) // growth.every)
    np.testing.assert_allclose(bench.read(grown), bench.read(still) * factor[:, None], rtol=1e-5, atol=1e-6)
