"""Adapters of a loaded model: read when a request first names one, kept while held, and then those used last."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from localllm.engine.step import Backend
from localllm.errors import BadModelFile, InvalidRequest, ModelNotFound, Overloaded, UnsupportedModel
from localllm.models.adapters import Adapter

MAX_ADAPTERS = 16
"""Loaded at the same time: as many different ones may run in one batch."""
ReadAdapter = Callable[[str], Adapter]


@dataclass(slots=True)
class _Held:
    number: int
    num_holders: int = 0


class AdapterShelf:
    """At most `most` adapters on a backend, by path. `read` opens one; without it there are none to be had."""

    def __init__(self, backend: Backend, read: ReadAdapter | None, most: int = MAX_ADAPTERS) -> None:
        self._backend, self._read, self._most = backend, read, most
        self._held: dict[str, _Held] = {}  # the last used one is last
        self._leaving: list[int] = []

    def __len__(self) -> int:
        return len(self._held)

    def hold(self, path: str) -> int:
        """The number of the adapter at a path, which stays until `release`; 0 for an empty path.

        InvalidRequest where this engine has none, Overloaded where all that fit are in use, or the errors of reading.
        """
        if not path:
            return 0
        held = self._held.pop(path, None) or self._load(path)
        self._held[path] = held
        held.num_holders += 1
        return held.number

    def release(self, path: str) -> None:
        """One holder less; the adapter is kept for the next."""
        held = self._held.get(path)
        if held is not None:
            held.num_holders -= 1

    def number_of(self, path: str) -> int | None:
        """Of an adapter that is loaded, without touching it; 0 for an empty path."""
        if not path:
            return 0
        held = self._held.get(path)
        return None if held is None else held.number

    def settle(self) -> None:
        """No step is under way: those that left can be taken from the backend."""
        while self._leaving:
            self._backend.drop_adapter(self._leaving.pop())

    def _load(self, path: str) -> _Held:
        if self._read is None:
            raise InvalidRequest("this engine runs no adapters", param="lora")
        self._make_room()
        try:
            return _Held(self._backend.add_adapter(self._read(path)))
        except (BadModelFile, UnsupportedModel, ModelNotFound) as error:  # it is the request that names it
            raise InvalidRequest(error.message, hint=error.hint, param="lora") from error

    def _make_room(self) -> None:
        while len(self._held) >= self._most:
            idle = next((path for path, held in self._held.items() if not held.num_holders), None)
            if idle is None:
                raise Overloaded(
                    f"all {self._most} adapters that fit are in use", hint="try again when one of them is done"
                )
            self._leaving.append(self._held.pop(idle).number)
