"""x @ weight.T with float32 in and out, whatever the weight is kept in."""

from __future__ import annotations

import torch
from torch import Tensor

from localllm.backends.torch.weights import Weight
from localllm.errors import BadModelFile


class Products:
    """How this device multiplies; made once, as it tries out what the device can do."""

    def __init__(self, device: torch.device) -> None:
        self._widens = device.type == "cuda" and can_widen(device)

    def linear(self, x: Tensor, weight: Weight, bias: Weight | None, *, is_bounded: bool) -> Tensor:
        """x (T, in) to (T, out). `is_bounded`: x comes from a norm, so that its values fit float16."""
        check_width(x, weight)
        if not len(x):  # logits that nobody wants: the largest matrix need not be decoded
            return x.new_empty((0, weight.shape[0]))
        narrow, factor = narrowed(x, weight.product, is_bounded)
        parts = [self._times(narrow, part) for part in weight.parts()]
        product = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
        if factor is not None:
            product = product * factor
        return product if bias is None else product + bias.values

    def each(self, x: Tensor, matrices: Tensor) -> Tensor:
        """x float32 (n, rows, in) with matrices (n, out, in) of any type: (n, rows, out)."""
        narrow, factor = narrowed(x, matrices.dtype, is_bounded=False)
        product = self.batched(narrow, matrices.transpose(1, 2))
        return product if factor is None else product * factor

    def batched(self, x: Tensor, y: Tensor) -> Tensor:
        """x (n, a, b) @ y (n, b, c), both of one type, to float32."""
        if self._widens and x.dtype != torch.float32:
            return torch.bmm(x, y, out_dtype=torch.float32)
        return torch.bmm(x, y).float()

    def _times(self, x: Tensor, matrix: Tensor) -> Tensor:
        if self._widens and x.dtype != torch.float32:
            return torch.mm(x, matrix.t(), out_dtype=torch.float32)
        return (x @ matrix.t()).float()


def narrowed(x: Tensor, dtype: torch.dtype, is_bounded: bool) -> tuple[Tensor, Tensor | None]:
    """x in the type of a product, and what its rows were divided by: float16 ends at 65504, and what a gate lets
    through may be larger."""
    if dtype != torch.float16 or is_bounded:
        return x.to(dtype), None
    factor = x.abs().amax(dim=-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
    return (x / factor).to(dtype), factor


def check_width(x: Tensor, weight: Weight) -> None:
    if x.shape[-1] != weight.shape[-1]:
        raise BadModelFile(f"the tensor {weight.name} is {weight.shape[-1]} wide, the model needs {x.shape[-1]}")


def can_widen(device: torch.device) -> bool:
    """Whether products of 16-bit numbers can be had as float32, without rounding in between."""
    ones = torch.ones((1, 16, 16), dtype=torch.float16, device=device)
    try:
        both = torch.mm(ones[0], ones[0], out_dtype=torch.float32), torch.bmm(ones, ones, out_dtype=torch.float32)
    except (RuntimeError, TypeError):  # an older torch, or a maker's port without it
        return False
    return all(product.dtype == torch.float32 and bool((product == 16).all()) for product in both)
