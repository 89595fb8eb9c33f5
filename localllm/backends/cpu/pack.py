"""Weights into the program: matrices repacked, vectors as floats, each once; the file's pages are given back."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from localllm.backends.cpu.nodes import Weight
from localllm.formats.blocks import BlockType, decode
from localllm.models.source import WeightSource

if TYPE_CHECKING:
    from localllm.backends.cpu._native import Program

NONE = -1
"""What the native side takes for "not there"."""


class Pack:
    """Ids of packed weights by name. Packing in the order of execution puts weights in that order in memory."""

    def __init__(self, program: Program, source: WeightSource) -> None:
        self._program = program
        self._source = source
        self._matrices: dict[str, int] = {}
        self._vectors: dict[str, int] = {}

    def matrix(self, weight: Weight) -> int:
        if weight.name not in self._matrices:
            raw, (rows, columns) = self._raw(weight), weight.shape
            self._matrices[weight.name] = self._program.matrix(raw, int(weight.type), rows, columns)
            self._source.release(weight.name)
        return self._matrices[weight.name]

    def kept(self, weight: Weight) -> NDArray[np.uint8]:
        """The blocks where they are, a view of the file; who takes it keeps it."""
        return self._raw(weight)

    def gated(self, gate: Weight, up: Weight) -> int:
        rows, columns = gate.shape
        kinds = int(gate.type), int(up.type)
        packed = self._program.gated_matrix(self._raw(gate), self._raw(up), *kinds, rows, columns)
        self._release(gate, up)
        return packed

    def experts(self, weight: Weight) -> list[int]:
        num_experts, rows, columns = weight.shape
        parts = self._raw(weight).reshape(num_experts, -1)
        packed = [self._program.matrix(part, int(weight.type), rows, columns) for part in parts]
        self._release(weight)
        return packed

    def gated_experts(self, gate: Weight, up: Weight) -> list[int]:
        """Blocks beside a matrix of floats are unpacked: both read the same form of their input."""
        num_experts, rows, columns = gate.shape
        unpacked = gate.takes_blocks != up.takes_blocks
        packed: list[int] = []
        for index in range(num_experts):
            (gate_raw, gate_kind), (up_raw, up_kind) = (self._expert(part, index, unpacked) for part in (gate, up))
            packed.append(self._program.gated_matrix(gate_raw, up_raw, gate_kind, up_kind, rows, columns))
        self._release(gate, up)
        return packed

    def _expert(self, weight: Weight, index: int, unpacked: bool) -> tuple[NDArray[np.uint8], int]:
        raw = self._raw(weight).reshape(weight.shape[0], -1)[index]
        if not (unpacked and weight.takes_blocks):
            return raw, int(weight.type)
        values = np.ascontiguousarray(decode(weight.type, raw, weight.shape[1:]), np.float32)
        return values.reshape(-1).view(np.uint8), int(BlockType.F32)

    def vector(self, weight: Weight | None) -> int:
        """Any tensor as a flat run of floats; NONE for no weight."""
        if weight is None:
            return NONE
        if weight.name not in self._vectors:
            values = decode(weight.type, self._source.raw(weight.name), weight.shape).reshape(-1)
            self._vectors[weight.name] = self._program.vector(np.ascontiguousarray(values, np.float32))
            self._source.release(weight.name)
        return self._vectors[weight.name]

    def ones(self, count: int) -> int:
        """A vector for what is normed without weights."""
        name = f"{count} ones"  # no tensor's name: those have no spaces
        if name not in self._vectors:
            self._vectors[name] = self._program.vector(np.ones(count, np.float32))
        return self._vectors[name]

    def _raw(self, weight: Weight) -> NDArray[np.uint8]:
        return np.ascontiguousarray(self._source.raw(weight.name)).reshape(-1)

    def _release(self, *weights: Weight) -> None:
        for weight in weights:
            self._source.release(weight.name)
