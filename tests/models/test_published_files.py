"""What published files of the long tail have beside the tensors of their converted twins, and what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from localllm.errors import LocalLLMError, UnsupportedModel
from localllm.formats.blocks import BlockType, decode
from localllm.formats.gguf_read import GGUFFile
from localllm.models.config import AttentionSpec, ModelConfig
from localllm.models.hf_facts import facts_from_hf
from localllm.models.mapping import gguf_model, hf_model
from localllm.models.source import WeightSource
from localllm.quantize.convert import convert
from tests.models.test_checkpoints import checkpoint
from tests.oracles.hf import MemoryFile


def converted(name: str, tmp_path: Path) -> MemoryFile:
    """A family's tiny model as our converter writes it, to be changed by a test."""
    path = tmp_path / "model.gguf"
    convert(checkpoint(name, tmp_path / "folder"), path, BlockType.F32, {})
    file = GGUFFile.open(path)
    arrays = {
        name: np.array(decode(tensor.type, file.raw(name), tensor.shape)) for name, tensor in file.tensors.items()
    }
    return MemoryFile(dict(file.metadata), arrays)


def arrays_of(file: MemoryFile) -> dict[str, NDArray[np.float32]]:
    return dict(file._arrays)


def opened(metadata: dict[str, Any], arrays: dict[str, NDArray[np.float32]]) -> tuple[ModelConfig, WeightSource]:
    return gguf_model(MemoryFile(metadata, arrays))


def values(source: WeightSource) -> dict[str, NDArray[np.float32]]:
    found = {}
    for name in source.names():
        info = source.info(name)
        assert info is not None
        found[name] = decode(info.type, source.raw(name), info.shape)
    return found


def assert_same(ours: tuple[ModelConfig, WeightSource], theirs: tuple[ModelConfig, WeightSource]) -> None:
    assert ours[0] == theirs[0]
    mine, other = values(ours[1]), values(theirs[1])
    assert mine.keys() == other.keys()
    for name in mine:
        np.testing.assert_array_equal(mine[name], other[name], err_msg=name)


def test_old_deepseek_files_have_keys_and_values_of_heads_in_one_matrix(tmp_path: Path) -> None:
    file = converted("deepseek v2 lite", tmp_path)
    new, old = arrays_of(file), arrays_of(file)
    for layer in range(4):
        keys, vals = (old.pop(f"blk.{layer}.attn_{part}_b.weight") for part in "kv")
        old[f"blk.{layer}.attn_kv_b.weight"] = np.concatenate([keys.swapaxes(1, 2), vals], axis=1).reshape(-1, 16)
    prefix = "deepseek2.attention."
    metadata = {name: value for name, value in file.metadata.items() if not name.endswith("_mla")}
    metadata |= {f"{prefix}key_length": 24, f"{prefix}value_length": 24, f"{prefix}head_count_kv": 4}
    assert_same(opened(metadata, old), opened(dict(file.metadata), new))


def test_a_gate_of_the_shared_expert_may_be_a_vector(tmp_path: Path) -> None:
    file = converted("qwen2 moe", tmp_path)
    flat = {name: array.reshape(-1) if "gate_inp_shexp" in name else array for name, array in arrays_of(file).items()}
    assert any(array.ndim == 1 for name, array in flat.items() if "gate_inp_shexp" in name)
    assert_same(opened(dict(file.metadata), flat), opened(dict(file.metadata), arrays_of(file)))


def test_the_bias_of_a_choice_may_be_one_row(tmp_path: Path) -> None:
    file = converted("ernie 4.5 moe", tmp_path)
    rows = {name: array[None] if "exp_probs_b" in name else array for name, array in arrays_of(file).items()}
    assert_same(opened(dict(file.metadata), rows), opened(dict(file.metadata), arrays_of(file)))


def test_layers_that_guess_further_tokens_are_left_out_of_a_file(tmp_path: Path) -> None:
    file = converted("glm 4.5", tmp_path)
    longer = {**arrays_of(file), "blk.4.nextn.eh_proj.weight": np.zeros((64, 128), np.float32)}
    longer |= {name.replace("blk.3.", "blk.4."): array for name, array in longer.items() if name.startswith("blk.3.")}
    metadata = {**file.metadata, "glm4moe.block_count": 5, "glm4moe.nextn_predict_layers": 1}
    assert_same(opened(metadata, longer), opened(dict(file.metadata), arrays_of(file)))


def test_layers_that_guess_further_tokens_are_left_out_of_a_checkpoint(tmp_path: Path) -> None:
    plain, longer = checkpoint("glm 4.5", tmp_path), checkpoint("glm 4.5", tmp_path / "again")
    longer.arrays["model.layers.4.eh_proj.weight"] = np.zeros((64, 128), np.float32)
    longer.arrays["model.layers.4.shared_head.norm.weight"] = np.zeros(64, np.float32)
    assert longer.config["num_nextn_predict_layers"] == 1
    assert_same(hf_model(longer), hf_model(plain))
    longer.config = {**longer.config, "num_nextn_predict_layers": 0}
    with pytest.raises(UnsupportedModel, match=r"model\.layers\.4\.eh_proj"):
        hf_model(longer)


def test_the_first_files_of_glm_4_7_flash_do_not_say_what_scores_experts(tmp_path: Path) -> None:
    file = converted("glm 4.7 flash", tmp_path)
    metadata = {name: value for name, value in file.metadata.items() if not name.endswith("expert_gating_func")}
    assert_same(opened(metadata, arrays_of(file)), opened(dict(file.metadata), arrays_of(file)))


def test_deepseek_files_multiply_the_multiplier_of_yarn_by_a_tenth(tmp_path: Path) -> None:
    file = converted("deepseek v2", tmp_path)
    assert file.metadata["deepseek2.rope.scaling.yarn_log_multiplier"] == pytest.approx(0.0707)
    metadata = {name: value for name, value in file.metadata.items() if not name.endswith("attn_factor")}
    config, _ = opened(metadata, arrays_of(file))
    spec = config.layers[0].mixer
    assert isinstance(spec, AttentionSpec) and spec.rope is not None and spec.rope.scaling is not None
    assert spec.rope.scaling.attention_factor == pytest.approx(1.0)
    longer = 0.1 * 0.707 * np.log(8) + 1
    assert spec.scale == pytest.approx(24**-0.5 * longer**2)


REFUSED = (
    ("falcon 7b", {"alibi": True}, "alibi"),
    ("falcon 7b", {"parallel_attn": False}, "parallel_attn"),
    ("deepseek v2 lite", {"qk_rope_head_dim": None}, "qk_rope_head_dim must be a whole number"),
    ("deepseek v2 lite", {"v_head_dim": 23}, r"kv_b_proj\.weight has the shape"),
    ("deepseek v2", {"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "mscale_all_dim": 1.0}}, "without mscale"),
    ("deepseek v2", {"n_group": 3}, "2 of 3 groups of 8 experts"),
    ("glm 4.5", {"num_experts_per_tok": 7}, "7 of 6 experts"),
    ("pythia", {"num_attention_heads": 8, "rotary_pct": 0.01, "rope_parameters": {}}, "dimension_count is 0"),
)


@pytest.mark.parametrize(
    ("name", "changes", "sentence"), REFUSED, ids=lambda value: value if isinstance(value, str) else ""
)
def test_a_config_that_asks_for_something_else_is_refused(
    name: str, changes: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    folder = checkpoint(name, tmp_path)
    folder.config = {**folder.config, **changes}
    with pytest.raises(LocalLLMError, match=sentence):
        hf_model(folder)


def test_lost_norms_of_heads_are_refused(tmp_path: Path) -> None:
    folder = checkpoint("stablelm, parallel", tmp_path)
    del folder.arrays["model.layers.1.self_attn.q_layernorm.norms.2.weight"]
    with pytest.raises(LocalLLMError, match=r"some of the heads of blk\.1\.attn_q_norm"):
        hf_model(folder)


def test_one_lost_norm_does_not_make_a_parallel_block(tmp_path: Path) -> None:
    folder = checkpoint("stablelm", tmp_path)
    for kind in ("weight", "bias"):
        del folder.arrays[f"model.layers.1.post_attention_layernorm.{kind}"]
    with pytest.raises(LocalLLMError, match=r"lacks the tensor blk\.1\.ffn_norm"):
        hf_model(folder)


FALCON_7B = {
    "model_type": "falcon",
    "hidden_size": 4544,
    "num_attention_heads": 71,
    "num_hidden_layers": 32,
    "multi_query": True,
    "new_decoder_architecture": False,
    "parallel_attn": True,
    "alibi": False,
    "bias": False,
    "layer_norm_epsilon": 1e-5,
    "vocab_size": 65024,
}
COMMAND_R = {
    "model_type": "cohere",
    "hidden_size": 8192,
    "intermediate_size": 22528,
    "num_attention_heads": 64,
    "num_key_value_heads": 64,
    "num_hidden_layers": 40,
    "layer_norm_eps": 1e-5,
    "logit_scale": 0.0625,
    "max_position_embeddings": 8192,
    "model_max_length": 131072,
    "rope_theta": 8000000.0,
    "use_qk_norm": False,
    "vocab_size": 256000,
}


def test_published_configs_leave_things_out() -> None:
    falcon = facts_from_hf(FALCON_7B)
    assert (falcon.num_kv_heads, falcon.feed_forward, falcon.context_length) == ((1,), (18176,), 2048)
    assert falcon.rope_dims == 64 and falcon.is_tied
    command = facts_from_hf(COMMAND_R)
    assert (command.context_length, command.rope_base, command.logit_scale) == (131072, 8000000.0, 0.0625)
