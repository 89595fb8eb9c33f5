"""Names in checkpoints of families whose attention and feed-forward may stand side by side."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from localllm.models.pieces import GROUPED_QKV, Table, whole

_GPT_NEOX: Table = {
    "attention.query_key_value": GROUPED_QKV,
    "attention.dense": whole("attn_output"),
    "mlp.dense_h_to_4h": whole("ffn_up"),
    "mlp.dense_4h_to_h": whole("ffn_down"),
    "attention.bias": (),  # the causal mask
    "attention.masked_bias": (),
}
_FALCON: Table = {
    "ln_attn": whole("attn_norm"),
    "ln_mlp": whole("ffn_norm"),
    "self_attention.query_key_value": GROUPED_QKV,
    "self_attention.dense": whole("attn_output"),
    "mlp.dense_h_to_4h": whole("ffn_up"),
    "mlp.dense_4h_to_h": whole("ffn_down"),
}

PARALLEL: Mapping[str, Table] = MappingProxyType(
    {
        "gptneox": _GPT_NEOX,
        "falcon": _FALCON,
    }
)
