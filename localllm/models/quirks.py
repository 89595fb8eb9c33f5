"""Weights of a GGUF file as the decoder expects them: renamed, split, rows re-ordered; always whole quantized rows."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from localllm.errors import BadModelFile
from localllm.formats.blocks import BlockType
from localllm.models.config import AttentionSpec, ModelConfig
from localllm.models.families import Family
from localllm.models.source import WeightInfo

Bytes = NDArray[np.uint8]
Order = NDArray[np.intp]


class BlockTensor(Protocol):
    """A tensor of a file: shape in numpy order."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def type(self) -> BlockType: ...


class BlockFile(Protocol):
    """What we need of a GGUF file (formats.gguf_read.GGUFFile is one)."""

    @property
    def metadata(self) -> Mapping[str, Any]: ...

    @property
    def tensors(self) -> Mapping[str, BlockTensor]: ...

    @property
    def architecture(self) -> str: ...

    def raw(self, name: str) -> Bytes: ...

    def release(self, name: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Cut:
    """Where a weight lies: rows `first` to `end` of a tensor of the file, then taken in `order` (None: as they are)."""

    tensor: str
    first: int
    end: int
    order: Order | None = None


class GGUFSource:
    """A WeightSource over an open GGUF file. Cheap to make: rows move only when `raw` is called."""

    def __init__(self, file: BlockFile, config: ModelConfig, family: Family, feed_forward: tuple[int, ...]) -> None:
        self._file = file
        self._cuts: dict[str, Cut] = {}
        renames = dict(family.renames)
        for name, tensor in file.tensors.items():
            for canonical, first, end in split(name, num_rows(tensor.shape), config, feed_forward):
                self._cuts[renamed(canonical, renames)] = Cut(name, first, end)
        if family.pairs_neighbours:
            self._reorder(config)

    def names(self) -> Iterable[str]:
        return self._cuts

    def info(self, name: str) -> WeightInfo | None:
        cut = self._cuts.get(name)
        if cut is None:
            return None
        tensor = self._file.tensors[cut.tensor]
        whole = num_rows(tensor.shape)
        shape = tensor.shape if cut.end - cut.first == whole else (cut.end - cut.first, *tensor.shape[1:])
        return WeightInfo(name, shape, tensor.type)

    def raw(self, name: str) -> Bytes:
        cut = self._cuts[name]
        blocks = self._file.raw(cut.tensor)
        rows = blocks.reshape(num_rows(self._file.tensors[cut.tensor].shape), -1)[cut.first : cut.end]
        return (rows if cut.order is None else rows[cut.order]).reshape(-1)

    def release(self, name: str) -> None:
        self._file.release(self._cuts[name].tensor)

    def _reorder(self, config: ModelConfig) -> None:
        for index, layer in enumerate(config.layers):
            if isinstance(layer.mixer, AttentionSpec) and layer.mixer.rope is not None:
                spec, dims = layer.mixer, layer.mixer.rope.dims
                for part, heads in (("attn_q", spec.num_heads), ("attn_k", spec.num_kv_heads)):
                    order = halves_from_neighbours(heads, spec.head_dim, dims)
                    for kind in ("weight", "bias"):
                        self._take_in(f"blk.{index}.{part}.{kind}", order)

    def _take_in(self, name: str, order: Order) -> None:
        cut = self._cuts.get(name)
        if cut is None:
            return
        if cut.end - cut.first != len(order):
            raise BadModelFile(f"{name} has {cut.end - cut.first} rows, but the heads make {len(order)}")
        self._cuts[name] = Cut(cut.tensor, cut.first, cut.end, order)


def renamed(name: str, renames: Mapping[str, str]) -> str:
    """`renames` know a tensor of a layer without the layer's prefix."""
    layer = re.match(r"blk\.\d+\.", name)
    prefix = layer[0] if layer else ""
    rest = name.removeprefix(prefix)
    return prefix + renames.get(rest, rest)


def num_rows(shape: tuple[int, ...]) -> int:
    """Rows of the first axis: (out, in) has `out`, and a vector (n,) has n rows of one value."""
    return shape[0] if shape else 1


def halves_from_neighbours(num_heads: int, head_dim: int, dims: int) -> Order:
    """For each row in halves (value i pairs with i + dims / 2) the row of the file, where 2 i pairs with 2 i + 1.

    Only the first `dims` rows of a head turn; queries and keys are re-ordered alike, so their products stay.
    """
    pairs = np.arange(dims, dtype=np.intp).reshape(dims // 2, 2).T.reshape(-1)
    head = np.concatenate([pairs, np.arange(dims, head_dim, dtype=np.intp)])
    rows: Order = np.arange(num_heads, dtype=np.intp)[:, None] * head_dim + head
    return rows.reshape(-1)


def split(name: str, rows: int, config: ModelConfig, feed_forward: tuple[int, ...]) -> list[tuple[str, int, int]]:
    """Canonical names with first and end row: fused QKV and fused gate-up come apart, everything else is itself."""
    prefix, _, rest = name.partition(".attn_qkv.")
    if rest:
        return split_qkv(prefix, rest, _attention_of(prefix, config))
    prefix, _, rest = name.partition(".ffn_up.")
    if rest and any(rows == 2 * width for width in feed_forward):
        half = rows // 2
        return [(f"{prefix}.ffn_gate.{rest}", 0, half), (f"{prefix}.ffn_up.{rest}", half, rows)]
    return [(name, 0, rows)]


def split_qkv(prefix: str, kind: str, spec: AttentionSpec) -> list[tuple[str, int, int]]:
    """Queries of all heads first, then keys, then values."""
    queries, keys = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
    values = spec.num_kv_heads * spec.value_dim
    ends = (queries, queries + keys, queries + keys + values)
    names = (f"{prefix}.attn_{part}.{kind}" for part in "qkv")
    return [(name, first, end) for name, first, end in zip(names, (0, *ends), ends, strict=False)]


def _attention_of(prefix: str, config: ModelConfig) -> AttentionSpec:
    number = prefix.removeprefix("blk.")
    mixer = config.layers[int(number)].mixer if number.isdecimal() and int(number) < len(config.layers) else None
    if not isinstance(mixer, AttentionSpec):
        raise BadModelFile(f"{prefix}.attn_qkv belongs to no attention layer")
    return mixer
