"""Attention over pages of every size and heads of every shape, against the reference with a half-precision cache."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from localllm.backends.cpu.backend import CpuBackend
from localllm.backends.reference import ReferenceBackend
from localllm.engine.step import Want
from localllm.models.config import LayerSpec
from localllm.settings import KvType
from tests.contract.walk import Walk
from tests.contract.worlds import ATTENTION, MemorySource, World, draw, shapes
from tests.contract.worlds import build as build_world

pytest.importorskip("localllm.backends.cpu._native", reason="the native kernels have not been built")

ALL = Want(logits="all")
TOKENS = np.random.default_rng(5).integers(0, 80, 300).tolist()


def build(**changes: Any) -> tuple[Any, MemorySource]:
    config, _ = build_world(World("long", (LayerSpec(replace(ATTENTION, **changes)),)))
    config = replace(config, context_length=512)
    rng = np.random.default_rng(7)
    extras = ("sinks",) if changes.get("softcap") else ()
    return config, MemorySource({name: draw(rng, name, shape) for name, shape in shapes(config, extras)})


def logits_of(backend: Any, chunks: list[int]) -> np.ndarray:
    walk, parts, first = Walk(backend, num_pages=512), [], 0
    for size in chunks:
        (result,) = walk.step((1, TOKENS[first : first + size], ALL))
        assert result.logits is not None
        parts.append(result.logits)
        first += size
    return np.concatenate(parts)


SHAPES: tuple[dict[str, Any], ...] = (
    {"num_heads": 3, "num_kv_heads": 1, "head_dim": 64, "value_dim": 64},
    {"num_heads": 7, "num_kv_heads": 1, "head_dim": 24, "value_dim": 40},
    {"num_heads": 10, "num_kv_heads": 2, "value_dim": 12},
    {"num_heads": 8, "num_kv_heads": 2, "window": 150},
    {"num_heads": 2, "num_kv_heads": 2, "softcap": 2.0, "window": 5},
    {"num_heads": 12, "num_kv_heads": 2, "head_dim": 20, "value_dim": 6, "rope": None},
)
MANY_SHARE: tuple[dict[str, Any], ...] = (
    {"num_heads": 4, "num_kv_heads": 1, "head_dim": 64, "value_dim": 72},
    {"num_heads": 11, "num_kv_heads": 1, "window": 90},
    {"num_heads": 50, "num_kv_heads": 1},
    {"num_heads": 16, "num_kv_heads": 2, "softcap": 2.0, "value_dim": 36, "head_dim": 40, "rope": None},
)


@pytest.mark.parametrize("changes", SHAPES, ids=str)
@pytest.mark.parametrize("page_size", [4, 8, 16, 64])
def test_long_contexts_equal_the_reference(kernels: str, page_size: int, changes: dict[str, Any]) -> None:
    config, source = build(**changes)
    ours = CpuBackend(config, source, page_size=page_size, threads=2, kernels=kernels)
    judge = ReferenceBackend(config, source, page_size, kv_type=np.float16)
    expected = logits_of(judge, [300])
    ours_logits = logits_of(ours, [290, *[1] * 10])
    assert np.abs(ours_logits - expected).max() <= 2e-3 * np.abs(expected).max()


@pytest.mark.parametrize("kv_type", ["f16", "q8_0"])
@pytest.mark.parametrize("changes", [*SHAPES, *MANY_SHARE], ids=str)
@pytest.mark.parametrize("page_size", [4, 8, 16, 64])
def test_a_token_is_the_same_to_the_last_bit_alone_and_beside_others(
    kernels: str, page_size: int, changes: dict[str, Any], kv_type: KvType
) -> None:
    config, source = build(**changes)

    def chunked(threads: int, chunks: list[int]) -> np.ndarray:
        return logits_of(CpuBackend(config, source, page_size=page_size, threads=threads, kernels=kernels,
                                    kv_type=kv_type), chunks)  # fmt: skip

    whole = chunked(1, [300])
    assert np.isfinite(whole).all()
    assert np.array_equal(chunked(3, [121, 2, 1, 5, 7, 3, 11, *[1] * 140, 10]), whole)


@pytest.mark.parametrize("kv_type", ["f16", "q8_0"])
@pytest.mark.parametrize("threads", [2, 5])
def test_threads_share_out_the_heads_and_splits_of_a_lone_token(kernels: str, threads: int, kv_type: KvType) -> None:
    config, source = build(num_heads=15, num_kv_heads=3)
    alone, together = (
        logits_of(CpuBackend(config, source, threads=n, kernels=kernels, kv_type=kv_type), [130, *[1] * 10, 120, 1])
        for n in (1, threads)
    )
    assert np.array_equal(alone, together)


def test_stale_numbers_in_a_page_are_never_used(kernels: str) -> None:
    config, source = build()
    clean = CpuBackend(config, source, threads=1, kernels=kernels)
    dirty = CpuBackend(config, source, threads=1, kernels=kernels)
    wanted = logits_of(clean, [20])
    walk = Walk(dirty, num_pages=4)
    walk.step((1, TOKENS[:60], ALL))  # fills the pages that the next sequence takes over
    for page in walk.held[1].tables[0]:
        walk.free_pages.append(page)
    del walk.held[1]
    (result,) = walk.step((2, TOKENS[:20], ALL))
    assert result.logits is not None and np.array_equal(result.logits, wanted)


def test_atomic_rows_see_themselves_in_both_directions(kernels: str) -> None:
    config, source = build(window=40)
    ours = Walk(CpuBackend(config, source, threads=2, kernels=kernels))
    judge = Walk(ReferenceBackend(config, source, kv_type=np.float16))
    rows = [walk.run((walk.row(1, TOKENS[:90], ALL, atomic=True),))[0].logits for walk in (ours, judge)]
    assert rows[0] is not None and rows[1] is not None
    assert np.abs(rows[0] - rows[1]).max() <= 2e-3 * np.abs(rows[1]).max()
