"""Weights of a safetensors checkpoint as the decoder expects them: renamed, split, stacked, transposed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from localllm.errors import BadModelFile, UnsupportedModel
from localllm.formats.blocks import BlockType
from localllm.models.config import AttentionSpec, LatentSpec, ModelConfig
from localllm.models.delta_rows import (
    DELTA_CUTS,
    GATED_CUTS,
    delta_of,
    delta_rows,
    gated_rows,
    joined_count,
    tiled_heads,
)
from localllm.models.pieces import Piece
from localllm.models.rows import LatentPart, Order, attention_of, grouped_rows, latent_rows, turned_order
from localllm.models.source import WeightInfo
from localllm.models.state_space import IN_CUTS, in_rows, in_widths
from localllm.models.state_space_facts import state_space_of

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]

_TYPES: Mapping[str, BlockType] = {
    "F32": BlockType.F32,
    "F64": BlockType.F32,
    "F16": BlockType.F16,
    "BF16": BlockType.BF16,
    # of models/ready: rows of blocks
    **{kind.name: kind for kind in (BlockType.Q4_0, BlockType.Q4_1, BlockType.Q5_0, BlockType.Q5_1, BlockType.Q8_0)},
}
_PLAIN = (BlockType.F32, BlockType.F16, BlockType.BF16)
_SMALL = (
    *("ffn_gate_inp.weight", "ffn_gate_inp_shexp.weight", "position_embd.weight"),
    *("shortconv.conv.weight", "ssm_conv1d.weight"),
)
"""What backends expect as floats."""
_MXFP4_BLOCK = 32
_BLOCK = 32  # columns of a block of _TYPES that are no plain floats


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

    `adds_one`: norms are kept less one. `pairs_neighbours`: what rope turns is ordered for neighbours. Vectors become
    float32, matrices keep their type.
    """

    def __init__(
        self,
        folder: TensorFolder,
        pieces: Mapping[str, list[Piece]],
        config: ModelConfig,
        adds_one: bool,
        pairs_neighbours: bool = False,
    ) -> None:
        self._folder, self._pieces, self._config, self._adds_one = folder, pieces, config, adds_one
        self._pairs_neighbours = pairs_neighbours
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
        if name.endswith(("_exps.weight", "altup_proj.weight", "altup_unembd_proj.weight")) and len(shape) == 2:
            orders = [piece.order for piece in pieces]
            if orders != list(range(len(pieces))):
                missing = next(index for index in range(len(orders) + 1) if index not in orders)
                raise BadModelFile(f"the model lacks expert {missing} of {name}")
            shape = (len(pieces), *shape)
        elif name.endswith(("attn_q_norm.weight", "attn_k_norm.weight")) and len(pieces) > 1:
            if [piece.order for piece in pieces] != list(range(len(pieces))):
                raise BadModelFile(f"the model lacks some of the heads of {name}")
            shape = (len(pieces) * shape[0],)
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
        kind = _TYPES[dtype]
        turned = piece.transposed or piece.cut in ("head keys", "head values") or name.endswith(_SMALL)
        return BlockType.F32 if turned and kind not in _PLAIN else kind

    def _shape(self, piece: Piece, name: str) -> tuple[int, ...]:
        shape = self._folder.tensors[piece.tensor].shape
        if piece.scales:
            shape = self._mxfp4_shape(piece)
        if piece.transposed and len(shape) > 1:
            shape = (*shape[:-2], shape[-1], shape[-2])
        if name.endswith(("shortconv.conv.weight", "ssm_conv1d.weight")) and len(shape) == 3 and 1 in shape[1:]:
            shape = (shape[0], shape[1] * shape[2])  # (channels, 1, kernel), or MLX's (channels, kernel, 1)
        if _is_flat(name):
            shape = (math.prod(shape),)
        if piece.cut in ("head keys", "head values"):
            return self._head_shape(piece, name, shape)
        axis = _row_axis(name, shape)
        rows = _count(self._rows(piece, name, shape[axis]), shape[axis]) if shape else 0
        return tuple(rows if index == axis % max(len(shape), 1) else size for index, size in enumerate(shape))

    def _mxfp4_shape(self, piece: Piece) -> tuple[int, ...]:
        blocks, scales = self._folder.tensors[piece.tensor], self._folder.tensors.get(piece.scales)
        if scales is None:
            raise BadModelFile(f"the model lacks the tensor {piece.scales}")
        right = len(blocks.shape) == 4 and blocks.shape[-1] == _MXFP4_BLOCK // 2 and scales.shape == blocks.shape[:-1]
        if not right or (blocks.dtype, scales.dtype) != ("U8", "U8"):
            raise BadModelFile(f"{piece.tensor} and {piece.scales} are not MXFP4 blocks and their exponents")
        return (*blocks.shape[:2], blocks.shape[2] * _MXFP4_BLOCK)

    def _head_shape(self, piece: Piece, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        spec, latent = self._latent(piece, name)
        keys, values = latent.plain_dims, latent.value_dim
        if shape != (spec.num_heads * (keys + values), latent.kv_rank):
            raise BadModelFile(f"{piece.tensor} has the shape {shape}, which its heads do not make")
        rest = (latent.kv_rank, keys) if piece.cut == "head keys" else (values, latent.kv_rank)
        return (spec.num_heads, *rest)

    def _latent(self, piece: Piece, name: str) -> tuple[AttentionSpec, LatentSpec]:
        spec = attention_of(name, self._config)
        if spec is None or spec.latent is None:
            raise BadModelFile(f"{piece.tensor} belongs to no attention over latent vectors")
        return spec, spec.latent

    def _rows(self, piece: Piece, name: str, count: int) -> slice | Order:
        """Which rows of the tensor the piece is."""
        half = count // 2
        if piece.cut in ("q", "k", "v"):
            return self._head_rows(piece, name, count)
        if piece.cut in ("grouped q", "grouped k", "grouped v"):
            self._head_rows(piece, name, count)  # as many rows as the heads make
            spec = attention_of(name, self._config)
            assert spec is not None, "checked just now"
            return grouped_rows(piece.cut[-1], spec)
        if piece.cut in ("plain queries", "turned queries", "latent", "turned keys"):
            return self._latent_rows(piece, piece.cut, name, count)
        if piece.cut in GATED_CUTS:
            return self._gated_rows(piece, name, count)
        if piece.cut in DELTA_CUTS:
            return self._delta_rows(piece, name, count)
        if piece.cut == "tiled columns":
            return slice(None)
        if piece.cut in IN_CUTS:
            return self._state_space_rows(piece, name, count)
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
        spec = attention_of(name, self._config)
        if spec is None:
            raise BadModelFile(f"{piece.tensor} belongs to no attention layer")
        queries, keys = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
        end = queries + keys + spec.num_kv_heads * spec.value_dim
        if count != end:
            raise BadModelFile(f"{piece.tensor} has {count} rows, but the heads make {end}")
        first, last = {"q": (0, queries), "k": (queries, queries + keys), "v": (queries + keys, end)}[piece.cut[-1]]
        return slice(first, last)

    def _latent_rows(self, piece: Piece, part: LatentPart, name: str, count: int) -> Order:
        spec, latent = self._latent(piece, name)
        turned = 0 if spec.rope is None else spec.rope.dims
        is_query = part in ("plain queries", "turned queries")
        end = spec.num_heads * (latent.plain_dims + turned) if is_query else latent.kv_rank + turned
        if count != end:
            raise BadModelFile(f"{piece.tensor} has {count} rows, but must have {end}")
        return latent_rows(part, spec, self._pairs_neighbours)

    def _gated_rows(self, piece: Piece, name: str, count: int) -> Order:
        spec = attention_of(name, self._config)
        if spec is None or count != 2 * spec.num_heads * spec.head_dim:
            raise BadModelFile(f"{piece.tensor} has {count} rows, which are no queries and their gates")
        return gated_rows(piece.cut, spec)

    def _delta_rows(self, piece: Piece, name: str, count: int) -> Order:
        spec = delta_of(name, self._config)
        if spec is None:
            raise BadModelFile(f"{piece.tensor} belongs to no gated delta net")
        rows = delta_rows(piece.cut, spec)
        wanted = joined_count(piece.cut, spec) if piece.cut.startswith("joined") else len(rows)
        if count != wanted:
            raise BadModelFile(f"{piece.tensor} has {count} rows, but must have {wanted}")
        return rows

    def _state_space_rows(self, piece: Piece, name: str, count: int) -> slice:
        spec = state_space_of(name, self._config)
        if spec is None or count != sum(in_widths(spec)):
            raise BadModelFile(f"{piece.tensor} has {count} rows, which are no input of a state space")
        first, end = in_rows(IN_CUTS.index(piece.cut), spec)
        return slice(first, end)

    def _tiled_columns(self, piece: Piece, info: WeightInfo, values: NDArray[Any]) -> NDArray[Any]:
        """Columns of heads in tiled order; of blocks, where a head is a whole number of them."""
        spec = delta_of(info.name, self._config)
        if spec is None or info.shape[-1] != spec.num_value_heads * spec.value_dim:
            raise BadModelFile(f"{piece.tensor} has {info.shape[-1]} columns, which are no values of a gated delta net")
        heads = tiled_heads(spec)
        if info.type not in _PLAIN and spec.value_dim % _BLOCK and (heads != np.sort(heads)).any():
            raise UnsupportedModel(
                f"{piece.tensor} has heads of {spec.value_dim} values, which are no whole blocks",
                hint="take the original weights, or a GGUF version",
            )
        rows = values.reshape(info.shape[0], spec.num_value_heads, -1)
        return rows[:, heads].reshape(values.shape)

    def _bytes(self, piece: Piece, info: WeightInfo) -> Bytes:
        if piece.scales:
            return self._mxfp4_bytes(piece, info)
        if info.type == BlockType.F32:
            is_plain = self._folder.tensors[piece.tensor].dtype == "F32"
            values: NDArray[Any] = (self._folder.array if is_plain else self._folder.as_float32)(piece.tensor)
            if self._adds_one and info.name.endswith("norm.weight") and not info.name.endswith("ssm_norm.weight"):
                values = values + np.float32(1)
            if piece.tensor.endswith(".A_log"):
                values = -np.exp(values)
        else:
            values = self._folder.array(piece.tensor)
        if piece.transposed and values.ndim > 1:
            values = values.swapaxes(-1, -2)
        if _is_flat(info.name):
            values = values.reshape(-1)
        if info.name.endswith("ssm_conv1d.weight") and values.ndim == 3:
            values = values.reshape(len(values), -1)
        if piece.cut in ("head keys", "head values"):
            return _flat(self._of_heads(piece, info.name, values))
        if piece.cut == "tiled columns":
            return _flat(self._tiled_columns(piece, info, values))
        axis = _row_axis(info.name, values.shape)
        values = _taken(values, self._rows(piece, info.name, values.shape[axis]), axis)
        if self._pairs_neighbours:
            order = turned_order(info.name, values.shape[axis], self._config)
            values = values if order is None else _taken(values, order, axis)
        return _flat(values)

    def _of_heads(self, piece: Piece, name: str, values: NDArray[Any]) -> NDArray[Any]:
        spec, latent = self._latent(piece, name)
        heads = values.reshape(spec.num_heads, -1, latent.kv_rank)
        if piece.cut == "head values":
            return heads[:, latent.plain_dims :]
        return heads[:, : latent.plain_dims].swapaxes(1, 2)

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


def _is_flat(name: str) -> bool:
    """Vectors that some checkpoints keep as (heads, values of a head), or as one row."""
    return name.endswith(("_norm.weight", "exp_probs_b.bias"))


def _taken(values: NDArray[Any], rows: slice | Order, axis: int) -> NDArray[Any]:
    return values[..., rows, :] if axis == -2 else values[..., rows]


def _count(rows: slice | Order, count: int) -> int:
    return len(range(count)[rows]) if isinstance(rows, slice) else len(rows)


def _flat(values: NDArray[Any]) -> Bytes:
    return np.ascontiguousarray(values).reshape(-1).view(np.uint8)


def _row_axis(name: str, shape: tuple[int, ...]) -> int:
    """Rows are the outputs: the last axis but one of a matrix, the last of a bias."""
    return -1 if name.endswith(".bias") or len(shape) < 2 else -2
