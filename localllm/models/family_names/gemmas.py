"""Names in checkpoints of Gemma: its norms, and what the small ones of the third and fourth have beside."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from localllm.models.family_names.dense import NORMS_AFTER
from localllm.models.pieces import Table, Target, whole

_GEMMA: Table = {**NORMS_AFTER, "pre_feedforward_layernorm": whole("ffn_norm")}
_TOKEN_INPUTS: Table = {
    **_GEMMA,
    "per_layer_input_gate": whole("inp_gate"),
    "per_layer_projection": whole("proj"),
    "post_per_layer_input_norm": whole("post_norm"),
}
_GEMMA3N: Table = {
    **_TOKEN_INPUTS,
    "altup.correct_output_scale": whole("altup_correct_scale.weight"),
    "altup.correction_coefs": whole("altup_correct_coef"),
    "altup.prediction_coefs": whole("altup_predict_coef"),
    "altup.modality_router": whole("altup_router"),
    "altup.router_norm": whole("altup_router_norm"),
    "laurel.linear_left": whole("laurel_l"),
    "laurel.linear_right": whole("laurel_r"),
    "laurel.post_laurel_norm": whole("laurel_post_norm"),
}
_GEMMA4: Table = {
    **_TOKEN_INPUTS,
    "layer_scalar": whole("layer_output_scale.weight"),
    "pre_feedforward_layernorm_2": whole("pre_ffw_norm_2"),
    "post_feedforward_layernorm_1": whole("post_ffw_norm_1"),
    "post_feedforward_layernorm_2": whole("post_ffw_norm_2"),
    "router.proj": whole("ffn_gate_inp"),
    "router.scale": whole("ffn_gate_inp.scale"),
    "router.per_expert_scale": whole("ffn_down_exps.scale"),
    "experts.gate_up_proj": (
        Target("ffn_gate_exps.weight", "first half"),
        Target("ffn_up_exps.weight", "second half"),
    ),
    "experts.down_proj": whole("ffn_down_exps.weight"),
}

GEMMAS: Mapping[str, Table] = MappingProxyType(
    {
        "gemma2": _GEMMA,
        "gemma3": _GEMMA,
        "gemma-embedding": _GEMMA,
        "gemma3n": _GEMMA3N,
        "gemma4": _GEMMA4,
    }
)
