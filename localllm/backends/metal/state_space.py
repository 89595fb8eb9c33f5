"""The recurrence of Mamba-2 as MLX graphs: the twin of backends/torch/state_space.py."""

from __future__ import annotations

import math

import mlx.core as mx

from localllm.models.config import StateSpaceSpec

STRETCH = 64
"""Tokens whose effects on each other are computed at once; the work for them grows with its square."""


def scan(
    x: mx.array,
    step: mx.array,
    rate: mx.array,
    bias: mx.array,
    skip: mx.array,
    spec: StateSpaceSpec,
    state: mx.array,
) -> tuple[mx.array, mx.array]:
    """Rows of equal length: x (G, n, channels), step (G, n, heads), state (G, heads, head_dim, state_dim); to
    (G, n, heads * head_dim), and the next state."""
    num_rows, num_tokens, _ = x.shape
    values, written, read = mx.split(x, [spec.inner, spec.inner + spec.num_groups * spec.state_dim], axis=2)
    values = values.reshape(num_rows, num_tokens, spec.num_heads, spec.head_dim)
    written, read = (part.reshape(num_rows, num_tokens, spec.num_groups, -1) for part in (written, read))
    low, high = spec.step_limits
    steps = mx.maximum(mx.logaddexp(step + bias, mx.array(0.0)), low)
    if high < math.inf:
        steps = mx.minimum(steps, high)
    outs = []
    for first in range(0, num_tokens, STRETCH):
        own = slice(first, first + STRETCH)
        out, state = _stretch(values[:, own], written[:, own], read[:, own], steps[:, own], rate, state)
        outs.append(out)
    together = mx.concatenate(outs, axis=1) + values * skip[:, None]
    return together.reshape(num_rows, num_tokens, spec.inner), state


def _stretch(
    values: mx.array, written: mx.array, read: mx.array, steps: mx.array, rate: mx.array, state: mx.array
) -> tuple[mx.array, mx.array]:
    shared = values.shape[2] // written.shape[2]
    total = mx.cumsum(steps * rate, axis=1).swapaxes(1, 2)  # (G, heads, n): logarithms of what is kept from the start
    written, read = (mx.repeat(part.swapaxes(1, 2), shared, axis=1) for part in (written, read))
    taken = (values * steps[..., None]).swapaxes(1, 2)  # (G, heads, n, head_dim)
    order = mx.arange(total.shape[2])
    ahead = order[None, :] > order[:, None]
    kept = mx.exp(mx.where(ahead, -mx.inf, total[..., :, None] - total[..., None, :]))
    out = ((read @ written.swapaxes(2, 3)) * kept) @ taken
    out = out + (read @ state.swapaxes(2, 3)) * mx.exp(total)[..., None]
    left = mx.exp(total[..., -1:] - total)
    state = state * mx.exp(total[..., -1:, None]) + (taken * left[..., None]).swapaxes(2, 3) @ written
    return out.swapaxes(1, 2), state
