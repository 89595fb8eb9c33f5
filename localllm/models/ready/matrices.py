"""One quantized matrix of a checkpoint, however it is packed: its shape, its grid or its values."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from localllm.errors import BadModelFile
from localllm.models.ready.grids import Bytes, Floats, Grid, Plan

Codes = NDArray[Any]


class Info(Protocol):
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> str: ...


class Folder(Protocol):
    """models.hf_source.TensorFolder."""

    @property
    def tensors(self) -> Mapping[str, Info]: ...
    def array(self, name: str) -> NDArray[Any]: ...
    def as_float32(self, name: str) -> Floats: ...


class Matrix(ABC):
    """`stem` is the module's name. `shape` is that of the weight, (..., out, in). Constructors read headers only."""

    shape: tuple[int, ...]

    def __init__(self, folder: Folder, stem: str, parts: Mapping[str, str]) -> None:
        self.folder, self.stem, self.parts = folder, stem, parts

    @abstractmethod
    def plan(self) -> Plan:
        """Reads scales, no codes."""

    @abstractmethod
    def values(self) -> Iterator[tuple[slice, Floats]]:
        """All rows of the matrix as (rows, columns), some at a time."""

    def part(self, ending: str) -> Info:
        if ending not in self.parts:
            raise BadModelFile(f"the model lacks the tensor {self.stem}{ending}")
        return self.folder.tensors[self.parts[ending]]

    def raw(self, ending: str, *dtypes: str) -> NDArray[Any]:
        info = self.part(ending)
        if info.dtype not in dtypes:
            raise BadModelFile(f"{self.stem}{ending} has the type {info.dtype}, but must have {' or '.join(dtypes)}")
        return self.folder.array(self.parts[ending])

    def scale(self, ending: str) -> Floats:
        if self.part(ending).dtype == "F8_E8M0":
            exponents = self.raw(ending, "F8_E8M0").astype(np.float32) - np.float32(127)
            return np.asarray(np.exp2(exponents), np.float32)
        if self.part(ending).dtype not in ("F16", "BF16", "F32", "F64"):
            raise BadModelFile(f"{self.stem}{ending} has the type {self.part(ending).dtype}, which no scales have")
        values = self.folder.as_float32(self.parts[ending])
        if not np.isfinite(values).all():
            raise BadModelFile(f"{self.stem}{ending} has scales that are no finite numbers")
        return values

    def check(self, ending: str, shape: tuple[int, ...]) -> None:
        if self.part(ending).shape != shape:
            raise BadModelFile(f"{self.stem}{ending} has the shape {self.part(ending).shape}, but must have {shape}")

    def matrix_of(self, ending: str, dims: int = 2) -> tuple[int, ...]:
        """The shape of a part that must have so many dimensions, and values."""
        shape = self.part(ending).shape
        if len(shape) != dims or not math.prod(shape):
            raise BadModelFile(f"{self.stem}{ending} has the shape {shape}, which is no matrix of weights")
        return shape

    def num_groups(self, size: int, count: int) -> int:
        """How many values share a scale, where `size` values have `count` scales; the last group may be short."""
        if not 0 < count <= size:
            raise BadModelFile(f"{self.stem} has {count} groups for {size} values")
        return -(-size // count)


class GridMatrix(Matrix):
    """A matrix of integers on grids."""

    @abstractmethod
    def grid(self) -> Grid: ...

    @abstractmethod
    def codes(self) -> Codes:
        """(rows, columns), signed or not."""

    def plan(self) -> Plan:
        return self.grid().plan()

    def values(self) -> Iterator[tuple[slice, Floats]]:
        return self.grid().values(self.codes())


def packed_values(matrix: Matrix, plan: Plan) -> Bytes | NDArray[Any]:
    """As blocks (..., out, bytes of a row), float16, or float32."""
    lead = matrix.shape[:-1]
    if isinstance(matrix, GridMatrix) and plan.type.name.startswith("Q"):
        return matrix.grid().blocks(matrix.codes(), plan.type).reshape(*lead, -1)
    out = np.empty((math.prod(lead), matrix.shape[-1]), np.float16 if plan.type.name == "F16" else np.float32)
    for rows, values in matrix.values():
        out[rows] = values
    return out.reshape(matrix.shape)
