"""The formulas of backends/streams.py as MLX graphs."""

from __future__ import annotations

import mlx.core as mx

from localllm.backends.streams import LEAST_SQUARE


def add_streams(x: mx.array, y: mx.array, coefs: mx.array | None, size: int, plus: float, first: int) -> mx.array:
    num_tokens = x.shape[0]
    streams, others = x.reshape(num_tokens, -1, size), y.reshape(num_tokens, -1, size)
    shape = (num_tokens, streams.shape[1], others.shape[1])
    factors = mx.full(shape, plus) if coefs is None else coefs.reshape(shape) + plus
    is_added_to = (mx.arange(shape[1]) >= first)[None, :, None]
    return (streams + mx.where(is_added_to, factors, 0.0) @ others).reshape(x.shape)


def as_long_as(x: mx.array, y: mx.array) -> mx.array:
    runs = x.reshape(x.shape[0], -1, y.shape[1])
    wanted = mx.sqrt((y * y).mean(axis=-1))[:, None, None]
    length = mx.sqrt(mx.maximum((runs * runs).mean(axis=-1, keepdims=True), LEAST_SQUARE))
    return (runs * wanted / length).reshape(x.shape)


def cut_low(x: mx.array, spread: float) -> mx.array:
    border = x.mean(axis=-1, keepdims=True) + spread * mx.sqrt(x.var(axis=-1, keepdims=True))
    return mx.maximum(x - border, 0)
