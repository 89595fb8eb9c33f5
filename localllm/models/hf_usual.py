"""What a config.json leaves out because it is usual for its `model_type`: the defaults of transformers' classes.

Checkpoints with eyes or ears name of their language model only what differs from these (Llava's names no size at all).
A size that is computed from others is not here, nor is what a family's row says.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from types import MappingProxyType
from typing import Any

from localllm.models.facts import Facts, Key

Config = Mapping[str, Any]


def _usual(
    hidden: int,
    wide: int,
    layers: int,
    heads: int,
    kv: int | None = None,
    context: int | None = None,
    eps: float | None = None,
    **more: Any,
) -> Config:
    named = {
        "hidden_size": hidden,
        "intermediate_size": wide,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "max_position_embeddings": context,
        "rms_norm_eps": eps,
    }
    return {**{name: value for name, value in named.items() if value is not None}, **more}


def _experts(count: int, used: int, wide: int, **more: Any) -> Config:
    return {"num_experts_per_tok": used, "moe_intermediate_size": wide, "n_routed_experts": count, **more}


_ENCODER = _usual(768, 3072, 12, 12)
_DELTA: Config = {
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim"), 128),
    "linear_conv_kernel_dim": 4,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
}
_QWEN3_NEXT: Config = {"moe_intermediate_size": 512, "shared_expert_intermediate_size": 512}
_GRANITE: Config = {"attention_multiplier": 1.0, "embedding_multiplier": 1.0}
_GRANITE_EXPERTS: Config = {"num_local_experts": 8, "num_experts_per_tok": 2}
_GEMMA2: Config = {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, "query_pre_attn_scalar": 256}
_LATENT: Config = {
    "kv_lora_rank": 512,
    "q_lora_rank": 1536,
    "qk_rope_head_dim": 64,
    "qk_nope_head_dim": 128,
    "v_head_dim": 128,
}

_YARN: Config = {"beta_fast": 32.0, "beta_slow": 1.0}
_GPT_OSS_ROPE: Config = {
    **{"rope_type": "yarn", "rope_theta": 150000.0, "factor": 32.0, "original_max_position_embeddings": 4096},
    **{"truncate": False, **_YARN},
}
_MINISTRAL_ROPE: Config = {
    **{"rope_type": "yarn", "rope_theta": 1e6, "factor": 16.0, "original_max_position_embeddings": 16384},
    **{"mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1, **_YARN},
}

USUAL: Mapping[str, Config] = MappingProxyType(
    {
        **dict.fromkeys(("bert", "camembert", "roberta", "xlm-roberta"), _ENCODER),
        "bamba": _usual(4096, 14336, 32, 32, 8, 262144, 1e-5),
        "cohere": _usual(8192, 22528, 40, 64, context=8192, layer_norm_eps=1e-5),
        "cohere2": _usual(8192, 22528, 40, 64, context=8192, layer_norm_eps=1e-5, sliding_window=4096),
        "deepseek_v2": _usual(
            4096, 11008, 32, 32, context=2048,
            n_routed_experts=64, n_shared_experts=2, moe_intermediate_size=1407, **_LATENT,
        ),
        "deepseek_v3": _usual(
            7168, 18432, 61, 128, context=4096,
            **_experts(256, 8, 2048, n_shared_experts=1, norm_topk_prob=True), **_LATENT,
            first_k_dense_replace=3, n_group=8, topk_group=4, routed_scaling_factor=2.5,
        ),
        "ernie4_5": _usual(1024, 3072, 18, 16, 2, 131072, 1e-5, head_dim=128),
        "ernie4_5_moe": _usual(
            2560, 12288, 28, 20, 4, 131072, 1e-5, moe_intermediate_size=1536, moe_k=6, moe_num_experts=64
        ),
        "exaone4": _usual(4096, 16384, 32, 32, 32, 2048, 1e-5, sliding_window=4096),
        "falcon": {"hidden_size": 4544, "num_hidden_layers": 32, "num_attention_heads": 71},
        "gemma": _usual(3072, 24576, 28, 16, 16, 8192, 1e-6, head_dim=256),
        "gemma2": _usual(2304, 9216, 26, 8, 4, 8192, 1e-6, head_dim=256, sliding_window=4096, **_GEMMA2),
        "gemma3_text": _usual(2304, 9216, 26, 8, sliding_window=4096),
        "gemma3n_text": _usual(2048, 16384, 35, 8),
        "glm": _usual(4096, 13696, 40, 32, 2, 131072, 1.5625e-07, head_dim=128),
        "glm4": _usual(4096, 13696, 40, 32, 2, 131072, 1.5625e-07, head_dim=128),
        "glm4_moe": _usual(
            4096, 10944, 46, 96, 8, 131072, 1e-5,
            **_experts(128, 8, 1408, n_shared_experts=1, norm_topk_prob=True), first_k_dense_replace=1,
        ),
        "glm4_moe_lite": _usual(
            2048, 10240, 47, 20, context=202752, eps=1e-5,
            **_experts(64, 4, 1536, n_shared_experts=1, norm_topk_prob=True),
            **{**_LATENT, "q_lora_rank": 768, "qk_nope_head_dim": 192, "v_head_dim": 256},
            n_group=1, topk_group=1, routed_scaling_factor=1.8,
        ),
        "gpt2": {"n_embd": 768, "n_layer": 12, "n_head": 12},
        "gpt_neox": _usual(6144, 24576, 44, 64, context=2048),
        "gpt_oss": _usual(
            2880, 2880, 36, 64, 8, 131072, 1e-5,
            head_dim=64, num_experts_per_tok=4, num_local_experts=128, sliding_window=128,
            rope_parameters=_GPT_OSS_ROPE,
        ),
        "granite": _usual(4096, 11008, 32, 32, context=2048, eps=1e-6, **_GRANITE),
        "granitemoe": _usual(4096, 11008, 32, 32, context=2048, eps=1e-6, **_GRANITE, **_GRANITE_EXPERTS),
        "granitemoehybrid": _usual(4096, 11008, 32, 32, context=2048, eps=1e-6, **_GRANITE),
        "granitemoeshared": _usual(4096, 11008, 32, 32, context=2048, eps=1e-6, **_GRANITE, **_GRANITE_EXPERTS),
        "lfm2": _usual(2560, 12288, 32, 32, 8, 128000, conv_L_cache=3, norm_eps=1e-5, rope_theta=1e6),
        "lfm2_moe": _usual(
            2048, 7168, 32, 32, 8, 128000, conv_L_cache=3, norm_eps=1e-5, rope_theta=1e6, num_dense_layers=2,
            num_experts=32, num_experts_per_tok=4, moe_intermediate_size=1792, norm_topk_prob=True,
        ),
        "llama": _usual(4096, 11008, 32, 32),
        "ministral3": _usual(
            4096, 14336, 34, 32, 8, 262144, 1e-5, head_dim=128, rope_parameters=_MINISTRAL_ROPE
        ),
        "mistral": _usual(4096, 14336, 32, 32, 8, 131072, sliding_window=4096),
        "mixtral": _usual(
            4096, 14336, 32, 32, 8, 131072, 1e-5, num_local_experts=8, num_experts_per_tok=2, rope_theta=1e6
        ),
        "modernbert": _usual(768, 1152, 22, 12, context=8192),
        "nomic_bert": _usual(768, 3072, 12, 12, context=2048),
        "olmo2": _usual(4096, 11008, 32, 32, context=2048, eps=1e-5),
        "olmo3": _usual(4096, 11008, 32, 32, context=2048, eps=1e-5, rope_theta=500000.0, sliding_window=4096),
        "phi3": _usual(3072, 8192, 32, 32, context=4096, original_max_position_embeddings=4096),
        "qwen2": _usual(4096, 22016, 32, 32, 32, 32768, 1e-6, use_sliding_window=False),
        "qwen2_moe": _usual(
            2048, 5632, 24, 16, 16, 32768, 1e-6, num_experts=60, num_experts_per_tok=4, moe_intermediate_size=1408,
            shared_expert_intermediate_size=5632, norm_topk_prob=False, use_sliding_window=False,
        ),
        "qwen3": _usual(4096, 22016, 32, 32, 32, 32768, 1e-6, head_dim=128, use_sliding_window=False),
        "qwen3_moe": _usual(
            2048, 6144, 24, 32, 4, 32768, 1e-6, num_experts=128, num_experts_per_tok=8, moe_intermediate_size=768,
            norm_topk_prob=False, use_sliding_window=False,
        ),
        "qwen3_next": _usual(
            2048, 5632, 48, 16, 2, 32768, 1e-6, head_dim=256, num_experts=512, num_experts_per_tok=10,
            norm_topk_prob=True, **_QWEN3_NEXT, **_DELTA,
        ),
        "qwen3_5_text": _usual(4096, 12288, 32, 16, 4, 32768, 1e-6, head_dim=256, **_DELTA),
        "qwen3_5_moe_text": {
            **_usual(2048, 0, 40, 16, 2, 32768, 1e-6, head_dim=256, num_experts=256, num_experts_per_tok=8),
            **_QWEN3_NEXT, **_DELTA,
        },
        "smollm3": _usual(2048, 11008, 36, 16, 4, 32768, 1e-6, rope_theta=2e6),
        "stablelm": _usual(2560, 6912, 32, 32, 32, 4096),
        "starcoder2": _usual(3072, 12288, 30, 24, 2, 4096),
    }
)  # fmt: skip

_NAMES = tuple(item.metadata["key"].hf for item in fields(Facts) if isinstance(item.metadata.get("key"), Key))


def with_usual(config: Config) -> Config:
    """The same with what its type leaves out. A null is an answer, not an omission; another name for it is one, too."""
    usual = USUAL.get(str(config.get("model_type")), {})
    known = {name for names in _NAMES for name in names if any(_is_said(config, each) for each in names)}
    known |= {"rope_parameters"} if config.get("rope_scaling") else set()
    return {**{name: value for name, value in usual.items() if name not in known}, **config}


def _is_said(config: Config, path: str) -> bool:
    value: Any = config
    for part in path.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return False
        value = value[part]
    return True
