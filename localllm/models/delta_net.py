"""A gated delta net between attention layers, out of the verbs: convolved queries, keys and values into a matrix."""

from __future__ import annotations

from localllm.models.config import DeltaNetSpec
from localllm.models.ops import A, Ops, W, Weights


def mix_delta_net(ops: Ops[A, W], x: A, scope: Weights[W], spec: DeltaNetSpec, layer: int, eps: float) -> A:
    """`scope` has the weights of the layer, by the names of GGUF files."""
    names = ("attn_qkv", "attn_gate", "ssm_beta", "ssm_alpha")
    qkv, gate, beta, decay = ops.linear_group(x, [scope[f"{name}.weight"] for name in names], [None] * len(names))
    mixed = ops.causal_conv(qkv, scope["ssm_conv1d.weight"], None, spec, layer)
    seen = ops.delta_net(mixed, beta, decay, scope["ssm_a"], scope["ssm_dt.bias"], spec, layer)
    normed = ops.gated_norm(seen, gate, scope["ssm_norm.weight"], eps, spec.value_dim, gate_first=False)
    return ops.linear(normed, scope["ssm_out.weight"])
