"""Mamba-2 in plain float64, as attention that forgets: every token asks every earlier one, and no state is kept."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from localllm.models.config import StateSpaceSpec

Doubles = NDArray[np.float64]


def state_space(x: Doubles, weights: Mapping[str, Doubles], prefix: str, spec: StateSpaceSpec, eps: float) -> Doubles:
    """A whole mixer: x (tokens, hidden) to the same."""
    gate, line, raw = (x @ weights[f"{prefix}ssm_{part}.weight"].T for part in ("gate", "in", "step"))
    kernel, bias = weights[prefix + "ssm_conv1d.weight"], weights[prefix + "ssm_conv1d.bias"]
    padded = np.concatenate([np.zeros((spec.kernel - 1, spec.channels)), line])
    mixed = silu(np.array([(padded[t : t + spec.kernel] * kernel.T).sum(axis=0) for t in range(len(x))]) + bias)
    steps = np.clip(np.log1p(np.exp(raw + weights[prefix + "ssm_dt.bias"])), *spec.step_limits)
    width = spec.num_groups * spec.state_dim
    heads = [
        head(
            mixed[:, h * spec.head_dim : (h + 1) * spec.head_dim],
            mixed[:, spec.inner + first : spec.inner + first + spec.state_dim],
            mixed[:, spec.inner + width + first : spec.inner + width + first + spec.state_dim],
            steps[:, h],
            weights[prefix + "ssm_a"][h],
            weights[prefix + "ssm_d"][h],
        )
        for h in range(spec.num_heads)
        for first in (h // (spec.num_heads // spec.num_groups) * spec.state_dim,)
    ]
    seen = np.concatenate(heads, axis=1) * silu(gate)
    if prefix + "ssm_norm.weight" in weights:
        runs = seen.reshape(len(x), spec.num_groups, -1)
        runs = runs / np.sqrt((runs**2).mean(axis=-1, keepdims=True) + eps)
        seen = runs.reshape(seen.shape) * weights[prefix + "ssm_norm.weight"]
    return np.asarray(seen @ weights[prefix + "ssm_out.weight"].T)


def head(values: Doubles, written: Doubles, read: Doubles, steps: Doubles, rate: float, skip: float) -> Doubles:
    out = values * skip
    for t in range(len(values)):
        for s in range(t + 1):
            left = np.exp(rate * steps[s + 1 : t + 1].sum())
            out[t] += left * steps[s] * (read[t] @ written[s]) * values[s]
    return out


def silu(x: Doubles) -> Doubles:
    return np.asarray(x / (1 + np.exp(-x)))
