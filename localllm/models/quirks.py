"""Weights of a GGUF file as the decoder expects them: renamed, split, rows re-ordered; always whole quantized rows."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from localllm.errors import BadModelFile
from localllm.formats.blocks import BlockType, decode
from localllm.models.config import AttentionSpec, DeltaNetSpec, LatentSpec, ModelConfig, StateSpaceSpec
from localllm.models.delta_rows import DeltaCut, delta_of, delta_rows, gated_rows, joined_count
from localllm.models.family import Family
from localllm.models.rows import LATENT_PARTS, Order, attention_of, latent_rows, turned_order
from localllm.models.shared_kv import unread
from localllm.models.source import WeightInfo
from localllm.models.state_space import IN, in_rows, in_widths
from localllm.models.state_space_facts import state_space_of

Bytes = NDArray[np.uint8]


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
    """Where a weight lies: rows `first` to `end` of a tensor of the file, then those in `order` (None: as they are).

    `of_experts`: rows of each expert of a tensor (experts, rows, columns). Several `tensors`: one for each expert.
    `shape`: of the weight, where it is another than that of the rows. `head_keys`: how many values of each head's rows
    are keys, where these are taken and turned to (heads, columns, values).
    """

    tensors: tuple[str, ...]
    first: int
    end: int
    order: Order | None = None
    of_experts: bool = False
    shape: tuple[int, ...] = ()
    head_keys: int = 0

    @property
    def count(self) -> int:
        return self.end - self.first if self.order is None else len(self.order)


class GGUFSource:
    """A WeightSource over an open GGUF file. Cheap to make: rows move only when `raw` is called.

    `guessing_layers`: so many layers after the model's own are left out.
    """

    def __init__(
        self,
        file: BlockFile,
        config: ModelConfig,
        family: Family,
        feed_forward: tuple[int, ...],
        guessing_layers: int = 0,
    ) -> None:
        self._file = file
        self._cuts: dict[str, Cut] = {}
        renames = renames_of(family, file.tensors)
        apart = experts_apart(file.tensors)
        self._cuts.update({name: Cut(tensors, 0, len(tensors)) for name, tensors in apart.items()})
        stacked = {tensor for tensors in apart.values() for tensor in tensors}
        left_out = tuple(f"blk.{len(config.layers) + index}." for index in range(guessing_layers))
        for name, tensor in file.tensors.items():
            if name not in stacked and not name.startswith(left_out or ("\0",)):
                for canonical, cut in split(name, tensor.shape, config, feed_forward):
                    self._cuts[renamed(canonical, renames)] = cut
        for name in unread(self._cuts, config):
            del self._cuts[name]
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
        count = cut.count
        if cut.of_experts:
            return WeightInfo(name, (tensor.shape[0], count, *tensor.shape[2:]), tensor.type)
        shape = tensor.shape if count == num_rows(tensor.shape) else (count, *tensor.shape[1:])
        return WeightInfo(name, cut.shape or shape, BlockType.F32 if cut.head_keys else tensor.type)

    def raw(self, name: str) -> Bytes:
        cut = self._cuts[name]
        if len(cut.tensors) > 1:
            return np.concatenate([self._file.raw(tensor).reshape(-1) for tensor in cut.tensors])
        tensor, blocks = self._file.tensors[cut.tensors[0]], self._file.raw(cut.tensors[0])
        if cut.head_keys:
            return _keys_of_heads(decode(tensor.type, blocks, tensor.shape), cut)
        if cut.of_experts:
            return blocks.reshape(*tensor.shape[:2], -1)[:, cut.first : cut.end].reshape(-1)
        # vectors of heads have a row for each value
        count = cut.end if len(cut.shape) == 1 else num_rows(tensor.shape)
        rows = blocks.reshape(count, -1)[cut.first : cut.end]
        return (rows if cut.order is None else rows[cut.order]).reshape(-1)

    def release(self, name: str) -> None:
        for tensor in self._cuts[name].tensors:
            self._file.release(tensor)

    def _check_alike(self, name: str, tensors: tuple[str, ...]) -> None:
        kinds = {(self._file.tensors[tensor].shape, self._file.tensors[tensor].type) for tensor in tensors}
        if len(kinds) > 1:
            raise BadModelFile(f"the experts that make {name} differ in shape or type")

    def _reorder(self, config: ModelConfig) -> None:
        for name, cut in self._cuts.items():
            order = turned_order(name, cut.count, config)
            if order is not None:
                self._cuts[name] = replace(cut, order=order)


def renames_of(family: Family, tensors: Iterable[str]) -> dict[str, str]:
    """Those of the family where the file has all of these tensors: the same name may mean another thing without."""
    kinds = {re.sub(r"^blk\.\d+\.", "", name) for name in tensors}
    return dict(family.renames) if all(name in kinds for name, _ in family.renames) else {}


def _keys_of_heads(values: NDArray[np.float32], cut: Cut) -> Bytes:
    heads = values.reshape(cut.shape[0], -1, values.shape[1])
    return np.ascontiguousarray(heads[:, : cut.head_keys].swapaxes(1, 2)).reshape(-1).view(np.uint8)


def renamed(name: str, renames: Mapping[str, str]) -> str:
    """`renames` know a tensor of a layer without the layer's prefix."""
    layer = re.match(r"blk\.\d+\.", name)
    prefix = layer[0] if layer else ""
    rest = name.removeprefix(prefix)
    return prefix + renames.get(rest, rest)


def num_rows(shape: tuple[int, ...]) -> int:
    """Rows of the first axis: (out, in) has `out`, and a vector (n,) has n rows of one value."""
    return shape[0] if shape else 1


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
    spec = attention_of(name, config)
    if spec is not None and spec.latent is not None and ".attn_" in name:
        return split_latent(name, shape, spec, spec.latent)
    if name.endswith("ffn_gate_inp_shexp.weight") and len(shape) == 1:
        return [(name, Cut((name,), 0, rows, shape=(1, *shape)))]
    if name.endswith(("attn_q_norm.weight", "attn_k_norm.weight", "exp_probs_b.bias")) and len(shape) == 2:
        size = math.prod(shape)
        return [(name, Cut((name,), 0, size, shape=(size,)))]
    if re.search(r"\.ssm_(?:a|d|norm\.weight)$", name) and len(shape) == 2:
        size = math.prod(shape)
        return [(name, Cut((name,), 0, size, shape=(size,)))]
    state_space = state_space_of(name, config)
    if state_space is not None and ".ssm_in." in name:
        return split_state_space(name, rows, state_space)
    delta = delta_of(name, config)
    if delta is not None:
        return split_delta(name, rows, delta)
    if spec is not None and spec.gated and ".attn_q." in name:
        return split_gates(name, rows, spec)
    prefix, _, rest = name.partition(".attn_qkv.")
    if rest:
        return split_qkv(name, prefix, rest, _attention_of(prefix, config))
    prefix, _, rest = name.partition(".ffn_gate_up_exps.")
    if rest and len(shape) > 1 and shape[1] % 2 == 0:
        half = shape[1] // 2
        return _two(name, (f"{prefix}.ffn_gate_exps.{rest}", f"{prefix}.ffn_up_exps.{rest}"), half, of_experts=True)
    prefix, _, rest = name.partition(".ffn_up.")
    if rest and rows in (2 * width for width in _widths_of(prefix, feed_forward)):
        return _two(name, (f"{prefix}.ffn_gate.{rest}", f"{prefix}.ffn_up.{rest}"), rows // 2)
    return [(name, Cut((name,), 0, rows))]


def _widths_of(prefix: str, feed_forward: tuple[int, ...]) -> tuple[int, ...]:
    """What the file says of the widths of one layer: the same for all, or one for each."""
    index = int(prefix.rpartition(".")[2])
    return feed_forward[index : index + 1] if len(feed_forward) > 1 else feed_forward


def _two(tensor: str, names: tuple[str, str], half: int, of_experts: bool = False) -> list[tuple[str, Cut]]:
    bounds = ((0, half), (half, 2 * half))
    return [
        (name, Cut((tensor,), first, end, of_experts=of_experts))
        for name, (first, end) in zip(names, bounds, strict=True)
    ]


_JOINED: Mapping[str, tuple[tuple[str, DeltaCut], ...]] = {
    "ssm_in": (("attn_qkv", "joined qkv"), ("attn_gate", "joined gates")),  # of the first files
    "ssm_ba": (("ssm_beta", "joined betas"), ("ssm_alpha", "joined decays")),
}


def split_delta(tensor: str, rows: int, spec: DeltaNetSpec) -> list[tuple[str, Cut]]:
    """Matrices of a gated delta net that have everything of one key head together come apart."""
    prefix, number, rest = tensor.split(".", 2)
    module, _, kind = rest.rpartition(".")
    found: list[tuple[str, Cut]] = []
    for name, cut in _JOINED.get(module, ()):
        if rows != joined_count(cut, spec):
            raise BadModelFile(f"{tensor} has {rows} rows, but must have {joined_count(cut, spec)}")
        found.append((f"{prefix}.{number}.{name}.{kind}", Cut((tensor,), 0, rows, delta_rows(cut, spec))))
    return found or [(tensor, Cut((tensor,), 0, rows))]


def split_state_space(tensor: str, rows: int, spec: StateSpaceSpec) -> list[tuple[str, Cut]]:
    """The gate, what the convolution takes in, and the steps lie one after another."""
    if rows != sum(in_widths(spec)):
        raise BadModelFile(f"{tensor} has {rows} rows, but must have {sum(in_widths(spec))}")
    cuts = (Cut((tensor,), *in_rows(index, spec)) for index in range(len(IN)))
    return [(tensor.replace(".ssm_in.", f".{name}."), cut) for name, cut in zip(IN, cuts, strict=True)]


def split_gates(tensor: str, rows: int, spec: AttentionSpec) -> list[tuple[str, Cut]]:
    """Queries and their gates, head by head in one matrix."""
    if rows != 2 * spec.num_heads * spec.head_dim:
        raise BadModelFile(f"{tensor} has {rows} rows, which are no queries and their gates")
    gates = tensor.replace(".attn_q.", ".attn_gate.")
    return [
        (tensor, Cut((tensor,), 0, rows, gated_rows("queries", spec))),
        (gates, Cut((tensor,), 0, rows, gated_rows("gates", spec))),
    ]


def split_latent(tensor: str, shape: tuple[int, ...], spec: AttentionSpec, latent: LatentSpec) -> list[tuple[str, Cut]]:
    """Rows that turn come apart from those that do not; old files have keys and values of heads in one matrix."""
    prefix, _, rest = tensor.partition(".attn_")
    module, _, kind = f"attn_{rest}".rpartition(".")
    if module == "attn_kv_b":
        heads, keys, values = spec.num_heads, latent.plain_dims, latent.value_dim
        if shape != (heads * (keys + values), latent.kv_rank):
            raise BadModelFile(f"{tensor} has the shape {shape}, which its heads do not make")
        starts = np.arange(heads, dtype=np.intp)[:, None] * (keys + values)
        rows = (starts + np.arange(keys, keys + values, dtype=np.intp)).reshape(-1)
        of_values = Cut((tensor,), 0, shape[0], rows, shape=(heads, values, latent.kv_rank))
        of_keys = Cut((tensor,), 0, shape[0], shape=(heads, latent.kv_rank, keys), head_keys=keys)
        return [(f"{prefix}.attn_k_b.{kind}", of_keys), (f"{prefix}.attn_v_b.{kind}", of_values)]
    parts = LATENT_PARTS.get(module, ())
    if not parts:
        return [(tensor, Cut((tensor,), 0, num_rows(shape)))]
    orders = [latent_rows(part, spec, pairs_neighbours=True) for _, part in parts]
    if sum(map(len, orders)) != num_rows(shape):
        raise BadModelFile(f"{tensor} has {num_rows(shape)} rows, but must have {sum(map(len, orders))}")
    return [
        (f"{prefix}.{name}.{kind}", Cut((tensor,), 0, num_rows(shape), order))
        for (name, _), order in zip(parts, orders, strict=True)
    ]


def split_qkv(tensor: str, prefix: str, kind: str, spec: AttentionSpec) -> list[tuple[str, Cut]]:
    """Queries of all heads first, then keys, then values."""
    queries, keys = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
    values = spec.num_kv_heads * spec.value_dim
    ends = (queries, queries + keys, queries + keys + values)
    names = (f"{prefix}.attn_{part}.{kind}" for part in "qkv")
    return [(name, Cut((tensor,), first, end)) for name, first, end in zip(names, (0, *ends), ends, strict=False)]


def _attention_of(prefix: str, config: ModelConfig) -> AttentionSpec:
    spec = attention_of(f"{prefix}.attn_qkv", config)
    if spec is None:
        raise BadModelFile(f"{prefix}.attn_qkv belongs to no attention layer")
    return spec
