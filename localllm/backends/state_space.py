"""The recurrence of Mamba-2 in plain numpy float32, token by token: how a prompt is cut changes no bit.

Source: Dao and Gu, Transformers are SSMs, 2024, in its recurrent form.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from localllm.models.config import StateSpaceSpec

Floats = NDArray[np.float32]


def scan(
    x: Floats, step: Floats, rate: Floats, bias: Floats, skip: Floats, spec: StateSpaceSpec, state: Floats
) -> Floats:
    """The verb `state_space` for one row: x (n, channels), step (n, heads), state (heads, head_dim, state_dim), which
    becomes that of after the last token; rate, bias and skip (heads,). To (n, heads * head_dim)."""
    values, written, read = parts_of(x, spec)
    steps = steps_of(step, bias, spec)
    kept = np.exp(steps * rate)  # (n, heads)
    out = np.empty_like(values)
    for token in range(len(x)):
        state *= kept[token, :, None, None]
        state += (values[token] * steps[token, :, None])[:, :, None] * written[token, :, None]
        out[token] = (state * read[token, :, None]).sum(axis=-1, dtype=np.float32)
    out += values * skip[:, None]
    return out.reshape(len(x), spec.inner)


def steps_of(step: Floats, bias: Floats, spec: StateSpaceSpec) -> Floats:
    """softplus within its limits, (n, heads)."""
    return np.asarray(np.clip(np.logaddexp(np.float32(0), step + bias), *spec.step_limits), np.float32)


def parts_of(x: Floats, spec: StateSpaceSpec) -> tuple[Floats, Floats, Floats]:
    """Each head's values (n, heads, head_dim), and what its group writes and reads (n, heads, state_dim)."""
    width = spec.num_groups * spec.state_dim
    values, written, read = np.split(x, [spec.inner, spec.inner + width], axis=1)
    shared = spec.num_heads // spec.num_groups
    grouped = (part.reshape(len(x), spec.num_groups, spec.state_dim) for part in (written, read))
    to_heads = [np.repeat(part, shared, axis=1) for part in grouped]
    return values.reshape(len(x), spec.num_heads, spec.head_dim), to_heads[0], to_heads[1]
