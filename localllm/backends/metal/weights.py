"""Weights as MLX multiplies them: float, quantized, or in the file's blocks and decoded whenever they are used."""

from __future__ import annotations

from typing import Protocol

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from localllm.backends.metal.repack import GROUP
from localllm.formats.blocks import BlockType, decode, row_bytes

Ints = NDArray[np.int32]
VALUES_AT_ONCE = 1 << 24


class Weight(Protocol):
    """A tensor (n,), (out, in) or (experts, out, in). All results are float32."""

    shape: tuple[int, ...]

    @property
    def size_bytes(self) -> int: ...

    def values(self) -> mx.array:
        """All of it."""

    def rows(self, indices: Ints) -> mx.array:
        """Some rows of a matrix: (len(indices), in)."""

    def product(self, x: mx.array) -> mx.array:
        """x (T, in) @ weight.T: (T, out)."""

    def by_expert(self, x: mx.array, experts: mx.array, are_sorted: bool) -> mx.array:
        """Line i of x (N, in) times the matrix of experts[i]: (N, out)."""


class Dense:
    """Float values, kept in their type; products are computed in `compute`."""

    def __init__(self, values: mx.array, compute: mx.Dtype) -> None:
        self._values = values
        self._compute = compute
        self.shape = tuple(values.shape)

    @property
    def size_bytes(self) -> int:
        return self._values.nbytes

    def values(self) -> mx.array:
        return self._values.astype(mx.float32)

    def rows(self, indices: Ints) -> mx.array:
        return self._values[mx.array(indices)].astype(mx.float32)

    def product(self, x: mx.array) -> mx.array:
        return (x.astype(self._compute) @ self._values.astype(self._compute).T).astype(mx.float32)

    def by_expert(self, x: mx.array, experts: mx.array, are_sorted: bool) -> mx.array:
        compute = self._compute if mx.metal.is_available() else mx.float32  # all that the CPU device gathers
        matrices = self._values.astype(compute).swapaxes(-1, -2)
        lines = x.astype(compute)[:, None]
        out = mx.gather_mm(lines, matrices, rhs_indices=experts, sorted_indices=are_sorted)
        return out[:, 0].astype(mx.float32)


class Quantized:
    """In one of MLX's own layouts: affine with `biases`, or mxfp4 without. Scales have the type of the products."""

    def __init__(
        self, words: mx.array, scales: mx.array, biases: mx.array | None, bits: int, compute: mx.Dtype
    ) -> None:
        self._words, self._scales, self._biases = words, scales, biases
        self._bits, self._compute = bits, compute
        self._mode = "mxfp4" if biases is None else "affine"
        self.shape = (*words.shape[:-1], words.shape[-1] * 32 // bits)

    @property
    def size_bytes(self) -> int:
        return self._words.nbytes + self._scales.nbytes + (0 if self._biases is None else self._biases.nbytes)

    def values(self) -> mx.array:
        return self._dequantized(self._words, self._scales, self._biases)

    def rows(self, indices: Ints) -> mx.array:
        chosen = mx.array(indices)
        biases = None if self._biases is None else self._biases[chosen]
        return self._dequantized(self._words[chosen], self._scales[chosen], biases)

    def product(self, x: mx.array) -> mx.array:
        out = mx.quantized_matmul(
            x.astype(self._compute),
            self._words,
            self._scales,
            self._biases,
            transpose=True,
            group_size=GROUP,
            bits=self._bits,
            mode=self._mode,
        )
        return out.astype(mx.float32)

    def by_expert(self, x: mx.array, experts: mx.array, are_sorted: bool) -> mx.array:
        out = mx.gather_qmm(
            x.astype(self._compute)[:, None],
            self._words,
            self._scales,
            self._biases,
            rhs_indices=experts,
            transpose=True,
            group_size=GROUP,
            bits=self._bits,
            mode=self._mode,
            sorted_indices=are_sorted,
        )
        return out[:, 0].astype(mx.float32)

    def _dequantized(self, words: mx.array, scales: mx.array, biases: mx.array | None) -> mx.array:
        if biases is not None:
            scales, biases = scales.astype(mx.float32), biases.astype(mx.float32)
        return mx.dequantize(
            words, scales, biases, group_size=GROUP, bits=self._bits, mode=self._mode, dtype=mx.float32
        )


class OnUse:
    """The file's own blocks. Each use decodes some rows at a time and waits for them, so it takes little memory."""

    def __init__(self, kind: BlockType, raw: NDArray[np.uint8], shape: tuple[int, ...]) -> None:
        self._kind = kind
        self._rows = raw.reshape(-1, row_bytes(kind, shape[-1]))
        self.shape = shape

    @property
    def size_bytes(self) -> int:
        return self._rows.nbytes

    def values(self) -> mx.array:
        return mx.array(self._decoded(self._rows)).reshape(self.shape)

    def rows(self, indices: Ints) -> mx.array:
        return mx.array(self._decoded(self._rows[indices]))

    def product(self, x: mx.array) -> mx.array:
        return self._times(x, 0, len(self._rows))

    def by_expert(self, x: mx.array, experts: mx.array, are_sorted: bool) -> mx.array:
        of_lines, num_out = np.array(experts), self.shape[1]
        out = mx.zeros((len(of_lines), num_out))
        for expert in np.unique(of_lines).tolist():
            lines = mx.array(np.flatnonzero(of_lines == expert).astype(np.int32))
            out[lines] = self._times(x[lines], expert * num_out, num_out)
        return out

    def _times(self, x: mx.array, first: int, count: int) -> mx.array:
        step = max(1, VALUES_AT_ONCE // self.shape[-1])
        parts = []
        for start in range(first, first + count, step):
            blocks = self._rows[start : min(start + step, first + count)]
            parts.append(x @ mx.array(self._decoded(blocks)).T)
            mx.eval(parts[-1])  # else the decoded rows of the whole step would be alive at once
        return mx.concatenate(parts, axis=-1)

    def _decoded(self, blocks: NDArray[np.uint8]) -> NDArray[np.float32]:
        return decode(self._kind, blocks, (len(blocks), self.shape[-1]))
