"""Random variants of every family: sizes, switches and scalings as no published model has them all."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from tests.oracles.hf import GRANITE, LLAMA3_ROPE, YARN, Family

Settings = dict[str, Any]
TRUNCATIONS: list[Settings] = [{}, {"truncate": True}, {"truncate": False}]


def variant(seed: int) -> Family:
    """The same seed gives the same model."""
    rng = random.Random(seed)
    name = rng.choice(sorted(MAKERS))
    config, architecture, make = MAKERS[name]
    return Family(f"{name} {seed}", config, architecture, make(rng))


def flips(rng: random.Random, chance: float = 0.5) -> bool:
    return rng.random() < chance


def common(rng: random.Random) -> Settings:
    heads = rng.choice([1, 2, 3, 4, 6])
    return {
        "hidden_size": heads * rng.choice([8, 12, 16, 20, 32]),
        "num_attention_heads": heads,
        "num_key_value_heads": rng.choice([count for count in (1, 2, 3, 6) if heads % count == 0]),
        "intermediate_size": rng.choice([33, 64, 88, 96]),
        "num_hidden_layers": rng.randint(1, 6),
        "vocab_size": rng.choice([80, 97, 128]),
        "tie_word_embeddings": flips(rng),
        "rms_norm_eps": rng.choice([1e-6, 1e-5]),
        "max_position_embeddings": 256,
        "pad_token_id": None,
    }


def rope(rng: random.Random) -> Settings:
    base = {"rope_theta": rng.choice([10000.0, 500000.0, 1234.0])}
    kind = rng.choice(["default", "linear", "llama3", "yarn"])
    if kind == "linear":
        return {**base, "rope_type": "linear", "factor": rng.choice([2.0, 8.0])}
    if kind == "llama3":
        return {**LLAMA3_ROPE, **base}
    if kind == "yarn":
        other: list[Settings] = [
            {},
            {"attention_factor": 1.3},
            {"beta_fast": 16.0},
            {"mscale": 1.2, "mscale_all_dim": 0.8},
        ]
        return {**YARN, **base, "factor": rng.choice([2.0, 16.0]), **rng.choice(other)}
    return {**base, "rope_type": "default"}


def layer_types(rng: random.Random, count: int) -> list[str]:
    return [rng.choice(["sliding_attention", "full_attention"]) for _ in range(count)]


def experts(rng: random.Random) -> Settings:
    count = rng.randint(2, 7)
    return {"num_local_experts": count, "num_experts_per_tok": rng.randint(1, count)}


def llama(rng: random.Random) -> Settings:
    settings = {
        **common(rng),
        "attention_bias": flips(rng),
        "mlp_bias": flips(rng),
        "hidden_act": rng.choice(["silu", "silu", "gelu", "relu", "gelu_pytorch_tanh"]),
        "rope_parameters": rope(rng),
    }
    return {**settings, "head_dim": rng.choice([8, 24, 40])} if flips(rng) else settings


def mistral(rng: random.Random) -> Settings:
    return {**common(rng), "sliding_window": rng.choice([None, 7, 100]), "rope_parameters": rope(rng)}


def mixtral(rng: random.Random) -> Settings:
    # rows of its experts must be whole 16 bytes: torch wants it so
    sizes = {"head_dim": 16, "hidden_size": 64, "intermediate_size": rng.choice([32, 96])}
    return {**mistral(rng), **sizes, **experts(rng)}


def ministral3(rng: random.Random) -> Settings:
    scaling = {**YARN, "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": rng.choice([0.1, 0.4])}
    window = rng.choice([None, None, 7])
    return {**common(rng), "head_dim": rng.choice([8, 16, 32]), "sliding_window": window, "rope_parameters": scaling}


def smollm3(rng: random.Random) -> Settings:
    settings, has_window = common(rng), flips(rng, 0.3)
    return {
        **settings,
        "attention_bias": flips(rng),
        "mlp_bias": flips(rng),
        "no_rope_layers": [int(flips(rng)) for _ in range(settings["num_hidden_layers"])],
        "use_sliding_window": has_window,
        "sliding_window": 9 if has_window else None,
        "rope_parameters": rope(rng),
    }


def qwen2(rng: random.Random) -> Settings:
    settings = common(rng)
    return {
        **settings,
        "use_sliding_window": flips(rng),
        "sliding_window": 8,
        "max_window_layers": rng.randint(0, settings["num_hidden_layers"]),
        "rope_parameters": rope(rng),
    }


def qwen3(rng: random.Random) -> Settings:
    return {**qwen2(rng), "head_dim": rng.choice([8, 16, 40]), "attention_bias": flips(rng)}


def qwen3_moe(rng: random.Random) -> Settings:
    settings = common(rng)
    return {
        **settings,
        **experts(rng),
        "hidden_size": 16 * settings["num_attention_heads"],
        "moe_intermediate_size": rng.choice([24, 32]),
        "norm_topk_prob": flips(rng),
        "mlp_only_layers": [index for index in range(settings["num_hidden_layers"]) if flips(rng, 0.2)],
        "decoder_sparse_step": rng.choice([1, 2]),
        "attention_bias": flips(rng),
        "rope_parameters": rope(rng),
    }


def gemma2(rng: random.Random) -> Settings:
    return {
        **common(rng),
        "head_dim": rng.choice([8, 16, 32]),
        "query_pre_attn_scalar": rng.choice([16, 24, 256]),
        "sliding_window": rng.choice([5, 9]),
        "attn_logit_softcapping": rng.choice([2.0, 50.0, None]),
        "final_logit_softcapping": rng.choice([3.0, None]),
        "hidden_activation": rng.choice(["gelu_pytorch_tanh", "gelu_pytorch_tanh", "silu", "gelu"]),
        "attention_bias": flips(rng),
    }


def gemma3(rng: random.Random) -> Settings:
    settings = {**gemma2(rng), "attn_logit_softcapping": None}
    local = {"rope_type": "default", "rope_theta": rng.choice([10000.0, 30000.0])}
    return {
        **settings,
        "layer_types": layer_types(rng, settings["num_hidden_layers"]),
        "rope_parameters": {"sliding_attention": local, "full_attention": rope(rng)},
    }


def gemma3n(rng: random.Random) -> Settings:
    settings, count = common(rng), rng.randint(2, 5)
    settings["hidden_size"] = settings["num_attention_heads"] * rng.choice([8, 16])  # whole groups of rows
    types = [*layer_types(rng, count - 1), "full_attention"]
    most = max(shared for shared in range(count) if set(types[: count - shared]) == set(types))
    local = {"rope_type": "default", "rope_theta": rng.choice([10000.0, 30000.0])}
    return {
        **settings,
        "num_hidden_layers": count,
        "layer_types": types,
        "sliding_window": rng.choice([3, 9, 300]),
        "head_dim": rng.choice([8, 16, 24]),
        "num_kv_shared_layers": rng.randint(0, most),
        "hidden_size_per_layer_input": rng.choice([16, 40]),
        "vocab_size_per_layer_input": settings["vocab_size"],
        "altup_num_inputs": rng.choice([2, 3, 4]),
        "laurel_rank": rng.choice([8, 24]),
        "intermediate_size": [rng.choice([64, 96]) for _ in range(count)],
        "activation_sparsity_pattern": [rng.choice([0.0, 0.5, 0.95]) for _ in range(count)],
        "final_logit_softcapping": 5.0,
        "rope_parameters": {"sliding_attention": local, "full_attention": {**local, "rope_theta": 1e6}},
    }


def gemma4(rng: random.Random) -> Settings:
    settings, count = {**common(rng), "hidden_size": 64}, rng.randint(2, 6)
    types = [*layer_types(rng, count - 1), "full_attention"]
    most = max(shared for shared in range(count) if set(types[: count - shared]) == set(types))
    has_experts, own = flips(rng, 0.4), rng.choice([0, 0, 16, 40])
    return {
        **settings,
        "num_hidden_layers": count,
        "layer_types": types,
        "sliding_window": rng.choice([3, 9, 300]),
        "head_dim": rng.choice([8, 16, 24]),
        "global_head_dim": rng.choice([8, 32]),
        "num_global_key_value_heads": rng.choice([None, 1, settings["num_attention_heads"]]),
        "attention_k_eq_v": flips(rng),
        "attention_bias": flips(rng, 0.2),
        "num_kv_shared_layers": rng.randint(0, most) if own else 0,  # transformers wants both together
        "use_double_wide_mlp": flips(rng),
        "hidden_size_per_layer_input": own,
        "vocab_size_per_layer_input": settings["vocab_size"],
        "final_logit_softcapping": rng.choice([None, 5.0]),
        "hidden_activation": rng.choice(["gelu_pytorch_tanh", "gelu_pytorch_tanh", "silu"]),
        "enable_moe_block": has_experts,
        **({"num_experts": 6, "top_k_experts": rng.randint(1, 6), "moe_intermediate_size": 32} if has_experts else {}),
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": rng.choice([10000.0, 30000.0])},
            "full_attention": rng.choice(
                [
                    {"rope_type": "proportional", "rope_theta": 1e6, "partial_rotary_factor": 0.25},
                    {"rope_type": "proportional", "rope_theta": 5e4, "partial_rotary_factor": 0.5, "factor": 4.0},
                    {"rope_type": "default", "rope_theta": 1e5},
                ]
            ),
        },
    }


def phi3(rng: random.Random) -> Settings:
    settings = common(rng)
    head_dim = settings["hidden_size"] // settings["num_attention_heads"]
    share = rng.choice([1.0, 0.5, 0.75])
    share = 1.0 if int(head_dim * share) % 2 else share
    scaling: Settings = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": share}
    if flips(rng):
        count = int(head_dim * share) // 2
        scaling |= {
            "rope_type": "longrope",
            "short_factor": [1 + 0.1 * index for index in range(count)],
            "long_factor": [1 + 0.5 * index for index in range(count)],
        }
        settings["original_max_position_embeddings"] = 8
    return {**settings, "rope_parameters": scaling, "sliding_window": rng.choice([None, 9])}


def olmo2(rng: random.Random) -> Settings:
    return {**common(rng), "attention_bias": flips(rng), "rope_parameters": rope(rng)}


def olmo3(rng: random.Random) -> Settings:
    settings = olmo2(rng)
    scaling = settings["rope_parameters"]
    local = {"rope_type": "default", "rope_theta": scaling["rope_theta"]}
    return {
        **settings,
        "layer_types": layer_types(rng, settings["num_hidden_layers"]),
        "sliding_window": 9,
        "rope_parameters": {"sliding_attention": local, "full_attention": scaling},
    }


def granite(rng: random.Random) -> Settings:
    biases = {"attention_bias": flips(rng), "mlp_bias": flips(rng)}
    return {**common(rng), **GRANITE, **biases, "rope_parameters": rope(rng)}


def granite4(rng: random.Random) -> Settings:
    settings = granite(rng)
    return {
        **settings,
        "mlp_bias": False,
        "num_local_experts": 0,
        "num_experts_per_tok": 0,
        "mamba_n_heads": 2 * settings["hidden_size"],
        "mamba_d_head": 1,
        "shared_intermediate_size": rng.choice([40, 96]),
        "layer_types": ["attention"] * settings["num_hidden_layers"],
        "position_embedding_type": rng.choice(["rope", "nope", None]),
    }


def state(rng: random.Random, settings: Settings) -> Settings:
    """Of Mamba-2 layers whose heads are as wide together as two hidden states."""
    heads = rng.choice([2, 4, 8])
    return {
        "mamba_n_heads": heads,
        "mamba_d_head": 2 * settings["hidden_size"] // heads,
        "mamba_n_groups": rng.choice([1, 2]),
        "mamba_d_state": rng.choice([4, 11, 16]),
        "mamba_d_conv": rng.choice([2, 4]),
        "mamba_conv_bias": flips(rng),
        "mamba_proj_bias": flips(rng, 0.3),
        "mamba_chunk_size": 8,
    }


def granite4_h(rng: random.Random) -> Settings:
    settings = granite4(rng)
    count = settings["num_hidden_layers"]
    layers = ["mamba", *(rng.choice(["mamba", "attention"]) for _ in range(count - 1))]
    experts = {"num_local_experts": 5, "num_experts_per_tok": rng.choice([1, 3])} if flips(rng) else {}
    # transformers multiplies experts' matrices only where rows are whole 16 bytes
    return {**settings, **state(rng, settings), "layer_types": layers, "intermediate_size": 64, **experts}


def falcon_h1(rng: random.Random) -> Settings:
    settings = common(rng)
    names = ("embedding", "lm_head", "key", "attention_in", "attention_out", "ssm_in", "ssm_out")
    return {
        **settings,
        **state(rng, settings),
        "mamba_d_ssm": 2 * settings["hidden_size"],
        "mamba_rms_norm": flips(rng),
        "mamba_norm_before_gate": False,
        **{f"{name}_multiplier": rng.uniform(0.4, 1.5) for name in names},
        "mlp_multipliers": [rng.uniform(0.4, 1.5) for _ in range(2)],
        "ssm_multipliers": [rng.uniform(0.4, 1.5) for _ in range(5)],
    }


def nemotron_h(rng: random.Random) -> Settings:
    settings = common(rng)
    del settings["num_hidden_layers"], settings["rms_norm_eps"]
    return {
        **settings,
        "num_hidden_layers": None,
        "tie_word_embeddings": False,  # which transformers does not do here
        "head_dim": rng.choice([8, 16, 20]),
        "hybrid_override_pattern": "M" + "".join(rng.choice("M-*E") for _ in range(rng.randint(1, 5))),
        "mamba_num_heads": rng.choice([2, 6]),
        "mamba_head_dim": rng.choice([8, 12]),
        "ssm_state_size": rng.choice([4, 11, 16]),
        "n_groups": rng.choice([1, 2]),
        "conv_kernel": rng.choice([2, 4]),
        "use_conv_bias": flips(rng),
        "mlp_bias": flips(rng, 0.3),
        "chunk_size": 8,
        "time_step_min": 1e-30,
        "n_routed_experts": 6,
        "num_experts_per_tok": rng.choice([1, 3]),
        "moe_intermediate_size": rng.choice([24, 32]),
        "moe_shared_expert_intermediate_size": rng.choice([17, 40]),
        "norm_topk_prob": flips(rng),
        "routed_scaling_factor": rng.choice([1.0, 2.5]),
    }


def gpt_oss(rng: random.Random) -> Settings:
    settings = common(rng)
    return {
        **settings,
        **experts(rng),
        "intermediate_size": rng.choice([32, 96]),
        "head_dim": rng.choice([8, 16, 32]),
        "sliding_window": rng.choice([5, 9]),
        "layer_types": layer_types(rng, settings["num_hidden_layers"]),
        "attention_bias": flips(rng, 0.8),
        "rope_parameters": {**YARN, "factor": rng.choice([4.0, 32.0]), **rng.choice(TRUNCATIONS)},
    }


def gemma(rng: random.Random) -> Settings:
    return {
        **common(rng),
        "head_dim": rng.choice([8, 16, 32]),
        "attention_bias": flips(rng),
        "rope_parameters": rope(rng),
    }


def layer_normed(rng: random.Random) -> Settings:
    settings = common(rng)
    del settings["rms_norm_eps"]
    return {**settings, "layer_norm_eps": rng.choice([1e-6, 1e-5]), "rope_parameters": rope(rng)}


def starcoder2(rng: random.Random) -> Settings:
    activation = rng.choice(["gelu_pytorch_tanh", "gelu_pytorch_tanh", "gelu", "relu"])
    return {
        **common(rng),
        "use_bias": flips(rng),
        "hidden_act": activation,
        "norm_epsilon": rng.choice([1e-5, 1e-3]),
        "sliding_window": rng.choice([None, 7]),
        "rope_parameters": rope(rng),
    }


def cohere(rng: random.Random) -> Settings:
    switches = {"use_qk_norm": flips(rng), "attention_bias": flips(rng)}
    return {**layer_normed(rng), **switches, "logit_scale": rng.choice([0.25, 1.0])}


def cohere2(rng: random.Random) -> Settings:
    settings = layer_normed(rng)
    return {
        **settings,
        "attention_bias": flips(rng),
        "logit_scale": rng.choice([0.25, 0.5]),
        "layer_types": layer_types(rng, settings["num_hidden_layers"]),
        "sliding_window": rng.choice([5, 9]),
    }


def glm4(rng: random.Random) -> Settings:
    share = {"partial_rotary_factor": rng.choice([0.5, 0.25, 1.0])}
    head_dim = rng.choice([16, 32])
    return {
        **common(rng),
        "head_dim": head_dim,
        "attention_bias": flips(rng),
        "rope_parameters": {**rope(rng), **share},
    }


def qwen2_moe(rng: random.Random) -> Settings:
    settings = qwen3_moe(rng)
    count = settings.pop("num_local_experts")
    switches = {"qkv_bias": settings.pop("attention_bias"), "shared_expert_intermediate_size": rng.choice([24, 40])}
    return {**settings, **switches, "num_experts": count}


def glm_experts(rng: random.Random) -> Settings:
    groups, size = rng.choice([(1, 5), (2, 4), (4, 2), (3, 3)])
    used = rng.randint(1, groups)
    return {
        "n_routed_experts": groups * size,
        "n_group": groups,
        "topk_group": used,
        "num_experts_per_tok": rng.randint(1, used * size),
        "moe_intermediate_size": rng.choice([24, 32]),
        "n_shared_experts": rng.randint(1, 2),
        "norm_topk_prob": flips(rng),
        "routed_scaling_factor": rng.choice([1.0, 2.5]),
        "first_k_dense_replace": rng.randint(0, 2),
    }


def glm4_moe(rng: random.Random) -> Settings:
    settings = {**common(rng), **glm_experts(rng)}
    settings["hidden_size"] = 16 * settings["num_attention_heads"]
    share = {"partial_rotary_factor": rng.choice([0.5, 1.0])}
    switches = {"attention_bias": flips(rng), "use_qk_norm": flips(rng)}
    return {**settings, **switches, "head_dim": rng.choice([16, 32]), "rope_parameters": {**rope(rng), **share}}


def ernie(rng: random.Random) -> Settings:
    return {**common(rng), "head_dim": rng.choice([8, 16, 40]), "use_bias": flips(rng), "rope_parameters": rope(rng)}


def ernie_moe(rng: random.Random) -> Settings:
    settings, count = common(rng), rng.randint(2, 7)
    return {
        **settings,
        "hidden_size": 16 * settings["num_attention_heads"],
        "use_bias": False,
        "moe_num_experts": count,
        "moe_k": rng.randint(1, count),
        "moe_intermediate_size": rng.choice([24, 32]),
        "moe_num_shared_experts": rng.randint(0, 2),
        "moe_layer_start_index": rng.randint(0, 2),
        "moe_layer_interval": rng.choice([1, 2]),
        "rope_parameters": rope(rng),
    }


def exaone4(rng: random.Random) -> Settings:
    settings, window = common(rng), rng.choice([None, 7])
    count = settings["num_hidden_layers"]
    types = layer_types(rng, count) if window else ["full_attention"] * count
    return {**settings, "sliding_window": window, "layer_types": types, "rope_parameters": rope(rng)}


def stablelm(rng: random.Random) -> Settings:
    settings = layer_normed(rng)
    head_dim = settings["hidden_size"] // settings["num_attention_heads"]
    share = rng.choice([share for share in (0.25, 0.5, 1.0) if int(head_dim * share) % 2 == 0])
    settings["rope_parameters"] = {**settings["rope_parameters"], "partial_rotary_factor": share}
    names = ("use_qkv_bias", "qk_layernorm", "use_parallel_residual")
    return {**settings, **{name: flips(rng) for name in names}}


def gpt_neox(rng: random.Random) -> Settings:
    settings = stablelm(rng)
    for name in ("use_qkv_bias", "qk_layernorm", "num_key_value_heads"):
        del settings[name]
    return {**settings, "attention_bias": flips(rng), "hidden_act": rng.choice(["gelu", "gelu", "gelu_new"])}


def falcon(rng: random.Random) -> Settings:
    settings = common(rng)
    is_new, shares_heads = flips(rng), flips(rng)
    heads = settings.pop("num_key_value_heads")
    settings |= {
        "layer_norm_epsilon": settings.pop("rms_norm_eps"),
        "ffn_hidden_size": settings.pop("intermediate_size"),
    }
    return {
        **settings,
        "new_decoder_architecture": is_new,
        "num_ln_in_parallel_attn": rng.choice([1, 2]) if is_new else None,
        "multi_query": shares_heads,
        "num_kv_heads": heads if is_new or shares_heads else settings["num_attention_heads"],
        "bias": flips(rng),
        "rope_parameters": rope(rng),
    }


def granite_moe(rng: random.Random) -> Settings:
    settings = {**common(rng), **GRANITE, **experts(rng)}
    # rows of experts must be whole 16 bytes: torch wants it so
    sizes = {"hidden_size": 16 * settings["num_attention_heads"], "intermediate_size": rng.choice([32, 96])}
    return {**settings, **sizes, "attention_bias": flips(rng), "rope_parameters": rope(rng)}


def granite_shared(rng: random.Random) -> Settings:
    return {**granite_moe(rng), "shared_intermediate_size": rng.choice([24, 40])}


def latent(rng: random.Random) -> Settings:
    settings, heads = common(rng), rng.choice([1, 2, 4])
    scaling = rope(rng)
    if scaling["rope_type"] == "yarn":
        multiplier = rng.choice([0.707, 1.0])
        scaling |= {"mscale": multiplier, "mscale_all_dim": multiplier}
        scaling.pop("attention_factor", None)
    return {
        **settings,
        "hidden_size": 16 * heads,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "kv_lora_rank": rng.choice([8, 24, 32]),
        "q_lora_rank": rng.choice([None, 12, 24]),
        "qk_rope_head_dim": rng.choice([4, 8]),
        "qk_nope_head_dim": rng.choice([6, 16]),
        "v_head_dim": rng.choice([8, 24]),
        "attention_bias": flips(rng, 0.3),
        "rope_parameters": scaling,
    }


def deepseek2(rng: random.Random) -> Settings:
    return {**latent(rng), **glm_experts(rng), "topk_method": rng.choice(["greedy", "group_limited_greedy"])}


def deepseek3(rng: random.Random) -> Settings:
    return {**latent(rng), **glm_experts(rng), "rope_interleave": flips(rng, 0.8)}


def gpt2(rng: random.Random) -> Settings:
    return {
        "n_embd": rng.choice([48, 64]),
        "n_layer": rng.randint(1, 4),
        "n_head": rng.choice([2, 4]),
        "n_positions": 256,
        "vocab_size": 97,
        "n_inner": rng.choice([None, 72]),
        "activation_function": rng.choice(["gelu_new", "gelu_new", "relu", "gelu", "silu"]),
        "scale_attn_weights": flips(rng, 0.8),
        "tie_word_embeddings": flips(rng, 0.7),
        "layer_norm_epsilon": rng.choice([1e-5, 1e-3]),
        "bos_token_id": 0,
        "eos_token_id": 1,
    }


MAKERS: dict[str, tuple[str, str, Callable[[random.Random], Settings]]] = {
    "llama": ("LlamaConfig", "llama", llama),
    "mistral": ("MistralConfig", "llama", mistral),
    "mixtral": ("MixtralConfig", "llama", mixtral),
    "ministral 3": ("Ministral3Config", "mistral3", ministral3),
    "smollm3": ("SmolLM3Config", "smollm3", smollm3),
    "qwen2": ("Qwen2Config", "qwen2", qwen2),
    "qwen3": ("Qwen3Config", "qwen3", qwen3),
    "qwen3 moe": ("Qwen3MoeConfig", "qwen3moe", qwen3_moe),
    "gemma2": ("Gemma2Config", "gemma2", gemma2),
    "gemma3": ("Gemma3TextConfig", "gemma3", gemma3),
    "gemma3n": ("Gemma3nTextConfig", "gemma3n", gemma3n),
    "gemma4": ("Gemma4TextConfig", "gemma4", gemma4),
    "phi3": ("Phi3Config", "phi3", phi3),
    "olmo2": ("Olmo2Config", "olmo2", olmo2),
    "olmo3": ("Olmo3Config", "olmo2", olmo3),
    "granite": ("GraniteConfig", "granite", granite),
    "granite 4": ("GraniteMoeHybridConfig", "granite", granite4),
    "granite 4 h": ("GraniteMoeHybridConfig", "granitehybrid", granite4_h),
    "falcon h1": ("FalconH1Config", "falcon-h1", falcon_h1),
    "nemotron h": ("NemotronHConfig", "nemotron_h", nemotron_h),
    "gpt-oss": ("GptOssConfig", "gpt-oss", gpt_oss),
    "gpt2": ("GPT2Config", "gpt2", gpt2),
    "gemma": ("GemmaConfig", "gemma", gemma),
    "starcoder2": ("Starcoder2Config", "starcoder2", starcoder2),
    "cohere": ("CohereConfig", "command-r", cohere),
    "cohere2": ("Cohere2Config", "cohere2", cohere2),
    "glm": ("GlmConfig", "chatglm", glm4),
    "glm 4": ("Glm4Config", "glm4", glm4),
    "qwen2 moe": ("Qwen2MoeConfig", "qwen2moe", qwen2_moe),
    "glm 4.5": ("Glm4MoeConfig", "glm4moe", glm4_moe),
    "ernie": ("Ernie4_5Config", "ernie4_5", ernie),
    "ernie moe": ("Ernie4_5_MoeConfig", "ernie4_5-moe", ernie_moe),
    "exaone 4": ("Exaone4Config", "exaone4", exaone4),
    "stablelm": ("StableLmConfig", "stablelm", stablelm),
    "gpt-neox": ("GPTNeoXConfig", "gptneox", gpt_neox),
    "falcon": ("FalconConfig", "falcon", falcon),
    "granite moe": ("GraniteMoeConfig", "granitemoe", granite_moe),
    "granite moe, shared": ("GraniteMoeSharedConfig", "granitemoe", granite_shared),
    "deepseek v2": ("DeepseekV2Config", "deepseek2", deepseek2),
    "deepseek v3": ("DeepseekV3Config", "deepseek2", deepseek3),
}
