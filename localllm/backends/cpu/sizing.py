"""How much memory a model takes on the CPU, before any of it is read: it is recorded as for real, into a program that
only counts. Sizes are those of program.cpp and matrix.cpp."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from localllm.backends.cpu.library import default_threads
from localllm.backends.cpu.rooms import layer_bytes
from localllm.backends.layout import cache_layout
from localllm.engine.step import CacheLayout
from localllm.formats.blocks import BlockType, row_bytes
from localllm.models.config import ModelConfig
from localllm.models.source import WeightInfo, WeightSource
from localllm.settings import KvType

LANES, TILE, BLOCK, FLOAT = 8, 4, 32, 4
SMALL_BYTES = 1 << 18
TILE_BLOCK_BYTES = 224
"""Of 32 values of 4 tokens, rounded: ActBlock of kernels.h."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """`weight_bytes` as they are packed. `token_bytes`: what each token of the longest step computes with;
    `state_bytes` of a slot."""

    weight_bytes: int
    token_bytes: int
    layout: CacheLayout

    def work_bytes(self, num_tokens: int) -> int:
        """Of steps of up to so many tokens."""
        return self.token_bytes * num_tokens


def sizes_of(config: ModelConfig, source: WeightSource, page_size: int, kv_type: KvType) -> Sizes:
    """UnsupportedModel where the CPU does not run the model. Reads what is small, and no
    large matrix."""
    # deferred: it binds the native library, which may not have been built
    from localllm.backends.cpu.emit import Emitter
    from localllm.backends.cpu.fuse import fuse
    from localllm.backends.cpu.record import record

    room = layer_bytes(config, page_size, "f16" if kv_type == "auto" else kv_type)
    layout = cache_layout(config, page_size, layer_bytes=room)
    counted = _Counted(default_threads(), pools=config.is_encoder or config.head is not None)
    program = cast(Any, counted)
    emitter = Emitter(program, config, _Hollow(source), layout, config.context_length, room)
    emitter.emit(fuse(record(config, source)))
    return Sizes(counted.weight_bytes, counted.token_bytes, layout)


class _Hollow:
    """A WeightSource whose matrices have no content but for the smallest, of which some are vectors to the program."""

    def __init__(self, source: WeightSource) -> None:
        self._source = source

    def names(self) -> Iterable[str]:
        return self._source.names()

    def info(self, name: str) -> WeightInfo | None:
        return self._source.info(name)

    def raw(self, name: str) -> NDArray[np.uint8]:
        info = self._source.info(name)
        assert info is not None, "it is asked for by name"
        size = row_bytes(info.type, info.shape[-1]) * math.prod(info.shape[:-1])
        return self._source.raw(name) if size <= SMALL_BYTES else np.empty(0, np.uint8)

    def release(self, name: str) -> None:
        self._source.release(name)


class _Counted:
    """What the emitter needs of a program; every other call is an instruction, which takes nothing of note."""

    def __init__(self, threads: int, *, pools: bool) -> None:
        self._threads = threads
        self._pools = pools
        self._num_ids = 0
        self.weight_bytes = 0
        self.token_bytes = 0

    def buffer(self, width: int, quantized: bool, is_private: bool, taken: bool) -> int:
        if not taken:  # a few rows of these are used
            per_tile = width // BLOCK * TILE_BLOCK_BYTES if quantized else TILE * FLOAT * -(-width // 16) * 16
            self.token_bytes += per_tile // TILE
        return self._next()

    def matrix(self, raw: object, type: int, rows: int, columns: int) -> int:
        self.weight_bytes += -(-rows // LANES) * LANES * row_bytes(BlockType(type), columns)
        return self._next()

    def gated_matrix(self, gate: object, up: object, gate_type: int, up_type: int, rows: int, columns: int) -> int:
        for kind in (gate_type, up_type):
            self.matrix(None, kind, rows, columns)
        return self._next()

    def vector(self, values: NDArray[np.float32]) -> int:
        self.weight_bytes += FLOAT * -(-len(values) // BLOCK) * BLOCK
        return self._next()

    def angles(self, frequencies: Sequence[float], *_: object, **__: object) -> int:
        self.token_bytes += 2 * FLOAT * len(frequencies)
        return self._next()

    def pool(self, x: int) -> None:
        """The final states of all tokens are kept for it, where vectors are all that is asked for."""

    def __getattr__(self, name: str) -> Callable[..., int]:
        return lambda *_, **__: self._next()

    def _next(self) -> int:
        self._num_ids += 1
        return self._num_ids - 1
