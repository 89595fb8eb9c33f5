"""Matrices of integers: GPTQ, AWQ, compressed-tensors, bitsandbytes' int8, MLX.

Sources: the unpacking of AutoGPTQ, AutoAWQ, compressed-tensors and bitsandbytes, and MLX's page of `quantize`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from localllm.errors import BadModelFile, UnsupportedModel
from localllm.models.ready.bits import awq_unpacked, unpacked
from localllm.models.ready.grids import Grid
from localllm.models.ready.matrices import Codes, Folder, GridMatrix
from localllm.models.ready.methods import Method


class Gptq(GridMatrix):
    """qweight: words along the inputs, (in * bits / 32, out); qzeros: along the outputs, (groups, out * bits / 32).

    The first version of the format keeps zeros less one, and 0 as the largest code.
    """

    ENDINGS = (".qweight", ".qzeros", ".scales", ".g_idx")

    def __init__(self, folder: Folder, stem: str, parts: Mapping[str, str], method: Method) -> None:
        super().__init__(folder, stem, parts)
        words, outputs = self.matrix_of(".qweight")
        self.num, scales_out = self.matrix_of(".scales")
        zero_words = self.matrix_of(".qzeros")[1]
        self.bits = zero_words * 32 // outputs
        if self.bits not in (2, 3, 4, 8) or zero_words * 32 != outputs * self.bits or scales_out != outputs:
            raise BadModelFile(f"{stem}: the shapes of qweight, qzeros and scales do not fit together")
        self.check(".qzeros", (self.num, zero_words))
        self.shape = (outputs, words * 32 // self.bits)
        self.group = method.group or self.shape[1]
        self.is_second = method.said.get("checkpoint_format") == "gptq_v2"

    def grid(self) -> Grid:
        zeros = unpacked(self.raw(".qzeros", "I32", "U32"), self.bits).astype(np.int16)
        top = (1 << self.bits) - 1
        if not self.is_second:
            zeros = (zeros + 1) & top
        return Grid(self.scale(".scales").T, self._groups(), zeros.T, None, 0, top)

    def codes(self) -> Codes:
        return unpacked(self.raw(".qweight", "I32", "U32").T, self.bits)

    def _groups(self) -> NDArray[np.intp]:
        columns = self.shape[1]
        if ".g_idx" not in self.parts:
            if -(-columns // self.group) != self.num:
                raise BadModelFile(f"{self.stem} has {self.num} groups, but {columns} columns make other groups")
            return np.arange(columns) // self.group
        self.check(".g_idx", (columns,))
        groups = self.raw(".g_idx", "I32", "I64").astype(np.intp)
        if groups.min() < 0 or groups.max() >= self.num:
            raise BadModelFile(f"{self.stem}.g_idx names a group that is not there (there are {self.num})")
        return groups


class Awq(GridMatrix):
    """gemm packing: qweight (in, out / 8), qzeros (groups, out / 8), eight outputs in a word in an order of its own."""

    ENDINGS = (".qweight", ".qzeros", ".scales")

    def __init__(self, folder: Folder, stem: str, parts: Mapping[str, str], method: Method) -> None:
        super().__init__(folder, stem, parts)
        columns, words = self.matrix_of(".qweight")
        self.shape = (words * 8, columns)
        num = self.matrix_of(".scales")[0]
        self.check(".scales", (num, words * 8))
        self.check(".qzeros", (num, words))
        self.group = method.group or columns
        if -(-columns // self.group) != num:
            raise BadModelFile(f"{stem} has {num} groups, but {columns} columns in groups of {self.group} make others")

    def grid(self) -> Grid:
        zeros = awq_unpacked(self.raw(".qzeros", "I32", "U32")).astype(np.int16)
        return Grid(self.scale(".scales").T, np.arange(self.shape[1]) // self.group, zeros, None, 0, 15)

    def codes(self) -> Codes:
        return awq_unpacked(self.raw(".qweight", "I32", "U32"))


class Packed(GridMatrix):
    """compressed-tensors' pack-quantized: codes less 2^(bits - 1), (out, in * bits / 32); zeros packed down columns."""

    ENDINGS = (".weight_packed", ".weight_scale", ".weight_zero_point", ".weight_shape", ".weight_g_idx")

    def __init__(self, folder: Folder, stem: str, parts: Mapping[str, str], method: Method) -> None:
        super().__init__(folder, stem, parts)
        self.bits = method.bits or 4
        rows, words = self.matrix_of(".weight_packed")
        columns = words * 32 // self.bits
        if ".weight_shape" in parts:
            said = tuple(self.raw(".weight_shape", "I64", "I32").reshape(-1).tolist())
            fits = len(said) == 2 and said[0] == rows and said[1] > 0 and -(-said[1] * self.bits // 32) == words
            if not fits:
                raise BadModelFile(f"{stem}.weight_shape says {said}, which {rows} x {words} words do not make")
            columns = said[1]
        self.shape = (rows, columns)
        self.num = self.matrix_of(".weight_scale")[1]
        self.check(".weight_scale", (rows, self.num))
        self.group = self.num_groups(columns, self.num)

    def grid(self) -> Grid:
        rows, top = self.shape[0], (1 << self.bits) - 1
        zeros = np.full((rows, self.num), 1 << (self.bits - 1), np.int16)
        if ".weight_zero_point" in self.parts:
            self.check(".weight_zero_point", (-(-rows * self.bits // 32), self.num))
            zeros = unpacked(self.raw(".weight_zero_point", "I32", "U32").T, self.bits).T[:rows].astype(np.int16)
        return Grid(self.scale(".weight_scale"), self._groups(), zeros, None, 0, top)

    def codes(self) -> Codes:
        return unpacked(self.raw(".weight_packed", "I32", "U32"), self.bits)[:, : self.shape[1]]

    def _groups(self) -> NDArray[np.intp]:
        if ".weight_g_idx" not in self.parts:
            return np.arange(self.shape[1]) // self.group
        self.check(".weight_g_idx", (self.shape[1],))
        groups = self.raw(".weight_g_idx", "I32", "I64").astype(np.intp)
        if groups.min() < 0 or groups.max() >= self.num:
            raise BadModelFile(f"{self.stem}.weight_g_idx names a group that is not there (there are {self.num})")
        return groups


class Ints(GridMatrix):
    """compressed-tensors' int-quantized, and bitsandbytes' int8: signed bytes with a scale per row, group or tensor."""

    ENDINGS = (".weight", ".weight_scale", ".weight_zero_point", ".SCB", ".weight_format")

    def __init__(self, folder: Folder, stem: str, parts: Mapping[str, str], method: Method) -> None:
        super().__init__(folder, stem, parts)
        self.shape = self.matrix_of(".weight")
        self.is_row_max = ".SCB" in parts
        scale = self.part(".SCB" if self.is_row_max else ".weight_scale").shape
        rows = self.shape[0]
        self.num = scale[1] if len(scale) == 2 else 1
        if math.prod(scale) not in (1, rows * self.num):
            raise BadModelFile(f"{stem} has scales of the shape {scale} for a weight of the shape {self.shape}")
        self.group = self.num_groups(self.shape[1], self.num)
        if ".weight_format" in parts and self.raw(".weight_format", "U8").any():
            raise UnsupportedModel(f"{stem}.weight is laid out for one kind of GPU, which cannot be read")

    def grid(self) -> Grid:
        rows = self.shape[0]
        scales = self.scale(".SCB") / np.float32(127) if self.is_row_max else self.scale(".weight_scale")
        zeros = np.zeros((rows, self.num), np.int16)
        if ".weight_zero_point" in self.parts:
            if self.part(".weight_zero_point").shape != self.part(".weight_scale").shape:
                raise BadModelFile(f"{self.stem} has zero points of another shape than its scales")
            zeros = zeros + self.raw(".weight_zero_point", "I8").reshape(-1, self.num)
        every = np.broadcast_to(scales.reshape(-1, self.num), zeros.shape)
        return Grid(every, np.arange(self.shape[1]) // self.group, zeros, None, -128, 127)

    def codes(self) -> Codes:
        return self.raw(".weight", "I8")


class Mlx(GridMatrix):
    """MLX's affine: code * scale + bias, codes one after another along the inputs; experts may be stacked."""

    ENDINGS = (".weight", ".scales", ".biases")

    def __init__(self, folder: Folder, stem: str, parts: Mapping[str, str], method: Method) -> None:
        super().__init__(folder, stem, parts)
        own = method.said.get(stem)
        table = own if isinstance(own, Mapping) else {"bits": method.bits, "group_size": method.group}
        bits, group = table.get("bits"), table.get("group_size")
        if type(bits) is not int or bits not in (2, 3, 4, 5, 6, 8) or type(group) is not int or group < 1:
            raise BadModelFile(f"{stem} is quantized with {bits} bits in groups of {group}"[:300])
        self.bits, self.group = bits, group
        *lead, words = self.matrix_of(".weight", max(len(self.part(".weight").shape), 2))
        columns = words * 32 // self.bits
        if columns % self.group or words * 32 != columns * self.bits:
            raise BadModelFile(f"{stem}.weight of {words} words is no groups of {group} values of {bits} bits")
        self.shape = (*lead, columns)
        for ending in (".scales", ".biases"):
            self.check(ending, (*lead, columns // self.group))

    def grid(self) -> Grid:
        num = self.shape[-1] // self.group
        scales, mins = (self.scale(ending).reshape(-1, num) for ending in (".scales", ".biases"))
        groups = np.arange(self.shape[-1]) // self.group
        return Grid(scales, groups, np.zeros(scales.shape, np.int16), mins, 0, (1 << self.bits) - 1)

    def codes(self) -> Codes:
        return unpacked(self.raw(".weight", "U32", "I32"), self.bits).reshape(-1, self.shape[-1])
