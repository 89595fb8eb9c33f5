"""The recurrence of gated delta nets over tensors: within a stretch of tokens as products of matrices, from stretch to
stretch as a state.

Source: Yang et al., Gated Delta Networks, 2024, section 3. A lone token is a stretch like any other.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from localllm.backends.recurrences import LENGTH_EPS
from localllm.models.config import DeltaNetSpec

STRETCH = 64
"""Tokens whose effects on each other are computed at once; the work for them grows with its square."""


def delta_net(
    x: Tensor, beta: Tensor, decay: Tensor, rate: Tensor, bias: Tensor, spec: DeltaNetSpec, state: Tensor
) -> tuple[Tensor, Tensor]:
    """Rows of equal length: x (G, n, channels), beta and decay (G, n, heads), state (G, heads, key_dim, value_dim); to
    (G, n, heads * value_dim), and the next state. See Ops.delta_net."""
    queries, keys, values = heads_of(x, spec)
    kept = (rate * functional.softplus(decay + bias, threshold=math.inf)).transpose(1, 2)
    strength = torch.sigmoid(beta).transpose(1, 2)[..., None]
    outs = []
    for first in range(0, x.shape[1], STRETCH):
        own = slice(first, first + STRETCH)
        of_heads = queries[:, :, own], keys[:, :, own], values[:, :, own]
        out, state = _stretch(*of_heads, kept[:, :, own], strength[:, :, own], state)
        outs.append(out)
    return torch.cat(outs, dim=2).transpose(1, 2).flatten(2), state


def _stretch(
    queries: Tensor, keys: Tensor, values: Tensor, kept: Tensor, strength: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """Each token corrects what the state and the tokens before it say of its key: those corrections solve a triangular
    system, and are then written and read all at once."""
    total = kept.cumsum(dim=2)  # (G, heads, n): logarithms of what is kept from the start
    count = total.shape[2]
    later = torch.ones(count, count, dtype=torch.bool, device=total.device).triu(1)
    between = (total[..., :, None] - total[..., None, :]).masked_fill(later, -math.inf).exp()
    since = total.exp()[..., None]
    said = ((keys @ keys.transpose(2, 3)) * between * strength).tril(-1)
    wanted = (values - (keys @ state) * since) * strength
    corrections = inverse_of_unit(said) @ wanted
    out = (queries @ state) * since + ((queries @ keys.transpose(2, 3)) * between) @ corrections
    left = (total[..., -1:] - total).exp()[..., None]
    state = state * total[..., -1:, None].exp() + (keys * left).transpose(2, 3) @ corrections
    return out, state


def inverse_of_unit(below: Tensor) -> Tensor:
    """The inverse of 1 + below, for (..., n, n) below the diagonal: blocks of twice the size from pairs of blocks."""
    count = below.shape[-1]
    size = 1 << (count - 1).bit_length()
    below = functional.pad(below, (0, size - count, 0, size - count))
    inverse = below.new_ones((*below.shape[:-2], size, 1, 1))
    width = 1
    while width < size:
        pairs = size // width // 2
        blocks = below.view(*below.shape[:-2], pairs, 2 * width, pairs, 2 * width)
        corner = blocks.diagonal(dim1=-4, dim2=-2).movedim(-1, -3)[..., width:, :width]
        upper, lower = inverse[..., 0::2, :, :], inverse[..., 1::2, :, :]
        left = torch.cat([upper, -lower @ corner @ upper], dim=-2)
        inverse = torch.cat([left, functional.pad(lower, (0, 0, width, 0))], dim=-1)
        width *= 2
    return inverse[..., 0, :count, :count]


def heads_of(x: Tensor, spec: DeltaNetSpec) -> tuple[Tensor, Tensor, Tensor]:
    """Queries and keys (G, value heads, n, key_dim) of length 1, queries over sqrt(key_dim); values."""
    width = spec.num_key_heads * spec.key_dim
    queries, keys, values = x[..., :width], x[..., width : 2 * width], x[..., 2 * width :]
    query, key = (shared(unit(part.reshape(*x.shape[:2], -1, spec.key_dim)), spec) for part in (queries, keys))
    value = values.reshape(*x.shape[:2], -1, spec.value_dim)
    return (query * spec.key_dim**-0.5).transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)


def shared(heads: Tensor, spec: DeltaNetSpec) -> Tensor:
    """(G, n, key heads, key_dim) for each value head."""
    times = spec.num_value_heads // spec.num_key_heads
    return heads.repeat(1, 1, times, 1) if spec.tiled else heads.repeat_interleave(times, dim=2)


def unit(x: Tensor) -> Tensor:
    return x * torch.rsqrt((x * x).sum(dim=-1, keepdim=True) + LENGTH_EPS)
