"""Where adapters add to the products of a recorded program, and adapters brought there."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from localllm.backends.cpu.nodes import Value, Weight
from localllm.backends.cpu.pack import NONE
from localllm.errors import NotEnoughMemory, UnsupportedModel
from localllm.models.adapters import Adapter, is_adaptable

if TYPE_CHECKING:
    from localllm.backends.cpu._native import Program


class Sites:
    """The native number of each matrix that adapters may change, by its name."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self._sites: dict[str, int] = {}

    def of(self, weight: Weight, x: Value) -> int:
        """NONE for a matrix that adapters leave alone."""
        if x.taken or len(weight.shape) != 2 or not is_adaptable(weight.name):
            return NONE
        if weight.name not in self._sites:
            self._sites[weight.name] = self._program.add_site(*weight.shape)
        return self._sites[weight.name]

    def add(self, adapter: Adapter) -> int:
        """The number of the adapter. UnsupportedModel where this model multiplies a matrix in another way."""
        for name in adapter.parts:
            if name not in self._sites:
                raise UnsupportedModel(f"the adapter {adapter.name} changes {name}, to which this backend cannot add")
        number = self._program.add_adapter()
        try:
            for name, part in adapter.parts.items():
                a, b = (np.ascontiguousarray(each, np.float32) for each in (part.a, part.b))
                self._program.add_part(number, self._sites[name], a, b, part.scale)
        except MemoryError:
            self._program.drop_adapter(number)
            raise NotEnoughMemory(
                f"there is no memory for the adapter {adapter.name}", hint="use fewer adapters at once"
            ) from None
        return number
