"""The formulas behind the verbs, in plain numpy float32 and in one way each: no backend, no pages, no batch."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from localllm.errors import UnsupportedModel
from localllm.models.config import Activation, AttentionSpec, MoeSpec

Floats = NDArray[np.float32]
Ints = NDArray[np.int32]


def activate(x: Floats, activation: Activation) -> Floats:
    """The activation alone; swiglu_oai has none without its second input."""
    if activation == "silu":
        return x * sigmoid(x)
    if activation == "gelu":
        erf = np.fromiter(map(math.erf, (x / math.sqrt(2)).ravel()), np.float32, x.size)
        return np.asarray(x * (1 + erf.reshape(x.shape)) / 2, np.float32)
    if activation == "gelu_tanh":
        inner = np.float32(math.sqrt(2 / math.pi)) * (x + np.float32(0.044715) * x * x * x)
        return np.asarray(x * (1 + np.tanh(inner)) / 2, np.float32)
    if activation in ("relu", "relu2"):
        positive = np.maximum(x, 0)
        return positive if activation == "relu" else positive * positive
    raise UnsupportedModel(f"{activation} needs a gate")


def gate_times_up(gate: Floats, up: Floats, activation: Activation) -> Floats:
    if activation != "swiglu_oai":
        return activate(gate, activation) * up
    gate, up = np.minimum(gate, 7), np.clip(up, -7, 7)  # gpt-oss: both limited, and a sharper sigmoid
    return gate * sigmoid(gate * np.float32(1.702)) * (up + 1)


def gated_norm(x: Floats, gate: Floats, weight: Floats | None, eps: float, run: int, gate_first: bool) -> Floats:
    """RMS over runs of `run` values, times silu(gate); `weight` is as wide as x, or as a run; None: the gate alone."""
    opened = activate(gate, "silu")
    if weight is None:
        return x * opened
    inputs = x * opened if gate_first else x
    runs = inputs.reshape(len(x), -1, run)
    mean_square = np.mean(runs * runs, axis=-1, keepdims=True, dtype=np.float32)
    normed = np.divide(runs, np.sqrt(mean_square + np.float32(eps)), dtype=np.float32) * weight.reshape(-1, run)
    whole: Floats = normed.reshape(x.shape)
    return whole if gate_first else whole * opened


def sigmoid(x: Floats) -> Floats:
    """Without overflow: tanh stays in bounds."""
    return np.asarray((np.tanh(x / 2) + 1) / 2, np.float32)


def softcap(x: Floats, cap: float) -> Floats:
    return np.asarray(np.tanh(x / np.float32(cap)) * np.float32(cap), np.float32)


def softmax(x: Floats) -> Floats:
    powers = np.exp(x - x.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True), np.float32)


def rotate(x: Floats, cos: Floats, sin: Floats) -> Floats:
    """x (..., head_dim), of which the first dims turn; cos and sin (..., dims / 2)."""
    half = cos.shape[-1]
    first, second = x[..., :half], x[..., half : 2 * half]
    return np.concatenate([first * cos - second * sin, second * cos + first * sin, x[..., 2 * half :]], axis=-1)


def visible(positions: Ints, seen: Ints, spec: AttentionSpec, atomic: bool) -> NDArray[np.bool_]:
    """(tokens, tokens seen): whether a token sees another."""
    distance = positions[:, None] - seen[None, :]
    mask = np.ones(distance.shape, np.bool_) if atomic or not spec.causal else distance >= 0
    return mask if spec.window is None else mask & (np.abs(distance) < spec.window)


def attend(
    q: Floats, k: Floats, v: Floats, mask: NDArray[np.bool_], spec: AttentionSpec, sinks: Floats | None
) -> tuple[Floats, Floats]:
    """q (n, heads, d), k and v (seen, kv_heads, d) to probabilities (heads, n, seen), values (n, heads * value_dim)."""
    shared = spec.num_heads // spec.num_kv_heads
    keys, values = np.repeat(k, shared, axis=1), np.repeat(v, shared, axis=1)
    scores = q.transpose(1, 0, 2) @ keys.transpose(1, 2, 0) * np.float32(spec.scale)
    if spec.softcap:
        scores = softcap(scores, spec.softcap)
    scores = np.where(mask, scores, np.float32(-np.inf))
    if sinks is not None:
        drains = np.broadcast_to(sinks[:, None, None], (*scores.shape[:2], 1))
        scores = np.concatenate([scores, drains.astype(np.float32)], axis=-1)
    chances = softmax(scores)[:, :, : len(k)]
    return chances, (chances @ values.transpose(1, 0, 2)).transpose(1, 0, 2).reshape(len(q), -1)


def convolve(line: Floats, kernel: Floats) -> Floats:
    """Causal, per channel: line (width - 1 + n, channels), kernel (channels, width), oldest first: (n, channels)."""
    width = kernel.shape[1]
    num_tokens = len(line) - width + 1
    total = np.zeros((num_tokens, line.shape[1]), np.float32)
    for step in range(width):
        total += line[step : step + num_tokens] * kernel[:, step]
    return total


def route(logits: Floats, spec: MoeSpec, choice_bias: Floats | None) -> Floats:
    """Router logits (T, experts) to chosen experts and weights (T, num_used, 2)."""
    scores = logits
    if spec.scoring != "softmax_chosen":
        scores = softmax(logits) if spec.scoring == "softmax" else sigmoid(logits)
    ranked = scores if choice_bias is None else scores + choice_bias
    if spec.num_groups > 1:
        ranked = np.where(in_best_groups(ranked, spec), ranked, np.float32(-np.inf))
    order = np.argsort(-ranked, axis=-1, kind="stable")
    chosen = order[:, : spec.num_used]
    weights = np.take_along_axis(scores, chosen, axis=-1)
    if spec.scoring == "softmax_chosen":
        weights = softmax(weights)
    elif spec.normalize:
        weights = weights / weights.sum(axis=-1, keepdims=True)
    return np.stack([chosen.astype(np.float32), weights * np.float32(spec.scale)], axis=-1)


def in_best_groups(ranked: Floats, spec: MoeSpec) -> NDArray[np.bool_]:
    """(T, experts): whether an expert is of a group that may be chosen from; of equal groups the first."""
    groups = ranked.reshape(len(ranked), spec.num_groups, -1)
    worth = -np.sort(-groups, axis=-1)[:, :, : spec.group_best].sum(axis=-1, dtype=np.float32)
    best = np.argsort(-worth, axis=-1, kind="stable")[:, : spec.num_used_groups]
    mask = np.zeros(worth.shape, np.bool_)
    np.put_along_axis(mask, best, True, axis=-1)
    return np.repeat(mask, groups.shape[2], axis=-1)
