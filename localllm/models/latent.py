"""Attention over latent vectors (DeepSeek-V2, 2.1): one short vector per token is cached instead of keys and values.

A key of head h is K_h c, with c the cached vector and K_h the head's part of the file's matrix; its score with a query
is q . K_h c = (K_h^T q) . c. So queries are brought to the latent's side, one shared head attends, and each head's sum
of latents is brought to values at the end. What turns with the position has a part of its own in queries and keys.
"""

from __future__ import annotations

from localllm.models.config import AttentionSpec
from localllm.models.ops import A, Ops, W, Weights


def attend_latent(ops: Ops[A, W], x: A, weights: Weights[W], spec: AttentionSpec, layer: int) -> A:
    """x (T, hidden) to (T, hidden); `weights` are those of the layer."""
    latent = spec.latent
    assert latent is not None and spec.rope is not None, "the config has latent attention"
    plain, turned = ops.linear_group(
        _query_input(ops, x, weights, latent.norm_eps),
        [weights["attn_q_plain.weight"], weights["attn_q_turned.weight"]],
        [None, None],
    )
    cached, key = ops.linear_group(
        x,
        [weights["attn_kv_a.weight"], weights["attn_k_turned.weight"]],
        [weights.get("attn_kv_a.bias"), weights.get("attn_k_turned.bias")],
    )
    cached = ops.rms_norm(cached, weights["attn_kv_a_norm.weight"], latent.norm_eps)
    dims = spec.rope.dims
    turned, key = ops.rope(turned, dims, spec.rope), ops.rope(key, dims, spec.rope)
    queries = ops.join(ops.linear_heads(plain, weights["attn_k_b.weight"]), turned, spec.num_heads)
    seen = ops.attention(queries, ops.join(cached, key, 1), cached, spec, layer)
    values = ops.linear_heads(seen, weights["attn_v_b.weight"])
    return ops.linear(values, weights["attn_output.weight"], weights.get("attn_output.bias"))


def _query_input(ops: Ops[A, W], x: A, weights: Weights[W], eps: float) -> A:
    """What queries are made from: x, or a short vector where the model has one for them, too."""
    down = weights.get("attn_q_a.weight")
    if down is None:
        return x
    return ops.rms_norm(ops.linear(x, down, weights.get("attn_q_a.bias")), weights["attn_q_a_norm.weight"], eps)
