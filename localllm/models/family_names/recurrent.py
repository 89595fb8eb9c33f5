"""Names in checkpoints of families whose layers keep a state."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from localllm.models.family_names.experts import GRANITE_EXPERTS
from localllm.models.pieces import Table, Target, whole
from localllm.models.state_space import IN, IN_CUTS

_LFM2: Table = {
    "operator_norm": whole("attn_norm"),
    "ffn_norm": whole("ffn_norm"),
    "conv.in_proj": whole("shortconv.in_proj"),
    "conv.conv": whole("shortconv.conv"),
    "conv.out_proj": whole("shortconv.out_proj"),
    "self_attn.out_proj": whole("attn_output"),
    "self_attn.q_layernorm": whole("attn_q_norm"),
    "self_attn.k_layernorm": whole("attn_k_norm"),
    "feed_forward.w1": whole("ffn_gate"),
    "feed_forward.w2": whole("ffn_down"),
    "feed_forward.w3": whole("ffn_up"),
    "feed_forward.gate": whole("ffn_gate_inp"),
    "feed_forward.expert_bias": whole("exp_probs_b.bias"),
}
_GATED_QUERIES = (Target("attn_q", "queries"), Target("attn_gate", "gates"))
_QWEN3_NEXT: Table = {
    "self_attn.q_proj": _GATED_QUERIES,
    "linear_attn.in_proj_qkvz": (Target("attn_qkv", "joined qkv"), Target("attn_gate", "joined gates")),
    "linear_attn.in_proj_ba": (Target("ssm_beta", "joined betas"), Target("ssm_alpha", "joined decays")),
    "linear_attn.conv1d": whole("ssm_conv1d"),
    "linear_attn.A_log": whole("ssm_a"),
    "linear_attn.dt_bias": whole("ssm_dt.bias"),
    "linear_attn.norm": whole("ssm_norm"),
    "linear_attn.out_proj": whole("ssm_out"),
}
_QWEN35: Table = {
    "self_attn.q_proj": _GATED_QUERIES,
    "linear_attn.in_proj_qkv": (Target("attn_qkv", "tiled qkv"),),
    "linear_attn.in_proj_z": (Target("attn_gate", "tiled values"),),
    "linear_attn.in_proj_b": (Target("ssm_beta", "tiled heads"),),
    "linear_attn.in_proj_a": (Target("ssm_alpha", "tiled heads"),),
    "linear_attn.conv1d": (Target("ssm_conv1d", "tiled qkv"),),
    "linear_attn.A_log": (Target("ssm_a", "tiled heads"),),
    "linear_attn.dt_bias": (Target("ssm_dt.bias", "tiled heads"),),
    "linear_attn.norm": whole("ssm_norm"),
    "linear_attn.out_proj": (Target("ssm_out", "tiled columns"),),
}


def state_space(module: str) -> Table:
    """A Mamba-2 mixer."""
    return {
        f"{module}.in_proj": tuple(Target(name, cut) for name, cut in zip(IN, IN_CUTS, strict=True)),
        f"{module}.conv1d": whole("ssm_conv1d"),
        f"{module}.dt_bias": whole("ssm_dt.bias"),
        f"{module}.A_log": whole("ssm_a"),
        f"{module}.D": whole("ssm_d"),
        f"{module}.norm": whole("ssm_norm"),
        f"{module}.out_proj": whole("ssm_out"),
    }


_BESIDE_MAMBA: Table = {
    **state_space("mamba"),
    "pre_ff_layernorm": whole("ffn_norm"),
    **{f"feed_forward.{part}_proj": whole(f"ffn_{part}") for part in ("gate", "up", "down")},
}
# a block is one mixer of four kinds, all under one name
_NEMOTRON_H: Table = {
    **state_space("mixer"),
    "norm": whole("attn_norm"),
    **{f"mixer.{part}_proj": whole(f"attn_{part}") for part in ("q", "k", "v")},
    "mixer.o_proj": whole("attn_output"),
    **{f"mixer.{part}_proj": whole(f"ffn_{part}") for part in ("up", "down")},
    **{f"mixer.experts.{part}_proj": whole(f"ffn_{part}_exps.weight") for part in ("up", "down")},
    **{f"mixer.switch_mlp.{old}": whole(f"ffn_{part}_exps") for old, part in (("fc1", "up"), ("fc2", "down"))},
    **{f"mixer.shared_experts.{part}_proj": whole(f"ffn_{part}_shexp") for part in ("up", "down")},
    "mixer.fc1_latent_proj": whole("ffn_latent_down"),
    "mixer.fc2_latent_proj": whole("ffn_latent_up"),
    "mixer.gate": whole("ffn_gate_inp"),
    "mixer.gate.e_score_correction_bias": whole("exp_probs_b.bias"),
}
_GRANITE_HYBRID: Table = {**_BESIDE_MAMBA, **GRANITE_EXPERTS}

RECURRENT: Mapping[str, Table] = MappingProxyType(
    {
        "lfm2": _LFM2,
        "lfm2moe": _LFM2,
        "qwen3next": _QWEN3_NEXT,
        "qwen35": _QWEN35,
        "qwen35moe": _QWEN35,
        "granitehybrid": _GRANITE_HYBRID,
        "falcon-h1": _BESIDE_MAMBA,
        "nemotron_h": _NEMOTRON_H,
        "nemotron_h_moe": _NEMOTRON_H,
        "mamba2": _NEMOTRON_H,
    }
)
