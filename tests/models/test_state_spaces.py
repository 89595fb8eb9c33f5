"""Families with Mamba-2: which row a checkpoint is of, what is refused by name, and what GGUF files cannot say."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from localllm.errors import BadModelFile, LocalLLMError, UnsupportedModel
from localllm.formats.blocks import BlockType
from localllm.formats.safetensors import SafetensorsFolder
from localllm.models.config import AttentionSpec, StateSpaceSpec
from localllm.models.hf_facts import check_config, facts_from_hf
from localllm.models.mapping import config_from_gguf, hf_model
from localllm.models.scaled import Multipliers
from localllm.quantize.convert import convert
from tests.oracles.hf import BY_NAME, as_folder, make_model

GRANITE = {"model_type": "granitemoehybrid"}
NEMOTRON = {"model_type": "nemotron_h"}


@pytest.mark.parametrize(
    ("config", "architecture"),
    [
        ({**GRANITE, "layer_types": ["mamba", "attention"]}, "granitehybrid"),
        ({**GRANITE, "layer_types": ["linear_attention", "full_attention"]}, "granitehybrid"),
        (GRANITE, "granitehybrid"),
        ({**GRANITE, "layer_types": ["attention"], "num_local_experts": 0}, "granite"),
        ({**GRANITE, "layer_types": ["attention"], "num_local_experts": 6}, "granitemoe"),
        ({**NEMOTRON, "hybrid_override_pattern": "M-M*"}, "nemotron_h"),
        ({**NEMOTRON, "hybrid_override_pattern": "MEM*"}, "nemotron_h_moe"),
        ({**NEMOTRON, "layers_block_type": ["linear_attention", "moe"]}, "nemotron_h_moe"),
        ({"model_type": "bamba"}, "granitehybrid"),
    ],
)
def test_layers_tell_the_family_where_the_type_is_of_several(config: dict[str, Any], architecture: str) -> None:
    assert check_config(config).architecture == architecture


def test_layers_count_themselves_where_the_number_is_left_out() -> None:
    config = {
        **NEMOTRON,
        **{"layers_block_type": ["linear_attention", "moe", "full_attention"], "hidden_size": 64},
        **{"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128},
        **{"mamba_num_heads": 8, "mamba_head_dim": 16, "ssm_state_size": 16, "n_groups": 2, "conv_kernel": 4},
    }
    facts = facts_from_hf(config)
    assert (facts.num_layers, facts.ssm_inner, facts.ssm_heads, facts.activation) == (3, 128, 8, "relu2")


@pytest.mark.parametrize(
    ("name", "change", "kind", "says"),
    [
        ("falcon h1 with norms", {"mamba_norm_before_gate": True}, UnsupportedModel, "mamba_norm_before_gate"),
        ("nemotron h", {"mamba_hidden_act": "gelu"}, UnsupportedModel, "mamba_hidden_act"),
        ("granite 4 h", {"mamba_n_groups": 3}, BadModelFile, "3 groups"),
        ("granite 4 h", {"mamba_d_conv": 0}, BadModelFile, "mamba_d_conv"),
        ("granite 4 h", {"mamba_d_state": 17}, BadModelFile, "in_proj"),
        ("granite 4 h", {"time_step_limit": 1.0}, BadModelFile, "time_step_limit"),
        ("falcon h1", {"ssm_multipliers": [1.0]}, BadModelFile, "ssm_multipliers"),
    ],
)
def test_what_makes_no_model_is_refused_by_name(
    name: str, change: dict[str, Any], kind: type[LocalLLMError], says: str, tmp_path: Path
) -> None:
    with pytest.raises(kind, match=says):
        hf_model(changed(name, change, tmp_path))


def test_limited_steps_run_but_no_gguf_file_can_say_them(tmp_path: Path) -> None:
    folder = changed("granite 4 h", {"time_step_limit": [0.01, 0.5]}, tmp_path)
    config, _ = hf_model(folder)
    assert isinstance(config.layers[0].mixer, StateSpaceSpec)
    assert config.layers[0].mixer.step_limits == (0.01, 0.5)
    with pytest.raises(UnsupportedModel, match=r"between 0\.01 and 0\.5"):
        convert(folder, tmp_path / "model.gguf", BlockType.F32, {})


def test_a_file_tells_layers_by_their_tensors() -> None:
    sizes = {"conv_kernel": 4, "inner_size": 128, "state_size": 16, "time_step_rank": 8, "group_count": 1}
    metadata: dict[str, Any] = {
        "general.architecture": "falcon-h1",
        **{f"falcon-h1.ssm.{key}": value for key, value in sizes.items()},
        "falcon-h1.block_count": 2,
        "falcon-h1.embedding_length": 64,
        "falcon-h1.context_length": 128,
        "falcon-h1.attention.head_count": 4,
        "falcon-h1.attention.layer_norm_rms_epsilon": 1e-5,
        "falcon-h1.vocab_size": 80,
    }
    config = config_from_gguf(metadata, ["blk.0.attn_q.weight", "blk.0.ssm_d", "blk.1.ssm_d"])
    both, alone = config.layers
    assert isinstance(both.mixer, AttentionSpec) and both.beside == alone.mixer == both.recurrent
    with pytest.raises(BadModelFile, match=r"ssm\.group_count"):
        config_from_gguf({**metadata, "falcon-h1.ssm.group_count": 0}, ["blk.0.ssm_d"])


def test_convolutions_of_mlx_are_those_of_transformers(tmp_path: Path) -> None:
    """MLX has (channels, kernel, 1), others (channels, 1, kernel)."""
    safetensors = pytest.importorskip("safetensors.numpy", reason="writes the checkpoint")
    folder = as_folder(make_model(BY_NAME["mamba 2"]), tmp_path)
    kept = hf_model(folder)[1].raw("blk.0.ssm_conv1d.weight").copy()
    tensors = {name: np.array(folder.array(name)) for name in folder.tensors}
    turned = {name: value.swapaxes(1, 2) if "conv1d.weight" in name else value for name, value in tensors.items()}
    safetensors.save_file(
        {name: np.ascontiguousarray(each) for name, each in turned.items()}, next(tmp_path.glob("*.safetensors"))
    )
    source = hf_model(SafetensorsFolder.open(tmp_path))[1]
    assert np.array_equal(source.raw("blk.0.ssm_conv1d.weight"), kept)


def test_layers_that_guess_further_tokens_are_told_of_and_left_out() -> None:
    sizes = {"conv_kernel": 4, "inner_size": 128, "state_size": 16, "time_step_rank": 8, "group_count": 1}
    metadata: dict[str, Any] = {
        "general.architecture": "nemotron_h",
        **{f"nemotron_h.ssm.{key}": value for key, value in sizes.items()},
        "nemotron_h.block_count": 3,
        "nemotron_h.nextn_predict_layers": 1,
        "nemotron_h.embedding_length": 64,
        "nemotron_h.context_length": 128,
        "nemotron_h.attention.head_count": 4,
        "nemotron_h.attention.head_count_kv": [0, 2, 2],
        "nemotron_h.attention.layer_norm_rms_epsilon": 1e-5,
        "nemotron_h.vocab_size": 80,
    }
    layers = config_from_gguf(metadata, ["blk.0.ssm_d", "blk.1.attn_q.weight", "blk.2.attn_q.weight"]).layers
    assert [type(layer.mixer) for layer in layers] == [StateSpaceSpec, AttentionSpec]


def test_multipliers_that_are_one_leave_weights_as_they_are(tmp_path: Path) -> None:
    config, _ = hf_model(as_folder(make_model(BY_NAME["falcon h1"]), tmp_path))
    none = Multipliers({})
    assert not none.unties
    assert all(none.factor_of(config, name) is None for name in ("token_embd.weight", "blk.0.ssm_in.weight"))


def changed(name: str, change: dict[str, Any], folder: Path) -> SafetensorsFolder:
    """A checkpoint whose config.json says something else."""
    as_folder(make_model(BY_NAME[name]), folder)
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    return SafetensorsFolder.open(folder)
