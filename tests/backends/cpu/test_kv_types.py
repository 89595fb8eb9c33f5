"""Pages of 8 bits: they keep what 8 bits with a scale per 32 dimensions can say, and attention reads just that."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from localllm.backends.cpu.backend import CpuBackend
from localllm.backends.cpu.rooms import head_bytes
from localllm.backends.reference import ReferenceBackend
from tests.backends.cpu.conftest import NONE
from tests.backends.cpu.test_attention import TOKENS, build, logits_of

pytest.importorskip("localllm.backends.cpu._native", reason="the native kernels have not been built")

Floats = NDArray[np.float32]
PAGE_SIZE = 16


def kept(x: Floats) -> Floats:
    """The twin of the kernels: heads (..., dims) to 8 bits, with a half as scale, rounded up, per 32 dimensions."""
    out = np.empty_like(x)
    for first in range(0, x.shape[-1], 32):
        block = x[..., first : first + 32]
        wanted = np.abs(block).max(axis=-1, keepdims=True) / np.float32(127)
        scale = wanted.astype(np.float16)
        scale = np.where(scale.astype(np.float32) < wanted, np.nextafter(scale, np.float16(np.inf)), scale)
        scale = scale.astype(np.float32)
        inverse = np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=scale > 0)
        out[..., first : first + 32] = np.rint(block * inverse) * scale
    return out


def value_seen(kernels: str, value: Floats) -> Floats:
    """What a lone token sees of its own value: one head, whose only chance is 1."""
    from localllm.backends.cpu import _native

    dims = len(value)
    program = _native.Program(
        threads=1,
        kernels=kernels,
        max_tokens=1,
        context_length=64,
        vocab_size=8,
        page_size=PAGE_SIZE,
        kv_type="q8_0",
        page_bytes=2 * head_bytes(dims, PAGE_SIZE, "q8_0"),
        windows=[0],
        state_floats=0,
    )
    q, k, v, turned = (program.buffer(dims, False, False, False) for _ in range(4))
    attended, out = program.buffer(dims, False, True, False), program.buffer(dims, False, False, False)
    program.attention(
        q,
        k,
        v,
        turned,
        num_heads=1,
        num_kv_heads=1,
        head_dim=dims,
        value_dim=dims,
        scale=1.0,
        softcap=0.0,
        window=0,
        causal=True,
        group=0,
        offset=0,
        query_angles=NONE,
        key_angles=NONE,
        sinks=NONE,
        values=attended,
        blocks=NONE,
    )
    program.scale(attended, 1.0, out, NONE)
    program.allocate(2, 0)
    program.values(v, 1)[0] = value
    nothing, zero = np.zeros(0, np.int32), np.zeros(1, np.int32)
    table = np.ones((1, 1), np.int32)
    program.step(
        zero, zero, np.array([0, 1], np.int32), [table], np.full(1, -1, np.int32), np.zeros(1, np.bool_), nothing,
        np.zeros(0, np.bool_), False, False,
    )  # fmt: skip
    return np.array(program.values(out, 1)[0])


@pytest.mark.parametrize("dims", [4, 20, 32, 40, 64, 72, 128, 136])
@pytest.mark.parametrize("size", [1e-6, 1e-3, 1.0, 1e5])
def test_what_is_kept_is_what_8_bits_can_say(kernels: str, dims: int, size: float) -> None:
    value = (np.random.default_rng(dims).standard_normal(dims) * size).astype(np.float32)
    seen = value_seen(kernels, value)
    np.testing.assert_allclose(seen, kept(value), rtol=1e-6, atol=0)
    for first in range(0, dims, 32):
        block = slice(first, first + 32)
        step = np.abs(value[block]).max() / 127 * 1.001 + 2.0**-24  # halves are 2**-24 apart at least
        assert np.abs(seen[block] - value[block]).max() <= step / 2
    assert np.abs(seen - value).max() > 1e-4 * size  # it is rounded indeed


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_is_not_kept_as_one(kernels: str, bad: float) -> None:
    value = np.ones(64, np.float32)
    value[40] = bad
    seen = value_seen(kernels, value)
    assert np.isnan(seen[32:]).all() and np.isfinite(seen[:32]).all()


def judge_of(config: Any, source: Any, page_size: int) -> ReferenceBackend:
    """The reference, whose memory keeps what 8 bits can say."""
    judge = ReferenceBackend(config, source, page_size)
    write = judge._memory.write

    def rounded(layer: int, table: Any, positions: Any, keys: Floats, values: Floats) -> None:
        write(layer, table, positions, kept(keys), kept(values))

    judge._memory.write = rounded  # type: ignore[method-assign]
    return judge


@pytest.mark.parametrize(
    "changes",
    [
        {"num_heads": 3, "num_kv_heads": 1, "head_dim": 64, "value_dim": 64},
        {"num_heads": 7, "num_kv_heads": 1, "head_dim": 24, "value_dim": 40},
        {"num_heads": 8, "num_kv_heads": 2, "window": 150},
        {"num_heads": 12, "num_kv_heads": 2, "head_dim": 36, "value_dim": 6, "rope": None},
        {"num_heads": 4, "num_kv_heads": 1, "head_dim": 128, "value_dim": 96},
    ],
    ids=str,
)
@pytest.mark.parametrize("page_size", [4, 8, 16, 64])
def test_attention_over_8_bits_equals_the_reference_over_the_same(
    kernels: str, page_size: int, changes: dict[str, Any]
) -> None:
    config, source = build(**changes)
    ours = CpuBackend(config, source, page_size=page_size, threads=2, kernels=kernels, kv_type="q8_0")
    expected = logits_of(judge_of(config, source, page_size), [300])
    logits = logits_of(ours, [290, *[1] * 10])
    # a number at the border of two steps may fall to either: that is a tenth of what the rounding costs
    assert np.abs(logits - expected).max() <= 2e-3 * np.abs(expected).max()


def test_a_copied_page_holds_its_scales(kernels: str) -> None:
    from localllm.engine.step import CopyPage, PageId, Want
    from tests.contract.walk import Walk

    config, source = build()
    walk = Walk(CpuBackend(config, source, threads=1, kernels=kernels, kv_type="q8_0"), num_pages=8)
    walk.step((1, TOKENS[:20], Want(logits="last")))
    table = walk.held[1].tables[0]
    (before,) = walk.step((1, TOKENS[20:21], Want(logits="last")))
    copy = PageId(walk.free_pages.pop())
    walk.memory.append(CopyPage(table[0], copy))
    walk.held[1] = replace(walk.held[1], tables=[[copy, *table[1:]]], position=20)
    (after,) = walk.step((1, TOKENS[20:21], Want(logits="last")))
    assert before.logits is not None and after.logits is not None
    assert np.array_equal(before.logits, after.logits)


@pytest.mark.parametrize("dims", [64, 128])
def test_pages_of_8_bits_are_half_as_large_and_a_16th(dims: int) -> None:
    assert head_bytes(dims, 16, "q8_0") * 2 == head_bytes(dims, 16, "f16") * 17 / 16
