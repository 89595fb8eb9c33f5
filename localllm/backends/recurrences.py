"""The recurrence of gated delta nets in numpy: token by token, so that how a row was cut changes no bit."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from localllm.models.config import DeltaNetSpec

Floats = NDArray[np.float32]
LENGTH_EPS = 1e-6
"""Added to the squared length of queries and keys, as in the checkpoints' own code."""


def delta_net(
    x: Floats, beta: Floats, decay: Floats, rate: Floats, bias: Floats, spec: DeltaNetSpec, state: Floats
) -> Floats:
    """One row, (n, heads * value_dim). `state` (heads, key_dim, value_dim) is changed in place; see Ops.delta_net."""
    queries, keys, values = heads_of(x, spec)
    kept = np.exp(rate * softplus(decay + bias), dtype=np.float32)[:, :, None, None]
    strength = np.float32(1) / (np.float32(1) + np.exp(-beta, dtype=np.float32))
    out = np.empty(values.shape, np.float32)
    for token, (query, key, value) in enumerate(zip(queries, keys, values, strict=True)):
        state *= kept[token]
        correction = (value - _read(state, key)) * strength[token][:, None]
        state += key[:, :, None] * correction[:, None, :]
        out[token] = _read(state, query)
    return out.reshape(len(x), -1)


def heads_of(x: Floats, spec: DeltaNetSpec) -> tuple[Floats, Floats, Floats]:
    """Queries and keys (n, value heads, key_dim) of length 1, queries over sqrt(key_dim); values."""
    width = spec.num_key_heads * spec.key_dim
    queries, keys, values = np.split(x, (width, 2 * width), axis=1)
    of_key_heads = (part.reshape(len(x), spec.num_key_heads, spec.key_dim) for part in (queries, keys))
    query, key = (shared(unit(part), spec) for part in of_key_heads)
    return query / np.float32(np.sqrt(spec.key_dim)), key, values.reshape(len(x), spec.num_value_heads, spec.value_dim)


def shared(heads: Floats, spec: DeltaNetSpec) -> Floats:
    """(n, key heads, key_dim) for each value head."""
    times = spec.num_value_heads // spec.num_key_heads
    return np.tile(heads, (1, times, 1)) if spec.tiled else np.repeat(heads, times, axis=1)


def unit(x: Floats) -> Floats:
    squares = np.sum(x * x, axis=-1, keepdims=True, dtype=np.float32)
    return np.asarray(x / np.sqrt(squares + np.float32(LENGTH_EPS)), np.float32)


def softplus(x: Floats) -> Floats:
    return np.logaddexp(x, np.float32(0), dtype=np.float32)


def _read(state: Floats, at: Floats) -> Floats:
    """Each head's vector (heads, key_dim) through its matrix: (heads, value_dim)."""
    return np.asarray((at[:, None, :] @ state)[:, 0], np.float32)
