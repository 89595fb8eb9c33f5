"""The messages of one branch as a sequence. The shape is known at once, texts are read when somebody looks."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, overload

import msgspec

from localllm.history.records import Extra, Message
from localllm.history.tree import Tree

COLUMNS = "id, parent_id, role, content, reasoning, model, created, extra"

AT_ONCE = 64
"""Messages that are read together."""

_extra = msgspec.json.Decoder(Extra)
_NONE = Extra()


class Branch(Sequence[Message]):
    """From the first message to `leaf`; `tree` is that of the whole chat. `read(ids)` gives rows of COLUMNS."""

    def __init__(self, tree: Tree, read: Callable[[list[int]], Iterable[Any]], leaf: int | None) -> None:
        self.tree, self.leaf = tree, leaf
        self.ids: list[int] = tree.path(leaf)
        self._read = read
        self._made: dict[int, Message] = {}

    def __len__(self) -> int:
        return len(self.ids)

    @overload
    def __getitem__(self, index: int) -> Message: ...
    @overload
    def __getitem__(self, index: slice) -> list[Message]: ...
    def __getitem__(self, index: int | slice) -> Message | list[Message]:
        if isinstance(index, slice):
            return self._messages(self.ids[index])
        message_id = self.ids[index]
        if message_id not in self._made:  # whoever looks at one looks at its neighbours next
            start = index % len(self.ids) // AT_ONCE * AT_ONCE
            self._messages(self.ids[start : start + AT_ONCE])
        return self._made[message_id]

    def __iter__(self) -> Iterator[Message]:
        """Without those that were removed meanwhile, as an answer is that failed before its first word."""
        for start in range(0, len(self.ids), AT_ONCE):
            ids = self.ids[start : start + AT_ONCE]
            self._read_in(ids)
            yield from (self._made[message_id] for message_id in ids if message_id in self._made)

    def message(self, message_id: int) -> Message:
        """Any message of the chat, also of other branches. KeyError when there is none (any more)."""
        return self._messages([message_id])[0]

    def place(self, message_id: int) -> tuple[int, int]:
        """Which of how many siblings, counted from 1."""
        family = self.tree.siblings(message_id)
        return family.index(message_id) + 1, len(family)

    def at(self, leaf: int | None) -> "Branch":
        """Another branch of the same chat."""
        return Branch(self.tree, self._read, leaf)

    def _messages(self, ids: list[int]) -> list[Message]:
        self._read_in(ids)
        return [self._made[message_id] for message_id in ids]

    def _read_in(self, ids: list[int]) -> None:
        if missing := [message_id for message_id in ids if message_id not in self._made]:
            self._made.update((row[0], message_of(row)) for row in self._read(missing))


def message_of(row: Sequence[Any]) -> Message:
    """From the values of COLUMNS."""
    message_id, parent_id, role, content, reasoning, model, created, text = row
    extra = _extra_of(text) if text else _NONE
    found = (extra.attachments, extra.stats, extra.origin)
    return Message(message_id, parent_id, role, content, reasoning, model, created, *found)


def _extra_of(text: str) -> Extra:
    try:
        return _extra.decode(text)
    except msgspec.MsgspecError:
        return _NONE  # a message without its figures is better than none
