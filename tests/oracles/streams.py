"""Several streams of hidden states in plain float64, a stream at a time, as the models' authors write it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from tests.oracles.plain import Plain

Doubles = NDArray[np.float64]


def hidden(plain: Plain, x: Doubles, own: Doubles) -> Doubles:
    """Through all layers; own (tokens, layers, inputs)."""
    count = plain.config.streams
    streams = [x, *(as_long_as(x @ matrix.T, x) for matrix in plain.weights["altup_proj.weight"])]
    for index in range(len(plain.config.layers)):
        streams = layer(plain, streams, own[:, index], index)
    backwards = plain.weights["altup_unembd_proj.weight"]
    made = [as_long_as(streams[n] @ backwards[n - 1].T, streams[0]) for n in range(1, count)]
    return np.asarray((streams[0] + sum(made)) / count)


def layer(plain: Plain, streams: list[Doubles], own: Doubles, index: int) -> list[Doubles]:
    prefix, count = f"blk.{index}.", plain.config.streams
    coefs = routed(plain, streams[0], prefix) @ plain.weights[prefix + "altup_predict_coef.weight"].T
    guessed = [streams[n] + sum(streams[m] * coefs[:, [n * count + m]] for m in range(count)) for n in range(count)]
    computed = plain.layer(guessed[0], prefix, plain.config.layers[index])
    coefs = routed(plain, computed, prefix) @ plain.weights[prefix + "altup_correct_coef.weight"].T
    corrected = [guessed[n] + (computed - guessed[0]) * (coefs[:, [n]] + 1) for n in range(count)]
    first = corrected[0] * plain.weights[prefix + "altup_correct_scale.weight"]
    taken = plain.take_in(first, own, prefix) - first
    return [corrected[0], *(stream + taken for stream in corrected[1:])]


def routed(plain: Plain, x: Doubles, prefix: str) -> Doubles:
    normed = plain.norm(x, prefix + "altup_router_norm") / plain.config.hidden_size
    return np.tanh(normed @ plain.weights[prefix + "altup_router.weight"].T)


def detour(plain: Plain, normed: Doubles, prefix: str) -> Doubles:
    low = normed @ plain.weights[prefix + "laurel_l.weight"].T @ plain.weights[prefix + "laurel_r.weight"].T
    return normed + plain.norm(low, prefix + "laurel_post_norm")


def as_long_as(x: Doubles, y: Doubles) -> Doubles:
    length = np.sqrt(np.maximum((x**2).mean(axis=1, keepdims=True), 1e-5))
    return np.asarray(x * np.sqrt((y**2).mean(axis=1, keepdims=True)) / length)


def cut_low(x: Doubles, spread: float) -> Doubles:
    return np.maximum(x - x.mean(axis=1, keepdims=True) - spread * x.std(axis=1, keepdims=True), 0)
