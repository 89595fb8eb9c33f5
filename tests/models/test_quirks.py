"""Quirks of GGUF files are undone as whole quantized rows."""

from typing import Any

import numpy as np
import pytest

from localllm.errors import BadModelFile
from localllm.formats.blocks import BlockType, decode, encode
from localllm.models.facts import facts_from_gguf
from localllm.models.families import family_of
from localllm.models.mapping import config_from_gguf
from localllm.models.quirks import BlockFile, GGUFSource
from localllm.models.rows import halves_from_neighbours
from localllm.models.source import WeightSource
from tests.models.test_mapping import LLAMA, renamed
from tests.oracles.hf import Entry, MemoryFile, neighbours_from_halves

RNG = np.random.default_rng(1)


class BlockMemoryFile(MemoryFile):
    """Tensors as blocks of one type; `released` notes what was given back."""

    def __init__(self, metadata: dict[str, Any], arrays: dict[str, np.ndarray], kind: BlockType) -> None:
        super().__init__(metadata, arrays)
        self.kind = kind
        self.released: list[str] = []
        self.tensors = {name: Entry(array.shape, kind) for name, array in arrays.items()}

    def raw(self, name: str) -> np.ndarray:
        return encode(self.kind, self._arrays[name]).reshape(-1)

    def release(self, name: str) -> None:
        self.released.append(name)


def gguf_source(file: BlockFile) -> GGUFSource:
    """Of a file that need not have all tensors of a model."""
    facts = facts_from_gguf(file.metadata, file.architecture)
    config = config_from_gguf(file.metadata, file.tensors)
    return GGUFSource(file, config, family_of(file.architecture), facts.feed_forward, facts.num_guessing_layers)


def values(source: WeightSource, name: str) -> np.ndarray:
    info = source.info(name)
    assert info is not None
    return decode(info.type, source.raw(name), info.shape)


@pytest.mark.parametrize("kind", [BlockType.F32, BlockType.Q8_0, BlockType.Q4_0])
def test_query_and_key_rows_of_llama_files_come_back_in_halves(kind: BlockType) -> None:
    plain = {
        f"blk.0.attn_{part}.weight": RNG.standard_normal((rows, 64), np.float32)
        for part, rows in (("q", 64), ("k", 32))
    }
    arrays = {
        "blk.0.attn_q.weight": neighbours_from_halves(plain["blk.0.attn_q.weight"], 4),
        "blk.0.attn_k.weight": neighbours_from_halves(plain["blk.0.attn_k.weight"], 2),
    }
    source = gguf_source(BlockMemoryFile(LLAMA, arrays, kind))
    for name, array in plain.items():
        # rounding to blocks and re-ordering rows do not touch each other
        np.testing.assert_array_equal(values(source, name), decode(kind, encode(kind, array), array.shape))


def test_their_biases_are_reordered_alike_and_other_families_are_left_alone() -> None:
    bias = RNG.standard_normal(64).astype(np.float32)
    arrays = {"blk.1.attn_q.bias": neighbours_from_halves(bias, 4), "blk.1.attn_v.bias": bias[:32]}
    source = gguf_source(MemoryFile(LLAMA, arrays))
    np.testing.assert_array_equal(values(source, "blk.1.attn_q.bias"), bias)
    np.testing.assert_array_equal(values(source, "blk.1.attn_v.bias"), bias[:32])
    untouched = gguf_source(MemoryFile(renamed("qwen2"), arrays))
    np.testing.assert_array_equal(values(untouched, "blk.1.attn_q.bias"), arrays["blk.1.attn_q.bias"])


def test_only_the_turning_part_of_a_head_is_reordered() -> None:
    assert halves_from_neighbours(2, 6, 4).tolist() == [0, 2, 1, 3, 4, 5, 6, 8, 7, 9, 10, 11]


def test_a_query_matrix_of_another_size_is_refused_by_name() -> None:
    with pytest.raises(BadModelFile, match=r"blk\.0\.attn_q\.weight has 60 rows"):
        gguf_source(MemoryFile(LLAMA, {"blk.0.attn_q.weight": np.zeros((60, 64), np.float32)}))


@pytest.mark.parametrize("kind", [BlockType.F32, BlockType.Q8_0])
def test_a_fused_qkv_matrix_comes_apart_into_views(kind: BlockType) -> None:
    fused = RNG.standard_normal((64 + 32 + 32, 64), np.float32)
    file = BlockMemoryFile(renamed("qwen2"), {"blk.2.attn_qkv.weight": fused}, kind)
    source = gguf_source(file)
    expected = decode(kind, encode(kind, fused), fused.shape)
    for part, first, end in (("q", 0, 64), ("k", 64, 96), ("v", 96, 128)):
        np.testing.assert_array_equal(values(source, f"blk.2.attn_{part}.weight"), expected[first:end])
    assert "blk.2.attn_qkv.weight" not in source.names()


def test_a_fused_gate_and_up_matrix_comes_apart() -> None:
    fused = RNG.standard_normal((192, 64), np.float32)
    source = gguf_source(MemoryFile(renamed("qwen2", feed_forward_length=96), {"blk.0.ffn_up.weight": fused}))
    np.testing.assert_array_equal(values(source, "blk.0.ffn_gate.weight"), fused[:96])
    np.testing.assert_array_equal(values(source, "blk.0.ffn_up.weight"), fused[96:])


def test_an_up_matrix_that_is_not_fused_stays_whole() -> None:
    source = gguf_source(
        MemoryFile(renamed("qwen2", feed_forward_length=96), {"blk.0.ffn_up.weight": np.ones((96, 64), np.float32)})
    )
    assert list(source.names()) == ["blk.0.ffn_up.weight"]


def test_lfm2_files_name_the_last_norm_after_the_embedding() -> None:
    source = gguf_source(MemoryFile(renamed("lfm2"), {"token_embd_norm.weight": np.ones(64, np.float32)}))
    assert list(source.names()) == ["output_norm.weight"]


def test_release_gives_back_the_tensor_of_the_file() -> None:
    file = BlockMemoryFile(renamed("lfm2"), {"token_embd_norm.weight": np.ones(64, np.float32)}, BlockType.F32)
    gguf_source(file).release("output_norm.weight")
    assert file.released == ["token_embd_norm.weight"]


def test_unknown_names_have_no_info() -> None:
    assert gguf_source(MemoryFile(LLAMA, {})).info("blk.0.attn_q.weight") is None


@pytest.mark.parametrize("kind", [BlockType.F16, BlockType.Q8_0])
def test_experts_with_a_tensor_each_are_stacked_in_their_order(kind: BlockType) -> None:
    experts = [RNG.standard_normal((32, 64), np.float32) for _ in range(11)]
    file = BlockMemoryFile(LLAMA, {f"blk.0.ffn_up.{index}.weight": array for index, array in enumerate(experts)}, kind)
    source = gguf_source(file)
    assert list(source.names()) == ["blk.0.ffn_up_exps.weight"]
    expected = np.stack([decode(kind, encode(kind, array), array.shape) for array in experts])
    np.testing.assert_array_equal(values(source, "blk.0.ffn_up_exps.weight"), expected)
    source.release("blk.0.ffn_up_exps.weight")
    assert len(file.released) == 11


def test_a_lost_or_odd_expert_is_refused_by_name() -> None:
    arrays = {f"blk.0.ffn_up.{index}.weight": np.zeros((32, 64), np.float32) for index in (0, 2)}
    with pytest.raises(BadModelFile, match=r"experts of blk\.0\.ffn_up_exps\.weight"):
        gguf_source(MemoryFile(LLAMA, arrays))
    arrays["blk.0.ffn_up.1.weight"] = np.zeros((31, 64), np.float32)
    with pytest.raises(BadModelFile, match="differ in shape"):
        gguf_source(MemoryFile(LLAMA, arrays)).info("blk.0.ffn_up_exps.weight")


@pytest.mark.parametrize("kind", [BlockType.F16, BlockType.Q8_0])
def test_gate_and_up_of_all_experts_in_one_tensor_come_apart(kind: BlockType) -> None:
    gate, up = RNG.standard_normal((2, 5, 32, 64)).astype(np.float32)
    fused = np.concatenate([gate, up], axis=1)
    source = gguf_source(BlockMemoryFile(LLAMA, {"blk.0.ffn_gate_up_exps.weight": fused}, kind))
    for part, array in (("gate", gate), ("up", up)):
        expected = decode(kind, encode(kind, array), array.shape)
        np.testing.assert_array_equal(values(source, f"blk.0.ffn_{part}_exps.weight"), expected)
