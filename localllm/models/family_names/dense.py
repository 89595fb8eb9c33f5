"""Names in checkpoints of families whose every layer is attention, then one feed-forward; where not the usual."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from localllm.models.pieces import GATE_UP, Table, qkv, whole

NORMS_AFTER: Table = {
    "post_attention_layernorm": whole("post_attention_norm"),
    "post_feedforward_layernorm": whole("post_ffw_norm"),
}
_SHARED_MLP: Table = {"shared_mlp.input_linear": GATE_UP, "shared_mlp.output_linear": whole("ffn_down")}
_STARCODER2: Table = {"mlp.c_fc": whole("ffn_up"), "mlp.c_proj": whole("ffn_down")}
_GLM4: Table = {
    "post_self_attn_layernorm": whole("post_attention_norm"),
    "post_mlp_layernorm": whole("post_ffw_norm"),
}
# the linear layers of GPT-2 are one-dimensional convolutions: (in, out)
_GPT2: Table = {
    "ln_1": whole("attn_norm"),
    "ln_2": whole("ffn_norm"),
    "attn.c_attn": qkv(transposed=True),
    "attn.c_proj": whole("attn_output", transposed=True),
    "mlp.c_fc": whole("ffn_up", transposed=True),
    "mlp.c_proj": whole("ffn_down", transposed=True),
    "attn.bias": (),  # the causal mask, kept as a buffer by old checkpoints
    "attn.masked_bias": (),
}

DENSE: Mapping[str, Table] = MappingProxyType(
    {
        "olmo2": NORMS_AFTER,
        "granite": _SHARED_MLP,
        "starcoder2": _STARCODER2,
        "glm4": _GLM4,
        "exaone4": NORMS_AFTER,
        "gpt2": _GPT2,
    }
)
