"""The turns of a conversation, most of which are read only when somebody looks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import overload

from localllm.tui.conversation.turns import Turn


class Held(Sequence[Turn]):
    """Turns, of which most may be read lazily: only what changed is kept."""

    def __init__(self, turns: Sequence[Turn] = ()) -> None:
        self._turns, self._count = turns, len(turns)
        self._changed: dict[int, Turn] = {}

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> Turn: ...
    @overload
    def __getitem__(self, index: slice) -> list[Turn]: ...
    def __getitem__(self, index: int | slice) -> Turn | list[Turn]:
        if isinstance(index, slice):
            return [self[each] for each in range(*index.indices(self._count))]
        index = range(self._count)[index]
        return self._changed[index] if index in self._changed else self._turns[index]

    def __setitem__(self, index: int, turn: Turn) -> None:
        self._changed[range(self._count)[index]] = turn

    def append(self, turn: Turn) -> None:
        self._changed[self._count] = turn
        self._count += 1

    def truncate(self, count: int) -> None:
        self._count = min(count, self._count)
        self._changed = {index: turn for index, turn in self._changed.items() if index < count}
