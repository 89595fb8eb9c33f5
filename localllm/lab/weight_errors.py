"""What rounding did to the weights themselves: relative errors of two models' tensors."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from localllm.formats.blocks import decode, row_bytes
from localllm.models.source import WeightInfo, WeightSource
from localllm.quantize.receipt import Errors
from localllm.runtime.open_model import open_model

VALUES_AT_ONCE = 1 << 20
NUM_WORST = 8


@dataclass(frozen=True, slots=True)
class WeightError:
    name: str
    type: str
    error: float


@dataclass(frozen=True, slots=True)
class WeightErrors:
    """Root of the summed squares of the difference, by that of the base: of all weights, of each layer, and the worst
    tensors. Empty where the models' weights have different shapes."""

    all: float = 0.0
    layers: tuple[float, ...] = ()
    worst: tuple[WeightError, ...] = ()


def weight_errors(model: Path, base: Path) -> WeightErrors:
    """Of the weights of both files, a run of rows at a time."""
    own, original = open_model(model).source, open_model(base).source
    pairs = [(mine, theirs) for mine in infos_of(own) if (theirs := original.info(mine.name)) is not None]
    pairs = [(mine, theirs) for mine, theirs in pairs if mine.shape == theirs.shape and len(mine.shape) > 1]
    errors = Errors([mine.name for mine, _ in pairs])
    for mine, theirs in pairs:
        errors.note(mine.name, *_squares(own, mine, original, theirs))
        own.release(mine.name)
        original.release(mine.name)
    if not pairs:
        return WeightErrors()
    ranked = sorted(zip(errors.of_tensors(), (mine for mine, _ in pairs), strict=True), key=lambda each: -each[0])
    worst = tuple(WeightError(info.name, info.type.name, error) for error, info in ranked[:NUM_WORST])
    return WeightErrors(errors.of_all(), tuple(errors.of_layers()), worst)


def _squares(own: WeightSource, mine: WeightInfo, original: WeightSource, theirs: WeightInfo) -> tuple[float, float]:
    """Of the difference, and of the base."""
    columns = mine.shape[-1]
    rows = math.prod(mine.shape[:-1])
    packed = own.raw(mine.name).reshape(rows, -1), original.raw(theirs.name).reshape(rows, -1)
    lost = total = 0.0
    for at in range(0, rows, step := max(1, VALUES_AT_ONCE // columns)):
        part, exact = (
            decode(info.type, blocks[at : at + step].reshape(-1), (min(step, rows - at), columns)).astype(np.float64)
            for info, blocks in zip((mine, theirs), packed, strict=True)
        )
        lost, total = lost + float(np.square(part - exact).sum()), total + float(np.square(exact).sum())
    return lost, total


def infos_of(source: WeightSource) -> list[WeightInfo]:
    """Of all weights."""
    return [info for name in source.names() if (info := source.info(name)) is not None]


def bytes_of(info: WeightInfo) -> int:
    """Of its blocks."""
    return row_bytes(info.type, info.shape[-1]) * math.prod(info.shape[:-1])
