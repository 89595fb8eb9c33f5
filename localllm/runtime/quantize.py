"""A model, wherever it lies, to one quantized GGUF file with a receipt; or to a folder for MLX."""

from __future__ import annotations

import hashlib
import math
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from localllm import __version__
from localllm.errors import UsageError
from localllm.formats.blocks import BlockType, decode, row_bytes
from localllm.formats.gguf_metadata import ValueType
from localllm.formats.gguf_read import GGUFFile
from localllm.formats.gguf_write import gguf_layout, write_gguf
from localllm.quantize.encode import encode
from localllm.quantize.imatrix import ImportanceMatrix
from localllm.quantize.plans import Plan, PlannedTensor, kept
from localllm.quantize.quantize import Rounding, plan, quantize
from localllm.quantize.receipt import (
    ERROR,
    LAYER_ERRORS,
    TENSOR_ERRORS,
    Errors,
    Measured,
    Receipt,
    as_metadata,
    in_metadata,
)
from localllm.quantize.receipt import with_errors as with_measured_errors
from localllm.quantize.recipes import RECIPES, recipe_of
from localllm.quantize.weights import Weights
from localllm.runtime.convert import open_weights
from localllm.store.names import looks_like_path
from localllm.store.quantized import Quantizing

Bytes = NDArray[np.uint8]
Progress = Callable[[str, int, int], None]
"""Gets a tensor's name, and bytes written and in all. Where the last is 0, a sentence, and bytes that were there."""
TRIED_VALUES = 1 << 16
SAMPLE_VALUES = 1 << 18
"""Of a tensor, how many values its error is measured over: rows far apart."""


def tell_nobody(name: str, done_bytes: int, total_bytes: int) -> None:
    """For callers that show nothing."""


@dataclass(frozen=True, slots=True)
class Order:
    """How to quantize. `keep` are exceptions, REGEX=TYPE; `importance` with `imatrix`, its name for the receipt.

    `rounding` makes the blocks of `method` other than rtn, once the plan is known; `text_digest` is that of the text it
    is calibrated with.
    """

    type: str
    pure: bool = False
    keep: tuple[str, ...] = ()
    method: Literal["rtn", "gptq"] = "rtn"
    allow_requantize: bool = False
    importance: ImportanceMatrix | None = None
    imatrix: str = ""
    rounding: Callable[[Path, Plan, Progress], Rounding] | None = None
    text_digest: str = ""
    threads: int = 0

    def checked(self) -> Order:
        """With the type as recipes are called. UsageError for what does not exist."""
        recipe_of(self.type)
        kept(self.keep)
        return self

    @property
    def has_importance(self) -> bool:
        """Also where it is still to come."""
        return self.importance is not None or (self.method == "rtn" and bool(self.imatrix))

    @property
    def label(self) -> str:
        return recipe_of(self.type).name

    @property
    def identity(self) -> str:
        """Changes with whatever changes the bytes of the file."""
        importance = "" if self.importance is None else _digest_of(self.importance)
        said = (self.label, self.pure, self.keep, self.method, self.text_digest, importance, self.imatrix, __version__)
        return repr(said)


def _digest_of(matrix: ImportanceMatrix) -> str:
    digest = hashlib.sha256()
    for name, entry in sorted(matrix.entries.items()):
        digest.update(name.encode() + entry.sums.tobytes() + entry.counts.tobytes())
    return digest.hexdigest()


def plan_of(path: Path, order: Order) -> Plan:
    """What each tensor becomes, with sizes; only headers are read. UsageError where weights are in blocks already and
    the order does not allow that."""
    with open_weights(path) as weights:
        return _plan(weights, order)


def _plan(weights: Weights, order: Order) -> Plan:
    return plan(
        weights,
        recipe_of(order.type),
        pure=order.pure,
        keep=kept(order.keep),
        has_importance=order.has_importance,
    )


def sizes_of(path: Path) -> list[tuple[str, int, float]]:
    """For each recipe that makes the model smaller: its name, bytes, and bits per weight, the largest first. UsageError
    where the weights are in blocks already."""
    found = {}
    with open_weights(path) as weights:
        for recipe in RECIPES.values():
            chosen = plan(weights, recipe)
            if chosen.requantized():
                raise UsageError(
                    "its weights are quantized already, and rounding twice would only lose more",
                    hint="start from a model with float weights",
                )
            if chosen.size_bytes < chosen.source_bytes:
                found[recipe.name] = (recipe.name, chosen.size_bytes, chosen.bits_per_weight)
    return sorted(found.values(), key=lambda each: -each[1])


def quantize_model(
    source: Path,
    target: Path,
    order: Order,
    *,
    name: str = "",
    digest: str = "",
    replaces: bool = False,
    progress: Progress = tell_nobody,
) -> Receipt:
    """Write `target`, whole or not at all; goes on where a killed run stopped. `name` and `digest` are the source's.

    UsageError, UnsupportedModel and BadModelFile before anything is written; BadModelFile names a tensor whose values
    cannot be rounded; DiskFull, StoreError.
    """
    with open_weights(source) as weights:
        chosen = _plan(weights, order)
        receipt = Receipt(
            recipe=order.label,
            method=order.method,
            source=_told(name) or source.name,
            source_digest=digest,
            imatrix=order.imatrix,
            keep=order.keep,
            pure=order.pure,
            version=__version__,
            bits_per_weight=chosen.bits_per_weight,
        )
        rounding = None if order.rounding is None else order.rounding(source, chosen, progress)
        importance = None if order.importance is None else order.importance.importance_of
        sealed: list[Receipt] = []

        def seal(written: Path) -> None:
            progress("measuring what was lost", 0, 0)
            sealed.append(_sealed(written, weights, chosen, receipt))

        quantize(
            weights,
            target,
            chosen,
            importance,
            rounding=rounding,
            method=f"{order.method} {order.text_digest}",
            extra={**as_metadata(receipt), **_places(chosen)},
            allow_requantize=order.allow_requantize,
            replaces=replaces,
            threads=order.threads,
            finishing=seal,
            progress=progress,
        )
        return sealed[0]


def _told(name: str) -> str:
    """Of a path its last part: files are given away, and where they were made is nobody's business."""
    return Path(name).name if looks_like_path(name) else name


def _places(chosen: Plan, errors: Errors | None = None) -> dict[str, Any]:
    """Errors in the header, of the same size before they are known as after."""
    names = [line.name for line in chosen.tensors]
    found = errors or Errors(names)
    layers = found.of_layers() or [0.0]
    return {
        ERROR: (ValueType.FLOAT32, found.of_all()),
        LAYER_ERRORS: (ValueType.FLOAT32, layers),
        TENSOR_ERRORS: (ValueType.FLOAT32, found.of_tensors()),
    }


def _sealed(path: Path, weights: Weights, chosen: Plan, receipt: Receipt) -> Receipt:
    """Measures the written tensors against their sources, and notes in the file what was found."""
    errors = Errors([line.name for line in chosen.tensors])
    with GGUFFile.open(path) as file:
        for weight, line in zip(weights.tensors, chosen.tensors, strict=True):
            if line.source_type is not line.target_type:
                errors.note(line.name, *squares(line, weight.raw(), file.raw(line.name)))
                weight.release()
                file.release(line.name)
        metadata = {**file.metadata.typed(), **_places(chosen, errors)}
        layout = gguf_layout(metadata, [(line.name, line.shape, line.target_type) for line in chosen.tensors])
    with open(path, "r+b") as written:
        written.write(layout.header)
    return with_measured_errors(receipt, errors, {line.name: line.target_type.name for line in chosen.tensors})


def squares(line: PlannedTensor, before: Bytes, after: Bytes) -> tuple[float, float]:
    """Sums of squares of what was lost and of what there was, over some rows of the tensor."""
    columns, rows = line.shape[-1], math.prod(line.shape[:-1])
    step = max(1, rows * columns // SAMPLE_VALUES)
    old, new = (
        _rows(kind, raw, rows, columns, step) for kind, raw in ((line.source_type, before), (line.target_type, after))
    )
    lost = old.astype(np.float64) - new
    return float(np.square(lost).sum()), float(np.square(old, dtype=np.float64).sum())


def _rows(kind: BlockType, raw: Bytes, rows: int, columns: int, step: int) -> NDArray[np.float32]:
    """One row of every `step`."""
    taken = raw.reshape(rows, row_bytes(kind, columns))[::step]
    return decode(kind, np.ascontiguousarray(taken), (len(taken), columns))


def keep_in_file(path: Path, measured: Measured) -> None:
    """Into the receipt of a file, which is written anew, whole or not at all. UsageError where it has none."""
    with GGUFFile.open(path) as file:
        receipt = in_metadata(file.metadata, {name: each.type.name for name, each in file.tensors.items()})
        if receipt is None or len(file.paths) > 1:
            raise UsageError(f"{path} was not quantized by localllm as one file", hint="only such files have a receipt")
        metadata = {**file.metadata.typed(), **as_metadata(msgspec.structs.replace(receipt, measured=measured))}
        tensors = [(each.name, each.shape, each.type, partial(file.raw, each.name)) for each in file.tensors.values()]
        write_gguf(path, metadata, tensors)


def way_of(order: Order) -> Quantizing:
    """The same for the store, which gives the result its place and name."""
    order = order.checked()

    def write(source: Path, target: Path, name: str, digest: str, progress: Progress) -> Receipt:
        return quantize_model(source, target, order, name=name, digest=digest, progress=progress)

    def size_of(source: Path) -> int:
        return plan_of(source, order).size_bytes

    return Quantizing(order.label, order.identity, write, size_of)


def seconds_of(chosen: Plan) -> float:
    """About how long writing will take: each type is tried on a few values."""
    values = Counter[BlockType]()
    for line in chosen.tensors:
        if line.source_type is not line.target_type:
            values[line.target_type] += math.prod(line.shape)
    return sum(count * _seconds_of_a_value(kind) for kind, count in values.items())


def _seconds_of_a_value(kind: BlockType) -> float:
    rows = np.random.default_rng(0).standard_normal((TRIED_VALUES // 1024, 1024), np.float32)
    encode(kind, rows[:8])
    started = time.perf_counter()
    encode(kind, rows)
    return (time.perf_counter() - started) / TRIED_VALUES
