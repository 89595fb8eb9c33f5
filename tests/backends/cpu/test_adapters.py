"""Adapters on every set of kernels: the same bits alone and beside others, whatever the weights are kept in."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("localllm.backends.cpu._native", reason="the native kernels have not been built")

from localllm.backends.cpu.backend import CpuBackend
from localllm.backends.cpu.library import kernel_features
from localllm.backends.reference import ReferenceBackend
from localllm.engine.step import Backend, Want
from localllm.errors import InvalidRequest, UnsupportedModel
from localllm.formats.blocks import BlockType
from localllm.models.adapters import Adapter, LowRank
from localllm.models.config import ModelConfig
from tests.contract.walk import Walk
from tests.contract.worlds import MemorySource, World, build

ALL = Want(logits="all")
RNG = np.random.default_rng(11)
TOKENS = RNG.integers(0, 80, 40).tolist()
RANKS = (1, 8, 19)
WEIGHTS = ("attn_q", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")


def adapter_of(source: MemorySource, rank: int, names: tuple[str, ...] = WEIGHTS) -> Adapter:
    parts = {}
    for name in (f"blk.{layer}.{each}.weight" for layer in (0, 1) for each in names):
        info = source.info(name)
        assert info is not None
        out, width = info.shape
        a, b = (RNG.standard_normal(shape).astype(np.float32) for shape in ((rank, width), (out, rank)))
        parts[name] = LowRank(a / np.float32(width**0.5), b, 0.5 / rank)
    return Adapter(f"rank {rank}", parts)


def seen_by(
    backend: Backend, adapters: list[Adapter], together: bool, tokens: list[int]
) -> dict[int, NDArray[np.float32]]:
    """Logits of the tokens without an adapter (0) and with each; in one chunk, then a token at a time."""
    walk = Walk(backend)
    numbers = [0, *(backend.add_adapter(adapter) for adapter in adapters)]
    seen: dict[int, list[NDArray[np.float32]]] = {place: [] for place in range(len(numbers))}
    for first, end in ((0, len(tokens) - 3), *((at, at + 1) for at in range(len(tokens) - 3, len(tokens)))):
        rows = [replace(walk.row(10 + n, tokens[first:end], ALL), adapter=n) for n in numbers]
        steps = [tuple(rows)] if together else [(row,) for row in rows]
        results = [result for step in steps for result in walk.run(step)]
        for place, result in enumerate(results):
            assert result.logits is not None
            seen[place].append(result.logits)
    return {place: np.concatenate(parts) for place, parts in seen.items()}


def world(kind: BlockType) -> tuple[ModelConfig, MemorySource]:
    return build(World("adapted", type=kind))


@pytest.mark.parametrize("kernels", kernel_features())
@pytest.mark.parametrize("kind", [BlockType.F32, BlockType.BF16, BlockType.Q4_0, BlockType.Q8_0])
def test_every_set_of_kernels_adds_what_the_reference_adds(kernels: str, kind: BlockType) -> None:
    config, source = world(kind)
    adapters = [adapter_of(source, rank) for rank in RANKS]
    expected = seen_by(ReferenceBackend(config, source, 4), adapters, True, TOKENS[:12])
    for threads in (1, 3):
        seen = []
        for together in (True, False):
            backend = CpuBackend(
                config, source, page_size=4, threads=threads, max_tokens_per_step=128, kernels=kernels, kv_type="f32"
            )
            seen.append(seen_by(backend, adapters, together, TOKENS[:12]))
        for place, logits in expected.items():
            assert np.array_equal(seen[0][place], seen[1][place]), "it depends on the batch"
            difference = np.abs(seen[0][place] - logits).max() / np.abs(logits).max()
            assert difference <= (1e-4 if kind in (BlockType.F32, BlockType.BF16) else 4e-2)


def test_a_long_prompt_has_the_same_bits_beside_others_and_alone() -> None:
    config, source = world(BlockType.Q4_0)
    adapters, tokens = [adapter_of(source, 8)], (TOKENS * 4)[:120]
    backends = [
        CpuBackend(config, source, page_size=4, threads=2, max_tokens_per_step=256, kv_type="f32") for _ in range(2)
    ]
    together, alone = (
        seen_by(each, adapters, kind, tokens) for each, kind in zip(backends, (True, False), strict=True)
    )
    for place in together:
        assert np.array_equal(together[place], alone[place])


def test_a_step_without_an_adapter_is_what_it_was_before_any_was_there() -> None:
    config, source = world(BlockType.Q8_0)
    backends = [CpuBackend(config, source, page_size=4, threads=2, kv_type="f32") for _ in range(2)]
    backends[1].add_adapter(adapter_of(source, 8))
    plain, beside = (next(iter(Walk(each).step((1, TOKENS[:9], ALL)))).logits for each in backends)
    assert plain is not None and beside is not None and np.array_equal(plain, beside)


def test_what_the_program_does_not_multiply_is_refused_by_name() -> None:
    config, source = world(BlockType.F32)
    backend = CpuBackend(config, source, page_size=4, threads=1)
    part = LowRank(np.ones((1, 64), np.float32), np.ones((80, 1), np.float32), 1.0)
    with pytest.raises(UnsupportedModel, match=r"output\.weight"):
        backend.add_adapter(Adapter("head", {"output.weight": part}))
    walk = Walk(backend)
    with pytest.raises(InvalidRequest, match="adapter 7"):
        walk.run((replace(walk.row(1, [1, 2]), adapter=7),))
