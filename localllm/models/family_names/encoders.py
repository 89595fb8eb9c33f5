"""Names in checkpoints of encoders."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from localllm.models.pieces import GATE_UP, Table, qkv, whole

# norms of the sums: an encoder of the first kind has no other
_BERT: Table = {
    "attention.self.query": whole("attn_q"),
    "attention.self.key": whole("attn_k"),
    "attention.self.value": whole("attn_v"),
    "attention.output.dense": whole("attn_output"),
    "attention.output.LayerNorm": whole("attn_output_norm"),
    "intermediate.dense": whole("ffn_up"),
    "output.dense": whole("ffn_down"),
    "output.LayerNorm": whole("layer_output_norm"),
}
_NOMIC_BERT: Table = {
    "attn.Wqkv": qkv(),
    "attn.out_proj": whole("attn_output"),
    "norm1": whole("attn_output_norm"),
    "mlp.fc11": whole("ffn_up"),
    "mlp.fc12": whole("ffn_gate"),
    "mlp.fc2": whole("ffn_down"),
    "norm2": whole("layer_output_norm"),
}
_MODERN_BERT: Table = {
    "attn_norm": whole("attn_norm"),
    "attn.Wqkv": qkv(),
    "attn.Wo": whole("attn_output"),
    "mlp_norm": whole("ffn_norm"),
    "mlp.Wi": GATE_UP,
    "mlp.Wo": whole("ffn_down"),
}

ENCODERS: Mapping[str, Table] = MappingProxyType(
    {
        "bert": _BERT,
        "nomic-bert": _NOMIC_BERT,
        "modern-bert": _MODERN_BERT,
    }
)
