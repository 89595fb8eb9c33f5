"""Weights of a GGUF file as the decoder expects them: renamed, split, rows re-ordered; always whole quantized rows."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
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
    """Where a weight lies: rows `first` to `end` of a tensor of the file, then taken in `order` (None: as they are).

    `of_experts`: rows of each expert of a tensor (experts, rows, columns). Several `tensors`: one for each expert.
    """

    tensors: tuple[str, ...]
    first: int
    end: int
    order: Order | None = None
    of_experts: bool = False


class GGUFSource:
    """A WeightSource over an open GGUF file. Cheap to make: rows move only when `raw` is called."""

    def __init__(self, file: BlockFile, config: ModelConfig, family: Family, feed_forward: tuple[int, ...]) -> None:
        self._file = file
        self._cuts: dict[str, Cut] = {}
        renames = dict(family.renames)
        apart = experts_apart(file.tensors)
        self._cuts.update({name: Cut(tensors, 0, len(tensors)) for name, tensors in apart.items()})
        stacked = {tensor for tensors in apart.values() for tensor in tensors}
        for name, tensor in file.tensors.items():
            if name not in stacked:
                for canonical, cut in split(name, tensor.shape, config, feed_forward):
                    self._cuts[renamed(canonical, renames)] = cut
        if family.pairs_neighbours:
            self._reorder(config)

    def names(self) -> Iterable[str]:
        return self._cuts

    def info(self, name: str) -> WeightInfo | None:
        cut = self._cuts.get(name)
        if cut is None:
            return None
        tensor = self._file.tensors[cut.tensors[0]]
        if len(cut.tensors) > 1:
            self._check_alike(name, cut.tensors)
            return WeightInfo(name, (len(cut.tensors), *tensor.shape), tensor.type)
        count = cut.end - cut.first
        if cut.of_experts:
            return WeightInfo(name, (tensor.shape[0], count, *tensor.shape[2:]), tensor.type)
        shape = tensor.shape if count == num_rows(tensor.shape) else (count, *tensor.shape[1:])
        return WeightInfo(name, shape, tensor.type)

    def raw(self, name: str) -> Bytes:
        cut = self._cuts[name]
        if len(cut.tensors) > 1:
            return np.concatenate([self._file.raw(tensor).reshape(-1) for tensor in cut.tensors])
        tensor, blocks = self._file.tensors[cut.tensors[0]], self._file.raw(cut.tensors[0])
        if cut.of_experts:
            return blocks.reshape(*tensor.shape[:2], -1)[:, cut.first : cut.end].reshape(-1)
        rows = blocks.reshape(num_rows(tensor.shape), -1)[cut.first : cut.end]
        return (rows if cut.order is None else rows[cut.order]).reshape(-1)

    def release(self, name: str) -> None:
        for tensor in self._cuts[name].tensors:
            self._file.release(tensor)

    def _check_alike(self, name: str, tensors: tuple[str, ...]) -> None:
        kinds = {(self._file.tensors[tensor].shape, self._file.tensors[tensor].type) for tensor in tensors}
        if len(kinds) > 1:
            raise BadModelFile(f"the experts that make {name} differ in shape or type")

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
        self._cuts[name] = replace(cut, order=order)


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


def experts_apart(tensors: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Experts that have a tensor each, as the first files of Mixtral have them: the stacked name, and theirs in order.

    BadModelFile where one of them lacks.
    """
    found: dict[str, dict[int, str]] = {}
    for tensor in tensors:
        match = re.fullmatch(r"(blk\.\d+\.ffn_(?:gate|up|down))\.(\d+)\.weight", tensor)
        if match is not None:
            found.setdefault(f"{match[1]}_exps.weight", {})[int(match[2])] = tensor
    for name, experts in found.items():
        if sorted(experts) != list(range(len(experts))):
            raise BadModelFile(f"the model file lacks some of the experts of {name}")
    return {name: tuple(experts[index] for index in sorted(experts)) for name, experts in found.items()}


def split(
    name: str, shape: tuple[int, ...], config: ModelConfig, feed_forward: tuple[int, ...]
) -> list[tuple[str, Cut]]:
    """Canonical names: fused QKV and fused gate-up come apart, everything else is itself."""
    rows = num_rows(shape)
    prefix, _, rest = name.partition(".attn_qkv.")
    if rest:
        return split_qkv(name, prefix, rest, _attention_of(prefix, config))
    prefix, _, rest = name.partition(".ffn_gate_up_exps.")
    if rest and len(shape) > 1 and shape[1] % 2 == 0:
        half = shape[1] // 2
        return _two(name, (f"{prefix}.ffn_gate_exps.{rest}", f"{prefix}.ffn_up_exps.{rest}"), half, of_experts=True)
    prefix, _, rest = name.partition(".ffn_up.")
    if rest and any(rows == 2 * width for width in feed_forward):
        return _two(name, (f"{prefix}.ffn_gate.{rest}", f"{prefix}.ffn_up.{rest}"), rows // 2)
    return [(name, Cut((name,), 0, rows))]


def _two(tensor: str, names: tuple[str, str], half: int, of_experts: bool = False) -> list[tuple[str, Cut]]:
    bounds = ((0, half), (half, 2 * half))
    return [
        (name, Cut((tensor,), first, end, of_experts=of_experts))
        for name, (first, end) in zip(names, bounds, strict=True)
    ]


def split_qkv(tensor: str, prefix: str, kind: str, spec: AttentionSpec) -> list[tuple[str, Cut]]:
    """Queries of all heads first, then keys, then values."""
    queries, keys = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
    values = spec.num_kv_heads * spec.value_dim
    ends = (queries, queries + keys, queries + keys + values)
    names = (f"{prefix}.attn_{part}.{kind}" for part in "qkv")
    return [(name, Cut((tensor,), first, end)) for name, first, end in zip(names, (0, *ends), ends, strict=False)]


def _attention_of(prefix: str, config: ModelConfig) -> AttentionSpec:
    number = prefix.removeprefix("blk.")
    mixer = config.layers[int(number)].mixer if number.isdecimal() and int(number) < len(config.layers) else None
    if not isinstance(mixer, AttentionSpec):
        raise BadModelFile(f"{prefix}.attn_qkv belongs to no attention layer")
    return mixer
