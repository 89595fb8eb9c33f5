"""The formulas of backends/formulas.py over tensors, float32."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from localllm.backends.torch.products import Products
from localllm.errors import UnsupportedModel
from localllm.models.config import Activation, AttentionSpec, MoeSpec

SCORES_AT_ONCE = 1 << 27
"""How many attention scores exist at a time; queries of a long chunk take turns."""


def activate(x: Tensor, activation: Activation) -> Tensor:
    """The activation alone; swiglu_oai has none without its second input."""
    if activation == "silu":
        return functional.silu(x)
    if activation == "gelu":
        return functional.gelu(x)
    if activation == "gelu_tanh":
        return functional.gelu(x, approximate="tanh")
    if activation in ("relu", "relu2"):
        positive = functional.relu(x)
        return positive if activation == "relu" else positive * positive
    raise UnsupportedModel(f"{activation} needs a gate")


def gate_times_up(gate: Tensor, up: Tensor, activation: Activation) -> Tensor:
    if activation != "swiglu_oai":
        return activate(gate, activation) * up
    gate, up = gate.clamp(max=7), up.clamp(-7, 7)  # gpt-oss: both limited, and a sharper sigmoid
    return gate * torch.sigmoid(gate * 1.702) * (up + 1)


def gated_norm(x: Tensor, gate: Tensor, weight: Tensor | None, eps: float, run: int, gate_first: bool) -> Tensor:
    opened = functional.silu(gate)
    if weight is None:
        return x * opened
    inputs = x * opened if gate_first else x
    normed = functional.rms_norm(inputs.view(len(x), -1, run), (run,), eps=eps) * weight.view(-1, run)
    return normed.view(x.shape) if gate_first else normed.view(x.shape) * opened


def softcap(x: Tensor, cap: float) -> Tensor:
    return torch.tanh(x / cap) * cap


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x (..., head_dim), of which the first dims turn; cos and sin (..., dims / 2)."""
    half = cos.shape[-1]
    first, second = x[..., :half], x[..., half : 2 * half]
    return torch.cat([first * cos - second * sin, second * cos + first * sin, x[..., 2 * half :]], dim=-1)


def attend(
    q: Tensor, k: Tensor, v: Tensor, hidden: Tensor, spec: AttentionSpec, sinks: Tensor | None, products: Products
) -> Tensor:
    """Rows of equal length: q (G, n, heads, d) float32, k (G, kv_heads, S, d) and v in the type of the products, hidden
    (G, n, S) true where a query does not see; to (G, n, heads * value_dim) float32."""
    num_queries, num_seen = hidden.shape[1:]
    step = max(1, SCORES_AT_ONCE // (len(q) * spec.num_heads * num_seen))
    parts = [
        _attend(q[:, first : first + step], k, v, hidden[:, first : first + step], spec, sinks, products)
        for first in range(0, num_queries, step)
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def _attend(
    q: Tensor, k: Tensor, v: Tensor, hidden: Tensor, spec: AttentionSpec, sinks: Tensor | None, products: Products
) -> Tensor:
    num_rows, num_queries, num_seen = hidden.shape
    num_kv, shared = spec.num_kv_heads, spec.num_heads // spec.num_kv_heads
    queries = (q * spec.scale).view(num_rows, num_queries, num_kv, shared, -1).permute(0, 2, 3, 1, 4)
    queries = queries.reshape(num_rows * num_kv, shared * num_queries, -1).to(k.dtype)
    scores = products.batched(queries, k.flatten(0, 1).transpose(1, 2))
    scores = scores.view(num_rows, num_kv, shared, num_queries, num_seen)
    if spec.softcap:
        scores = softcap(scores, spec.softcap)
    scores = scores.masked_fill(hidden[:, None, None], -math.inf)
    if sinks is not None:
        drains = sinks.view(1, num_kv, shared, 1, 1).expand(num_rows, -1, -1, num_queries, -1)
        scores = torch.cat([scores, drains], dim=-1)
    chances = torch.softmax(scores, dim=-1)[..., :num_seen].to(v.dtype)
    seen = products.batched(chances.reshape(num_rows * num_kv, shared * num_queries, num_seen), v.flatten(0, 1))
    heads = seen.view(num_rows, num_kv, shared, num_queries, -1).permute(0, 3, 1, 2, 4)
    return heads.reshape(num_rows, num_queries, -1)


def convolve(line: Tensor, kernel: Tensor) -> Tensor:
    """Causal, per channel: line (G, width - 1 + n, channels) to (G, n, channels); kernel (channels, width)."""
    width = kernel.shape[1]
    num_tokens = line.shape[1] - width + 1
    total = line[:, :num_tokens] * kernel[:, 0]
    for step in range(1, width):
        total = total + line[:, step : step + num_tokens] * kernel[:, step]
    return total


def route(logits: Tensor, spec: MoeSpec, choice_bias: Tensor | None) -> Tensor:
    """Router logits (T, experts) to chosen experts and weights (T, num_used, 2)."""
    scores = logits
    if spec.scoring != "softmax_chosen":
        scores = torch.softmax(logits, dim=-1) if spec.scoring == "softmax" else torch.sigmoid(logits)
    # stable, so that of equals the lower index comes first
    ranked = scores if choice_bias is None else scores + choice_bias
    if spec.num_groups > 1:
        ranked = ranked.masked_fill(~in_best_groups(ranked, spec), -math.inf)
    order = torch.sort(ranked, dim=-1, descending=True, stable=True)[1]
    chosen = order[:, : spec.num_used]
    weights = scores.gather(1, chosen)
    if spec.scoring == "softmax_chosen":
        weights = torch.softmax(weights, dim=-1)
    elif spec.normalize:
        weights = weights / weights.sum(dim=-1, keepdim=True)
    return torch.stack([chosen.float(), weights * spec.scale], dim=-1)


def in_best_groups(ranked: Tensor, spec: MoeSpec) -> Tensor:
    """(T, experts): whether an expert is of a group that may be chosen from; of equal groups the first."""
    groups = ranked.view(len(ranked), spec.num_groups, -1)
    worth = groups.topk(spec.group_best, dim=-1)[0].sum(dim=-1)
    best = torch.sort(worth, dim=-1, descending=True, stable=True)[1][:, : spec.num_used_groups]
    mask = torch.zeros_like(worth, dtype=torch.bool).scatter(1, best, True)
    return mask.repeat_interleave(groups.shape[2], dim=-1)
