"""Activation-aware scaling: columns that meet large inputs are stretched before they are rounded, and what makes these
inputs is shrunk by as much, so that the function stays the same and any encoder can follow.

Where that is so: a norm before queries, keys and values; a norm before gate and up; the rows of values before the
columns of the attention's output; the rows of up before the columns of down (behind a gate). Weights of other layers
(experts, latent attention, convolutions, states, blocks that have no norms before them) stay as they are.
Source: Lin et al. 2023, "AWQ: Activation-aware Weight Quantization for LLM Compression and Acceleration".
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from localllm.formats.blocks import BlockType, decode
from localllm.formats.blocks import encode as plain_encode
from localllm.models.config import AttentionSpec, LayerSpec, ModelConfig
from localllm.models.source import WeightInfo, WeightSource
from localllm.quantize.encode import encode
from localllm.quantize.imatrix import ImportanceMatrix
from localllm.quantize.search import inverse

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]

ALPHAS = tuple(step / 10 for step in range(11))
SEARCHED_ROWS = 256
"""Of each weight, evenly spread: enough to tell one exponent from another."""
LARGEST_STRETCH = 1e4

TargetOf = Callable[[WeightInfo], BlockType | None]


@dataclass(frozen=True, slots=True)
class Fold:
    """One input of several weights. `producers` are shrunk: norms by value, matrices by row; `consumers` are stretched
    by column. `shared`: how many runs of `run` columns have the same stretch, as query heads of one key head have."""

    producers: tuple[str, ...]
    consumers: tuple[str, ...]
    run: int = 0
    shared: int = 1


_KNOWN = frozenset({"attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"})


def folds(config: ModelConfig, source: WeightSource) -> Iterator[Fold]:
    """All places of the model where scaling can be folded in, in the order of its layers."""
    mixers = [layer.mixer for layer in config.layers]
    if config.parallel or config.is_encoder or config.token_inputs:
        return
    if any(isinstance(mixer, AttentionSpec) and mixer.kv_from is not None for mixer in mixers):
        return  # the rows of values have readers in other layers
    infos = [info for name in source.names() if (info := source.info(name)) is not None]
    names = {info.name for info in infos}
    # a matrix that is not in the table above may have the same input
    strange = {_layer_of(info.name) for info in infos if len(info.shape) > 1 and _part_of(info.name) not in _KNOWN}
    for index, layer in enumerate(config.layers):
        if index not in strange and layer.moe is None and layer.beside is None:
            yield from _of_layer(f"blk.{index}.", layer, names)


def _layer_of(name: str) -> int | None:
    return int(name.split(".")[1]) if name.startswith("blk.") else None


def _part_of(name: str) -> str:
    return name.removesuffix(".weight").rpartition(".")[2]


def _of_layer(front: str, layer: LayerSpec, names: Collection[str]) -> Iterator[Fold]:
    def weights(*parts: str) -> tuple[str, ...]:
        return tuple(f"{front}{part}.weight" for part in parts)

    def with_bias(part: str) -> tuple[str, ...]:
        return tuple(name for name in (f"{front}{part}.weight", f"{front}{part}.bias") if name in names)

    spec = layer.mixer
    if isinstance(spec, AttentionSpec) and _is_plain(spec) and f"{front}attn_output.weight" in names:
        if f"{front}attn_norm.weight" in names:
            yield Fold(with_bias("attn_norm"), weights("attn_q", "attn_k", "attn_v"))
        shared = spec.num_heads // spec.num_kv_heads
        yield Fold(with_bias("attn_v"), weights("attn_output"), spec.value_dim, shared)
    if f"{front}ffn_gate.weight" in names:
        if f"{front}ffn_norm.weight" in names:
            yield Fold(with_bias("ffn_norm"), weights("ffn_gate", "ffn_up"))
        yield Fold(with_bias("ffn_up"), weights("ffn_down"))


def _is_plain(spec: AttentionSpec) -> bool:
    return spec.latent is None and not spec.gated and not spec.norms_values and not spec.values_are_keys


class ScaledSource:
    """A WeightSource over another one, the same function with other weights: those that were scaled are F32.

    `scales` by name: what rows (`producers`) and columns (`consumers`) are multiplied by.
    """

    def __init__(self, source: WeightSource, rows: Mapping[str, Floats], columns: Mapping[str, Floats]) -> None:
        self._source, self._rows, self._columns = source, rows, columns

    def names(self) -> Iterable[str]:
        return self._source.names()

    def info(self, name: str) -> WeightInfo | None:
        info = self._source.info(name)
        return replace(info, type=BlockType.F32) if info is not None and self._is_scaled(name) else info

    def raw(self, name: str) -> Bytes:
        info = self._source.info(name)
        if info is None or not self._is_scaled(name):
            return self._source.raw(name)
        return plain_encode(BlockType.F32, self.values(info)).reshape(-1)

    def values(self, info: WeightInfo) -> Floats:
        values = decode(info.type, self._source.raw(info.name), info.shape)
        if info.name in self._rows:
            factors = self._rows[info.name]
            values = values * (factors if values.ndim == 1 else factors[:, None])
        return values * self._columns[info.name] if info.name in self._columns else values

    def release(self, name: str) -> None:
        self._source.release(name)

    def _is_scaled(self, name: str) -> bool:
        return name in self._rows or name in self._columns


def scaled(
    config: ModelConfig, source: WeightSource, target_of: TargetOf, matrix: ImportanceMatrix
) -> tuple[ScaledSource, ImportanceMatrix]:
    """The source with its columns stretched by what their inputs ask for, and the importances of the stretched columns.

    Each stretch is the mean size of the column's input to a power between 0 and 1: the one whose rounding by `encode`,
    to the type that `target_of` gives, loses least of the weights' products, as far as `matrix` knows the inputs.
    """
    rows: dict[str, Floats] = {}
    columns: dict[str, Floats] = {}
    for fold in folds(config, source):
        inputs = matrix.importance_of(fold.consumers[0])
        if inputs is None or inputs.ndim != 1:
            continue
        parts = [_Part.of(source, name, target_of, columns.get(name), rows.get(name)) for name in fold.consumers]
        stretch = _best(fold, inputs, [part for part in parts if part is not None])
        for name in fold.producers:
            rows[name] = inverse(_of_producer(fold, stretch))
        for name in fold.consumers:
            columns[name] = stretch
    return ScaledSource(source, rows, columns), _stretched(matrix, columns)


def _stretched(matrix: ImportanceMatrix, columns: Mapping[str, Floats]) -> ImportanceMatrix:
    entries = dict(matrix.entries)
    for name, stretch in columns.items():
        if name in entries:
            entries[name] = replace(entries[name], sums=np.asarray(entries[name].sums / np.square(stretch), np.float32))
    return replace(matrix, entries=entries)


@dataclass(frozen=True, slots=True)
class _Part:
    """Some rows of a weight, and what they are to become."""

    values: Floats
    kind: BlockType

    @classmethod
    def of(
        cls, source: WeightSource, name: str, target_of: TargetOf, columns: Floats | None, rows: Floats | None
    ) -> _Part | None:
        info = source.info(name)
        kind = None if info is None else target_of(info)
        if info is None or kind is None:
            return None
        values = decode(info.type, source.raw(name), info.shape)
        values = values if columns is None else values * columns
        values = values if rows is None else values * rows[:, None]
        return cls(values[:: max(1, len(values) // SEARCHED_ROWS)], kind)


def _best(fold: Fold, inputs: Floats, parts: list[_Part]) -> Floats:
    candidates = [_stretch(fold, inputs, alpha) for alpha in ALPHAS]
    losses = [sum(_loss(part, inputs, stretch) for part in parts) for stretch in candidates]
    return candidates[int(np.argmin(losses))]


def _stretch(fold: Fold, inputs: Floats, alpha: float) -> Floats:
    """(columns,), around 1. Columns without inputs are left alone."""
    sizes = np.sqrt(inputs.astype(np.float64))
    if fold.run:  # (key heads, query heads of each, values of a head): one stretch for all query heads
        heads = sizes.reshape(-1, fold.shared, fold.run)
        sizes = np.broadcast_to(heads.mean(axis=1, keepdims=True), heads.shape).reshape(-1)
    powers = np.maximum(sizes, sizes.max() / LARGEST_STRETCH) ** alpha
    return np.asarray(powers / np.sqrt(powers.max() * powers.min()), np.float32)


def _of_producer(fold: Fold, stretch: Floats) -> Floats:
    return stretch.reshape(-1, fold.shared, fold.run)[:, 0].reshape(-1) if fold.run else stretch


def _loss(part: _Part, inputs: Floats, stretch: Floats) -> float:
    """Of the products of these rows, were the inputs of different columns independent."""
    stretched = part.values * stretch
    rounded = decode(part.kind, encode(part.kind, stretched).reshape(-1), stretched.shape) / stretch
    return float((np.square(rounded - part.values, dtype=np.float64) * inputs).sum())
