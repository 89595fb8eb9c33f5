"""Encoders add to every token what it belongs to: the first or the second text. Vectors are of one text, so that the
first kind's row is added to every position once, at load."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from localllm.errors import BadModelFile
from localllm.formats.blocks import BlockType, decode
from localllm.models.source import WeightInfo, WeightSource

TYPES, POSITIONS = "token_types.weight", "position_embd.weight"


def with_types_in_positions(source: WeightSource) -> WeightSource:
    """The same weights without `token_types.weight`; itself where it has none. BadModelFile: the two do not fit."""
    types, positions = source.info(TYPES), source.info(POSITIONS)
    if types is None:
        return source
    if positions is None or len(types.shape) != 2 or not types.shape[0] or types.shape[1:] != positions.shape[1:]:
        raise BadModelFile(f"{TYPES} has the shape {types.shape}, which does not go with {POSITIONS}")
    return _Folded(source, WeightInfo(POSITIONS, positions.shape, BlockType.F32))


class _Folded:
    """Positions that carry the row of the first text."""

    def __init__(self, source: WeightSource, positions: WeightInfo) -> None:
        self._source, self._positions = source, positions

    def names(self) -> Iterable[str]:
        return [name for name in self._source.names() if name != TYPES]

    def info(self, name: str) -> WeightInfo | None:
        if name == POSITIONS:
            return self._positions
        return None if name == TYPES else self._source.info(name)

    def raw(self, name: str) -> NDArray[np.uint8]:
        if name != POSITIONS:
            return self._source.raw(name)
        values = self._decoded(POSITIONS) + self._decoded(TYPES)[0]
        return np.ascontiguousarray(values, np.float32).reshape(-1).view(np.uint8)

    def release(self, name: str) -> None:
        self._source.release(name)

    def _decoded(self, name: str) -> NDArray[np.float32]:
        info = self._source.info(name)
        assert info is not None, "both are there"
        return decode(info.type, self._source.raw(name), info.shape)
