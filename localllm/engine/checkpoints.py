"""Which recurrent states are kept, by the prefix that led to them; the least recently used one makes room."""

from __future__ import annotations

from collections import OrderedDict

from localllm.engine.pages import ChainHash
from localllm.engine.step import CheckpointId


class Checkpoints:
    """At most `capacity` states. Ids are reused: saving under one again overwrites what it held."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._unused = [CheckpointId(number) for number in reversed(range(capacity))]
        self._kept: OrderedDict[ChainHash, CheckpointId] = OrderedDict()

    @property
    def num_kept(self) -> int:
        return len(self._kept)

    def find(self, chain: ChainHash) -> CheckpointId | None:
        return self._kept.get(chain)

    def use(self, chain: ChainHash) -> None:
        self._kept.move_to_end(chain)

    def keep(self, chain: ChainHash) -> CheckpointId | None:
        """An id to save the state after `chain` under; None when it is kept already or nothing may be kept."""
        if chain in self._kept or not (self._unused or self._kept):
            return None
        number = self._unused.pop() if self._unused else self._kept.popitem(last=False)[1]
        self._kept[chain] = number
        return number

    def forget(self, chain: ChainHash) -> None:
        if chain in self._kept:
            self._unused.append(self._kept.pop(chain))
