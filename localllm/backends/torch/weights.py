"""Weights on the device: values of a type that torch multiplies in, or the blocks of the file, decoded when used."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from localllm.backends.named import NamedWeights
from localllm.backends.torch.blocks import FLOAT_TYPES, TORCH_DECODABLE, decode_rows
from localllm.backends.torch.library import free_bytes
from localllm.errors import BadModelFile, UnsupportedModel
from localllm.formats.blocks import BlockType, decode, row_bytes
from localllm.models.source import LOOKED_UP, WeightInfo, WeightSource

Compute = Literal["auto", "float32", "float16", "bfloat16"]
"""What matrices are multiplied in. `auto`: float32 on a processor and for float32 weights, else float16, which holds
more digits than bfloat16 and all weights that people train."""

EXACT = ("ffn_gate_inp.weight", "ffn_gate_inp_shexp.weight", "shortconv.conv.weight", "ssm_conv1d.weight", ".bias")
"""Names of small tensors that stay float32: a router that rounds chooses other experts."""

SHARE_FOR_DECODED = 0.5
"""Of the device's free memory: the other half is for pages of keys and values, and for what a step needs."""

VALUES_AT_ONCE = 1 << 25
"""How many values are decoded at once where weights stay in blocks."""


@dataclass(frozen=True, slots=True)
class Weight:
    """`store` holds values in `shape`, or, with a block `type`, bytes (rows, bytes of a row). A product with this
    matrix is computed in `product`."""

    name: str
    shape: tuple[int, ...]
    store: Tensor
    product: torch.dtype
    type: BlockType | None = None

    @property
    def values(self) -> Tensor:
        """All of a small tensor, float32."""
        return self.store.float() if self.type is None else decode_rows(self.type, self.store).view(self.shape)

    def rows(self, indices: Tensor) -> Tensor:
        """Some rows of a matrix, float32 (len(indices), in)."""
        chosen = self.store[indices]
        return chosen.float() if self.type is None else decode_rows(self.type, chosen)

    def parts(self) -> Iterator[Tensor]:
        """The matrix, in the type of its products, in runs of rows (some, in) that are small where it is decoded."""
        if self.store.dtype == self.product:
            yield self.store
            return
        rows, columns = self.shape
        step = max(1, VALUES_AT_ONCE // columns)
        for first in range(0, rows, step):
            part = self.store[first : first + step]
            yield (part if self.type is None else decode_rows(self.type, part)).to(self.product)

    def experts(self, indices: NDArray[np.int64]) -> Tensor:
        """The matrices (len(indices), out, in) of rising experts, in the type of their products."""
        count, rows, columns = self.shape
        whole = self.store.view(count, rows, -1)
        if len(indices) == 1:
            whole = whole[int(indices[0])][None]  # a view: most often there is nothing to copy
        elif len(indices) < count:
            whole = whole[torch.from_numpy(indices).to(whole.device)]
        if self.type is None:
            return whole.to(self.product)
        values = decode_rows(self.type, whole.reshape(len(indices) * rows, -1)).to(self.product)
        return values.view(len(indices), rows, columns)


@dataclass(frozen=True, slots=True)
class Table(Weight):
    """Rows that are only looked up: their blocks stay where they are, on the host, and are decoded when used.

    `store` is on the device, and empty.
    """

    blocks: NDArray[np.uint8] = field(kw_only=True)
    kind: BlockType = field(kw_only=True)

    def rows(self, indices: Tensor) -> Tensor:
        chosen = np.asarray(self.blocks[indices.cpu().numpy()])
        return torch.from_numpy(decode(self.kind, chosen, (len(chosen), self.shape[1]))).to(self.store.device)


class Weights(NamedWeights[Weight]):
    """All weights of a source, loaded when this is made; `notes` say what a person should know of how they are kept.

    `keep_decoded` None: decoded once where that takes less than SHARE_FOR_DECODED of the free memory. Raises
    UnsupportedModel for a block type without a decoder, BadModelFile where bytes and shape do not agree.
    """

    def __init__(self, source: WeightSource, device: torch.device, compute: Compute, keep_decoded: bool | None) -> None:
        self._source, self._device, self._compute = source, device, compute
        infos = [info for name in source.names() if (info := source.info(name)) is not None]
        moved = (info for info in infos if info.name not in LOOKED_UP)
        decoded, free = sum(map(self._decoded_bytes, moved)), free_bytes(device)
        self._keeps_decoded = decoded < SHARE_FOR_DECODED * free if keep_decoded is None else keep_decoded
        super().__init__({info.name: self._load(info) for info in infos})
        self.notes = self._describe(decoded, free)

    @property
    def size_bytes(self) -> int:
        return sum(weight.store.nbytes for weight in self._weights.values())

    @property
    def in_halves(self) -> bool:
        """Some product is computed in 16 bits."""
        return any(weight.product != torch.float32 for weight in self._weights.values())

    def _describe(self, decoded: int, free: int) -> tuple[str, ...]:
        if all(weight.store.dtype == weight.product for weight in self._weights.values()):
            return ()
        amounts = f"{decoded / 1e9:.1f} GB of {free / 1e9:.1f} GB that were free"
        return (f"weights stay as in the file and are decoded at every use, which is slower; decoded: {amounts}",)

    def _product_type(self, info: WeightInfo) -> torch.dtype:
        if len(info.shape) == 1 or info.name.endswith(EXACT):
            return torch.float32
        if self._compute != "auto":
            return {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}[self._compute]
        is_exact = self._device.type == "cpu" or info.type is BlockType.F32
        return torch.float32 if is_exact else torch.float16

    def _decoded_bytes(self, info: WeightInfo) -> int:
        return math.prod(info.shape) * self._product_type(info).itemsize

    def _load(self, info: WeightInfo) -> Weight:
        if info.type not in TORCH_DECODABLE:
            raise UnsupportedModel(
                f"block type {info.type.name} cannot be decoded by this build",
                hint="choose another quantization of the model, for example Q4_K_M or Q8_0",
            )
        blocks, product = self._blocks(info), self._product_type(info)
        if info.name in LOOKED_UP:
            nothing = torch.empty(0, dtype=product, device=self._device)
            return Table(info.name, info.shape, nothing, product, blocks=blocks, kind=info.type)
        weight = self._decoded(info, blocks, product) if self._is_decoded(info, product) else None
        if weight is None:
            weight = self._kept(info, blocks, product)
        self._source.release(info.name)
        return weight

    def _is_decoded(self, info: WeightInfo, product: torch.dtype) -> bool:
        """Small tensors are, and those that do not grow by it."""
        own = FLOAT_TYPES.get(info.type)
        is_small = len(info.shape) == 1 or info.name.endswith(EXACT)
        return self._keeps_decoded or is_small or (own is not None and product.itemsize <= own.itemsize)

    def _decoded(self, info: WeightInfo, blocks: NDArray[np.uint8], product: torch.dtype) -> Weight:
        rows, columns = len(blocks), info.shape[-1]
        store = torch.empty((rows, columns), dtype=product, device=self._device)
        step = max(1, VALUES_AT_ONCE // columns)
        for first in range(0, rows, step):
            store[first : first + step] = decode_rows(info.type, self._uploaded(blocks[first : first + step]))
        if product == torch.float16 and not torch.isfinite(store).all():
            return self._decoded(info, blocks, torch.float32)  # the one tensor that float16 does not hold
        return Weight(info.name, info.shape, store.view(info.shape), product)

    def _kept(self, info: WeightInfo, blocks: NDArray[np.uint8], product: torch.dtype) -> Weight:
        store = self._uploaded(blocks)
        own = FLOAT_TYPES.get(info.type)
        if own is None:
            return Weight(info.name, info.shape, store, product, info.type)
        return Weight(info.name, info.shape, store.view(own).view(info.shape), product)

    def _blocks(self, info: WeightInfo) -> NDArray[np.uint8]:
        """(rows, bytes of a row)"""
        raw, rows = self._source.raw(info.name), math.prod(info.shape[:-1])
        size = row_bytes(info.type, info.shape[-1])
        if raw.size != rows * size:
            raise BadModelFile(f"the tensor {info.name} has {raw.size} bytes, its shape asks for {rows * size}")
        return raw.reshape(rows, size)

    def _uploaded(self, blocks: NDArray[np.uint8]) -> Tensor:
        # a copy first: torch takes no array that may not be written, as views of a file are
        return torch.from_numpy(np.array(blocks)).to(self._device)
