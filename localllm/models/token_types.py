"""Positions of encoders: their first rows may stand for padding, and every token has the row of the text it is of, the
first or the second. Vectors are of one text, so that its row is added to every position once, at load; of models that
judge pairs what the second row is more than the first stays."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from localllm.errors import BadModelFile
from localllm.formats.blocks import BlockType, decode
from localllm.models.source import WeightInfo, WeightSource

TYPES, POSITIONS = "token_types.weight", "position_embd.weight"


def with_types_in_positions(
    source: WeightSource, context_length: int, num_padding: int = 0, *, keeps: bool = False
) -> WeightSource:
    """The same weights without `token_types.weight`, and positions without their first `num_padding` rows; itself where
    there is nothing to do. Where there are no positions (heads turn), `context_length` equal rows stand for them.
    `keeps`: types stay as zeros and what the second is more, where there are two. BadModelFile: the two do not fit."""
    types, positions = source.info(TYPES), source.info(POSITIONS)
    if types is None and (positions is None or not num_padding):
        return source
    if positions is None and types is not None and len(types.shape) == 2 and types.shape[0]:
        return _Folded(source, 0, WeightInfo(POSITIONS, (context_length, types.shape[1]), BlockType.F32), keeps)
    if positions is None or len(positions.shape) != 2 or positions.shape[0] <= num_padding:
        raise BadModelFile(f"the model has no tensor {POSITIONS} of more than {num_padding} rows")
    if types is not None and (len(types.shape) != 2 or not types.shape[0] or types.shape[1:] != positions.shape[1:]):
        raise BadModelFile(f"{TYPES} has the shape {types.shape}, which does not go with {POSITIONS}")
    kept = WeightInfo(POSITIONS, _without(positions.shape, num_padding), BlockType.F32)
    return _Folded(source, num_padding, kept, keeps)


class _Folded:
    """Positions that carry the row of the first text."""

    def __init__(self, source: WeightSource, num_padding: int, positions: WeightInfo, keeps: bool) -> None:
        self._source, self._num_padding, self._positions = source, num_padding, positions
        types = source.info(TYPES)
        has_two = keeps and types is not None and types.shape[0] > 1
        self._types = WeightInfo(TYPES, (2, positions.shape[1]), BlockType.F32) if has_two else None

    def names(self) -> Iterable[str]:
        own = [POSITIONS] if self._types is None else [POSITIONS, TYPES]
        return [*(name for name in self._source.names() if name not in (TYPES, POSITIONS)), *own]

    def info(self, name: str) -> WeightInfo | None:
        if name == POSITIONS:
            return self._positions
        return self._types if name == TYPES else self._source.info(name)

    def raw(self, name: str) -> NDArray[np.uint8]:
        if name == TYPES:
            first, second = self._decoded(TYPES)[:2]
            return np.stack([np.zeros_like(first), second - first]).reshape(-1).view(np.uint8)
        if name != POSITIONS:
            return self._source.raw(name)
        values = np.zeros(self._positions.shape, np.float32)
        if self._source.info(POSITIONS) is not None:
            values += self._decoded(POSITIONS)[self._num_padding :]
        if self._source.info(TYPES) is not None:
            values += self._decoded(TYPES)[0]
        return np.ascontiguousarray(values, np.float32).reshape(-1).view(np.uint8)

    def release(self, name: str) -> None:
        if self._source.info(name) is not None:
            self._source.release(name)

    def _decoded(self, name: str) -> NDArray[np.float32]:
        info = self._source.info(name)
        assert info is not None, "it is there"
        return decode(info.type, self._source.raw(name), info.shape)


def _without(shape: tuple[int, ...], num_rows: int) -> tuple[int, ...]:
    return (shape[0] - num_rows, *shape[1:])
