"""Names in checkpoints of families with experts, where not the usual; and those of latent attention."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from localllm.models.pieces import Table, Target, whole

GRANITE_EXPERTS: Table = {
    "block_sparse_moe.input_linear": (Target("ffn_gate_exps", "first half"), Target("ffn_up_exps", "second half")),
    "block_sparse_moe.output_linear": whole("ffn_down_exps"),
    "block_sparse_moe.router.layer": whole("ffn_gate_inp"),
    "shared_mlp.input_linear": (Target("ffn_gate_shexp", "first half"), Target("ffn_up_shexp", "second half")),
    "shared_mlp.output_linear": whole("ffn_down_shexp"),
}
_ERNIE_EXPERTS: Table = {
    "mlp.moe_statics.e_score_correction_bias": whole("exp_probs_b.bias"),
    "mlp.gate.moe_statics.e_score_correction_bias": whole("exp_probs_b.bias"),
}
_QUERIES = (Target("attn_q_plain", "plain queries"), Target("attn_q_turned", "turned queries"))
_LATENT: Table = {
    "self_attn.q_proj": _QUERIES,
    "self_attn.q_a_proj": whole("attn_q_a"),
    "self_attn.q_a_layernorm": whole("attn_q_a_norm"),
    "self_attn.q_b_proj": _QUERIES,
    "self_attn.kv_a_proj_with_mqa": (Target("attn_kv_a", "latent"), Target("attn_k_turned", "turned keys")),
    "self_attn.kv_a_layernorm": whole("attn_kv_a_norm"),
    "self_attn.kv_b_proj": (Target("attn_k_b", "head keys"), Target("attn_v_b", "head values")),
}
_GPT_OSS: Table = {
    "self_attn.sinks": whole("attn_sinks.weight"),
    "mlp.router": whole("ffn_gate_inp"),
    "mlp.experts.gate_up_proj": (
        Target("ffn_gate_exps.weight", "even", transposed=True),
        Target("ffn_up_exps.weight", "odd", transposed=True),
    ),
    "mlp.experts.gate_up_proj_blocks": (Target("ffn_gate_exps.weight", "even"), Target("ffn_up_exps.weight", "odd")),
    "mlp.experts.gate_up_proj_bias": (Target("ffn_gate_exps.bias", "even"), Target("ffn_up_exps.bias", "odd")),
    "mlp.experts.down_proj": whole("ffn_down_exps.weight", transposed=True),
    "mlp.experts.down_proj_blocks": whole("ffn_down_exps.weight"),
    "mlp.experts.down_proj_bias": whole("ffn_down_exps.bias"),
    "mlp.experts.gate_up_proj_scales": (),  # read with their blocks
    "mlp.experts.down_proj_scales": (),
}

EXPERTS: Mapping[str, Table] = MappingProxyType(
    {
        "granitemoe": GRANITE_EXPERTS,
        "ernie4_5-moe": _ERNIE_EXPERTS,
        "deepseek2": _LATENT,
        "gpt-oss": _GPT_OSS,
    }
)
