"""Weights of a safetensors checkpoint as the decoder expects them: renamed, split, stacked, transposed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from localllm.errors import BadModelFile, UnsupportedModel
from localllm.formats.blocks import BlockType
from localllm.models.config import AttentionSpec, ModelConfig
from localllm.models.names import Piece
from localllm.models.source import WeightInfo

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]

_TYPES: Mapping[str, BlockType] = {
    "F32": BlockType.F32,
    "F64": BlockType.F32,
    "F16": BlockType.F16,
    "BF16": BlockType.BF16,
}
_MXFP4_BLOCK = 32


class TensorInfo(Protocol):
    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> str: ...


class TensorFolder(Protocol):
    """What we need of a checkpoint (formats.safetensors.SafetensorsFolder is one)."""

    @property
    def config(self) -> Mapping[str, Any]: ...

    @property
    def tensors(self) -> Mapping[str, TensorInfo]: ...

    def array(self, name: str) -> NDArray[Any]: ...

    def as_float32(self, name: str) -> Floats: ...

    def release(self, name: str) -> None: ...


class HFSource:
    """A WeightSource over an open checkpoint. Cheap to make: values move only when `raw` is called.

    `adds_one`: norms are kept less one. Vectors become float32, matrices keep their type.
    """

    def __init__(
        self,
        folder: TensorFolder,
        pieces: Mapping[str, list[Piece]],
        config: ModelConfig,
        adds_one: bool,
    ) -> None:
        self._folder, self._pieces, self._config, self._adds_one = folder, pieces, config, adds_one
        self._infos = {name: self._describe(name) for name in pieces}

    def names(self) -> Iterable[str]:
        return self._infos

    def info(self, name: str) -> WeightInfo | None:
        return self._infos.get(name)

    def raw(self, name: str) -> Bytes:
        pieces, info = self._pieces[name], self._infos[name]
        if len(pieces) == 1:
            return self._bytes(pieces[0], info)
        return np.concatenate([self._bytes(piece, info) for piece in pieces])

    def release(self, name: str) -> None:
        for piece in self._pieces[name]:
            self._folder.release(piece.tensor)

    def _describe(self, name: str) -> WeightInfo:
        pieces = self._pieces[name]
        shapes = {self._shape(piece, name) for piece in pieces}
        types = {self._type(piece, name) for piece in pieces}
        if len(shapes) > 1 or len(types) > 1:
            raise BadModelFile(f"the tensors that make {name} differ in shape or type ({pieces[0].tensor} and others)")
        (shape,), (block_type,) = shapes, types
        if name.endswith("_exps.weight") and len(shape) == 2:
            orders = [piece.order for piece in pieces]
            if orders != list(range(len(pieces))):
                missing = next(index for index in range(len(orders) + 1) if index not in orders)
                raise BadModelFile(f"the model lacks expert {missing} of {name}")
            shape = (len(pieces), *shape)
        elif len(pieces) > 1:
            raise BadModelFile(f"{pieces[0].tensor} and {pieces[1].tensor} are both {name}")
        return WeightInfo(name, shape, BlockType.F32 if len(shape) == 1 else block_type)

    def _type(self, piece: Piece, name: str) -> BlockType:
        if piece.scales:
            return BlockType.MXFP4
        dtype = self._folder.tensors[piece.tensor].dtype
        if dtype not in _TYPES:
            raise UnsupportedModel(
                f"{piece.tensor} has the type {dtype}, which this build cannot run",
                hint="take the original weights, or a GGUF version",
            )
        return _TYPES[dtype]

    def _shape(self, piece: Piece, name: str) -> tuple[int, ...]:
        shape = self._folder.tensors[piece.tensor].shape
        if piece.scales:
            shape = self._mxfp4_shape(piece)
        if piece.transposed and len(shape) > 1:
            shape = (*shape[:-2], shape[-1], shape[-2])
        if name.endswith("shortconv.conv.weight") and len(shape) == 3 and shape[1] == 1:
            shape = (shape[0], shape[2])
        axis = _row_axis(name, shape)
        rows = len(range(shape[axis])[self._rows(piece, name, shape[axis])]) if shape else 0
        return tuple(rows if index == axis % max(len(shape), 1) else size for index, size in enumerate(shape))

    def _mxfp4_shape(self, piece: Piece) -> tuple[int, ...]:
        blocks, scales = self._folder.tensors[piece.tensor], self._folder.tensors.get(piece.scales)
        if scales is None:
            raise BadModelFile(f"the model lacks the tensor {piece.scales}")
        right = len(blocks.shape) == 4 and blocks.shape[-1] == _MXFP4_BLOCK // 2 and scales.shape == blocks.shape[:-1]
        if not right or (blocks.dtype, scales.dtype) != ("U8", "U8"):
            raise BadModelFile(f"{piece.tensor} and {piece.scales} are not MXFP4 blocks and their exponents")
        return (*blocks.shape[:2], blocks.shape[2] * _MXFP4_BLOCK)

    def _rows(self, piece: Piece, name: str, count: int) -> slice:
        """Which rows of the tensor the piece is."""
        half = count // 2
        if piece.cut in ("q", "k", "v"):
            return self._head_rows(piece, name, count)
        if piece.cut and count % 2:
            raise BadModelFile(f"{piece.tensor} has {count} rows, which are no two equal halves")
        return {
            "": slice(None),
            "first half": slice(0, half),
            "second half": slice(half, None),
            "even": slice(0, None, 2),
            "odd": slice(1, None, 2),
        }[piece.cut]

    def _head_rows(self, piece: Piece, name: str, count: int) -> slice:
        spec = self._config.layers[int(name.split(".")[1])].mixer if name.startswith("blk.") else None
        if not isinstance(spec, AttentionSpec):
            raise BadModelFile(f"{piece.tensor} belongs to no attention layer")
        queries, keys = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
        end = queries + keys + spec.num_kv_heads * spec.value_dim
        if count != end:
            raise BadModelFile(f"{piece.tensor} has {count} rows, but the heads make {end}")
        first, last = {"q": (0, queries), "k": (queries, queries + keys), "v": (queries + keys, end)}[piece.cut]
        return slice(first, last)

    def _bytes(self, piece: Piece, info: WeightInfo) -> Bytes:
        if piece.scales:
            return self._mxfp4_bytes(piece, info)
        if info.type == BlockType.F32:
            is_plain = self._folder.tensors[piece.tensor].dtype == "F32"
            values: NDArray[Any] = (self._folder.array if is_plain else self._folder.as_float32)(piece.tensor)
            if self._adds_one and info.name.endswith("norm.weight"):
                values = values + np.float32(1)
        else:
            values = self._folder.array(piece.tensor)
        if piece.transposed and values.ndim > 1:
            values = values.swapaxes(-1, -2)
        axis = _row_axis(info.name, values.shape)
        rows = self._rows(piece, info.name, values.shape[axis])
        values = values[..., rows, :] if axis == -2 else values[..., rows]
        return np.ascontiguousarray(values).reshape(-1).view(np.uint8)

    def _mxfp4_bytes(self, piece: Piece, info: WeightInfo) -> Bytes:
        """To GGML's blocks: the exponent, then bytes of values i and i + 16; the file has neighbours in a byte."""
        nibbles, exponents = self._folder.array(piece.tensor), self._folder.array(piece.scales)
        rows = self._rows(piece, info.name, nibbles.shape[1])
        nibbles, exponents = nibbles[:, rows], exponents[:, rows]
        out = np.empty((*exponents.shape, 1 + _MXFP4_BLOCK // 2), np.uint8)
        out[..., 0] = exponents
        low, high = nibbles[..., :8], nibbles[..., 8:]  # values 0 to 15, and 16 to 31
        out[..., 1::2] = (low & 0x0F) | (high << 4)
        out[..., 2::2] = (low >> 4) | (high & 0xF0)
        return out.reshape(-1)


def _row_axis(name: str, shape: tuple[int, ...]) -> int:
    """Rows are the outputs: the last axis but one of a matrix, the last of a bias."""
    return -1 if name.endswith(".bias") or len(shape) < 2 else -2
