"""The formulas behind the verbs as MLX graphs, float32 in and out: the twin of backends/formulas.py."""

from __future__ import annotations

import math

import mlx.core as mx

from localllm.errors import UnsupportedModel
from localllm.models.config import Activation, AttentionSpec, MoeSpec


def activate(x: mx.array, activation: Activation) -> mx.array:
    """The activation alone; swiglu_oai has none without its second input."""
    if activation == "silu":
        return x * mx.sigmoid(x)
    if activation == "gelu":
        return x * (1 + mx.erf(x / math.sqrt(2))) / 2
    if activation == "gelu_tanh":
        return x * (1 + mx.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x))) / 2
    if activation in ("relu", "relu2"):
        positive = mx.maximum(x, 0)
        return positive if activation == "relu" else positive * positive
    raise UnsupportedModel(f"{activation} needs a gate")


def gate_times_up(gate: mx.array, up: mx.array, activation: Activation) -> mx.array:
    if activation != "swiglu_oai":
        return activate(gate, activation) * up
    gate, up = mx.minimum(gate, 7), mx.clip(up, -7, 7)  # gpt-oss: both limited, and a sharper sigmoid
    return gate * mx.sigmoid(gate * 1.702) * (up + 1)


def gated_norm(
    x: mx.array, gate: mx.array, weight: mx.array | None, eps: float, run: int, gate_first: bool
) -> mx.array:
    opened = activate(gate, "silu")
    if weight is None:
        return x * opened
    inputs = x * opened if gate_first else x
    normed = mx.fast.rms_norm(inputs.reshape(x.shape[0], -1, run), None, eps) * weight.reshape(-1, run)
    return normed.reshape(x.shape) if gate_first else normed.reshape(x.shape) * opened


def softcap(x: mx.array, cap: float) -> mx.array:
    return mx.tanh(x / cap) * cap


def rotate(x: mx.array, cos: mx.array, sin: mx.array) -> mx.array:
    """x (..., head_dim), of which the first dims turn; cos and sin (..., dims / 2)."""
    half = cos.shape[-1]
    first, second = x[..., :half], x[..., half : 2 * half]
    turned = [first * cos - second * sin, second * cos + first * sin]
    return mx.concatenate([*turned, x[..., 2 * half :]], axis=-1)


def attend(
    q: mx.array, k: mx.array, v: mx.array, mask: mx.array | None, spec: AttentionSpec, sinks: mx.array | None
) -> mx.array:
    """q (B, heads, n, d), k and v (B, kv_heads, seen, d), mask (B, 1, n, seen): (B, heads, n, value_dim)."""
    if not spec.softcap:
        drains = None if sinks is None else sinks.astype(q.dtype)
        return mx.fast.scaled_dot_product_attention(q, k, v, scale=spec.scale, mask=mask, sinks=drains)
    q, k, v = (each.astype(mx.float32) for each in (q, k, v))
    batch, heads, num_queries, _ = q.shape
    shared = heads // k.shape[1]
    grouped = q.reshape(batch, k.shape[1], shared, num_queries, -1)  # heads that share keys are neighbours
    scores = softcap(grouped @ k[:, :, None].swapaxes(-1, -2) * spec.scale, spec.softcap)
    if mask is not None:
        scores = mx.where(mask[:, :, None], scores, -mx.inf)
    if sinks is not None:
        drains = mx.broadcast_to(sinks.reshape(1, -1, shared, 1, 1), (*scores.shape[:-1], 1))
        scores = mx.concatenate([scores, drains], axis=-1)
    chances = mx.softmax(scores, axis=-1, precise=True)[..., : k.shape[2]]
    return (chances @ v[:, :, None]).reshape(batch, heads, num_queries, -1)


def route(logits: mx.array, spec: MoeSpec, choice_bias: mx.array | None) -> tuple[mx.array, mx.array]:
    """Router logits (T, experts) to chosen experts, rising, and their weights: (T, num_used) each."""
    scores = logits
    if spec.scoring != "softmax_chosen":
        scores = mx.softmax(logits, axis=-1, precise=True) if spec.scoring == "softmax" else mx.sigmoid(logits)
    ranked = scores if choice_bias is None else scores + choice_bias
    if spec.num_groups > 1:
        ranked = mx.where(in_best_groups(ranked, spec), ranked, -mx.inf)
    # MLX sorts by merging, so of equals the lower index stays first
    order = mx.argsort(-ranked, axis=-1)
    chosen = mx.sort(order[:, : spec.num_used], axis=-1)
    weights = mx.take_along_axis(scores, chosen, axis=-1)
    if spec.scoring == "softmax_chosen":
        weights = mx.softmax(weights, axis=-1, precise=True)
    elif spec.normalize:
        weights = weights / weights.sum(axis=-1, keepdims=True)
    return chosen, weights * spec.scale


def in_best_groups(ranked: mx.array, spec: MoeSpec) -> mx.array:
    """(T, experts): whether an expert is of a group that may be chosen from; of equal groups the first."""
    groups = ranked.reshape(ranked.shape[0], spec.num_groups, -1)
    worth = -mx.sort(-groups, axis=-1)[:, :, : spec.group_best].sum(axis=-1)
    places = mx.argsort(mx.argsort(-worth, axis=-1), axis=-1)  # of each group among all
    return mx.repeat(places < spec.num_used_groups, groups.shape[2], axis=-1)
