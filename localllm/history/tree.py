"""The shape of a chat: every message has one parent, edits and new tries are siblings. Knows ids, no text."""

from collections.abc import Iterable


class Tree:
    """Built from (id, parent) pairs in the order in which the messages were written; parents come before children."""

    def __init__(self, pairs: Iterable[tuple[int, int | None]] = ()) -> None:
        self._parents: dict[int, int | None] = {}
        self._children: dict[int | None, list[int]] = {}
        for message_id, parent_id in pairs:
            self.add(message_id, parent_id)

    def __len__(self) -> int:
        return len(self._parents)

    def __contains__(self, message_id: object) -> bool:
        return message_id in self._parents

    def add(self, message_id: int, parent_id: int | None) -> None:
        """An unknown parent counts as none, so that a damaged chat can still be read."""
        known = parent_id if parent_id in self._parents else None
        self._parents[message_id] = known
        self._children.setdefault(known, []).append(message_id)

    def ids(self) -> list[int]:
        """All messages, parents before their children."""
        return list(self._parents)

    def parent(self, message_id: int) -> int | None:
        return self._parents[message_id]

    def children(self, message_id: int | None) -> list[int]:
        """In the order in which they were written; None: those without a parent."""
        return list(self._children.get(message_id, ()))

    def path(self, leaf: int | None) -> list[int]:
        """From the first message to `leaf`; empty for None."""
        ids: list[int] = []
        at = leaf
        while at is not None:
            ids.append(at)
            at = self._parents[at]
        ids.reverse()
        return ids

    def siblings(self, message_id: int) -> list[int]:
        """The messages in this one's place, itself included."""
        return self.children(self._parents[message_id])

    def sibling(self, message_id: int, step: int) -> int | None:
        """The sibling `step` places further; None beyond the ends."""
        family = self.siblings(message_id)
        place = family.index(message_id) + step
        return family[place] if 0 <= place < len(family) else None

    def latest_leaf(self, message_id: int | None) -> int | None:
        """The end of the branch through `message_id` that was written to last."""
        at = message_id
        while below := self._children.get(at):
            at = below[-1]
        return at

    def leaves(self) -> list[int]:
        return [message_id for message_id in self._parents if not self._children.get(message_id)]
