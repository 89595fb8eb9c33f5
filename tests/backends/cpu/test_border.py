"""What the backend refuses: named, typed, before anything is computed; and afterwards it still works."""

import sys
from dataclasses import replace

import numpy as np
import pytest

from localllm.backends.cpu import library
from localllm.backends.cpu.backend import CpuBackend
from localllm.engine.step import (
    NO_PAGE,
    CheckpointId,
    CopyPage,
    PageId,
    RestoreState,
    Row,
    SlotId,
    StepPlan,
    Want,
    ZeroSlot,
    plain_row,
    run_step,
)
from localllm.errors import BadModelFile, InvalidRequest, UnsupportedModel, UsageError
from localllm.formats.blocks import BlockType
from localllm.models.config import AttentionSpec, LayerSpec
from localllm.models.source import WeightInfo
from tests.contract.worlds import BY_NAME, HYBRID, MemorySource, World, build, over_latents

pytest.importorskip("localllm.backends.cpu._native", reason="the native kernels have not been built")

LAST = Want(logits="last")


def open_backend(world: World = BY_NAME["llama"]) -> CpuBackend:
    config, source = build(world)
    backend = CpuBackend(config, source, page_size=4, threads=2, max_tokens_per_step=16)
    backend.allocate(8, 2)
    return backend


GOOD = plain_row(1, [1, 2, 3], 0, [0], LAST)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (plain_row(1, [80], 0, [0]), "token id is 80"),
        (plain_row(1, [-7], 0, [0]), "token id is -7"),
        (plain_row(1, [1], 0, [8]), "page that a row needs is 8"),
        (plain_row(1, [1], 0, [NO_PAGE]), "page that a row needs is -1"),
        (plain_row(1, [1] * 5, 0, [0]), "last page of a row is 1"),
        (plain_row(1, [1], 6, [NO_PAGE, 1]), "page that a row needs is -1"),
        (plain_row(1, [1], 128, [0] * 40), "a position is 128"),
        (plain_row(1, [1], -1, [0]), "a position is -1"),
        (plain_row(1, [], 0, [0]), "no tokens"),
        (plain_row(1, [1] * 17, 0, [0, 1, 2, 3, 4]), "tokens in the step is 17, the limit is 16"),
    ],
    ids=lambda part: part if isinstance(part, str) else "",
)
def test_a_step_out_of_bounds_is_refused_by_name(row: Row, words: str) -> None:
    backend = open_backend()
    before = run_step(backend, StepPlan(0, (GOOD,))).rows[0].logits
    with pytest.raises(InvalidRequest, match=words):
        backend.submit(StepPlan(1, (row,)))
    after = run_step(backend, StepPlan(2, (GOOD,))).rows[0].logits
    assert before is not None and after is not None and np.array_equal(before, after)


def test_memory_operations_out_of_bounds_are_refused() -> None:
    backend = open_backend(World("hybrid", HYBRID))
    for op in (CopyPage(PageId(0), PageId(8)), ZeroSlot(SlotId(2)), RestoreState(CheckpointId(1), SlotId(0))):
        with pytest.raises(InvalidRequest):
            backend.submit(StepPlan(0, (), (op,)))


def test_a_row_of_a_model_with_state_must_name_its_slot() -> None:
    backend = open_backend(World("hybrid", HYBRID))
    with pytest.raises(InvalidRequest, match="state slot is -1"):
        backend.submit(StepPlan(0, (GOOD,)))


def test_an_adapter_that_is_not_there_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="not loaded"):
        open_backend().submit(StepPlan(0, (replace(GOOD, adapter=1),)))


class Relabelled(MemorySource):
    """A source that claims another type or shape for one tensor."""

    def __init__(self, source: MemorySource, claim: WeightInfo) -> None:
        self._source = source
        self._claim = claim

    def info(self, name: str) -> WeightInfo | None:
        return self._claim if name == self._claim.name else self._source.info(name)

    def raw(self, name: str) -> np.ndarray:
        return self._source.raw(name)


def test_a_block_type_without_kernels_is_refused_by_name() -> None:
    config, source = build(BY_NAME["llama"])
    claim = WeightInfo("blk.1.ffn_down.weight", (64, 256), BlockType.NVFP4)
    with pytest.raises(UnsupportedModel, match=r"blk\.1\.ffn_down\.weight is of type NVFP4"):
        CpuBackend(config, Relabelled(source, claim), threads=1)


@pytest.mark.parametrize("shape", [(64, 97), (63, 96), (2**31, 2**31)])
def test_a_shape_that_its_bytes_do_not_bear_out_is_a_bad_file(shape: tuple[int, int]) -> None:
    config, source = build(BY_NAME["llama"])
    claim = WeightInfo("blk.1.ffn_down.weight", shape, BlockType.F32)
    with pytest.raises(BadModelFile):
        CpuBackend(config, Relabelled(source, claim), threads=1)


def test_an_unknown_kernel_set_is_refused() -> None:
    config, source = build(BY_NAME["llama"])
    with pytest.raises(UsageError, match="kernels called 'sse9'") as refusal:
        CpuBackend(config, source, threads=1, kernels="sse9")
    assert "auto" in refusal.value.hint


def test_without_the_native_library_the_reason_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "localllm.backends.cpu._native", None)
    assert "native kernels are not there" in library.native_problem()
    config, source = build(BY_NAME["llama"])
    with pytest.raises(UnsupportedModel, match="native kernels are not there"):
        CpuBackend(config, source)


def test_heads_of_a_width_without_kernels_are_refused_by_name() -> None:
    spec = over_latents()[0].mixer
    assert isinstance(spec, AttentionSpec) and spec.latent is not None
    odd = replace(spec, latent=replace(spec.latent, value_dim=20))
    config, source = build(World("odd heads", (LayerSpec(odd),)))
    with pytest.raises(UnsupportedModel, match=r"blk\.0\.attn_v_b\.weight has heads of \(20, 32\)"):
        CpuBackend(config, source, threads=1)
