"""A log of plans is a replayable bug report: what the engine asked of its backend, step by step, without any weights.

The log is a row of msgpack frames, each with a 4-byte little-endian length before it: first what `allocate` was asked
for, then one plan per step.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

import msgspec

from localllm.engine.step import (
    Backend,
    CommitDraft,
    CopyPage,
    CopySlot,
    DropCheckpoint,
    MemoryOp,
    ResizePool,
    RestoreState,
    Row,
    SaveState,
    StepPlan,
    StepResult,
    ZeroSlot,
    run_step,
)
from localllm.errors import BadModelFile

_KINDS: dict[str, type[MemoryOp]] = {
    kind.__name__: kind
    for kind in (CopyPage, CopySlot, ZeroSlot, SaveState, RestoreState, DropCheckpoint, CommitDraft, ResizePool)
}


class _Pools(msgspec.Struct, frozen=True):
    num_pages: int
    num_slots: int


class _Frame(msgspec.Struct, frozen=True):
    """A plan with its memory operations named, because plain data does not say of which kind it is."""

    step_id: int
    rows: tuple[Row, ...]
    memory: tuple[tuple[str, msgspec.Raw], ...]


class Recorder:
    """A backend that writes every plan to `log` before it hands it on."""

    def __init__(self, backend: Backend, log: BinaryIO) -> None:
        self.info, self.layout, self.vocab_size = backend.info, backend.layout, backend.vocab_size
        self._backend = backend
        self._log = log

    def allocate(self, num_pages: int, num_slots: int) -> None:
        self._write(_Pools(num_pages, num_slots))
        self._backend.allocate(num_pages, num_slots)

    def submit(self, plan: StepPlan) -> None:
        memory = tuple((type(op).__name__, msgspec.Raw(msgspec.msgpack.encode(op))) for op in plan.memory)
        self._write(_Frame(plan.step_id, plan.rows, memory))  # waits for masks that are still being computed
        self._backend.submit(plan)

    def collect(self) -> StepResult:
        return self._backend.collect()

    def close(self) -> None:
        self._backend.close()

    def _write(self, frame: _Pools | _Frame) -> None:
        body = msgspec.msgpack.encode(frame, enc_hook=bytes)
        self._log.write(len(body).to_bytes(4, "little") + body)
        self._log.flush()  # the step that follows may be the one that ends the process


def replay(log: BinaryIO, backend: Backend) -> Iterator[StepResult]:
    """Run a log on a fresh backend of the same layout, one step after the other. BadModelFile for what is no log."""
    pools = msgspec.msgpack.decode(next(_frames(log)), type=_Pools)
    backend.allocate(pools.num_pages, pools.num_slots)
    for body in _frames(log):
        yield run_step(backend, _plan(msgspec.msgpack.decode(body, type=_Frame, dec_hook=_mask)))


def _plan(frame: _Frame) -> StepPlan:
    memory = tuple(msgspec.msgpack.decode(body, type=_KINDS[kind]) for kind, body in frame.memory)
    return StepPlan(frame.step_id, frame.rows, memory)


def _mask(_: type, mask: bytes) -> bytes:
    """Masks were written as the bytes that they became."""
    return mask


def _frames(log: BinaryIO) -> Iterator[bytes]:
    while header := log.read(4):
        body = log.read(int.from_bytes(header, "little"))
        if len(body) != int.from_bytes(header, "little"):
            raise BadModelFile("the log of plans ends in the middle of a step")
        yield body
