"""Checkpoints and files of gated delta nets: orders of heads, parts that are not read, numbers that make no heads."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from localllm.errors import BadModelFile, UnsupportedModel
from localllm.formats.blocks import BlockType, decode, encode
from localllm.formats.gguf_read import GGUFFile
from localllm.models.config import AttentionSpec, DeltaNetSpec, LayerSpec, ModelConfig
from localllm.models.delta_rows import delta_rows, gated_rows, tiled_heads
from localllm.models.hf_source import HFSource
from localllm.models.mapping import gguf_model, hf_model
from localllm.models.names import left_out
from localllm.models.pieces import Piece
from localllm.quantize.convert import convert
from tests.models.test_checkpoints import MemoryFolder, checkpoint
from tests.models.test_published_files import arrays_of, assert_same, converted, opened
from tests.oracles.hf import BY_NAME, Family, as_folder, make_model

SPEC = DeltaNetSpec(num_key_heads=2, num_value_heads=4, key_dim=16, value_dim=16, kernel=4)


def test_heads_of_a_key_head_lie_side_by_side_or_are_dealt_out() -> None:
    assert tiled_heads(SPEC).tolist() == [0, 2, 1, 3]
    assert tiled_heads(replace(SPEC, num_value_heads=6)).tolist() == [0, 3, 1, 4, 2, 5]
    small = replace(SPEC, key_dim=1, value_dim=1)
    # q0 k0 v0 v1 z0 z1 q1 k1 v2 v3 z2 z3
    assert delta_rows("joined qkv", small).tolist() == [0, 6, 1, 7, 2, 3, 8, 9]
    assert delta_rows("joined gates", small).tolist() == [4, 5, 10, 11]
    # b0 b1 a0 a1 b2 b3 a2 a3
    assert delta_rows("joined betas", small).tolist() == [0, 1, 4, 5]
    assert delta_rows("joined decays", small).tolist() == [2, 3, 6, 7]
    assert delta_rows("tiled qkv", small).tolist() == [0, 1, 2, 3, 4, 6, 5, 7]
    attention = AttentionSpec(2, 1, 3, 3, 1.0, None, gated=True)
    assert gated_rows("queries", attention).tolist() == [0, 1, 2, 6, 7, 8]
    assert gated_rows("gates", attention).tolist() == [3, 4, 5, 9, 10, 11]


def test_the_first_files_of_qwen3_next_have_queries_and_gates_of_a_key_head_in_one_matrix(tmp_path: Path) -> None:
    file = converted("qwen3 next", tmp_path)
    new, old = arrays_of(file), arrays_of(file)
    for layer in (0, 2):
        qkv, gate = (old.pop(f"blk.{layer}.attn_{part}.weight") for part in ("qkv", "gate"))
        joined = np.empty((len(qkv) + len(gate), 64), np.float32)
        joined[delta_rows("joined qkv", SPEC)], joined[delta_rows("joined gates", SPEC)] = qkv, gate
        old[f"blk.{layer}.ssm_in.weight"] = joined
    assert_same(opened(dict(file.metadata), old), opened(dict(file.metadata), new))


def test_files_have_one_matrix_for_the_two_gates_of_a_key_head_and_one_for_queries_and_theirs(tmp_path: Path) -> None:
    names = arrays_of(converted("qwen3 next", tmp_path))
    assert "blk.0.ssm_ba.weight" in names and "blk.0.ssm_beta.weight" not in names
    assert names["blk.1.attn_q.weight"].shape == (2 * 4 * 32, 64) and "blk.1.attn_gate.weight" not in names
    again = arrays_of(converted("qwen3.5", tmp_path / "again"))
    assert "blk.0.ssm_beta.weight" in again and "blk.0.post_attention_norm.weight" in again


def test_a_layer_that_guesses_further_tokens_is_left_out_of_a_file(tmp_path: Path) -> None:
    file = converted("qwen3.5", tmp_path)
    longer = {**arrays_of(file), "blk.4.nextn.eh_proj.weight": np.zeros((64, 128), np.float32)}
    longer |= {name.replace("blk.3.", "blk.4."): array for name, array in longer.items() if name.startswith("blk.3.")}
    metadata = {**file.metadata, "qwen35.block_count": 5, "qwen35.nextn_predict_layers": 1}
    assert_same(opened(metadata, longer), opened(dict(file.metadata), arrays_of(file)))


def test_a_file_of_nothing_but_guessers_is_refused_in_a_sentence(tmp_path: Path) -> None:
    file = converted("qwen3.5", tmp_path)
    lost = ("blk.0.", "blk.1.", "blk.2.")
    arrays = {name: array for name, array in arrays_of(file).items() if not name.startswith(lost)}
    arrays["blk.3.nextn.eh_proj.weight"] = np.zeros((64, 128), np.float32)
    with pytest.raises(UnsupportedModel, match="only the layers that guess further tokens"):
        opened({**file.metadata, "qwen35.nextn_predict_layers": 1}, arrays)


def test_eyes_and_guessers_of_a_checkpoint_are_left_out_and_show_can_say_so(tmp_path: Path) -> None:
    plain, whole = checkpoint("qwen3.5 moe", tmp_path), checkpoint("qwen3.5 moe", tmp_path / "again")
    extra = ("mtp.fc.weight", "mtp.layers.0.self_attn.q_proj.weight", "model.visual.patch_embed.proj.weight")
    whole.arrays = {
        name.replace("model.", "model.language_model.", 1): array for name, array in whole.arrays.items()
    } | dict.fromkeys(extra, np.zeros((4, 4), np.float32))
    whole.config = {"model_type": "qwen3_5_moe", "text_config": whole.config, "vision_config": {}}
    assert_same(hf_model(whole), hf_model(plain))
    assert len(left_out(extra)) == 2


def test_layers_that_attend_at_no_regular_distance_are_told_one_by_one(tmp_path: Path) -> None:
    types = ["linear_attention", "linear_attention", "full_attention", "full_attention"]
    family: Family = BY_NAME["qwen3.5"]
    folder = as_folder(make_model(replace(family, settings={**family.settings, "layer_types": types})), tmp_path)
    convert(folder, tmp_path / "model.gguf", BlockType.F32, {})
    file = GGUFFile.open(tmp_path / "model.gguf")
    assert file.metadata["qwen35.attention.recurrent_layers"] == [True, True, False, False]
    assert "qwen35.full_attention_interval" not in file.metadata
    config, source = gguf_model(file)
    assert config.norm_eps == pytest.approx(1e-6)  # a float32 in files
    assert_same((replace(config, norm_eps=1e-6), source), hf_model(folder))


class Blocks:
    """A checkpoint with one matrix in blocks, as models/ready offers it."""

    config: dict[str, Any] = {}  # noqa: RUF012 (a checkpoint has one of its own)

    def __init__(self, name: str, matrix: np.ndarray, kind: BlockType) -> None:
        self.tensors = {name: replace_info(matrix.shape, kind.name)}
        self._raw = encode(kind, matrix).reshape(len(matrix), -1)

    def array(self, name: str) -> np.ndarray:
        return self._raw

    def as_float32(self, name: str) -> np.ndarray:
        raise AssertionError("blocks are not decoded to be ordered")

    def release(self, name: str) -> None: ...


def replace_info(shape: tuple[int, ...], dtype: str) -> Any:
    return type("Info", (), {"shape": shape, "dtype": dtype})()


@pytest.mark.parametrize("value_dim", [32, 16])
def test_columns_in_blocks_are_ordered_where_a_head_is_whole_blocks(value_dim: int) -> None:
    spec = replace(SPEC, value_dim=value_dim, tiled=True)
    config = ModelConfig("qwen35", 8, 16, 32, (LayerSpec(spec),))
    matrix = np.random.default_rng(3).standard_normal((8, 4 * value_dim)).astype(np.float32)
    folder = Blocks("out", matrix, BlockType.Q8_0)
    source = HFSource(folder, {"blk.0.ssm_out.weight": [Piece("out", "tiled columns")]}, config, adds_one=True)
    if value_dim < 32:
        with pytest.raises(UnsupportedModel, match="no whole blocks"):
            source.raw("blk.0.ssm_out.weight")
        return
    plain = decode(BlockType.Q8_0, folder.array("out"), matrix.shape).reshape(8, 4, value_dim)
    ordered = decode(BlockType.Q8_0, source.raw("blk.0.ssm_out.weight"), matrix.shape)
    np.testing.assert_array_equal(ordered, plain[:, [0, 2, 1, 3]].reshape(8, -1))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"linear_conv_kernel_dim": 1}, "conv_kernel must be between"),
        ({"linear_num_key_heads": 3}, "4 value heads"),
        ({"linear_num_value_heads": 0}, "0 value heads"),
        ({"linear_key_head_dim": 1 << 20}, "make no values"),
        ({"linear_value_head_dim": None}, "linear_value_head_dim must be"),
        ({"linear_value_head_dim": 8}, "has 128 rows, but must have 96"),
        ({"layer_types": ["linear_attention", "chunked_attention"]}, "layers of the type 'chunked_attention'"),
    ],
)
def test_numbers_that_make_no_heads_are_refused(change: dict[str, Any], reason: str, qwen35: MemoryFolder) -> None:
    folder = MemoryFolder({**qwen35.config, **change}, qwen35.arrays)
    with pytest.raises((BadModelFile, UnsupportedModel), match=reason):
        _, source = hf_model(folder)
        source.raw("blk.0.attn_gate.weight")


@pytest.fixture(scope="module")
def qwen35(tmp_path_factory: pytest.TempPathFactory) -> MemoryFolder:
    return checkpoint("qwen3.5", tmp_path_factory.mktemp("qwen35"))
