"""Weights of the judge: in the blocks of their file, decoded to float32 when a verb uses them."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from localllm.backends.named import NamedWeights
from localllm.formats.blocks import BlockType, decode, row_bytes
from localllm.models.source import WeightInfo, WeightSource

Floats = NDArray[np.float32]
KEPT_DECODED_BYTES = 1 << 30


class Tensor:
    """A weight in the blocks of its file; decoded when used, or once where `keeps` says so."""

    def __init__(self, source: WeightSource, info: WeightInfo, keeps: bool) -> None:
        self.name = info.name
        self.shape = info.shape
        self._type = info.type
        self._raw = source.raw(info.name)
        self._keeps = keeps or len(info.shape) == 1
        self._decoded: Floats | None = None

    @property
    def size_bytes(self) -> int:
        return self._raw.nbytes

    def replace(self, kind: BlockType, blocks: NDArray[np.uint8]) -> None:
        """Other values of the same shape, from the next verb on: calibration rounds weights while they are in use."""
        self._type, self._raw, self._decoded = kind, blocks.reshape(-1), None

    @property
    def values(self) -> Floats:
        """All of it, float32."""
        if self._decoded is not None:
            return self._decoded
        values = decode(self._type, self._raw, self.shape)
        if self._keeps:
            self._decoded = values
        return values

    def rows(self, indices: NDArray[np.int32]) -> Floats:
        """Some rows of a matrix, (len(indices), in)."""
        blocks = self._raw.reshape(self.shape[0], row_bytes(self._type, self.shape[1]))[indices]
        return decode(self._type, blocks, (len(indices), self.shape[1]))

    def expert(self, index: int) -> Floats:
        """One expert's matrix of (experts, out, in)."""
        if self._keeps:
            return np.asarray(self.values[index])
        blocks = self._raw.reshape(self.shape[0], -1)[index]
        return decode(self._type, blocks, self.shape[1:])


class Tensors(NamedWeights[Tensor]):
    """Weights by canonical name; each is opened once."""

    def __init__(self, source: WeightSource, keeps: bool) -> None:
        infos = (source.info(name) for name in source.names())
        super().__init__({info.name: Tensor(source, info, keeps) for info in infos if info is not None})

    @property
    def size_bytes(self) -> int:
        return sum(tensor.size_bytes for tensor in self._weights.values())


def fits_decoded(source: WeightSource) -> bool:
    """Whether all weights as float32 take less than KEPT_DECODED_BYTES."""
    infos = (source.info(name) for name in source.names())
    return sum(4 * math.prod(info.shape) for info in infos if info is not None) <= KEPT_DECODED_BYTES
