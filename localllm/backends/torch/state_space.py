"""The recurrence of Mamba-2 over tensors: matrix products within a stretch of tokens, a state from one to the next.

Source: Dao and Gu, Transformers are SSMs, 2024, section 6. A lone token is a stretch like any other.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from localllm.models.config import StateSpaceSpec

STRETCH = 64
"""Tokens whose effects on each other are computed at once; the work for them grows with its square."""


def scan(
    x: Tensor, step: Tensor, rate: Tensor, bias: Tensor, skip: Tensor, spec: StateSpaceSpec, state: Tensor
) -> tuple[Tensor, Tensor]:
    """Rows of equal length: x (G, n, channels), step (G, n, heads), state (G, heads, head_dim, state_dim); to
    (G, n, heads * head_dim), and the next state."""
    num_rows, num_tokens, _ = x.shape
    width = spec.num_groups * spec.state_dim
    values, written, read = torch.split(x, [spec.inner, width, width], dim=2)
    values = values.reshape(num_rows, num_tokens, spec.num_heads, spec.head_dim)
    written, read = (part.reshape(num_rows, num_tokens, spec.num_groups, -1) for part in (written, read))
    steps = functional.softplus(step + bias, threshold=math.inf).clamp(*spec.step_limits)
    outs = []
    for first in range(0, num_tokens, STRETCH):
        own = slice(first, first + STRETCH)
        out, state = _stretch(values[:, own], written[:, own], read[:, own], steps[:, own], rate, state)
        outs.append(out)
    together = torch.cat(outs, dim=1) + values * skip[:, None]
    return together.reshape(num_rows, num_tokens, spec.inner), state


def _stretch(
    values: Tensor, written: Tensor, read: Tensor, steps: Tensor, rate: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    shared = values.shape[2] // written.shape[2]
    total = (steps * rate).cumsum(dim=1).transpose(1, 2)  # (G, heads, n): logarithms of what is kept from the start
    written, read = (part.transpose(1, 2).repeat_interleave(shared, dim=1) for part in (written, read))
    taken = (values * steps[..., None]).transpose(1, 2)  # (G, heads, n, head_dim)
    ahead = torch.ones(total.shape[2], total.shape[2], dtype=torch.bool, device=total.device).triu(1)
    kept = (total[..., :, None] - total[..., None, :]).masked_fill(ahead, -math.inf).exp()
    out = ((read @ written.transpose(2, 3)) * kept) @ taken
    out = out + (read @ state.transpose(2, 3)) * total.exp()[..., None]
    left = (total[..., -1:] - total).exp()
    state = state * total[..., -1:, None].exp() + (taken * left[..., None]).transpose(2, 3) @ written
    return out.transpose(1, 2), state
