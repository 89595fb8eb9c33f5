"""A WeightSource that tells how much of a model has been read: what a person sees while a large one loads."""

import math
from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

from localllm.formats.blocks import row_bytes
from localllm.models.source import WeightInfo, WeightSource


class WatchedSource:
    """Another source as it is. `tell` gets the share of all bytes, 0 to 1, after each weight that is read first."""

    def __init__(self, source: WeightSource, tell: Callable[[float], None]) -> None:
        self._source = source
        self._tell = tell
        infos = filter(None, map(source.info, source.names()))
        self._unread = {info.name: _size_bytes(info) for info in infos}
        self._left_bytes = self._all_bytes = sum(self._unread.values())

    def names(self) -> Iterable[str]:
        return self._source.names()

    def info(self, name: str) -> WeightInfo | None:
        return self._source.info(name)

    def raw(self, name: str) -> NDArray[np.uint8]:
        raw = self._source.raw(name)
        if size_bytes := self._unread.pop(name, 0):
            self._left_bytes -= size_bytes
            self._tell(1 - self._left_bytes / self._all_bytes)
        return raw

    def release(self, name: str) -> None:
        self._source.release(name)


def _size_bytes(info: WeightInfo) -> int:
    return row_bytes(info.type, info.shape[-1]) * math.prod(info.shape[:-1])
