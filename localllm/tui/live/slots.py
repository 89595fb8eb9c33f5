"""Owner slots: which request has which hue and letter. The lowest free one is given, and kept until it is left."""

from __future__ import annotations

NUM_SLOTS = 16
OTHERS = NUM_SLOTS
"""The slot of all who came when every slot was taken."""


class Slots:
    """Sixteen slots. Owners are request ids."""

    def __init__(self) -> None:
        self._owners: dict[str, int] = {}

    def take(self, owner: str) -> int:
        """Its slot: the one it has, else the lowest free one, else OTHERS."""
        if owner not in self._owners:
            taken = set(self._owners.values())
            self._owners[owner] = next((slot for slot in range(NUM_SLOTS) if slot not in taken), OTHERS)
        return self._owners[owner]

    def of(self, owner: str) -> int | None:
        return self._owners.get(owner)

    def leave(self, owner: str) -> None:
        self._owners.pop(owner, None)

    def owners(self) -> dict[str, int]:
        return dict(self._owners)

    def clear(self) -> None:
        self._owners.clear()
