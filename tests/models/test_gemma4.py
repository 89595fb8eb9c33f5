"""Gemma 4 as published: nested configs, tensors that nobody reads, files that are no model, and what is refused."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from localllm.backends.layout import cache_layout
from localllm.errors import BadModelFile, LocalLLMError, UnsupportedModel
from localllm.models.config import AttentionSpec, ModelConfig
from localllm.models.mapping import config_from_gguf, hf_model, runnable
from localllm.models.names import left_out
from localllm.models.source import WeightSource
from tests.models.test_checkpoints import MemoryFolder, checkpoint
from tests.models.test_published_files import arrays_of, assert_same, converted, opened, values

SMALL, DENSE, EXPERTS = "gemma 4, small", "gemma 4", "gemma 4, experts"


def published(folder: MemoryFolder) -> MemoryFolder:
    """The same model as the hub has it: inside of one that also sees and hears."""
    inner = {name: value for name, value in folder.config.items() if name != "per_layer_config"}
    of_full_layers = next(iter(folder.config["per_layer_config"].values()))
    inner |= {
        "global_head_dim": of_full_layers["head_dim"],
        "num_global_key_value_heads": of_full_layers.get("num_key_value_heads"),
        "use_bidirectional_attention": "vision",
    }
    config = {"model_type": "gemma4", "text_config": inner, "vision_config": {}, "audio_config": None}
    arrays = {
        name.replace("model.", "model.language_model.", 1): array
        for name, array in folder.arrays.items()
        if name != "lm_head.weight"
    }
    arrays["model.vision_tower.encoder.layers.0.self_attn.q_proj.linear.weight"] = np.zeros((4, 4), np.float32)
    arrays["model.embed_vision.embedding_projection.weight"] = np.zeros((4, 4), np.float32)
    arrays["model.embed_audio.embedding_projection.weight"] = np.zeros((4, 4), np.float32)
    return MemoryFolder(config, arrays)


def assert_file_says(file: tuple[ModelConfig, WeightSource], theirs: tuple[ModelConfig, WeightSource]) -> None:
    """As the checkpoint does, but for the digits of epsilon, and the tensor of what turns."""
    assert replace(file[0], norm_eps=theirs[0].norm_eps) == theirs[0]
    found, expected = values(file[1]), values(theirs[1])
    del found["rope_freqs.weight"]
    assert found.keys() == expected.keys()
    for name, array in found.items():
        np.testing.assert_array_equal(array, expected[name], err_msg=name)


def attention(config: ModelConfig, index: int) -> AttentionSpec:
    mixer = config.layers[index].mixer
    assert isinstance(mixer, AttentionSpec)
    return mixer


@pytest.mark.parametrize("name", [DENSE, SMALL, EXPERTS])
def test_the_text_part_of_a_published_checkpoint_is_the_model(name: str, tmp_path: Path) -> None:
    folder = checkpoint(name, tmp_path)
    assert_same(hf_model(published(folder)), hf_model(folder))


@pytest.mark.parametrize("name", [DENSE, SMALL, EXPERTS])
def test_a_converted_file_says_what_the_checkpoint_says(name: str, tmp_path: Path) -> None:
    file = converted(name, tmp_path)
    assert_file_says(opened(dict(file.metadata), arrays_of(file)), hf_model(checkpoint(name, tmp_path / "again")))


def test_the_12b_is_named_otherwise(tmp_path: Path) -> None:
    folder = checkpoint(DENSE, tmp_path)
    other = MemoryFolder({**folder.config, "model_type": "gemma4_unified_text"}, folder.arrays)
    assert_same(hf_model(other), hf_model(folder))


def test_keys_and_values_of_layers_that_read_others_are_left_out(tmp_path: Path) -> None:
    folder, file = checkpoint(SMALL, tmp_path), converted(SMALL, tmp_path / "file")
    config, source = hf_model(folder)
    longer, arrays = MemoryFolder(folder.config, folder.arrays), arrays_of(file)
    for layer in (3, 4, 5):
        for part in ("k_proj", "v_proj", "k_norm"):
            shape = folder.arrays[f"model.layers.{layer - 3}.self_attn.{part}.weight"].shape
            longer.arrays[f"model.layers.{layer}.self_attn.{part}.weight"] = np.ones(shape, np.float32)
        for part in ("k", "v", "k_norm"):
            arrays[f"blk.{layer}.attn_{part}.weight"] = arrays[f"blk.{layer - 3}.attn_{part}.weight"]
    assert_same(hf_model(longer), (config, source))
    assert_file_says(opened(dict(file.metadata), arrays), (config, source))


def test_layers_that_share_take_no_pages(tmp_path: Path) -> None:
    config, _ = hf_model(checkpoint(SMALL, tmp_path))
    assert [attention(config, index).kv_from for index in range(6)] == [None, None, None, 1, 1, 2]
    layers = [layer for group in cache_layout(config, 16).groups for layer in group.layers]
    assert sorted(layers) == [0, 1, 2]


def test_what_layers_are_scaled_by_is_known(tmp_path: Path) -> None:
    folder = checkpoint(DENSE, tmp_path)
    config, _ = hf_model(folder)
    scales = [float(folder.arrays[f"model.layers.{index}.layer_scalar"][0]) for index in range(5)]
    assert [layer.scale for layer in config.layers] == scales
    assert len(set(scales)) == 5


@pytest.mark.parametrize("name", ["gemma4_assistant", "gemma4_unified_assistant"])
def test_a_checkpoint_that_only_guesses_ahead_is_refused(name: str, tmp_path: Path) -> None:
    folder = published(checkpoint(DENSE, tmp_path))
    folder.config = {**folder.config, "model_type": name}
    with pytest.raises(UnsupportedModel, match="only guesses tokens ahead of a Gemma 4 model"):
        hf_model(folder)


def test_what_is_left_out_is_said(tmp_path: Path) -> None:
    folder = checkpoint(DENSE, tmp_path)
    assert left_out(folder.tensors) == ()
    assert left_out(published(folder).tensors) == (
        "the parts that see and hear are left out: this model takes text only",
    )
    assert left_out(["blk.46.nextn.eh_proj.weight"]) == ("the parts that guess further tokens ahead are left out",)


def test_a_file_that_only_guesses_ahead_is_refused() -> None:
    reason = runnable("gemma4-assistant", [])
    assert reason is not None and "no model by itself" in reason
    with pytest.raises(UnsupportedModel, match="no model by itself"):
        config_from_gguf({"general.architecture": "gemma4-assistant"}, [])


def odd_heads(config: Mapping[str, Any]) -> dict[str, Any]:
    return {**config["per_layer_config"], "0": {"head_dim": 8}}


REFUSED = (
    (SMALL, {"num_kv_shared_layers": 5}, "layer 2 shares keys and values, but no layer before it"),
    (SMALL, {"num_kv_shared_layers": 6}, "shared_kv_layers"),
    (SMALL, {"hidden_size_per_layer_input": 16}, r"per_layer_token_embd\.weight has the shape"),
    (DENSE, {"use_bidirectional_attention": "all"}, "attention in both directions"),
    (DENSE, {"per_layer_config": odd_heads}, "more than the two kinds"),
    (DENSE, {"per_layer_config": {"4": {"sliding_window": 3}}}, "of layer 4 what this build does not know"),
    (DENSE, {"head_dim": None, "per_layer_config": None, "global_head_dim": "32"}, "global_head_dim must be a whole"),
    (EXPERTS, {"top_k_experts": 7}, "7 of 6 experts"),
    (EXPERTS, {"top_k_experts": None}, "top_k_experts must be a whole number"),
)


@pytest.mark.parametrize(
    ("name", "changes", "sentence"), REFUSED, ids=lambda value: value if isinstance(value, str) else ""
)
def test_a_config_that_asks_for_something_else_is_refused(
    name: str, changes: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    folder = checkpoint(name, tmp_path)
    changes = {key: value(folder.config) if callable(value) else value for key, value in changes.items()}
    folder.config = {**folder.config, **changes}
    with pytest.raises(LocalLLMError, match=sentence):
        hf_model(folder)


LOST = (
    (SMALL, "model.layers.4.self_attn.q_norm.weight", "attn_q_norm"),
    (SMALL, "model.layers.1.per_layer_input_gate.weight", r"inp_gate\.weight"),
    (SMALL, "model.layers.2.self_attn.v_proj.weight", "attn_v"),
    (SMALL, "model.layers.0.layer_scalar", "layer_output_scale"),
    (DENSE, "model.layers.0.self_attn.v_proj.weight", r"blk\.0\.attn_v\.weight"),
    (EXPERTS, "model.layers.1.router.scale", r"ffn_gate_inp\.scale"),
    (EXPERTS, "model.layers.1.router.per_expert_scale", r"ffn_down_exps\.scale"),
    (EXPERTS, "model.layers.1.mlp.up_proj.weight", r"ffn_up\.weight"),
)


@pytest.mark.parametrize(("name", "tensor", "sentence"), LOST, ids=lambda value: value)
def test_a_lost_tensor_is_named(name: str, tensor: str, sentence: str, tmp_path: Path) -> None:
    folder = checkpoint(name, tmp_path)
    del folder.arrays[tensor]
    with pytest.raises(BadModelFile, match=sentence):
        hf_model(folder)


def test_what_does_not_turn_stands_still_in_files(tmp_path: Path) -> None:
    file = converted(DENSE, tmp_path)
    factors = arrays_of(file)["rope_freqs.weight"]
    assert factors[:4].tolist() == [1.0] * 4 and set(factors[4:].tolist()) == {float(np.float32(1e30))}
    config, source = opened(dict(file.metadata), arrays_of(file))
    near, full = attention(config, 0), attention(config, 4)
    assert (near.head_dim, near.num_kv_heads, near.window) == (16, 2, 9)
    assert (full.head_dim, full.num_kv_heads, full.window) == (32, 1, None)
    assert full.values_are_keys and not near.values_are_keys
    assert "blk.4.attn_v.weight" not in values(source)
