"""Rotary frequencies and their cosines and sines, for every kind of scaling. Computed in float64 once, at load."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from localllm.models.config import PositionGrowth, RopeScaling, RopeSpec

Doubles = NDArray[np.float64]
Floats = NDArray[np.float32]


def rope_tables(spec: RopeSpec, positions: NDArray[np.integer], context_length: int) -> tuple[Floats, Floats]:
    """cos and sin, float32 (len(positions), dims / 2), with the attention factor of the scaling multiplied in.

    With j = i + dims / 2, x[i] becomes x[i] * cos[i] - x[j] * sin[i], and x[j] becomes x[j] * cos[i] + x[i] * sin[i].
    `context_length` is how long a sequence may become, in tokens.
    """
    frequencies, factor = rope_frequencies(spec, context_length)
    angles = positions.astype(np.float64)[:, None] * frequencies
    length: Doubles | float = factor if spec.growth is None else factor * grown(spec.growth, positions)[:, None]
    return (np.cos(angles) * length).astype(np.float32), (np.sin(angles) * length).astype(np.float32)


def grown(growth: PositionGrowth, positions: NDArray[np.integer]) -> Doubles:
    """The factor of each position."""
    factors: Doubles = 1 + growth.beta * np.log1p(positions // growth.every)
    return factors


def rope_frequencies(spec: RopeSpec, context_length: int) -> tuple[Doubles, float]:
    """Radians per position (dims / 2,), and the factor on cos and sin."""
    plain = spec.base ** (-np.arange(0, spec.dims, 2, dtype=np.float64) / spec.dims)
    scaling = spec.scaling
    if scaling is None:
        return plain, 1.0
    if scaling.kind == "linear":
        return plain / scaling.factor, 1.0
    if scaling.kind == "factors":
        return plain / np.array(scaling.short_factors, np.float64), 1.0
    if scaling.kind == "llama3":
        return _llama3(plain, scaling), 1.0
    if scaling.kind == "yarn":
        return _yarn(plain, spec, scaling), scaling.attention_factor or _yarn_factor(scaling.factor)
    is_long = context_length > scaling.original_context
    factors = np.array(scaling.long_factors if is_long else scaling.short_factors, np.float64)
    return plain / factors, scaling.attention_factor or _longrope_factor(scaling)


def _llama3(plain: Doubles, scaling: RopeScaling) -> Doubles:
    """Long wavelengths are divided by the factor, short ones stay, those between are blended (Llama 3.1)."""
    turns = scaling.original_context * plain / (2 * math.pi)  # in the original context
    span = scaling.high_freq_factor - scaling.low_freq_factor
    kept: Doubles = np.clip((turns - scaling.low_freq_factor) / span, 0.0, 1.0)
    return plain * kept + plain / scaling.factor * (1 - kept)


def _yarn(plain: Doubles, spec: RopeSpec, scaling: RopeScaling) -> Doubles:
    """Dimensions that turn often stay, those that turn seldom are divided by the factor (Peng et al. 2023, 3.2)."""

    def dimension(turns: float) -> float:
        return spec.dims * math.log(scaling.original_context / (turns * 2 * math.pi)) / (2 * math.log(spec.base))

    first, last = dimension(scaling.beta_fast), dimension(scaling.beta_slow)
    if scaling.truncate:
        first, last = math.floor(first), math.ceil(last)
    low, high = max(first, 0), min(last, spec.dims - 1)
    ramp = (np.arange(spec.dims // 2, dtype=np.float64) - low) / max(high - low, 0.001)
    divided: Doubles = np.clip(ramp, 0.0, 1.0)
    return plain * (1 - divided) + plain / scaling.factor * divided


def _yarn_factor(factor: float) -> float:
    return 0.1 * math.log(factor) + 1.0 if factor > 1 else 1.0


def _longrope_factor(scaling: RopeScaling) -> float:
    if scaling.factor <= 1 or scaling.original_context <= 1:
        return 1.0
    return math.sqrt(1 + math.log(scaling.factor) / math.log(scaling.original_context))
