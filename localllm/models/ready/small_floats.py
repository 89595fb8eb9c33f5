"""Matrices whose values are no even steps: 8-bit floats, and bitsandbytes' tables of 16 values.

Sources: the OCP specification of e4m3, DeepSeek's weight_dequant, bitsandbytes' dequantize_4bit.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from localllm.errors import BadModelFile
from localllm.models.ready.bits import e4m3_table
from localllm.models.ready.grids import Floats, Plan, chunks, floats_plan
from localllm.models.ready.matrices import Folder, Matrix
from localllm.models.ready.methods import Method

_MAX_STATE_BYTES = 1 << 16


class Fp8(Matrix):
    """e4m3 with a scale for the tensor, for each row, or for blocks of `weight_block_size`."""

    ENDINGS = (".weight", ".weight_scale", ".weight_scale_inv")

    def __init__(self, folder: Folder, stem: str, parts: Mapping[str, str], method: Method) -> None:
        super().__init__(folder, stem, parts)
        self.shape = self.matrix_of(".weight")
        self.ending = ".weight_scale_inv" if ".weight_scale_inv" in parts else ".weight_scale"
        rows, columns = self.shape
        scale = self.part(self.ending).shape
        sizes = method.said.get("weight_block_size") or method.said.get("block_structure")
        if math.prod(scale) == 1 or scale in ((rows,), (rows, 1)):
            self.block = (rows if math.prod(scale) == 1 else 1, columns)
            return
        if not (isinstance(sizes, list | tuple) and len(sizes) == 2 and all(type(n) is int and n > 0 for n in sizes)):
            raise BadModelFile(f"{stem}{self.ending} has the shape {scale}, but no weight_block_size says of what")
        self.block = (sizes[0], sizes[1])
        self.check(self.ending, (-(-rows // sizes[0]), -(-columns // sizes[1])))

    def plan(self) -> Plan:
        return floats_plan(
            float(np.abs(self.scale(self.ending)).max(initial=0)) * 448, "no block type holds 8-bit floats"
        )

    def values(self) -> Iterator[tuple[slice, Floats]]:
        raw = self.raw(".weight", "F8_E4M3")
        scales = self.scale(self.ending).reshape(-(-self.shape[0] // self.block[0]), -1)
        table, of_columns = e4m3_table(), np.arange(self.shape[1]) // self.block[1]
        for rows in chunks(*self.shape):
            values = table[raw[rows]]
            if np.isnan(values).any():
                raise BadModelFile(f"{self.stem}.weight has values that are no numbers")
            values *= scales[np.arange(rows.start, rows.stop) // self.block[0]][:, of_columns]
            yield rows, values


class Nf4(Matrix):
    """bitsandbytes' 4 bits: a byte has two codes, the first one high; a table of 16 values, a size for each block.

    Sizes may be quantized again: 8-bit codes into a table, sizes of their blocks, and an offset.
    """

    ENDINGS = (".weight", ".weight.absmax", ".weight.quant_map", ".weight.nested_absmax", ".weight.nested_quant_map")
    STATE = ".weight.quant_state.bitsandbytes__"

    def __init__(self, folder: Folder, stem: str, parts: Mapping[str, str], method: Method) -> None:
        super().__init__(folder, stem, parts)
        state = self._state()
        shape, self.block = state.get("shape"), state.get("blocksize")
        if not (isinstance(shape, list) and len(shape) == 2 and all(type(n) is int and n > 0 for n in shape)):
            raise BadModelFile(f"{stem}.weight has a quant_state of the shape {shape!r}"[:300])
        if type(self.block) is not int or self.block < 2 or self.block % 2:
            raise BadModelFile(f"{stem}.weight has a quant_state of blocks of {self.block!r}"[:300])
        self.shape = (shape[0], shape[1])
        size = math.prod(self.shape)
        self.num = -(-size // self.block)
        if math.prod(self.part(".weight").shape) != -(-size // 2) or self.part(".weight.absmax").shape != (self.num,):
            raise BadModelFile(f"{stem}.weight and its absmax do not make the shape {self.shape}")
        self.check(".weight.quant_map", (16,))
        self.offset, self.nested = state.get("nested_offset", 0.0), state.get("nested_blocksize", 256)

    def _state(self) -> dict[str, Any]:
        ending = next((each for each in self.parts if each.startswith(self.STATE)), self.STATE + "nf4")
        if math.prod(self.part(ending).shape) > _MAX_STATE_BYTES:
            raise BadModelFile(f"{self.stem}{ending} is too long")
        try:
            state = json.loads(bytes(self.raw(ending, "U8")))
        except ValueError:
            state = None
        if not isinstance(state, dict):
            raise BadModelFile(f"{self.stem}{ending} is no JSON object")
        return state

    def plan(self) -> Plan:
        largest = float(np.abs(self._sizes()).max()) * float(np.abs(self.scale(".weight.quant_map")).max())
        return floats_plan(largest, "no block type holds its table of values")

    def _sizes(self) -> Floats:
        """Of all blocks."""
        if self.part(".weight.absmax").dtype != "U8":
            return self.scale(".weight.absmax")
        self.check(".weight.nested_quant_map", (256,))
        if type(self.nested) is not int or self.nested < 1 or not _is_finite(self.offset):
            raise BadModelFile(f"{self.stem}.weight has a quant_state of odd nested sizes")
        self.check(".weight.nested_absmax", (-(-self.num // self.nested),))
        outer = self.scale(".weight.nested_absmax")[np.arange(self.num) // self.nested]
        table = self.scale(".weight.nested_quant_map")
        return np.asarray(table[self.raw(".weight.absmax", "U8")] * outer + np.float32(self.offset), np.float32)

    def values(self) -> Iterator[tuple[slice, Floats]]:
        packed, sizes = self.raw(".weight", "U8").reshape(-1), self._sizes()
        table, columns = self.scale(".weight.quant_map"), self.shape[1]
        for rows in chunks(*self.shape):
            first, last = rows.start * columns, rows.stop * columns
            some = packed[first // 2 : -(-last // 2)]
            codes = np.stack([some >> 4, some & 0x0F], axis=-1).reshape(-1)[first % 2 :][: last - first]
            values = table[codes] * sizes[np.arange(first, last) // self.block]
            yield rows, values.reshape(-1, columns)


def _is_finite(number: Any) -> bool:
    return isinstance(number, int | float) and abs(number) < 1e30
