"""What files say of a model: the table of fields with their GGUF key and their HF keys, required or with a default."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Final

from localllm.errors import BadModelFile

REQUIRED: Final = object()

Kind = Callable[[Any], Any]
"""Gives the checked value; ValueError when it is of another kind."""


@dataclass(frozen=True, slots=True)
class Key:
    """`gguf` lacks its architecture prefix; of the `hf` keys the first that is there counts, dots lead into objects.

    No `gguf`: such files say it by a tensor, or not at all.
    """

    kind: Kind
    gguf: str
    hf: tuple[str, ...]
    default: Any


def whole(value: Any) -> int:
    """Some programs write whole numbers with a point."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError("a whole number")
    return value


def real(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError("a number")
    return float(value)


def text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("a text")
    return value


def flag(value: Any) -> bool:
    """Or 0 and 1, of files that know no booleans."""
    if type(value) is int and value in (0, 1):
        return bool(value)
    if not isinstance(value, bool):
        raise ValueError("true or false")
    return value


def per_layer(value: Any) -> tuple[int, ...]:
    """One number for all layers, or one for each."""
    return tuple(whole(item) for item in value) if isinstance(value, (list, tuple)) else (whole(value),)


def reals(value: Any) -> tuple[float, ...]:
    return tuple(real(item) for item in value) if isinstance(value, (list, tuple)) else (real(value),)


def flags(value: Any) -> tuple[bool, ...]:
    """One for each layer; numbers of files that know no booleans are true unless 0."""
    if not isinstance(value, (list, tuple)) or not all(isinstance(item, (bool, int)) for item in value):
        raise ValueError("a list of true and false")
    return tuple(bool(item) for item in value)


def borders(value: Any) -> tuple[float, ...]:
    """Numbers, of which minus infinity stands for none."""
    if not isinstance(value, (list, tuple)) or not all(isinstance(item, (int, float)) for item in value):
        raise ValueError("a list of numbers")
    if any(math.isnan(item) or item == math.inf for item in value):
        raise ValueError("a list of numbers")
    return tuple(map(float, value))


def windows(value: Any) -> tuple[bool, ...]:
    """Which layers have the window: truth values, or the layer types of a config.json."""
    if isinstance(value, (list, tuple)) and value and all(isinstance(item, str) for item in value):
        return tuple(item in ("sliding_attention", "chunked_attention") for item in value)
    return flags(value)


def period(value: Any) -> tuple[bool, ...] | int:
    """As `windows`, or a number: of so many layers the last sees everything."""
    return whole(value) if isinstance(value, int) and not isinstance(value, bool) else windows(value)


def key(kind: Kind, gguf: str, *hf: str, default: Any = REQUIRED) -> Any:
    return field(metadata={"key": Key(kind, gguf, hf, default)})


def rope_keys(name: str) -> tuple[str, ...]:
    """Where files of transformers 5, and those before it, keep what scales rope (of layers that see everything)."""
    return f"rope_parameters.{name}", f"rope_parameters.full_attention.{name}", f"rope_scaling.{name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """The numbers of a file, checked for their kind; what a number means for a family is for mapping.py to know."""

    hidden_size: int = key(whole, "embedding_length", "hidden_size", "n_embd")
    num_layers: int = key(whole, "block_count", "num_hidden_layers", "n_layer")
    context_length: int = key(whole, "context_length", "max_position_embeddings", "n_positions", "n_ctx")
    vocab_size: int | None = key(whole, "vocab_size", "vocab_size", default=None)
    feed_forward: tuple[int, ...] = key(per_layer, "feed_forward_length", "intermediate_size", "n_inner", default=(0,))
    activation: str = key(text, "", "hidden_activation", "hidden_act", "activation_function", "activation", default="")
    is_tied: bool | None = key(flag, "", "tie_word_embeddings", default=None)

    num_heads: tuple[int, ...] = key(per_layer, "attention.head_count", "num_attention_heads", "n_head")
    num_kv_heads: tuple[int, ...] | None = key(
        per_layer, "attention.head_count_kv", "num_key_value_heads", default=None
    )
    head_dim: int | None = key(whole, "attention.key_length", "head_dim", default=None)
    value_dim: int | None = key(whole, "attention.value_length", "v_head_dim", default=None)
    window_head_dim: int = key(whole, "attention.key_length_swa", default=0)
    window_value_dim: int = key(whole, "attention.value_length_swa", default=0)
    num_shared_kv: int = key(whole, "attention.shared_kv_layers", "num_kv_shared_layers", default=0)
    streams: int = key(whole, "altup.num_inputs", "altup_num_inputs", default=0)
    active_stream: int = key(whole, "altup.active_idx", "altup_active_idx", default=0)
    spreads: tuple[float, ...] = key(borders, "activation_sparsity_scale", default=())
    values_are_keys: bool | None = key(flag, "", "attention_k_eq_v", default=None)
    token_inputs: int | None = key(
        whole, "embedding_length_per_layer_input", "hidden_size_per_layer_input", default=None
    )
    window: int = key(whole, "attention.sliding_window", "sliding_window", default=0)
    windowed: tuple[bool, ...] | int = key(
        period, "attention.sliding_window_pattern", "layer_types", "sliding_window_pattern", default=()
    )
    attention_scale: float = key(real, "attention.scale", "attention_multiplier", default=0.0)
    attention_softcap: float = key(real, "attn_logit_softcapping", "attn_logit_softcapping", default=0.0)
    is_causal: bool | None = key(flag, "attention.causal", default=None)
    temperature_scale: float = key(real, "attention.temperature_scale", *rope_keys("llama_4_scaling_beta"), default=0.0)

    rms_eps: float | None = key(real, "attention.layer_norm_rms_epsilon", "rms_norm_eps", "norm_eps", default=None)
    layer_eps: float | None = key(
        real, "attention.layer_norm_epsilon", "layer_norm_epsilon", "layer_norm_eps", "norm_epsilon", default=None
    )
    parallel: bool | None = key(flag, "use_parallel_residual", "use_parallel_residual", default=None)
    embed_scale: float = key(real, "embedding_scale", "embedding_multiplier", default=0.0)
    residual_scale: float = key(real, "residual_scale", "residual_multiplier", default=1.0)
    logit_scale: float = key(real, "logit_scale", "logits_scaling", "logit_scale", default=1.0)
    logit_softcap: float = key(real, "final_logit_softcapping", "final_logit_softcapping", default=0.0)

    rope_base: float = key(
        real, "rope.freq_base", *rope_keys("rope_theta"), "rope_theta", "rotary_emb_base", default=10000.0
    )
    window_rope_base: float = key(
        real, "rope.freq_base_swa", "rope_parameters.sliding_attention.rope_theta", "rope_local_base_freq", default=0.0
    )
    rope_dims: int | None = key(whole, "rope.dimension_count", default=None)
    window_rope_dims: int = key(whole, "rope.dimension_count_swa", default=0)
    rope_share: float = key(
        real, "", *rope_keys("partial_rotary_factor"), "partial_rotary_factor", "rotary_pct", default=1.0
    )
    has_rope: bool = key(flag, "rope.scaling.finetuned", default=True)
    rope_layers: tuple[bool, ...] = key(flags, "rope.pattern", "no_rope_layers", default=())
    rope_scaling: str = key(text, "rope.scaling.type", *rope_keys("rope_type"), *rope_keys("type"), default="none")
    rope_factor: float | None = key(real, "rope.scaling.factor", *rope_keys("factor"), default=None)
    rope_original_context: int = key(
        whole,
        "rope.scaling.original_context_length",
        "original_max_position_embeddings",  # first, as in transformers
        *rope_keys("original_max_position_embeddings"),
        default=0,
    )
    rope_attention_factor: float = key(real, "rope.scaling.attn_factor", *rope_keys("attention_factor"), default=0.0)
    rope_log_multiplier: float = key(
        real, "rope.scaling.yarn_log_multiplier", *rope_keys("mscale_all_dim"), default=0.0
    )
    rope_mscale: float | None = key(real, "", *rope_keys("mscale"), default=None)
    rope_beta_fast: float = key(real, "rope.scaling.yarn_beta_fast", *rope_keys("beta_fast"), default=32.0)
    rope_beta_slow: float = key(real, "rope.scaling.yarn_beta_slow", *rope_keys("beta_slow"), default=1.0)
    rope_truncates: bool | None = key(flag, "rope.scaling.yarn_truncate", *rope_keys("truncate"), default=None)
    rope_low_frequency: float = key(real, "", *rope_keys("low_freq_factor"), default=1.0)
    rope_high_frequency: float = key(real, "", *rope_keys("high_freq_factor"), default=4.0)
    rope_short_factors: tuple[float, ...] = key(reals, "", *rope_keys("short_factor"), default=())
    rope_long_factors: tuple[float, ...] = key(reals, "", *rope_keys("long_factor"), default=())

    num_experts: int = key(
        whole, "expert_count", "num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts", default=0
    )
    num_used_experts: int = key(whole, "expert_used_count", "num_experts_per_tok", "moe_k", default=0)
    expert_width: int = key(whole, "expert_feed_forward_length", "moe_intermediate_size", default=0)
    num_dense_layers: int = key(
        whole,
        "leading_dense_block_count",
        "first_k_dense_replace",
        "moe_layer_start_index",
        "num_dense_layers",
        default=0,
    )
    expert_layer_step: int = key(whole, "interleave_moe_layer_step", "moe_layer_interval", default=0)
    num_shared_experts: int = key(whole, "expert_shared_count", "n_shared_experts", "moe_num_shared_experts", default=0)
    shared_expert_width: int = key(
        whole, "expert_shared_feed_forward_length", "shared_expert_intermediate_size", default=0
    )
    num_expert_groups: int = key(whole, "expert_group_count", "n_group", default=0)
    num_used_groups: int = key(whole, "expert_group_used_count", "topk_group", default=0)
    expert_gating: int = key(whole, "expert_gating_func", default=0)
    expert_latent: int = key(whole, "moe_latent_size", "moe_latent_size", default=0)
    expert_scale: float = key(real, "expert_weights_scale", "routed_scaling_factor", default=1.0)
    expert_norm: bool | None = key(flag, "expert_weights_norm", "norm_topk_prob", default=None)

    query_rank: int = key(whole, "attention.q_lora_rank", "q_lora_rank", default=0)
    kv_rank: int = key(whole, "attention.kv_lora_rank", "kv_lora_rank", default=0)
    latent_key_dim: int = key(whole, "attention.key_length_mla", default=0)
    latent_value_dim: int = key(whole, "attention.value_length_mla", default=0)
    num_guessing_layers: int = key(whole, "nextn_predict_layers", "num_nextn_predict_layers", default=0)

    conv_kernel: int = key(whole, "shortconv.l_cache", "conv_L_cache", default=0)

    # of Mamba-2 and of gated delta nets; see models/state_space_facts.py for what checkpoints call them
    ssm_step_limits: tuple[float, ...] = key(reals, "", default=())
    ssm_kernel: int = key(whole, "ssm.conv_kernel", "linear_conv_kernel_dim", default=0)
    ssm_state: int = key(whole, "ssm.state_size", "linear_key_head_dim", default=0)
    ssm_groups: int = key(whole, "ssm.group_count", "linear_num_key_heads", default=0)
    ssm_heads: int = key(whole, "ssm.time_step_rank", "linear_num_value_heads", default=0)
    ssm_inner: int = key(whole, "ssm.inner_size", default=0)
    full_interval: int = key(whole, "full_attention_interval", "full_attention_interval", default=0)
    recurrent_layers: tuple[bool, ...] = key(flags, "attention.recurrent_layers", default=())
    rope_sections: tuple[int, ...] = key(per_layer, "rope.dimension_sections", default=())


def facts_from_gguf(metadata: Mapping[str, Any], architecture: str) -> Facts:
    """BadModelFile names a required key that is missing, or one of another kind."""
    facts = _read(lambda row: [f"{architecture}.{row.gguf}"] if row.gguf else [], metadata.get)
    return _as_meant(facts, architecture, metadata)


def _as_meant(facts: Facts, architecture: str, metadata: Mapping[str, Any]) -> Facts:
    """What llama.cpp reads into keys of rope: the factor had another name, 0 is none, and one alone is linear. Whether
    positions turn at all is what only these families say by the key for the training of their scaling."""
    old = f"{architecture}.rope.scale_linear"
    if facts.rope_factor is None and metadata.get(old) is not None:
        facts = replace(facts, rope_factor=checked(old, real, metadata[old]))
    facts = replace(facts, rope_factor=facts.rope_factor or None)
    if facts.rope_factor is not None and metadata.get(f"{architecture}.rope.scaling.type") is None:
        facts = replace(facts, rope_scaling="linear")
    return facts if architecture.startswith(("granite", "cohere2")) else replace(facts, has_rope=True)


def facts_from_config(config: Mapping[str, Any]) -> Facts:
    """The numbers of a `config.json` as they stand there, where null is as good as missing; see models/hf_facts.py."""

    def get(path: str) -> Any:
        value: Any = config
        for part in path.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        return value

    return _read(lambda row: row.hf, get)


def gguf_from_facts(facts: Facts, architecture: str) -> dict[str, Any]:
    """The metadata of a GGUF file that says the same; what is at its default is left out."""
    metadata: dict[str, Any] = {}
    for item in fields(Facts):
        row: Key = item.metadata["key"]
        value = getattr(facts, item.name)
        if not row.gguf or value == row.default or value is None:
            continue
        if isinstance(value, tuple):
            value = value[0] if len(value) == 1 and row.kind is per_layer else list(value)
        metadata[f"{architecture}.{row.gguf}"] = value
    return metadata


def _read(names_of: Callable[[Key], Sequence[str]], get: Callable[[str], Any]) -> Facts:
    found: dict[str, Any] = {}
    for item in fields(Facts):
        row: Key = item.metadata["key"]
        names = names_of(row)
        name = next((name for name in names if get(name) is not None), None)
        if name is not None:
            found[item.name] = checked(name, row.kind, get(name))
        elif row.default is REQUIRED:
            raise BadModelFile(f"the model file lacks {names[0]}")
        else:
            found[item.name] = row.default
    return Facts(**found)


def checked(name: str, kind: Kind, value: Any) -> Any:
    """What stands under `name`, as what it has to be; BadModelFile where it is something else."""
    try:
        return kind(value)
    except ValueError as error:
        raise BadModelFile(f"{name} must be {error}, not {value!r:.60}") from None
