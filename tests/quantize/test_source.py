"""Weights rounded on their way to a backend: which ones, to what, and with which bytes."""

import tracemalloc

import numpy as np
import pytest
from numpy.typing import NDArray

from localllm.errors import BadModelFile, UnsupportedModel, UsageError
from localllm.formats.blocks import BlockType, decode
from localllm.formats.blocks import encode as plain_encode
from localllm.models.source import WeightInfo
from localllm.quantize.encode import encode
from localllm.quantize.source import QUANTIZE_TARGETS, QuantizedSource, quantize_target, rounded_type


class Memory:
    """A WeightSource over arrays, all of one type, that counts what it is asked for."""

    def __init__(self, arrays: dict[str, NDArray[np.float32]], kind: BlockType = BlockType.F32) -> None:
        self.infos = {name: WeightInfo(name, array.shape, kind) for name, array in arrays.items()}
        self.blocks = {name: plain_encode(kind, array).reshape(-1) for name, array in arrays.items()}
        self.read: list[str] = []
        self.released: list[str] = []

    def names(self) -> list[str]:
        return list(self.infos)

    def info(self, name: str) -> WeightInfo | None:
        return self.infos.get(name)

    def raw(self, name: str) -> NDArray[np.uint8]:
        self.read.append(name)
        return self.blocks[name]

    def release(self, name: str) -> None:
        self.released.append(name)


def values(*shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(5).standard_normal(shape).astype(np.float32)


def becomes(name: str, shape: tuple[int, ...], target: BlockType, kind: BlockType = BlockType.F16) -> BlockType:
    return rounded_type(WeightInfo(name, shape, kind), target)


@pytest.mark.parametrize("kind", [BlockType.F32, BlockType.F16, BlockType.BF16], ids=lambda kind: kind.name)
@pytest.mark.parametrize("target", QUANTIZE_TARGETS.values(), ids=lambda kind: kind.name)
@pytest.mark.parametrize("shape", [(7, 512), (3, 5, 256)])
def test_matrices_and_experts_are_rounded_as_their_float32_values(
    target: BlockType, kind: BlockType, shape: tuple[int, ...]
) -> None:
    inner = Memory({"blk.0.ffn_up_exps.weight": values(*shape)}, kind)
    source = QuantizedSource(inner, target)
    info = source.info("blk.0.ffn_up_exps.weight")
    assert info == WeightInfo("blk.0.ffn_up_exps.weight", shape, target)
    expected = encode(target, decode(kind, inner.blocks[info.name], shape))
    assert np.array_equal(source.raw(info.name), expected.reshape(-1))


def test_rows_in_several_chunks_are_rounded_as_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    source = QuantizedSource(Memory({"blk.0.ffn_up.weight": values(9, 256)}), BlockType.Q4_K)
    whole = source.raw("blk.0.ffn_up.weight")
    monkeypatch.setattr("localllm.quantize.source._CHUNK_VALUES", 512)
    assert np.array_equal(source.raw("blk.0.ffn_up.weight"), whole)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("blk.0.attn_norm.weight", (256,)),
        ("blk.0.attn_q_norm.weight", (4, 256)),
        ("output_norm.weight", (256,)),
        ("blk.0.attn_q.bias", (256,)),
        ("blk.0.ffn_up_exps.bias", (4, 256)),
        ("blk.0.ffn_gate_inp.weight", (4, 256)),
        ("per_layer_token_embd.weight", (7, 512)),
        ("per_layer_model_proj.weight", (512, 256)),
        ("altup_proj.weight", (3, 256, 256)),
        ("blk.0.laurel_r.weight", (512, 256)),
        ("blk.0.shortconv.conv.weight", (256, 32)),
        ("position_embd.weight", (64, 256)),
        ("blk.0.attn_sinks.weight", (64,)),
        ("blk.0.ffn_up.weight", (4, 30)),
    ],
)
def test_what_is_small_or_fits_no_block_stays_as_it_is(name: str, shape: tuple[int, ...]) -> None:
    inner = Memory({name: values(*shape)}, BlockType.F16)
    for target in QUANTIZE_TARGETS.values():
        source = QuantizedSource(inner, target)
        assert source.info(name) == inner.info(name)
        assert source.raw(name) is inner.blocks[name]


def test_blocks_are_never_rounded_again() -> None:
    inner = Memory({"blk.0.ffn_up.weight": values(4, 256)}, BlockType.Q8_0)
    source = QuantizedSource(inner, BlockType.Q4_0)
    assert source.info("blk.0.ffn_up.weight") == inner.info("blk.0.ffn_up.weight")
    assert source.raw("blk.0.ffn_up.weight") is inner.blocks["blk.0.ffn_up.weight"]


@pytest.mark.parametrize(
    ("name", "columns", "target", "expected"),
    [
        ("blk.0.ffn_up.weight", 512, "Q4_K", "Q4_K"),
        ("blk.0.ffn_up.weight", 576, "Q4_K", "Q8_0"),
        ("blk.0.ffn_up.weight", 576, "Q4_0", "Q4_0"),
        ("blk.0.ffn_up.weight", 200, "Q4_K", "F16"),
        ("blk.0.ffn_up.weight", 200, "Q8_0", "F16"),
        ("blk.0.attn_output.weight", 256, "Q4_K", "Q4_K"),
        ("blk.0.shortconv.in_proj.weight", 256, "Q4_K", "Q4_K"),
        ("token_embd.weight", 512, "Q4_K", "Q8_0"),
        ("output.weight", 512, "Q4_0", "Q8_0"),
        ("output.weight", 512, "Q6_K", "Q8_0"),
        ("output.weight", 512, "Q8_0", "Q8_0"),
        ("token_embd.weight", 200, "Q4_0", "F16"),
    ],
)
def test_the_table_of_types(name: str, columns: int, target: str, expected: str) -> None:
    assert becomes(name, (8, columns), BlockType[target]).name == expected


def test_infos_read_nothing_and_nothing_is_kept() -> None:
    name = "blk.0.ffn_up.weight"
    inner = Memory({name: values(4, 256)})
    source = QuantizedSource(inner, BlockType.Q4_K)
    assert list(source.names()) == [name]
    assert source.info("blk.9.ffn_up.weight") is None
    source.info(name)
    assert inner.read == []
    assert np.array_equal(source.raw(name), source.raw(name))
    assert inner.read == [name, name]
    source.release(name)
    assert inner.released == [name]


def test_rounding_takes_little_memory_beside_the_weights() -> None:
    name = "blk.0.ffn_up.weight"
    source = QuantizedSource(Memory({name: np.zeros((4096, 2048), np.float32)}, BlockType.F16), BlockType.Q8_0)
    tracemalloc.start()
    try:
        size = source.raw(name).nbytes
        assert tracemalloc.get_traced_memory()[1] - size < 32 << 20
    finally:
        tracemalloc.stop()


def test_errors_name_the_weight() -> None:
    broken, large = values(2, 256), values(2, 256)
    broken[1, 1], large[1, 1] = np.nan, 1e20
    source = QuantizedSource(Memory({"blk.3.ffn_up.weight": broken, "blk.4.ffn_up.weight": large}), BlockType.Q8_0)
    with pytest.raises(BadModelFile, match=r"blk\.3\.ffn_up\.weight.*finite"):
        source.raw("blk.3.ffn_up.weight")
    with pytest.raises(UnsupportedModel, match=r"blk\.4\.ffn_up\.weight.*Q8_0"):
        source.raw("blk.4.ffn_up.weight")


@pytest.mark.parametrize("text", ["q4_k", "Q4_K", "q4_K"])
def test_targets_in_any_case(text: str) -> None:
    assert quantize_target(text) is BlockType.Q4_K


@pytest.mark.parametrize("text", ["", "q5_k", "q4_k_m", "f16", "iq2_xxs"])
def test_other_targets_are_refused_with_the_choices(text: str) -> None:
    with pytest.raises(UsageError) as refusal:
        quantize_target(text)
    assert all(choice in refusal.value.hint for choice in QUANTIZE_TARGETS)
