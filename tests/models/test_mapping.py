"""From metadata to a config: what is read, what is assumed, and what is refused by name."""

import math
from typing import Any

import numpy as np
import pytest

from localllm.errors import BadModelFile, UnsupportedModel
from localllm.formats.blocks import BlockType
from localllm.models.config import AttentionSpec, RopeScaling, ShortConvSpec
from localllm.models.families import FAMILIES
from localllm.models.mapping import RopeFactors, config_from_gguf, gguf_model, runnable
from tests.oracles.hf import MemoryFile

LLAMA: dict[str, Any] = {
    "general.architecture": "llama",
    "llama.embedding_length": 64,
    "llama.block_count": 4,
    "llama.context_length": 2048,
    "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": 2,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "llama.vocab_size": 80,
}


def renamed(architecture: str, **changes: Any) -> dict[str, Any]:
    """LLAMA as another architecture; changed keys have __ for dots."""
    own = {key.replace("llama.", f"{architecture}.", 1): value for key, value in LLAMA.items()}
    own |= {f"{architecture}.{key.replace('__', '.')}": value for key, value in changes.items()}
    return {**own, "general.architecture": architecture}


def attention(metadata: dict[str, Any], layer: int = 0, factors: RopeFactors | None = None) -> AttentionSpec:
    mixer = config_from_gguf(metadata, (), factors or RopeFactors()).layers[layer].mixer
    assert isinstance(mixer, AttentionSpec)
    return mixer


REQUIRED = [key for key in LLAMA if key not in ("general.architecture", "llama.attention.head_count_kv")]


@pytest.mark.parametrize("key", REQUIRED)
def test_a_missing_required_key_is_named(key: str) -> None:
    with pytest.raises(BadModelFile, match=key.removeprefix("llama.")):
        config_from_gguf({name: value for name, value in LLAMA.items() if name != key}, ())


def test_a_file_without_architecture_is_refused() -> None:
    with pytest.raises(BadModelFile, match=r"general\.architecture"):
        config_from_gguf({}, ())


def test_an_unknown_architecture_is_refused_by_name_with_the_known_ones() -> None:
    with pytest.raises(UnsupportedModel, match="'perceptron'") as caught:
        config_from_gguf({**LLAMA, "general.architecture": "perceptron"}, ())
    assert all(name in caught.value.hint for name in FAMILIES)


@pytest.mark.parametrize("architecture", FAMILIES)
def test_every_row_of_the_table_makes_a_config(architecture: str) -> None:
    config = config_from_gguf(renamed(architecture, attention__layer_norm_epsilon=1e-5), ())
    assert config.architecture == architecture and len(config.layers) == 4


def test_runnable_says_why_not_in_a_sentence() -> None:
    assert runnable("llama", [BlockType.Q4_K, BlockType.F32]) is None
    assert runnable("llama", ["Q8_0", "F32"]) is None
    assert "'perceptron'" in str(runnable("perceptron", []))
    assert "NVFP4" in str(runnable("llama", [BlockType.F32, BlockType.NVFP4]))
    assert "IQ9_X" in str(runnable("llama", ["IQ9_X"]))


def test_a_file_with_blocks_we_cannot_read_is_refused_before_its_weights_are() -> None:
    file = MemoryFile(LLAMA, {"token_embd.weight": np.zeros((80, 64), np.float32)})
    file.tensors["token_embd.weight"] = type(file.tensors["token_embd.weight"])((80, 64), BlockType.NVFP4)
    with pytest.raises(UnsupportedModel, match="NVFP4"):
        gguf_model(file)


def test_heads_are_as_wide_as_the_hidden_size_allows_unless_the_file_says() -> None:
    assert attention(LLAMA).head_dim == 16
    assert attention({**LLAMA, "llama.attention.key_length": 32, "llama.attention.value_length": 8}) == AttentionSpec(
        num_heads=4,
        num_kv_heads=2,
        head_dim=32,
        value_dim=8,
        scale=1 / math.sqrt(32),
        rope=attention({**LLAMA, "llama.attention.key_length": 32}).rope,
    )


def test_without_kv_heads_every_head_has_its_own() -> None:
    metadata = {key: value for key, value in LLAMA.items() if not key.endswith("head_count_kv")}
    assert attention(metadata).num_kv_heads == 4


def test_the_vocabulary_is_counted_where_its_size_is_not_named() -> None:
    metadata = {key: value for key, value in LLAMA.items() if key != "llama.vocab_size"}
    assert config_from_gguf({**metadata, "tokenizer.ggml.tokens": ["a", "b", "c"]}, ()).vocab_size == 3


def test_gemma2_alternates_windows_and_scales_its_embedding() -> None:
    metadata = renamed("gemma2", attention__sliding_window=9, attn_logit_softcapping=50.0, final_logit_softcapping=30.0)
    config = config_from_gguf(metadata, ())
    assert [attention(metadata, layer).window for layer in range(4)] == [9, None, 9, None]
    assert (config.embed_scale, config.logit_softcap, config.activation) == (8.0, 30.0, "gelu_tanh")
    assert attention(metadata).softcap == 50.0


def test_the_largest_gemma2_scales_attention_by_hidden_size_over_heads() -> None:
    assert attention(renamed("gemma2", block_count=46, attention__key_length=32)).scale == pytest.approx(16**-0.5)
    assert attention(renamed("gemma2", block_count=42, attention__key_length=32)).scale == pytest.approx(32**-0.5)


def test_a_window_in_a_llama_file_is_on_every_layer() -> None:
    metadata = {**LLAMA, "llama.attention.sliding_window": 100}
    assert {attention(metadata, layer).window for layer in range(4)} == {100}
    assert attention(renamed("qwen2", attention__sliding_window=100)).window is None


def test_rope_scaling_is_read_from_keys_and_from_tensors() -> None:
    linear = {**LLAMA, "llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}
    assert rope_scaling(linear) == RopeScaling("linear", 4.0)
    yarn = {**linear, "llama.rope.scaling.type": "yarn", "llama.rope.scaling.original_context_length": 512}
    factor = 0.1 * math.log(4) + 1
    assert rope_scaling(yarn) == RopeScaling("yarn", 4.0, 512, attention_factor=factor)
    longer = {**yarn, "llama.rope.scaling.attn_factor": 2.0, "llama.rope.scaling.yarn_log_multiplier": 1.0}
    assert rope_scaling(longer) == RopeScaling("yarn", 4.0, 512, attention_factor=2.0)
    always = RopeFactors(always=(1.0, 2.0) * 4)
    assert rope_scaling(LLAMA, always) == RopeScaling("factors", short_factors=always.always)
    two = RopeFactors(short=(1.0,) * 8, long=(2.0,) * 8)
    long = rope_scaling({**LLAMA, "llama.rope.scaling.original_context_length": 1024}, two)
    assert long is not None
    assert (long.kind, long.factor, long.original_context, long.long_factors) == ("longrope", 2.0, 1024, two.long)


@pytest.mark.parametrize(
    ("said", "scaling"),
    [
        ({"rope.scale_linear": 4.0}, RopeScaling("linear", 4.0)),
        ({"rope.scaling.factor": 4.0}, RopeScaling("linear", 4.0)),
        ({"rope.scale_linear": 2.0, "rope.scaling.factor": 4.0}, RopeScaling("linear", 4.0)),
        ({"rope.scaling.type": "none", "rope.scaling.factor": 4.0}, None),
        ({"rope.scaling.factor": 0.0}, None),
    ],
)
def test_a_factor_of_rope_means_what_llama_cpp_reads_into_it(said: dict[str, Any], scaling: RopeScaling | None) -> None:
    assert rope_scaling({**LLAMA, **{f"llama.{key}": value for key, value in said.items()}}) == scaling


@pytest.mark.parametrize(("architecture", "turns"), [("llama", True), ("qwen2", True), ("granite", False)])
def test_only_granite_says_by_the_training_of_a_scaling_that_nothing_turns(architecture: str, turns: bool) -> None:
    metadata = {**renamed(architecture), f"{architecture}.rope.scaling.finetuned": False}
    assert (attention(metadata).rope is not None) is turns


def test_numbers_and_truth_may_be_of_another_type() -> None:
    odd = {"block_count": 4.0, "attention.causal": 1, "attention.sliding_window": 0.0}
    assert config_from_gguf({**LLAMA, **{f"llama.{key}": value for key, value in odd.items()}}, ()) == config_from_gguf(
        LLAMA, ()
    )


def rope_scaling(metadata: dict[str, Any], factors: RopeFactors | None = None) -> RopeScaling | None:
    rope = attention(metadata, 0, factors).rope
    assert rope is not None
    return rope.scaling


def test_experts_are_in_every_layer_after_the_dense_ones() -> None:
    config = config_from_gguf({**LLAMA, "llama.expert_count": 8, "llama.expert_used_count": 2}, ())
    assert all(layer.moe is not None and layer.moe.num_used == 2 for layer in config.layers)
    dense = {"llama.expert_count": 8, "llama.expert_used_count": 2, "llama.leading_dense_block_count": 1}
    assert [layer.moe is None for layer in config_from_gguf({**LLAMA, **dense}, ()).layers] == [True, *[False] * 3]


def test_layers_with_a_convolution_are_found_by_their_tensors() -> None:
    metadata = renamed("lfm2", shortconv__l_cache=3, attention__head_count_kv=[0, 2, 0, 2])
    names = ("blk.0.shortconv.conv.weight", "blk.2.shortconv.conv.weight")
    mixers = [layer.mixer for layer in config_from_gguf(metadata, names).layers]
    assert [isinstance(mixer, ShortConvSpec) for mixer in mixers] == [True, False, True, False]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("block_count", 2**40),
        ("block_count", 0),
        ("block_count", -1),
        ("block_count", "four"),
        ("block_count", True),
        ("embedding_length", 2**60),
        ("context_length", 0),
        ("context_length", 2**31),
        ("attention.head_count", 0),
        ("attention.head_count", 3),
        ("attention.head_count", [4, 4]),
        ("attention.head_count_kv", 3),
        ("attention.key_length", 0),
        ("attention.layer_norm_rms_epsilon", float("nan")),
        ("rope.dimension_count", 7),
        ("rope.dimension_count", 64),
        ("rope.scaling.factor", -1.0),
        ("vocab_size", 0),
        ("vocab_size", 2**40),
        ("expert_count", 4),
        ("attention.layer_norm_rms_epsilon", "small"),
    ],
)
def test_numbers_that_make_no_model_are_refused(key: str, value: Any) -> None:
    with pytest.raises(BadModelFile):
        config_from_gguf({**LLAMA, f"llama.{key}": value}, ())


def test_rope_factors_of_another_length_are_refused() -> None:
    with pytest.raises(BadModelFile, match="rope factors"):
        config_from_gguf(LLAMA, (), RopeFactors(always=(1.0,) * 7))


def test_an_unknown_rope_scaling_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedModel, match="'spiral'"):
        config_from_gguf({**LLAMA, "llama.rope.scaling.type": "spiral"}, ())
