"""The recurrence of gated delta nets as MLX graphs: the twin of backends/torch/recurrences.py."""

from __future__ import annotations

import math

import mlx.core as mx

from localllm.backends.recurrences import LENGTH_EPS
from localllm.models.config import DeltaNetSpec

STRETCH = 64
"""Tokens whose effects on each other are computed at once; the work for them grows with its square."""


def delta_net(
    x: mx.array, beta: mx.array, decay: mx.array, rate: mx.array, bias: mx.array, spec: DeltaNetSpec, state: mx.array
) -> tuple[mx.array, mx.array]:
    """Rows of equal length: x (G, n, channels), beta and decay (G, n, heads), state (G, heads, key_dim, value_dim); to
    (G, n, heads * value_dim), and the next state. See Ops.delta_net."""
    queries, keys, values = heads_of(x, spec)
    kept = (rate * mx.logaddexp(decay + bias, mx.array(0.0))).swapaxes(1, 2)
    strength = mx.sigmoid(beta).swapaxes(1, 2)[..., None]
    outs = []
    for first in range(0, x.shape[1], STRETCH):
        own = slice(first, first + STRETCH)
        of_heads = queries[:, :, own], keys[:, :, own], values[:, :, own]
        out, state = _stretch(*of_heads, kept[:, :, own], strength[:, :, own], state)
        outs.append(out)
    return mx.concatenate(outs, axis=2).swapaxes(1, 2).flatten(2), state


def _stretch(
    queries: mx.array, keys: mx.array, values: mx.array, kept: mx.array, strength: mx.array, state: mx.array
) -> tuple[mx.array, mx.array]:
    total = mx.cumsum(kept, axis=2)  # (G, heads, n): logarithms of what is kept from the start
    order = mx.arange(total.shape[2])
    later = order[None, :] > order[:, None]
    between = mx.exp(mx.where(later, -mx.inf, total[..., :, None] - total[..., None, :]))
    since = mx.exp(total)[..., None]
    said = mx.tril((keys @ keys.swapaxes(2, 3)) * between * strength, -1)
    wanted = (values - (keys @ state) * since) * strength
    corrections = inverse_of_unit(said) @ wanted
    out = (queries @ state) * since + ((queries @ keys.swapaxes(2, 3)) * between) @ corrections
    left = mx.exp(total[..., -1:] - total)[..., None]
    state = state * mx.exp(total[..., -1:, None]) + (keys * left).swapaxes(2, 3) @ corrections
    return out, state


def inverse_of_unit(below: mx.array) -> mx.array:
    """The inverse of 1 + below, for (..., n, n) below the diagonal: blocks of twice the size from pairs of blocks."""
    count, outer = below.shape[-1], below.shape[:-2]
    size = 1 << (count - 1).bit_length()
    plain = [(0, 0)] * len(outer)
    below = mx.pad(below, [*plain, (0, size - count), (0, size - count)])
    inverse = mx.ones((*outer, size, 1, 1))
    width = 1
    while width < size:
        blocks = below.reshape(*outer, size // width // 2, 2 * width, size // width // 2, 2 * width)
        corner = mx.moveaxis(mx.diagonal(blocks, 0, -4, -2), -1, -3)[..., width:, :width]
        upper, lower = inverse[..., 0::2, :, :], inverse[..., 1::2, :, :]
        left = mx.concatenate([upper, -lower @ corner @ upper], axis=-2)
        inverse = mx.concatenate([left, mx.pad(lower, [*plain, (0, 0), (width, 0), (0, 0)])], axis=-1)
        width *= 2
    return inverse[..., 0, :count, :count]


def heads_of(x: mx.array, spec: DeltaNetSpec) -> tuple[mx.array, mx.array, mx.array]:
    """Queries and keys (G, value heads, n, key_dim) of length 1, queries over sqrt(key_dim); values."""
    width = spec.num_key_heads * spec.key_dim
    queries, keys, values = (part.reshape(*x.shape[:2], -1, size) for part, size in _parts(x, width, spec))
    query, key = (shared(unit(part), spec) for part in (queries, keys))
    return (query / math.sqrt(spec.key_dim)).swapaxes(1, 2), key.swapaxes(1, 2), values.swapaxes(1, 2)


def _parts(x: mx.array, width: int, spec: DeltaNetSpec) -> list[tuple[mx.array, int]]:
    queries, keys, values = mx.split(x, [width, 2 * width], axis=2)
    return [(queries, spec.key_dim), (keys, spec.key_dim), (values, spec.value_dim)]


def shared(heads: mx.array, spec: DeltaNetSpec) -> mx.array:
    """(G, n, key heads, key_dim) for each value head."""
    times = spec.num_value_heads // spec.num_key_heads
    return mx.tile(heads, (1, 1, times, 1)) if spec.tiled else mx.repeat(heads, times, axis=2)


def unit(x: mx.array) -> mx.array:
    return x * mx.rsqrt((x * x).sum(axis=-1, keepdims=True) + LENGTH_EPS)
