"""Gated delta nets in plain float64: one token after another, one head at a time."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from localllm.models.config import DeltaNetSpec

Doubles = NDArray[np.float64]


def delta_net(x: Doubles, weights: Mapping[str, Doubles], prefix: str, spec: DeltaNetSpec, eps: float) -> Doubles:
    """From the block's input to what it adds, before its norm."""
    qkv, gate, beta, decay = (
        x @ weights[f"{prefix}{name}.weight"].T for name in ("attn_qkv", "attn_gate", "ssm_beta", "ssm_alpha")
    )
    mixed = silu(convolved(qkv, weights[prefix + "ssm_conv1d.weight"]))
    kept = np.exp(weights[prefix + "ssm_a"] * np.log1p(np.exp(decay + weights[prefix + "ssm_dt.bias"])))
    strength = 1 / (1 + np.exp(-beta))
    heads = [head(mixed, kept[:, index], strength[:, index], index, spec) for index in range(spec.num_value_heads)]
    normed = [out / np.sqrt((out * out).mean(axis=1, keepdims=True) + eps) for out in heads]
    weighed = np.concatenate([out * weights[prefix + "ssm_norm.weight"] for out in normed], axis=1)
    return np.asarray((weighed * silu(gate)) @ weights[prefix + "ssm_out.weight"].T)


def head(mixed: Doubles, kept: Doubles, strength: Doubles, index: int, spec: DeltaNetSpec) -> Doubles:
    """What one value head reads, (tokens, value_dim)."""
    shared = spec.num_value_heads // spec.num_key_heads
    of = index % spec.num_key_heads if spec.tiled else index // shared
    width = spec.num_key_heads * spec.key_dim
    matrix = np.zeros((spec.key_dim, spec.value_dim))
    outs = []
    for line, keeps, strong in zip(mixed, kept, strength, strict=True):
        query, key = (unit(line[first + of * spec.key_dim :][: spec.key_dim]) for first in (0, width))
        value = line[2 * width + index * spec.value_dim :][: spec.value_dim]
        matrix = matrix * keeps
        matrix = matrix + np.outer(key, (value - key @ matrix) * strong)
        outs.append(query @ matrix / np.sqrt(spec.key_dim))
    return np.array(outs)


def convolved(x: Doubles, kernel: Doubles) -> Doubles:
    """Each channel over the last tokens, before which there were zeros; kernel (channels, tokens)."""
    past = kernel.shape[1] - 1
    line = np.concatenate([np.zeros((past, x.shape[1])), x])
    return np.array([(line[at : at + past + 1] * kernel.T).sum(axis=0) for at in range(len(x))])


def silu(x: Doubles) -> Doubles:
    return np.asarray(x / (1 + np.exp(-x)))


def unit(x: Doubles) -> Doubles:
    return np.asarray(x / np.sqrt((x * x).sum() + 1e-6))
