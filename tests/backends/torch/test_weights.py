"""Weights kept in their blocks are the weights decoded; what is kept how, and what is refused."""

import math
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

torch = pytest.importorskip("torch")

from localllm.backends.torch import weights as room  # noqa: E402  # needs torch
from localllm.backends.torch.weights import Compute, Weight, Weights  # noqa: E402
from localllm.errors import BadModelFile, UnsupportedModel  # noqa: E402
from localllm.formats.blocks import BLOCK_LAYOUTS, DECODABLE, BlockType, decode  # noqa: E402
from localllm.models.source import WeightInfo  # noqa: E402
from tests.oracles.random_blocks import random_blocks  # noqa: E402

NUM_EXPERTS, ROWS = 3, 5


class Blocks:
    """A source of one tensor that nobody may write to, as those of mapped files."""

    def __init__(self, info: WeightInfo, raw: NDArray[np.uint8]) -> None:
        self._info, self._raw = info, raw
        self._raw.flags.writeable = False
        self.released: list[str] = []

    def names(self) -> list[str]:
        return [self._info.name]

    def info(self, name: str) -> WeightInfo | None:
        return self._info

    def raw(self, name: str) -> NDArray[np.uint8]:
        return self._raw

    def release(self, name: str) -> None:
        self.released.append(name)


def blocks(kind: BlockType, leading: tuple[int, ...] = (NUM_EXPERTS, ROWS), name: str = "w.weight") -> Blocks:
    columns = max(64, BLOCK_LAYOUTS[kind].values_per_block * 2)
    per_row = columns // BLOCK_LAYOUTS[kind].values_per_block
    raw = random_blocks(kind, math.prod(leading) * per_row, 3)
    if kind is BlockType.MXFP4:
        raw[:, 0] = raw[:, 0] % 20 + 110  # of a size that other types hold, too
    return Blocks(WeightInfo(name, (*leading, columns), kind), raw.reshape(-1))


def load(source: Blocks, device: str, keep_decoded: bool | None, compute: Compute = "float32") -> Weight:
    return Weights(source, torch.device(device), compute, keep_decoded)[source.names()[0]]


@pytest.mark.parametrize("keep_decoded", [True, False])
@pytest.mark.parametrize("kind", sorted(DECODABLE), ids=lambda kind: kind.name)
def test_every_type_gives_its_values_however_it_is_kept(
    device: str, kind: BlockType, keep_decoded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "VALUES_AT_ONCE", 1100)  # so that a matrix comes in several parts
    source = blocks(kind, (ROWS,))
    weight = load(source, device, keep_decoded)
    expected = decode(kind, source.raw(""), weight.shape)
    assert (weight.type is None) == (keep_decoded or kind in (BlockType.F32, BlockType.F16, BlockType.BF16))
    indices = torch.tensor([4, 0, 0, 2], device=device)
    np.testing.assert_array_equal(weight.rows(indices).cpu().numpy(), expected[[4, 0, 0, 2]])
    np.testing.assert_array_equal(torch.cat(list(weight.parts())).cpu().numpy(), expected)
    assert source.released == ["w.weight"]


@pytest.mark.parametrize("chosen", [[1], [0, 2], [0, 1, 2]])
@pytest.mark.parametrize("keep_decoded", [True, False])
@pytest.mark.parametrize("kind", [BlockType.F32, BlockType.BF16, BlockType.Q4_K, BlockType.MXFP4])
def test_chosen_experts_are_their_matrices(device: str, kind: BlockType, keep_decoded: bool, chosen: list[int]) -> None:
    source = blocks(kind)
    weight = load(source, device, keep_decoded)
    expected = decode(kind, source.raw(""), weight.shape)[chosen]
    np.testing.assert_array_equal(weight.experts(np.array(chosen)).cpu().numpy(), expected)


def test_float_types_stay_as_they_are_where_the_others_stay_in_blocks(device: str) -> None:
    assert load(blocks(BlockType.F16, (ROWS,)), device, False).store.dtype == torch.float16
    assert load(blocks(BlockType.BF16, (ROWS,)), device, False).store.dtype == torch.bfloat16
    assert load(blocks(BlockType.Q4_0, (ROWS,)), device, False).store.dtype == torch.uint8


@pytest.mark.parametrize("kind", [BlockType.BF16, BlockType.Q8_0])
def test_small_tensors_are_float32_whatever_is_computed_in(device: str, kind: BlockType) -> None:
    for name in ("blk.0.ffn_gate_inp.weight", "blk.0.shortconv.conv.weight", "blk.0.ffn_up_exps.bias"):
        weight = load(blocks(kind, (ROWS,), name), device, False, "float16")
        assert weight.store.dtype == weight.product == torch.float32
    assert load(blocks(kind, (), "output_norm.weight"), device, False, "bfloat16").store.dtype == torch.float32


def test_a_processor_multiplies_in_float32_and_a_gpu_what_is_not_float32_in_float16(device: str) -> None:
    half = torch.float32 if device == "cpu" else torch.float16
    assert load(blocks(BlockType.F32, (ROWS,)), device, True, "auto").product == torch.float32
    for kind in (BlockType.BF16, BlockType.F16, BlockType.Q4_K):
        assert load(blocks(kind, (ROWS,)), device, True, "auto").product == half


def test_a_tensor_that_float16_does_not_hold_is_multiplied_in_float32(device: str) -> None:
    values = np.array([[1e6, 1.0], [2.0, 3.0]], np.float32)
    source = Blocks(WeightInfo("w.weight", (2, 2), BlockType.F32), values.view(np.uint8).reshape(-1))
    weight = load(source, device, True, "float16")
    np.testing.assert_array_equal(torch.cat(list(weight.parts())).cpu().numpy(), values)


@pytest.mark.parametrize(("free", "is_decoded"), [(1 << 30, True), (1000, False)])
def test_how_much_memory_is_free_decides_and_is_told(
    monkeypatch: pytest.MonkeyPatch, device: str, free: int, is_decoded: bool
) -> None:
    monkeypatch.setattr(room, "free_bytes", lambda device: free)
    kept = Weights(blocks(BlockType.Q4_0, (ROWS,)), torch.device(device), "auto", None)
    assert (kept["w.weight"].type is None) == is_decoded
    assert any("decoded at every use" in note and "GB" in note for note in kept.notes) != is_decoded
    assert kept.size_bytes == kept["w.weight"].store.nbytes


def test_a_type_without_a_decoder_is_refused_by_name(device: str) -> None:
    source = blocks(BlockType.Q4_0, (ROWS,))
    source._info = replace(source._info, type=BlockType.NVFP4)
    with pytest.raises(UnsupportedModel, match="NVFP4"):
        load(source, device, None)


def test_bytes_that_do_not_fit_the_shape_are_refused_by_name(device: str) -> None:
    source = blocks(BlockType.Q4_0, (ROWS,))
    source._info = replace(source._info, shape=(ROWS + 1, 64))
    with pytest.raises(BadModelFile, match=r"w\.weight has 180 bytes"):
        load(source, device, None)


def test_a_tensor_that_is_missing_is_named(device: str) -> None:
    kept = Weights(blocks(BlockType.Q4_0, (ROWS,)), torch.device(device), "auto", None)
    assert kept.get("output.weight") is None
    with pytest.raises(BadModelFile, match=r"output\.weight"):
        kept["output.weight"]
