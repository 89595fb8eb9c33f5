"""Formulas of rows that hold several streams side by side, and of gates that are cut, in plain numpy float32."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
LEAST_SQUARE = 1e-5
"""Of a stream that is made longer."""


def add_streams(x: Floats, y: Floats, coefs: Floats | None, size: int, plus: float, first: int) -> Floats:
    """To each of the N streams of x, from `first` on, the M of y times coefs (T, N * M) + plus."""
    streams, others = x.reshape(len(x), -1, size), y.reshape(len(y), -1, size)
    shape = (len(x), streams.shape[1], others.shape[1])
    factors = np.float32(plus) + (np.zeros(shape, np.float32) if coefs is None else coefs.reshape(shape))
    factors[:, :first] = 0
    return np.asarray(streams + np.einsum("tnm,tms->tns", factors, others), np.float32).reshape(x.shape)


def as_long_as(x: Floats, y: Floats) -> Floats:
    """Runs of x as wide as y with the root of y's mean square."""
    runs = x.reshape(len(x), -1, y.shape[1])
    wanted = np.sqrt(np.mean(y * y, axis=-1, dtype=np.float32))[:, None, None]
    length = np.sqrt(np.maximum(np.mean(runs * runs, axis=-1, keepdims=True, dtype=np.float32), LEAST_SQUARE))
    return np.asarray(runs * wanted / length, np.float32).reshape(x.shape)


def cut_low(x: Floats, spread: float) -> Floats:
    """What is above a row's mean by `spread` standard deviations, less that border."""
    mean = x.mean(axis=-1, keepdims=True, dtype=np.float32)
    border = mean + np.float32(spread) * np.sqrt(np.mean((x - mean) ** 2, axis=-1, keepdims=True, dtype=np.float32))
    return np.asarray(np.maximum(x - border, 0), np.float32)
