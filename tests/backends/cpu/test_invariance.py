"""Bit for bit the same numbers, whatever else is in the batch, however a prompt is cut, with any number of threads."""

import numpy as np
import pytest

from localllm.backends.cpu.backend import CpuBackend
from localllm.engine.step import NOTHING, Want
from localllm.formats.blocks import BlockType
from tests.contract.conftest import KvType
from tests.contract.walk import Walk
from tests.contract.worlds import BY_NAME, HYBRID, PLAIN, SPACES, WINDOWED, World, build, routed

pytest.importorskip("localllm.backends.cpu._native", reason="the native kernels have not been built")

LAST = Want(logits="last")
PROMPT = np.random.default_rng(9).integers(0, 80, 40).tolist()
OTHERS = [np.random.default_rng(seed).integers(0, 80, 5 + seed).tolist() for seed in range(7)]
WORLDS = (
    World("Q4_1", (PLAIN, PLAIN), type=BlockType.Q4_1),
    World("Q4_0", (PLAIN, PLAIN), type=BlockType.Q4_0),
    World("Q8_0 with windows", WINDOWED, type=BlockType.Q8_0),
    World("F16", (PLAIN, PLAIN), type=BlockType.F16),
    World("experts in Q8_0", routed(), type=BlockType.Q8_0),
    World("hybrid in Q4_1", HYBRID, type=BlockType.Q4_1),
    World("state spaces in Q4_1", SPACES, type=BlockType.Q4_1),
    BY_NAME["state spaces alone"],
    BY_NAME["experts without gates in Q8_0"],
    World("IQ4_NL", (PLAIN, PLAIN), type=BlockType.IQ4_NL),
    BY_NAME["several types in a layer"],
    BY_NAME["experts of several types"],
    BY_NAME["norms after"],
    BY_NAME["attention over latents in Q8_0"],
    BY_NAME["attention over latents in several types"],
    BY_NAME["attention over latents"],
    BY_NAME["a shared expert behind a gate"],
    BY_NAME["experts of the groups with the best two"],
    BY_NAME["layer norms of every head"],
    BY_NAME["keys and values of another layer"],
    BY_NAME["several streams, of which one is computed"],
    BY_NAME["experts beside the feed-forward"],
    BY_NAME["inputs of a layer's own in Q8_0"],
)


OTHER_PAGES = (
    BY_NAME["llama"],
    BY_NAME["sinks"],
    BY_NAME["attention softcap"],
    BY_NAME["queries grow"],
    BY_NAME["experts with biases"],
    World("windows", WINDOWED),
    World("hybrid", HYBRID),
    World("Q8_0", (PLAIN, PLAIN), type=BlockType.Q8_0),
)


def open_walk(world: World, kernels: str, threads: int, kv_type: KvType = "auto", page_size: int = 16) -> Walk:
    config, source = build(world)
    backend = CpuBackend(
        config,
        source,
        page_size=page_size,
        threads=threads,
        max_tokens_per_step=128,
        kernels=kernels,
        kv_type=kv_type,
    )
    return Walk(backend)


@pytest.mark.parametrize("world", WORLDS, ids=lambda world: world.name)
def test_one_thread_that_does_the_work_of_three_changes_no_bit(kernels: str, world: World) -> None:
    config, source = build(world)
    backend = CpuBackend(config, source, threads=3, max_tokens_per_step=128, kernels=kernels)
    together = last_logits(Walk(backend), [20, 19, 1])
    backend._program.go_alone(3)
    assert np.array_equal(last_logits(Walk(backend), [20, 19, 1]), together)


def last_logits(walk: Walk, chunks: list[int], *, crowd: bool = False) -> np.ndarray:
    first = 0
    for index, size in enumerate(chunks):
        want = LAST if first + size == len(PROMPT) else NOTHING
        parts = [(seq + 10 * index, tokens, NOTHING) for seq, tokens in enumerate(OTHERS, 2) if crowd]
        result = walk.step(*parts[:3], (1, PROMPT[first : first + size], want), *parts[3:])
        first += size
    logits = result[3 if crowd else 0].logits
    assert logits is not None
    return logits


@pytest.mark.parametrize("world", WORLDS, ids=lambda world: world.name)
def test_chunks_batches_and_threads_change_no_bit(kernels: str, world: World) -> None:
    alone = last_logits(open_walk(world, kernels, threads=1), [40])
    assert np.isfinite(alone).all()
    for threads in (1, 2, 3):
        for chunks in ([39, 1], [1] * 40, [3, 17, 20], [2, 2, 36]):
            assert np.array_equal(last_logits(open_walk(world, kernels, threads), chunks), alone)
    crowded = Walk(open_walk(world, kernels, 2).backend, num_pages=256, num_slots=24)
    assert np.array_equal(last_logits(crowded, [20, 20], crowd=True), alone)


@pytest.mark.parametrize("kv_type", ["f32", "q8_0"])
@pytest.mark.parametrize("page_size", [4, 8, 16])
@pytest.mark.parametrize("world", OTHER_PAGES, ids=lambda world: world.name)
def test_pages_of_other_types_change_no_bit_either(kernels: str, world: World, page_size: int, kv_type: KvType) -> None:
    def opened(threads: int) -> Walk:
        return open_walk(world, kernels, threads, kv_type, page_size)

    alone = last_logits(opened(1), [40])
    assert np.isfinite(alone).all()
    for threads, chunks in ((2, [39, 1]), (3, [1] * 40), (3, [3, 17, 20])):
        assert np.array_equal(last_logits(opened(threads), chunks), alone)
    crowded = Walk(opened(2).backend, num_pages=512, num_slots=24)
    assert np.array_equal(last_logits(crowded, [20, 20], crowd=True), alone)
