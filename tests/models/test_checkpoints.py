"""Safetensors checkpoints as they are found: other names, fused and packed weights, and what is refused by name."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

from localllm.backends.formulas import activate
from localllm.backends.reference import ReferenceBackend
from localllm.engine.step import Want
from localllm.errors import BadModelFile, LocalLLMError, UnsupportedModel
from localllm.formats.blocks import BlockType, decode
from localllm.formats.safetensors import SafetensorsFolder
from localllm.models.config import AttentionSpec
from localllm.models.hf_facts import check_config, facts_from_hf, text_config
from localllm.models.mapping import hf_model
from tests.contract.walk import Walk
from tests.oracles.hf import BY_NAME, Family, as_folder, expected_logits, make_model, torch_and_transformers

DTYPES = {"float32": "F32", "float16": "F16", "uint8": "U8", "uint16": "BF16", "float64": "F64", "int8": "I8"}


class Info(NamedTuple):
    shape: tuple[int, ...]
    dtype: str


class MemoryFolder:
    """What SafetensorsFolder offers, over arrays."""

    def __init__(self, config: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
        self.config, self.arrays = config, dict(arrays)

    @property
    def tensors(self) -> dict[str, Info]:
        return {name: Info(array.shape, DTYPES[array.dtype.name]) for name, array in self.arrays.items()}

    def array(self, name: str) -> NDArray[Any]:
        return self.arrays[name]

    def as_float32(self, name: str) -> NDArray[np.float32]:
        array = self.arrays[name]
        if array.dtype == np.uint16:
            return (array.astype(np.uint32) << np.uint32(16)).view(np.float32)
        return array.astype(np.float32)

    def release(self, name: str) -> None: ...


def checkpoint(name: str, tmp_path: Path) -> MemoryFolder:
    """A family's tiny model, as transformers saves it, to be changed by a test."""
    family: Family = BY_NAME[name]
    folder = as_folder(make_model(family), tmp_path)
    return MemoryFolder(dict(folder.config), {tensor: folder.array(tensor).copy() for tensor in folder.tensors})


def values(folder: MemoryFolder, name: str) -> NDArray[np.float32]:
    _, source = hf_model(folder)
    info = source.info(name)
    assert info is not None
    return decode(info.type, source.raw(name), info.shape)


def test_mxfp4_experts_of_gpt_oss_are_the_values_that_transformers_unpacks(tmp_path: Path) -> None:
    torch, _ = torch_and_transformers()
    mxfp4 = pytest.importorskip("transformers.integrations.mxfp4")
    folder = checkpoint("gpt-oss", tmp_path)
    folder.config = {**folder.config, "quantization_config": {"quant_method": "mxfp4"}}
    rng = np.random.default_rng(0)
    for part, rows, columns in (("gate_up_proj", 2 * 96, 64), ("down_proj", 64, 96)):
        for layer in range(4):
            name = f"model.layers.{layer}.mlp.experts.{part}"
            del folder.arrays[name]
            folder.arrays[name + "_blocks"] = rng.integers(0, 256, (6, rows, columns // 32, 16), dtype=np.uint8)
            folder.arrays[name + "_scales"] = rng.integers(120, 130, (6, rows, columns // 32), dtype=np.uint8)

    def unpacked(part: str) -> NDArray[np.float32]:
        blocks, scales = (
            torch.from_numpy(folder.arrays[f"model.layers.1.mlp.experts.{part}_{kind}"])
            for kind in ("blocks", "scales")
        )
        # (experts, columns, rows)
        return mxfp4.convert_moe_packed_tensors(blocks, scales, dtype=torch.float32).numpy().swapaxes(1, 2)

    gate_up = unpacked("gate_up_proj")
    assert np.array_equal(values(folder, "blk.1.ffn_gate_exps.weight"), gate_up[:, 0::2])
    assert np.array_equal(values(folder, "blk.1.ffn_up_exps.weight"), gate_up[:, 1::2])
    assert np.array_equal(values(folder, "blk.1.ffn_down_exps.weight"), unpacked("down_proj"))
    _, source = hf_model(folder)
    info = source.info("blk.1.ffn_gate_exps.weight")
    assert info is not None and info.type is BlockType.MXFP4


def test_experts_in_one_tensor_are_those_in_many(tmp_path: Path) -> None:
    folder = checkpoint("qwen3 moe", tmp_path)
    before = {part: values(folder, f"blk.2.ffn_{part}_exps.weight") for part in ("gate", "up", "down")}
    for layer in range(4):
        prefix = f"model.layers.{layer}.mlp.experts."
        parts = {
            part: np.stack([folder.arrays.pop(f"{prefix}{expert}.{part}_proj.weight") for expert in range(6)])
            for part in ("gate", "up", "down")
        }
        folder.arrays[prefix + "gate_up_proj"] = np.concatenate([parts["gate"], parts["up"]], axis=1)
        folder.arrays[prefix + "down_proj"] = parts["down"]
    for part, expected in before.items():
        assert np.array_equal(values(folder, f"blk.2.ffn_{part}_exps.weight"), expected)


@pytest.mark.parametrize("prefix", ["language_model.model.", "model.language_model."])
def test_the_language_model_of_a_multimodal_checkpoint_runs_without_its_eyes(prefix: str, tmp_path: Path) -> None:
    folder = checkpoint("gemma3", tmp_path)
    expected = values(folder, "blk.3.attn_q.weight")
    folder.arrays = {prefix + name.removeprefix("model."): array for name, array in folder.arrays.items()}
    folder.arrays["vision_tower.vision_model.encoder.layers.0.mlp.fc1.weight"] = np.zeros((4, 4), np.float32)
    folder.arrays["multi_modal_projector.mm_soft_emb_norm.weight"] = np.zeros(4, np.float32)
    folder.config = {"model_type": "gemma3", "text_config": folder.config}
    assert np.array_equal(values(folder, "blk.3.attn_q.weight"), expected)


def test_gemma_3_leaves_out_what_is_usual() -> None:
    """The config.json of google/gemma-3-4b-it says no more of its language model than this."""
    text = {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "model_type": "gemma3_text",
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    }
    facts = facts_from_hf({"model_type": "gemma3", "text_config": text})
    assert (facts.num_heads, facts.num_kv_heads, facts.head_dim, facts.window) == ((8,), (4,), 256, 1024)
    assert (facts.rope_base, facts.rope_scaling, facts.rope_factor) == (1e6, "linear", 8.0)
    assert facts.attention_scale == 256**-0.5


def test_phi_4_mini_is_read_from_keys_of_before_transformers_5() -> None:
    config = {
        "model_type": "phi3",
        "auto_map": {"AutoConfig": "configuration_phi3.Phi3Config"},  # known without it
        "hidden_size": 3072,
        "num_hidden_layers": 32,
        "num_attention_heads": 24,
        "num_key_value_heads": 8,
        "intermediate_size": 8192,
        "max_position_embeddings": 131072,
        "original_max_position_embeddings": 4096,
        "partial_rotary_factor": 0.75,
        "rope_theta": 10000.0,
        "rope_scaling": {"type": "longrope", "short_factor": [1] * 48, "long_factor": [2.5] * 48},
        "sliding_window": 262144,
    }
    facts = facts_from_hf(config)
    assert (facts.rope_dims, facts.rope_original_context, facts.rope_scaling) == (96, 4096, "longrope")
    assert facts.rope_short_factors == (1.0,) * 48 and facts.rope_long_factors == (2.5,) * 48


def test_old_gpt_2_checkpoints_have_masks_and_no_prefix(tmp_path: Path) -> None:
    folder = checkpoint("gpt2", tmp_path)
    expected = values(folder, "blk.1.attn_k.weight")
    folder.arrays = {name.removeprefix("transformer."): array for name, array in folder.arrays.items()}
    folder.arrays["h.0.attn.bias"] = np.ones((1, 1, 8, 8), np.float32)
    assert np.array_equal(values(folder, "blk.1.attn_k.weight"), expected)


def test_a_copy_of_the_embedding_is_left_alone_where_the_output_is_tied(tmp_path: Path) -> None:
    folder = checkpoint("llama tied", tmp_path)
    folder.arrays["lm_head.weight"] = folder.arrays["model.embed_tokens.weight"].copy()
    _, source = hf_model(folder)
    assert source.info("output.weight") is None


def test_an_output_layer_that_differs_from_the_embedding_is_used_whatever_the_config_says(tmp_path: Path) -> None:
    """As transformers 5 does; merges and prunings of models that were tied leave such checkpoints."""
    torch, transformers = torch_and_transformers()
    save_file = pytest.importorskip("safetensors.torch").save_file
    model = make_model(BY_NAME["llama tied"])
    model.save_pretrained(tmp_path)
    own = torch.randn(model.lm_head.weight.shape)
    tensors = {**model.state_dict(), "lm_head.weight": own}
    save_file(
        {name: tensor.clone() for name, tensor in tensors.items()}, tmp_path / "model.safetensors", {"format": "pt"}
    )
    told = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")
    assert not torch.equal(told.lm_head.weight, told.model.embed_tokens.weight)
    with SafetensorsFolder.open(tmp_path) as folder:
        config, source = hf_model(folder)
        (result,) = Walk(ReferenceBackend(config, source, page_size=4)).step((1, [5, 6, 7], Want(logits="all")))
    assert result.logits is not None
    assert np.abs(result.logits - expected_logits(told, [5, 6, 7])).max() < 1e-4


@pytest.mark.parametrize("key", ["rope_type", "type"])
def test_dynamic_scaling_is_plain_rope_as_far_as_the_context_goes(key: str, tmp_path: Path) -> None:
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
    llama = BY_NAME["llama tied"]
    model = make_model(
        replace(llama, settings={**llama.settings, "max_position_embeddings": 32, "rope_parameters": rope})
    )
    model.save_pretrained(tmp_path)
    tokens = np.random.default_rng(3).integers(3, 80, 32).tolist()
    with SafetensorsFolder.open(tmp_path) as folder:
        scaling = {key: "dynamic", "factor": 4.0}
        old = {name: value for name, value in folder.config.items() if name != "rope_parameters"}
        folder.config = {**old, "rope_theta": 10000.0, "rope_scaling": scaling} if key == "type" else folder.config
        config, source = hf_model(folder)
        (result,) = Walk(ReferenceBackend(config, source, page_size=4)).step((1, tokens, Want(logits="all")))
    assert config.context_length == 32
    assert result.logits is not None
    assert np.abs(result.logits - expected_logits(model, tokens)).max() < 1e-4


def test_a_copy_in_another_type_is_a_copy(tmp_path: Path) -> None:
    folder = checkpoint("llama tied", tmp_path)
    embedding = folder.arrays["model.embed_tokens.weight"].astype(np.float16)
    folder.arrays["model.embed_tokens.weight"] = embedding
    folder.arrays["lm_head.weight"] = embedding.astype(np.float32)
    _, source = hf_model(folder)
    assert source.info("output.weight") is None


def test_an_output_layer_alone_is_the_embedding_of_a_tied_model(tmp_path: Path) -> None:
    folder = checkpoint("llama tied", tmp_path)
    expected = values(folder, "token_embd.weight")
    folder.arrays["lm_head.weight"] = folder.arrays.pop("model.embed_tokens.weight")
    assert np.array_equal(values(folder, "token_embd.weight"), expected)


@pytest.mark.parametrize(("kind", "exact"), [("float16", True), ("bfloat16", True), ("float64", True)])
def test_matrices_keep_their_type_and_vectors_become_float32(kind: str, exact: bool, tmp_path: Path) -> None:
    folder = checkpoint("llama", tmp_path)
    for name, array in folder.arrays.items():
        if kind == "bfloat16":
            folder.arrays[name] = (array.view(np.uint32) >> 16).astype(np.uint16)
        else:
            folder.arrays[name] = array.astype(kind)
    _, source = hf_model(folder)
    types = {"float16": BlockType.F16, "bfloat16": BlockType.BF16, "float64": BlockType.F32}
    matrix, vector = source.info("blk.0.attn_q.weight"), source.info("blk.0.attn_norm.weight")
    assert matrix is not None and vector is not None
    assert (matrix.type, vector.type) == (types[kind], BlockType.F32)
    kept = folder.as_float32("model.layers.0.self_attn.q_proj.weight")
    assert np.array_equal(values(folder, "blk.0.attn_q.weight"), kept) is exact


def changed(folder: MemoryFolder, **config: Any) -> MemoryFolder:
    folder.config = {**folder.config, **config}
    return folder


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"model_type": "perceptron"}, "'perceptron'"),
        ({"model_type": "perceptron", "auto_map": {"AutoModel": "x.Y"}}, "never runs"),
        ({"quantization_config": {"quant_method": "aqlm"}}, "AQLM"),
        ({"clip_qkv": 8.0}, "clip_qkv"),
        ({"hidden_act": "sine"}, "'sine'"),
        ({"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "alpha": 1000.0}}, "alpha"),
        ({"rope_parameters": {"rope_type": "spiral", "rope_theta": 1e4, "factor": 2.0}}, "'spiral'"),
        ({"layer_types": ["mamba"] * 4}, "'mamba'"),
    ],
)
def test_what_this_build_does_not_know_is_refused_by_name(config: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match=says):
        hf_model(changed(checkpoint("llama", tmp_path), **config))


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"rms_norm_eps": -1.0}, "must not be negative"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps must be a number"),
        ({"rope_parameters": "yarn"}, "rope_parameters must be an object"),
        ({"rope_scaling": [1]}, "rope_scaling must be an object"),
        ({"rope_parameters": {"full_attention": "x", "sliding_attention": {}}}, "full_attention must be an object"),
        ({"num_key_value_heads": []}, "head_count_kv has 0 values"),
        ({"sliding_window": 2**31}, "sliding_window is 2147483648"),
        ({"quantization_config": "gptq"}, "quantization_config must be an object"),
    ],
)
def test_what_makes_no_sense_in_a_config_is_refused(config: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(BadModelFile, match=says):
        hf_model(changed(checkpoint("llama", tmp_path), **config))


@pytest.mark.parametrize("empty", [None, [], 0, "", False])
def test_rope_that_says_nothing_is_none(empty: object, tmp_path: Path) -> None:
    changes = {"rope_parameters": empty, "rope_scaling": empty, "rope_theta": 1e4}
    config, _ = hf_model(changed(checkpoint("llama", tmp_path), **changes))
    assert config.layers


@pytest.mark.parametrize("name", ["gelu_fast", "gelu_accurate", "gelu_python_tanh", "gelu_python", "swish"])
def test_activations_of_other_names_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    torch, _ = torch_and_transformers()
    act = pytest.importorskip("transformers.activations").ACT2FN[name]
    config, _ = hf_model(changed(checkpoint("llama", tmp_path), hidden_act=name))
    values = torch.linspace(-4, 4, 33)
    ours = activate(values.numpy(), config.activation)
    assert np.abs(ours - act(values).numpy()).max() < 1e-6


def test_an_empty_quantization_is_none(tmp_path: Path) -> None:
    assert hf_model(changed(checkpoint("llama", tmp_path), quantization_config={}))


def test_the_refusal_of_an_unknown_type_lists_the_known_ones() -> None:
    with pytest.raises(UnsupportedModel) as caught:
        check_config({"model_type": "perceptron"})
    assert "llama" in str(caught.value.hint) and "gpt_oss" in str(caught.value.hint)


def drop(folder: MemoryFolder, name: str) -> None:
    del folder.arrays[name]


def cut(folder: MemoryFolder, name: str) -> None:
    folder.arrays[name] = folder.arrays[name][:-1]


def unknown(folder: MemoryFolder, name: str) -> None:
    folder.arrays[name] = np.zeros((2, 2), np.float32)


def eight_bits(folder: MemoryFolder, name: str) -> None:
    folder.arrays[name] = folder.arrays[name].astype(np.int8)


@pytest.mark.parametrize(
    ("family", "spoil", "name", "says"),
    [
        ("llama", drop, "model.layers.2.self_attn.k_proj.weight", "blk.2.attn_k.weight"),
        ("llama", drop, "lm_head.weight", "lm_head.weight"),
        ("llama", drop, "model.embed_tokens.weight", "embed_tokens"),
        ("llama", cut, "model.layers.1.mlp.up_proj.weight", "blk.1.ffn_gate.weight"),
        ("llama", cut, "model.norm.weight", "output_norm.weight"),
        ("llama", unknown, "model.layers.0.self_attn.rotor.weight", "self_attn.rotor"),
        ("llama", unknown, "model.embed_pictures.weight", "embed_pictures"),
        ("llama", unknown, "model.layers.9.self_attn.q_proj.weight", "blk.9"),
        ("llama", eight_bits, "model.layers.0.self_attn.q_proj.weight", "I8"),
        ("phi4", cut, "model.layers.0.self_attn.qkv_proj.weight", "qkv_proj"),
        ("phi4", cut, "model.layers.0.mlp.gate_up_proj.weight", "gate_up_proj"),
        ("mixtral", drop, "model.layers.0.block_sparse_moe.experts.3.w1.weight", "expert 3"),
        ("mixtral", cut, "model.layers.0.block_sparse_moe.experts.3.w1.weight", "ffn_gate_exps"),
    ],
)
def test_a_spoilt_checkpoint_is_refused_by_the_name_of_its_tensor(
    family: str, spoil: Any, name: str, says: str, tmp_path: Path
) -> None:
    folder = checkpoint(family, tmp_path)
    spoil(folder, name)
    with pytest.raises((BadModelFile, UnsupportedModel), match=says):
        hf_model(folder)


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"model_type": 3},
        {"model_type": "llama"},
        {"model_type": "llama", "hidden_size": "wide"},
        {"model_type": "gemma3", "text_config": []},
    ],
)
def test_a_config_that_says_too_little_is_refused(config: dict[str, Any], tmp_path: Path) -> None:
    folder = checkpoint("llama", tmp_path)
    folder.config = config
    with pytest.raises(LocalLLMError):
        hf_model(folder)


def test_layers_above_a_number_have_the_window_in_qwen_2(tmp_path: Path) -> None:
    config, _ = hf_model(checkpoint("qwen2 with windows above", tmp_path))
    mixers = [layer.mixer for layer in config.layers]
    assert [mixer.window for mixer in mixers if isinstance(mixer, AttentionSpec)] == [None, None, 9, 9]


def test_every_fourth_layer_of_smollm3_has_no_rope(tmp_path: Path) -> None:
    config, _ = hf_model(checkpoint("smollm3", tmp_path))
    mixers = [layer.mixer for layer in config.layers]
    assert [mixer.rope is None for mixer in mixers if isinstance(mixer, AttentionSpec)] == [False] * 3 + [True, False]


def test_the_text_part_keeps_what_is_said_of_the_whole() -> None:
    outer = {"model_type": "gemma3", "tie_word_embeddings": True, "text_config": {"model_type": "gemma3_text"}}
    assert text_config(outer) == {"model_type": "gemma3_text", "tie_word_embeddings": True}
