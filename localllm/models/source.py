"""Where weights come from, whatever the file format: canonical names, shapes, block types, raw bytes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from localllm.formats.blocks import BlockType

LOOKED_UP = ("per_layer_token_embd.weight",)
"""Wide tables whose rows are looked up by token and never multiplied: they may stay in the file."""


@dataclass(frozen=True, slots=True)
class WeightInfo:
    """`shape` is in numpy order: (out, in), or (experts, out, in), or (n,). A row is a run of the last axis."""

    name: str
    shape: tuple[int, ...]
    type: BlockType


class WeightSource(Protocol):
    """Weights as the decoder expects them: quirks of the file (row order, fused matrices) are already undone."""

    def names(self) -> Iterable[str]: ...

    def info(self, name: str) -> WeightInfo | None: ...

    def raw(self, name: str) -> NDArray[np.uint8]:
        """The blocks of all rows, flat; a view of the file where nothing had to be re-ordered."""

    def release(self, name: str) -> None:
        """The caller has its own copy: give the file's pages back to the system."""
