"""What files say of Mamba-2 layers and of the families that have them, and what that makes.

A config.json names the kinds of layers in four ways, and the sizes in two; GGUF files tell layers by their tensors.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from localllm.errors import BadModelFile, UnsupportedModel
from localllm.models.config import ModelConfig, StateSpaceSpec
from localllm.models.facts import Facts

Config = Mapping[str, Any]

STATE_LAYERS = ("mamba", "linear_attention", "M")
EXPERT_LAYERS = ("moe", "E")
_MOST = 1 << 20


_WITHOUT_EXPERTS: Mapping[str, Any] = MappingProxyType(
    {
        **dict.fromkeys(("num_experts", "num_used_experts", "expert_width", "num_shared_experts"), 0),
        **dict.fromkeys(("num_expert_groups", "num_used_groups", "expert_latent"), 0),
        "expert_norm": None,
        "expert_scale": 1.0,
    }
)


def layer_kinds(config: Config) -> tuple[str, ...]:
    """One word or letter per layer; empty where the config says nothing of them."""
    pattern = config.get("hybrid_override_pattern")
    if isinstance(pattern, str):
        return tuple(pattern)
    indices, count = config.get("attn_layer_indices"), config.get("num_hidden_layers")
    if config.get("model_type") == "bamba" and isinstance(count, int):
        attends = indices if isinstance(indices, list) else []
        return tuple("attention" if index in attends else "mamba" for index in range(count))
    types = config.get("layers_block_type", config.get("layer_types"))
    return tuple(map(str, types)) if isinstance(types, list) else ()


def layer_types_of(config: Config) -> tuple[str, ...]:
    """Kinds of layers that only these families have."""
    return (
        ("attention", "mamba", "moe", "mlp") if config.get("model_type") in ("granitemoehybrid", "nemotron_h") else ()
    )


def counted(config: Config) -> Config:
    """The same with the number of layers, which new checkpoints of Nemotron leave to the list of them."""
    if config.get("model_type") != "nemotron_h" or not (kinds := layer_kinds(config)):
        return config
    return {**config, "num_hidden_layers": len(kinds)}


def architecture_of(config: Config) -> str | None:
    """The GGUF architecture where a `model_type` is of several; None: the type says it."""
    kinds = layer_kinds(config)
    if config.get("model_type") == "nemotron_h":
        return "nemotron_h_moe" if any(kind in EXPERT_LAYERS for kind in kinds) else "nemotron_h"
    if config.get("model_type") == "granitemoehybrid":
        if not kinds or any(kind in STATE_LAYERS for kind in kinds):
            return "granitehybrid"
        return "granitemoe" if config.get("num_local_experts") else "granite"
    return None


def granite_hybrid(facts: Facts, config: Config) -> Facts:
    """Granite 4: may turn nothing; without experts the shared ones are all there is."""
    facts = replace(facts, has_rope=config.get("position_embedding_type") == "rope")
    shared = config.get("shared_intermediate_size")
    if isinstance(shared, int):
        if facts.num_experts:
            facts = replace(facts, shared_expert_width=shared)
        else:
            facts = replace(facts, feed_forward=(shared,), num_used_experts=0)
    return _with_state(facts, config) if architecture_of(config) == "granitehybrid" else facts


def bamba(facts: Facts, config: Config) -> Facts:
    """Half of every head turns, whatever is said beside `rope_parameters`."""
    head_dim = facts.head_dim or facts.hidden_size // max(facts.num_heads[0], 1)
    is_told = (config.get("rope_parameters") or {}).get("partial_rotary_factor") is not None
    turned = config.get("attn_rotary_emb")
    if is_told or not isinstance(turned, int):
        turned = int(head_dim * (facts.rope_share if is_told else 0.5))
    return _with_state(replace(facts, rope_dims=turned), config)


def falcon_h1(facts: Facts, config: Config) -> Facts:
    """UnsupportedModel for a gate after the norm, which GGUF files cannot say and nobody published."""
    if config.get("mamba_rms_norm") and config.get("mamba_norm_before_gate", True):
        raise UnsupportedModel("this build knows Falcon-H1 only with the gate before the norm (mamba_norm_before_gate)")
    inner = config.get("mamba_d_ssm")
    facts = _with_state(replace(facts, embed_scale=0.0), config)  # see models/scaled.py
    return replace(facts, ssm_inner=inner) if isinstance(inner, int) else facts


def nemotron_h(facts: Facts, config: Config) -> Facts:
    """Its norms are RMS norms, whatever the key is called."""
    width = config.get("moe_shared_expert_intermediate_size")
    has_experts = architecture_of(config) == "nemotron_h_moe"
    facts = replace(
        facts,
        rms_eps=facts.layer_eps if facts.rms_eps is None else facts.rms_eps,
        activation=str(config.get("mlp_hidden_act", "relu2")),
        rope_dims=None,
        shared_expert_width=width if has_experts and isinstance(width, int) else 0,
    )
    if not has_experts:
        facts = replace(facts, **_WITHOUT_EXPERTS)
    return _with_state(facts, config)


def mamba2(facts: Facts, config: Config) -> Facts:
    """Nothing but state spaces: head sizes are theirs, and there is no end to the context."""
    facts = replace(
        facts,
        rms_eps=facts.layer_eps,
        layer_eps=None,
        head_dim=None,
        value_dim=None,
        rope_dims=None,
        feed_forward=(0,),
        activation="",
    )
    facts = _with_state(facts, config)
    return replace(facts, ssm_inner=_size(config, "num_heads") * _size(config, "head_dim"))


def _with_state(facts: Facts, config: Config) -> Facts:
    """Sizes by any of their names. UnsupportedModel for activations that no model of these has."""
    name = "mamba_hidden_act" if "mamba_hidden_act" in config else "hidden_act"
    if config.get(name, "silu") not in ("silu", "swish"):
        raise UnsupportedModel(f"this build does not know convolutions with {config[name]} ({name})")
    heads = _size(config, "mamba_n_heads", "mamba_num_heads", "num_heads")
    head_dim = next((config[key] for key in ("mamba_d_head", "mamba_head_dim") if isinstance(config.get(key), int)), 0)
    inner = heads * head_dim or _size(config, "mamba_expand", "expand") * facts.hidden_size
    return replace(
        facts,
        ssm_kernel=_size(config, "mamba_d_conv", "conv_kernel"),
        ssm_inner=inner,
        ssm_state=_size(config, "mamba_d_state", "ssm_state_size", "state_size"),
        ssm_heads=heads,
        ssm_groups=_size(config, "mamba_n_groups", "n_groups"),
        ssm_step_limits=_limits(config.get("time_step_limit")),
    )


def _limits(value: Any) -> tuple[float, ...]:
    if value is None:
        return ()
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        raise BadModelFile(f"time_step_limit must be two numbers, not {value!r:.60}")
    # transformers writes what JSON has no number for as an object
    low, high = (float(item["__float__"]) if isinstance(item, Mapping) else float(item) for item in value)
    return () if (low, high) == (0.0, math.inf) else (low, high)


def _size(config: Config, *names: str) -> int:
    name = next((name for name in names if config.get(name) is not None), names[0])
    value = config.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise BadModelFile(f"{name} must be a whole number above 0, not {value!r:.60}")
    return value


def has_state_space(index: int, tensor_names: Collection[str]) -> bool:
    """Whether a layer has one; gated delta nets have no skip."""
    return f"blk.{index}.ssm_d" in tensor_names


def state_space_spec(facts: Facts) -> StateSpaceSpec:
    """BadModelFile for numbers that make no state space."""
    sizes = (
        ("conv_kernel", facts.ssm_kernel, 64),
        ("inner_size", facts.ssm_inner, _MOST),
        ("state_size", facts.ssm_state, _MOST),
        ("time_step_rank", facts.ssm_heads, _MOST),
        ("group_count", facts.ssm_groups, _MOST),
    )
    for name, value, most in sizes:
        if not 1 <= value <= most:
            raise BadModelFile(f"ssm.{name} is {value}, but must be between 1 and {most}")
    if facts.ssm_inner % facts.ssm_heads or facts.ssm_heads % facts.ssm_groups:
        raise BadModelFile(
            f"{facts.ssm_inner} values are no {facts.ssm_heads} heads in {facts.ssm_groups} groups (ssm.inner_size)"
        )
    low, high = facts.ssm_step_limits or (0.0, math.inf)
    return StateSpaceSpec(
        facts.ssm_heads,
        facts.ssm_inner // facts.ssm_heads,
        facts.ssm_groups,
        facts.ssm_state,
        facts.ssm_kernel,
        (low, high),
    )


def state_space_of(name: str, config: ModelConfig) -> StateSpaceSpec | None:
    """The state space that a weight `blk.N.*` belongs to."""
    prefix, _, rest = name.partition(".")
    number = rest.partition(".")[0]
    if prefix != "blk" or not number.isdecimal() or int(number) >= len(config.layers):
        return None
    spec = config.layers[int(number)].recurrent
    return spec if isinstance(spec, StateSpaceSpec) else None
