"""Tensors of a source into MLX, each once, in the layout that suits its block type; the file's pages are given back."""

from __future__ import annotations

import math
from collections.abc import Iterator

import mlx.core as mx
import numpy as np
import psutil
from numpy.typing import NDArray

from localllm.backends.metal.precision import HALVES, Precision
from localllm.backends.metal.repack import AFFINE_BITS, affine, micro
from localllm.backends.metal.shortage import shortage
from localllm.backends.metal.weights import Dense, OnUse, Quantized, Weight
from localllm.backends.named import NamedWeights
from localllm.formats.blocks import BlockType, decode
from localllm.models.source import LOOKED_UP, WeightInfo, WeightSource

FLOATS = (BlockType.F32, BlockType.F16, BlockType.BF16)
SHARE_FOR_WEIGHTS = 0.7
"""Of free memory: decoding at load may fill so much of it; the rest is for pages and for computing."""


class Tensors(NamedWeights[Weight]):
    """Weights by canonical name. `decodes` says when types without a layout in MLX are decoded: once, or on each use.

    None: once, where that fits free memory.
    """

    def __init__(self, source: WeightSource, precision: Precision, decodes: bool | None = None) -> None:
        infos = [info for name in source.names() if (info := source.info(name)) is not None]
        moved = [info for info in infos if info.name not in LOOKED_UP]
        self._once = _fit(moved, precision) if decodes is None else decodes
        self._precision = precision
        super().__init__({})
        for info in infos:
            with shortage(f"there is no memory for the tensor {info.name}", "choose a smaller quantization"):
                self._weights[info.name] = self._load(source, info)
        self.notes = tuple(_notes(moved, precision, self._once))

    @property
    def size_bytes(self) -> int:
        return sum(weight.size_bytes for weight in self._weights.values())

    @property
    def names(self) -> dict[int, str]:
        """By the `id` of the weight."""
        return {id(weight): name for name, weight in self._weights.items()}

    def clear(self) -> None:
        self._weights.clear()

    def _load(self, source: WeightSource, info: WeightInfo) -> Weight:
        raw = source.raw(info.name)
        if info.name in LOOKED_UP or (not self._once and _has_no_layout(info)):
            return OnUse(info.type, raw, info.shape)  # keeps the file's pages
        weight = load(info.type, raw, info.shape, self._precision)
        source.release(info.name)
        return weight


def load(kind: BlockType, raw: NDArray[np.uint8], shape: tuple[int, ...], precision: Precision) -> Weight:
    """One tensor, copied. UnsupportedModel for a block type that cannot be decoded."""
    compute = precision.of(kind)
    if kind in FLOATS:
        return Dense(_ready(_floats(kind, raw).reshape(shape)), compute)
    if len(shape) == 1:
        return Dense(_ready(mx.array(decode(kind, raw, shape))), mx.float32)
    if kind == BlockType.MXFP4:
        parts = micro(raw, shape)
        return Quantized(_ready(mx.array(parts.words)), _ready(mx.array(parts.exponents)), None, 4, compute)
    if kind not in AFFINE_BITS:
        return Dense(_ready(mx.array(decode(kind, raw, shape)).astype(compute)), compute)
    return _affine(kind, raw, shape, compute)


def _affine(kind: BlockType, raw: NDArray[np.uint8], shape: tuple[int, ...], compute: mx.Dtype) -> Quantized:
    parts = affine(kind, raw, shape)
    scales, biases = mx.array(parts.scales), mx.array(parts.biases)
    if not mx.isfinite(mx.stack([scales, biases]).astype(compute)).all().item():
        compute = mx.float32  # a scale beyond float16: rare, and right all the same
    return Quantized(
        _ready(mx.array(parts.words)),
        _ready(scales.astype(compute)),
        _ready(biases.astype(compute)),
        parts.bits,
        compute,
    )


def _floats(kind: BlockType, raw: NDArray[np.uint8]) -> mx.array:
    if kind == BlockType.BF16:
        return mx.array(np.ascontiguousarray(raw).view("<u2")).view(mx.bfloat16)
    return mx.array(np.ascontiguousarray(raw).view("<f4" if kind == BlockType.F32 else "<f2"))


def _ready(array: mx.array) -> mx.array:
    """Computed now, so that what it was made from can go."""
    mx.eval(array)
    return array


def _has_no_layout(info: WeightInfo) -> bool:
    return len(info.shape) > 1 and info.type not in (*FLOATS, *AFFINE_BITS, BlockType.MXFP4)


def _fit(infos: list[WeightInfo], precision: Precision) -> bool:
    """Whether all weights fit free memory when those without a layout in MLX are decoded."""
    wanted = sum(math.prod(info.shape) * _value_bytes(info, precision) for info in infos)
    return wanted <= SHARE_FOR_WEIGHTS * free_bytes()


def _value_bytes(info: WeightInfo, precision: Precision) -> float:
    if info.type in HALVES:
        return 2
    if info.type == BlockType.MXFP4:
        return 17 / 32
    if info.type in AFFINE_BITS:
        return AFFINE_BITS[info.type] / 8 + 2 * precision.of(info.type).size / 32
    return precision.of(info.type).size


def free_bytes() -> float:
    """Memory that may still be taken; on a Mac no more than what the system lends to the GPU."""
    free = float(psutil.virtual_memory().available)
    lent = mx.device_info().get("max_recommended_working_set_size") if mx.metal.is_available() else None
    return free if lent is None else min(free, float(lent) - mx.get_active_memory())


def _notes(infos: list[WeightInfo], precision: Precision, once: bool) -> Iterator[str]:
    """What a person should know of types that are not multiplied as they lie in the file."""
    kinds = sorted({info.type for info in infos if _has_no_layout(info)})
    if not kinds:
        return
    names = ", ".join(kind.name for kind in kinds)
    if once:
        yield f"{names}: decoded to {'float16' if precision.half else 'float32'} at load, as MLX has no such layout"
    else:
        yield f"{names}: decoded on every use, as memory is short: slow"
