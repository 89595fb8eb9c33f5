"""The formulas of backends/streams.py over tensors."""

from __future__ import annotations

import torch
from torch import Tensor

from localllm.backends.streams import LEAST_SQUARE


def add_streams(x: Tensor, y: Tensor, coefs: Tensor | None, size: int, plus: float, first: int) -> Tensor:
    streams, others = x.reshape(len(x), -1, size), y.reshape(len(y), -1, size)
    shape = (len(x), streams.shape[1], others.shape[1])
    factors = torch.full(shape, plus, device=x.device) if coefs is None else coefs.reshape(shape) + plus
    factors[:, :first] = 0
    return (streams + torch.bmm(factors, others)).view(x.shape)


def as_long_as(x: Tensor, y: Tensor) -> Tensor:
    runs = x.reshape(len(x), -1, y.shape[1])
    wanted = (y * y).mean(dim=-1).sqrt()[:, None, None]
    length = (runs * runs).mean(dim=-1, keepdim=True).clamp(min=LEAST_SQUARE).sqrt()
    return (runs * wanted / length).view(x.shape)


def cut_low(x: Tensor, spread: float) -> Tensor:
    border = x.mean(dim=-1, keepdim=True) + spread * x.std(dim=-1, keepdim=True, unbiased=False)
    return torch.relu(x - border)
