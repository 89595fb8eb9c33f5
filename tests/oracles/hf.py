"""Tiny random models twice: as transformers builds them, and as the GGUF file a converter would write of them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from localllm.formats.blocks import BlockType, encode
from localllm.formats.safetensors import SafetensorsFolder

COMMON = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 80,
    "max_position_embeddings": 256,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


@dataclass(frozen=True)
class Family:
    """`config` and `model` name classes of transformers; `settings` go to the config, `metadata` to the file."""

    name: str
    config: str
    architecture: str
    settings: dict[str, Any] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)
    context: int = 0
    """Tokens that a sequence may have, where that makes a difference; 0: what the model says."""


GEMMA2 = {"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 9, "attn_logit_softcapping": 2.0}
GEMMA3N = {
    "tie_word_embeddings": True,
    "num_hidden_layers": 5,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "sliding_attention", "full_attention"],
    "num_kv_shared_layers": 2,
    "head_dim": 16,
    "sliding_window": 9,
    "hidden_size_per_layer_input": 24,
    "vocab_size_per_layer_input": 80,
    "laurel_rank": 16,
    "activation_sparsity_pattern": [0.9, 0.9, 0.5, 0.0, 0.0],
    "final_logit_softcapping": 5.0,
}
GEMMA4 = {
    "tie_word_embeddings": True,
    "head_dim": 16,
    "global_head_dim": 32,
    "num_global_key_value_heads": 1,
    "sliding_window": 9,
    "hidden_size_per_layer_input": 0,
    "final_logit_softcapping": 5.0,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "original_max_position_embeddings": 32,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0 + 0.1 * i for i in range(6)],
    "long_factor": [1.0 + 0.7 * i for i in range(6)],
    "partial_rotary_factor": 0.75,
}
GRANITE = {
    "embedding_multiplier": 6.0,
    "residual_multiplier": 0.4,
    "attention_multiplier": 0.2,
    "logits_scaling": 3.0,
}
TIED = {"tie_word_embeddings": True}
HALF_ROPE = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
EXPERTS = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
DELTA = {
    "head_dim": 32,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "linear_conv_kernel_dim": 4,
    "layer_types": ["linear_attention", "full_attention", "linear_attention", "full_attention"],
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25},
}
GLM_EXPERTS = {
    "n_routed_experts": 6,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "first_k_dense_replace": 1,
}
LATENT = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 16,
    "q_lora_rank": 24,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 24,
    "n_shared_experts": 2,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "first_k_dense_replace": 1,
}
SIZES_OF_STATE = {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 16}
MAMBA = {
    **SIZES_OF_STATE,
    "mamba_n_groups": 1,
    "mamba_chunk_size": 8,
    "layer_types": ["mamba", "attention", "mamba", "mamba"],
}
MULTIPLIERS = {
    "embedding_multiplier": 2.5,
    "lm_head_multiplier": 0.4,
    "key_multiplier": 0.7,
    "attention_in_multiplier": 1.3,
    "attention_out_multiplier": 0.8,
    "ssm_in_multiplier": 1.2,
    "ssm_out_multiplier": 0.6,
    "mlp_multipliers": [0.9, 0.5],
    "ssm_multipliers": [0.5, 1.5, 0.7, 0.8, 1.1],
}
# transformers limits the steps of prompts, but not those of single tokens; the authors limit neither
NEMOTRON = {
    "head_dim": 16,
    "mamba_num_heads": 8,
    "mamba_head_dim": 16,
    "ssm_state_size": 16,
    "n_groups": 2,
    "chunk_size": 8,
    "time_step_min": 1e-30,
    "num_hidden_layers": None,
}
PATTERN = ["sliding_attention", "sliding_attention", "sliding_attention", "full_attention"]

FAMILIES = (
    Family("llama", "LlamaConfig", "llama"),
    Family("llama tied", "LlamaConfig", "llama", {"tie_word_embeddings": True}),
    Family("llama biases", "LlamaConfig", "llama", {"attention_bias": True, "mlp_bias": True}),
    Family("llama 3.1 rope", "LlamaConfig", "llama", {"rope_parameters": LLAMA3_ROPE}),
    Family(
        "llama linear rope",
        "LlamaConfig",
        "llama",
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}},
        {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0},
    ),
    Family("llama with wide heads", "LlamaConfig", "llama", {"head_dim": 24}, {"attention.key_length": 24}),
    Family("smollm3", "SmolLM3Config", "smollm3", {"num_hidden_layers": 5}),
    Family("mistral", "MistralConfig", "llama", {"sliding_window": 9}, {"attention.sliding_window": 9}),
    Family(
        "ministral 3",
        "Ministral3Config",
        "mistral3",
        {
            "head_dim": 16,
            "rope_parameters": {**YARN, "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.3},
        },
    ),
    Family(
        "mixtral", "MixtralConfig", "llama", {"num_local_experts": 6, "num_experts_per_tok": 2}, {"expert_count": 6}
    ),
    Family("qwen2", "Qwen2Config", "qwen2"),
    Family("qwen2 with yarn", "Qwen2Config", "qwen2", {"rope_parameters": YARN}),
    Family(
        "qwen2 with windows above",
        "Qwen2Config",
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 2},
    ),
    Family("qwen3", "Qwen3Config", "qwen3", {"head_dim": 32}, {"attention.key_length": 32}),
    Family(
        "qwen3 moe",
        "Qwen3MoeConfig",
        "qwen3moe",
        {"num_local_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "norm_topk_prob": True},
        {"expert_count": 6, "attention.key_length": 16},
    ),
    Family(
        "qwen3 moe with dense layers",
        "Qwen3MoeConfig",
        "qwen3moe",
        {
            "num_local_experts": 6,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "norm_topk_prob": False,
            "mlp_only_layers": [0, 2],
        },
    ),
    Family(
        "gemma2",
        "Gemma2Config",
        "gemma2",
        {**GEMMA2, "final_logit_softcapping": 3.0, "tie_word_embeddings": True},
        {
            "attention.key_length": 32,
            "attention.sliding_window": 9,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 3.0,
        },
    ),
    Family(
        "gemma3",
        "Gemma3TextConfig",
        "gemma3",
        {
            "tie_word_embeddings": True,
            "num_hidden_layers": 7,
            "head_dim": 32,
            "query_pre_attn_scalar": 32,
            "sliding_window": 9,
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
                "full_attention": {"rope_type": "linear", "rope_theta": 50000.0, "factor": 8.0},
            },
        },
        {
            "attention.key_length": 32,
            "attention.sliding_window": 9,
            "rope.freq_base": 50000.0,
            "rope.scaling.type": "linear",
            "rope.scaling.factor": 8.0,
        },
    ),
    Family("gemma 3n", "Gemma3nTextConfig", "gemma3n", GEMMA3N),
    Family("gemma 4", "Gemma4TextConfig", "gemma4", {**GEMMA4, "attention_k_eq_v": True, "num_hidden_layers": 5}),
    Family(
        "gemma 4, small",
        "Gemma4TextConfig",
        "gemma4",
        {
            **GEMMA4,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention"] * 2,
            "num_hidden_layers": 6,
            "num_kv_shared_layers": 3,
            "use_double_wide_mlp": True,
            "hidden_size_per_layer_input": 24,
            "vocab_size_per_layer_input": 80,
        },
    ),
    Family(
        "gemma 4, experts",
        "Gemma4TextConfig",
        "gemma4",
        {
            **GEMMA4,
            "attention_k_eq_v": True,
            "enable_moe_block": True,
            "num_experts": 6,
            "top_k_experts": 2,
            "moe_intermediate_size": 32,
        },
    ),
    Family("phi4", "Phi3Config", "phi3"),
    # transformers takes the long factors once a sequence is longer than the original context, we for its whole life
    Family(
        "phi4 mini, long",
        "Phi3Config",
        "phi3",
        {"rope_parameters": LONGROPE, "tie_word_embeddings": True, "original_max_position_embeddings": 8},
    ),
    Family(
        "phi4 mini, short",
        "Phi3Config",
        "phi3",
        {
            "rope_parameters": LONGROPE,
            "tie_word_embeddings": True,
            "max_position_embeddings": 512,
            "original_max_position_embeddings": 256,
        },
        context=256,
    ),
    Family("phi3 with a window", "Phi3Config", "phi3", {"sliding_window": 9}),
    Family("olmo2", "Olmo2Config", "olmo2"),
    Family(
        "olmo3",
        "Olmo3Config",
        "olmo2",
        {
            "layer_types": PATTERN,
            "sliding_window": 9,
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
                "full_attention": YARN,
            },
        },
    ),
    Family("granite", "GraniteConfig", "granite", GRANITE),
    Family(
        "granite 4 dense",
        "GraniteMoeHybridConfig",
        "granite",
        {
            **GRANITE,
            "num_local_experts": 0,
            "num_experts_per_tok": 0,
            "shared_intermediate_size": 96,
            "layer_types": ["attention"] * 4,
            "position_embedding_type": "rope",
        },
    ),
    Family(
        "gpt-oss",
        "GptOssConfig",
        "gpt-oss",
        {
            "num_local_experts": 6,
            "num_experts_per_tok": 2,
            "head_dim": 16,
            "sliding_window": 9,
            "rope_parameters": {**YARN, "truncate": False},
        },
    ),
    Family("gemma", "GemmaConfig", "gemma", {**TIED, "head_dim": 32}),
    Family("starcoder2", "Starcoder2Config", "starcoder2", {"tie_word_embeddings": True}),
    Family("starcoder2 with a window", "Starcoder2Config", "starcoder2", {"sliding_window": 9}),
    Family("command r", "CohereConfig", "command-r", TIED),
    Family("command r plus", "CohereConfig", "command-r", {**TIED, "use_qk_norm": True, "attention_bias": True}),
    Family("command r7b", "Cohere2Config", "cohere2", {**TIED, "num_hidden_layers": 5, "sliding_window": 9}),
    Family("glm 4, 2024", "GlmConfig", "chatglm", {"head_dim": 16}),
    Family("glm 4", "Glm4Config", "glm4", {"head_dim": 16}),
    Family("qwen2 moe", "Qwen2MoeConfig", "qwen2moe", {**EXPERTS, "shared_expert_intermediate_size": 40}),
    Family(
        "qwen2 moe with dense layers",
        "Qwen2MoeConfig",
        "qwen2moe",
        {**EXPERTS, "shared_expert_intermediate_size": 40, "mlp_only_layers": [1], "norm_topk_prob": True},
    ),
    Family("glm 4.5", "Glm4MoeConfig", "glm4moe", {**GLM_EXPERTS, "attention_bias": True, "head_dim": 32}),
    Family(
        "glm 4.6",
        "Glm4MoeConfig",
        "glm4moe",
        {**GLM_EXPERTS, "use_qk_norm": True, "routed_scaling_factor": 2.5, "n_shared_experts": 2},
    ),
    Family(
        "glm 4.5 with groups",
        "Glm4MoeConfig",
        "glm4moe",
        {**GLM_EXPERTS, "n_routed_experts": 8, "n_group": 4, "topk_group": 2, "num_experts_per_tok": 3},
    ),
    Family("ernie 4.5", "Ernie4_5Config", "ernie4_5", {"head_dim": 32, "tie_word_embeddings": True}),
    Family("ernie 4.5 with biases", "Ernie4_5Config", "ernie4_5", {"head_dim": 16, "use_bias": True}),
    Family(
        "ernie 4.5 moe",
        "Ernie4_5_MoeConfig",
        "ernie4_5-moe",
        {"moe_num_experts": 6, "moe_k": 2, "moe_intermediate_size": 32, "tie_word_embeddings": True},
    ),
    Family(
        "exaone 4",
        "Exaone4Config",
        "exaone4",
        {"sliding_window": None, "layer_types": ["full_attention"] * 4, "rope_parameters": LLAMA3_ROPE},
    ),
    Family("exaone 4 with windows", "Exaone4Config", "exaone4", {"num_hidden_layers": 5, "sliding_window": 9}),
    Family("stablelm", "StableLmConfig", "stablelm", {"use_qkv_bias": True}),
    Family(
        "stablelm, parallel",
        "StableLmConfig",
        "stablelm",
        {"use_parallel_residual": True, "qk_layernorm": True, "rope_parameters": HALF_ROPE},
    ),
    Family("pythia", "GPTNeoXConfig", "gptneox", {"hidden_act": "gelu"}),
    Family("gpt-neox, one after the other", "GPTNeoXConfig", "gptneox", {"use_parallel_residual": False}),
    Family("falcon 7b", "FalconConfig", "falcon", {**TIED, "multi_query": True}),
    Family("falcon 40b", "FalconConfig", "falcon", {**TIED, "new_decoder_architecture": True, "num_kv_heads": 2}),
    Family(
        "falcon 2 11b",
        "FalconConfig",
        "falcon",
        {"new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1, "ffn_hidden_size": 96},
    ),
    Family("granite moe", "GraniteMoeConfig", "granitemoe", {**GRANITE, "num_local_experts": 6}),
    Family(
        "granite moe, shared",
        "GraniteMoeSharedConfig",
        "granitemoe",
        {**GRANITE, "num_local_experts": 6, "shared_intermediate_size": 40},
    ),
    Family("deepseek v2 lite", "DeepseekV2Config", "deepseek2", {**LATENT, "q_lora_rank": None, "n_routed_experts": 6}),
    Family(
        "deepseek v2",
        "DeepseekV2Config",
        "deepseek2",
        {
            **LATENT,
            "n_routed_experts": 8,
            "topk_method": "group_limited_greedy",
            "n_group": 4,
            "topk_group": 2,
            "routed_scaling_factor": 4.0,
            "rope_parameters": {**YARN, "mscale": 0.707, "mscale_all_dim": 0.707},
        },
    ),
    Family(
        "deepseek v3",
        "DeepseekV3Config",
        "deepseek2",
        {
            **LATENT,
            "n_routed_experts": 8,
            "n_group": 2,
            "topk_group": 1,
            "rope_parameters": {**YARN, "mscale": 1.0, "mscale_all_dim": 1.0},
        },
    ),
    Family("glm 4.7 flash", "Glm4MoeLiteConfig", "deepseek2", {**LATENT, "n_routed_experts": 8}),
    Family("gpt2", "GPT2Config", "gpt2", {"n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 256}),
    Family(
        "lfm2",
        "Lfm2Config",
        "lfm2",
        {"layer_types": ["conv", "full_attention", "conv", "full_attention"], "block_auto_adjust_ff_dim": False},
        {"shortconv.l_cache": 3, "attention.head_count_kv": [0, 2, 0, 2]},
    ),
    Family(
        "lfm2 moe",
        "Lfm2MoeConfig",
        "lfm2moe",
        {
            "layer_types": ["conv", "full_attention", "conv", "full_attention"],
            **EXPERTS,
            "num_dense_layers": 2,
            "tie_word_embeddings": True,
        },
    ),
    # three value heads of a key head, and heads of another size for values
    Family("qwen3 next", "Qwen3NextConfig", "qwen3next", {**DELTA, **EXPERTS, "shared_expert_intermediate_size": 32}),
    Family("qwen3.5", "Qwen3_5TextConfig", "qwen35", {**DELTA, "tie_word_embeddings": True}),
    Family(
        "qwen3.5 moe",
        "Qwen3_5MoeTextConfig",
        "qwen35moe",
        {**DELTA, **EXPERTS, "shared_expert_intermediate_size": 32, "linear_num_key_heads": 1},
    ),
    Family(
        "granite 4 h",
        "GraniteMoeHybridConfig",
        "granitehybrid",
        {**GRANITE, **MAMBA, "num_local_experts": 0, "num_experts_per_tok": 0, "shared_intermediate_size": 96},
    ),
    Family(
        "granite 4 h, experts and rope",
        "GraniteMoeHybridConfig",
        "granitehybrid",
        {
            **GRANITE,
            **MAMBA,
            **TIED,
            "num_local_experts": 6,
            "shared_intermediate_size": 40,
            "mamba_n_groups": 2,
            "position_embedding_type": "rope",
        },
    ),
    Family(
        "bamba",
        "BambaConfig",
        "granitehybrid",
        {**SIZES_OF_STATE, "attn_layer_indices": [1, 3], "mamba_n_groups": 1, "mamba_chunk_size": 8},
    ),
    Family(
        "falcon h1",
        "FalconH1Config",
        "falcon-h1",
        {
            **SIZES_OF_STATE,
            **MULTIPLIERS,
            **TIED,
            "num_hidden_layers": 3,
            "head_dim": 16,
            "mamba_d_ssm": 96,
            "mamba_n_heads": 6,
            "mamba_n_groups": 2,
            "mamba_chunk_size": 8,
        },
    ),
    Family(
        "falcon h1 with norms",
        "FalconH1Config",
        "falcon-h1",
        {
            **SIZES_OF_STATE,
            **MULTIPLIERS,
            "num_hidden_layers": 2,
            "mamba_d_ssm": 128,
            "mamba_n_groups": 2,
            "mamba_rms_norm": True,
            "mamba_norm_before_gate": False,
        },
    ),
    Family("nemotron h", "NemotronHConfig", "nemotron_h", {**NEMOTRON, "hybrid_override_pattern": "M-M*-"}),
    Family(
        "nemotron 3 nano",
        "NemotronHConfig",
        "nemotron_h_moe",
        {
            **NEMOTRON,
            "hybrid_override_pattern": "ME*EM",
            "n_routed_experts": 6,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "moe_shared_expert_intermediate_size": 40,
            "routed_scaling_factor": 2.5,
        },
    ),
    Family(
        "nemotron 3 super",
        "NemotronHConfig",
        "nemotron_h_moe",
        {**NEMOTRON, "hybrid_override_pattern": "ME*", "moe_latent_size": 32, "num_experts_per_tok": 2},
    ),
    Family(
        "mamba 2",
        "Mamba2Config",
        "mamba2",
        {"num_heads": 8, "head_dim": 16, "state_size": 16, "n_groups": 2, "num_hidden_layers": 3, "chunk_size": 8},
    ),
)
BY_NAME = {family.name: family for family in FAMILIES}
WRITTEN_BY_HAND = tuple(
    family
    for family in FAMILIES
    if family.architecture in ("llama", "qwen3", "gemma2", "gemma3", "lfm2") or family.name in ("qwen2", "qwen3 moe")
)
"""Those whose GGUF file `as_file` writes, apart from our own converter."""


@dataclass(frozen=True)
class Entry:
    shape: tuple[int, ...]
    type: BlockType


class MemoryFile:
    """What GGUFFile offers, over float32 arrays."""

    def __init__(self, metadata: Mapping[str, Any], arrays: Mapping[str, NDArray[np.float32]]) -> None:
        self.metadata = metadata
        self.tensors = {name: Entry(array.shape, BlockType.F32) for name, array in arrays.items()}
        self.architecture = str(metadata["general.architecture"])
        self._arrays = arrays

    def raw(self, name: str) -> NDArray[np.uint8]:
        return encode(BlockType.F32, self._arrays[name]).reshape(-1)

    def release(self, name: str) -> None: ...


def torch_and_transformers() -> tuple[Any, Any]:
    torch = pytest.importorskip("torch", reason="the oracle is transformers on torch")
    transformers = pytest.importorskip("transformers", reason="the oracle is transformers")
    torch.set_num_threads(1)
    return torch, transformers


def make_model(family: Family) -> Any:
    """The transformers model, float32, with weights large enough that every part matters."""
    torch, transformers = torch_and_transformers()
    common = {} if family.config == "GPT2Config" else COMMON
    config = getattr(transformers, family.config)(
        **{"vocab_size": 80, "tie_word_embeddings": False, **common, **family.settings}, attn_implementation="eager"
    )
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = transformers.AutoModelForCausalLM.from_config(config).to(torch.float32).eval()
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                if name.endswith(("e_score_correction_bias", "expert_bias")):
                    buffer.normal_(0.0, 0.2)
                elif name.endswith("layer_scalar"):
                    buffer.normal_(0.9, 0.2)
            for name, parameter in model.named_parameters():
                is_norm = ("norm" in name or "ln_" in name) and name.endswith("weight")
                spread = 0.2 if parameter.ndim == 1 else parameter.shape[-1] ** -0.5
                is_less_one = family.architecture in (*GEMMAS, *DELTAS) and not name.endswith("linear_attn.norm.weight")
                centre = 1.0 if is_norm and not is_less_one else 0.0
                centre = 1.0 if name.endswith(("router.scale", "per_expert_scale")) else centre
                if family.architecture in ("gemma3n", "gemma4") and name.endswith("q_norm.weight"):
                    centre = 0.2  # its scores are not divided by the size of a head
                parameter.normal_(centre, 0.5 if "embed_tokens" in name or "wte" in name else spread)
    return model


def as_folder(model: Any, folder: Path) -> SafetensorsFolder:
    """The model as transformers saves it."""
    model.save_pretrained(folder)
    return SafetensorsFolder.open(folder)


def expected_logits(model: Any, tokens: list[int]) -> NDArray[np.float32]:
    """(tokens, vocab), computed at once."""
    torch, _ = torch_and_transformers()
    with torch.no_grad():
        logits: NDArray[np.float32] = model(torch.tensor([tokens]), use_cache=False).logits[0].numpy()
    return logits


def as_file(family: Family, model: Any) -> MemoryFile:
    """The model under GGUF names, with the converter's quirks."""
    metadata = {**common_metadata(model.config, family.architecture)}
    metadata.update({f"{family.architecture}.{key}": value for key, value in family.metadata.items()})
    arrays: dict[str, NDArray[np.float32]] = {}
    for name, tensor in model.state_dict().items():
        arrays.update(converted(name, tensor.numpy(), family.architecture, model.config))
    if getattr(model.config, "tie_word_embeddings", False):
        arrays.pop("output.weight", None)
    arrays.update(rope_tensor(family))
    return MemoryFile({"general.architecture": family.architecture, **metadata}, arrays)


def common_metadata(config: Any, architecture: str) -> dict[str, Any]:
    values = {
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "vocab_size": config.vocab_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.layer_norm_rms_epsilon": getattr(config, "rms_norm_eps", None) or config.norm_eps,
        "rope.freq_base": config.rope_parameters.get("rope_theta"),
        "expert_used_count": getattr(config, "num_experts_per_tok", 0),
    }
    return {f"{architecture}.{key}": value for key, value in values.items()}


NAMES = {
    "model.embed_tokens.": "token_embd.",
    "model.norm.": "output_norm.",
    "model.embedding_norm.": "token_embd_norm.",
    "lm_head.": "output.",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.out_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "self_attn.q_layernorm": "attn_q_norm",
    "self_attn.k_layernorm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.gate.": "ffn_gate_inp.",
    "feed_forward.w1": "ffn_gate",
    "feed_forward.w3": "ffn_up",
    "feed_forward.w2": "ffn_down",
    "input_layernorm": "attn_norm",
    "operator_norm": "attn_norm",
    "conv.in_proj": "shortconv.in_proj",
    "conv.out_proj": "shortconv.out_proj",
    "conv.conv": "shortconv.conv",
}
DELTAS = ("qwen3next", "qwen35", "qwen35moe")
GEMMAS = ("gemma", "gemma2", "gemma3")
GEMMA_NORMS = {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}


def converted(name: str, array: NDArray[np.float32], architecture: str, config: Any) -> dict[str, NDArray[np.float32]]:
    name = re.sub(r"^model\.layers\.(\d+)\.", r"blk.\1.", name)
    norms = GEMMA_NORMS if architecture in GEMMAS else {"post_attention_layernorm": "ffn_norm"}
    for theirs, ours in {**NAMES, **norms}.items():
        name = name.replace(theirs, ours)
    if name.endswith("experts.gate_up_proj"):
        prefix, half = name.removesuffix("mlp.experts.gate_up_proj"), array.shape[1] // 2
        return {f"{prefix}ffn_gate_exps.weight": array[:, :half], f"{prefix}ffn_up_exps.weight": array[:, half:]}
    if name.endswith("experts.down_proj"):
        return {name.removesuffix("mlp.experts.down_proj") + "ffn_down_exps.weight": array}
    if name.endswith("shortconv.conv.weight"):
        array = array.squeeze(1)
    if architecture in GEMMAS and "norm" in name:
        array = array + 1
    if architecture == "llama" and "attn_q." in name:
        array = neighbours_from_halves(array, config.num_attention_heads)
    if architecture == "llama" and "attn_k." in name:
        array = neighbours_from_halves(array, config.num_key_value_heads)
    return {name: np.ascontiguousarray(array, np.float32)}


def neighbours_from_halves(array: NDArray[np.float32], num_heads: int) -> NDArray[np.float32]:
    """As the converter of llama files orders query and key rows."""
    halves = array.reshape(num_heads, 2, array.shape[0] // num_heads // 2, *array.shape[1:])
    return halves.swapaxes(1, 2).reshape(array.shape)


def rope_tensor(family: Family) -> dict[str, NDArray[np.float32]]:
    """Llama 3.1's scaling as a converter writes it: one divisor per frequency."""
    if family.settings.get("rope_parameters") is not LLAMA3_ROPE:
        return {}
    rope, factors = LLAMA3_ROPE, []
    for i in range(8):
        wavelength = 2 * np.pi * 10000.0 ** (2 * i / 16)
        turns = float(rope["original_max_position_embeddings"]) / wavelength
        smooth = min(max((turns - 1.0) / 3.0, 0.0), 1.0)
        factors.append(1 / ((1 - smooth) / 8.0 + smooth))
    return {"rope_freqs.weight": np.array(factors, np.float32)}
