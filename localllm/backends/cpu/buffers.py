"""Which buffer holds which value: a buffer is taken again once its value is dead and every thread has left it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from localllm.backends.cpu.nodes import Value


@dataclass(frozen=True, slots=True)
class Kind:
    """Buffers of one kind are interchangeable. `is_private`: every thread keeps its own copy of a lone row."""

    width: int
    quantized: bool
    is_private: bool
    taken: bool


@dataclass(frozen=True, slots=True)
class Buffer:
    id: int
    kind: Kind


class BufferMaker(Protocol):
    def buffer(self, width: int, quantized: bool, is_private: bool, taken: bool) -> int: ...


class Buffers:
    """Hands out buffers and takes them back.

    With a lone row threads meet only after instructions that share their output. Until then a slower thread may still
    read what a faster one would write, so buffers come back at meetings: `after(synced=True)`.
    """

    def __init__(self, program: BufferMaker) -> None:
        self._program = program
        self._free: dict[Kind, list[Buffer]] = {}
        self._leaving: list[Buffer] = []
        self._read: set[Buffer] = set()
        self._held: dict[tuple[Value, bool], Buffer] = {}

    def take(self, kind: Kind) -> Buffer:
        free = self._free.get(kind)
        if free:
            return free.pop()
        return Buffer(self._program.buffer(kind.width, kind.quantized, kind.is_private, kind.taken), kind)

    def hold(self, value: Value, quantized: bool, is_private: bool) -> Buffer:
        """A buffer for a form of `value` from now on."""
        buffer = self.take(Kind(value.width, quantized, is_private, value.taken))
        self._held[value, quantized] = buffer
        return buffer

    def reuse(self, value: Value, old: Value) -> Buffer | None:
        """The old value's floats become the new value's, in place; None where a slower thread may still read them."""
        buffer = self._held.get((old, False))
        if buffer is None or buffer.kind.is_private or buffer in self._read:
            return None
        del self._held[old, False]
        self._held[value, False] = buffer
        return buffer

    def find(self, value: Value, quantized: bool) -> Buffer | None:
        return self._held.get((value, quantized))

    def give_back(self, buffer: Buffer) -> None:
        self._leaving.append(buffer)

    def drop(self, value: Value) -> None:
        """The value is dead in all its forms."""
        for quantized in (False, True):
            buffer = self._held.pop((value, quantized), None)
            if buffer is not None:
                self._leaving.append(buffer)

    def after(self, reads: Iterable[Buffer], synced: bool) -> None:
        """An instruction that read these was appended; `synced`: threads meet after it even with a lone row."""
        if not synced:
            self._read.update(reads)
            return
        self._read.clear()
        for buffer in self._leaving:
            self._free.setdefault(buffer.kind, []).append(buffer)
        self._leaving.clear()
