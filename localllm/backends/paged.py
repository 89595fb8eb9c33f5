"""A sequence's memory in numpy: pages of keys and values, slots of recurrent state, and checkpoints of slots."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from localllm.backends.layout import attention_specs, cache_layout, kv_places, layer_values, state_bytes, state_places
from localllm.backends.trails import Trails
from localllm.engine.step import (
    NO_PAGE,
    CheckpointId,
    CopyPage,
    CopySlot,
    DropCheckpoint,
    MemoryOp,
    ResizePool,
    RestoreState,
    SaveState,
    SeqId,
    ZeroSlot,
)
from localllm.errors import FEWER_PAGES, NotEnoughMemory
from localllm.models.config import ModelConfig

Floats = NDArray[np.float32]
Ints = NDArray[np.int32]


class PagedMemory:
    """Pages are float32, or float16 where the rounding of faster backends is to be followed; state is float32."""

    def __init__(self, config: ModelConfig, page_size: int, kv_type: type[np.float32] | type[np.float16]) -> None:
        self.layout = cache_layout(config, page_size, np.dtype(kv_type).itemsize)
        self._config = config
        self._specs = dict(attention_specs(config))
        self._kv_places = kv_places(config, self.layout)
        self._state_places = state_places(config)
        self._kv_type = kv_type
        self._pages: NDArray[Any] = np.zeros(self._pages_shape(0), kv_type)
        self._slots: Floats = np.zeros((0, state_bytes(config) // 4), np.float32)
        self._checkpoints: dict[CheckpointId, Floats] = {}
        self.trails: Trails[Floats] = Trails()

    def allocate(self, num_pages: int, num_slots: int) -> None:
        try:
            self._pages = np.zeros(self._pages_shape(num_pages), self._kv_type)
            self._slots = np.zeros((num_slots, self._slots.shape[1]), np.float32)
        except MemoryError:
            raise NotEnoughMemory(f"there is no memory for {num_pages} pages", hint=FEWER_PAGES) from None

    def apply(self, op: MemoryOp) -> None:
        """One memory operation of a plan. CommitDraft has its own door: it needs to know what was drafted."""
        if isinstance(op, CopyPage):
            self._pages[op.target] = self._pages[op.source]
        elif isinstance(op, ResizePool):
            self._resize(op.num_pages)
        elif isinstance(op, CopySlot):
            self._slots[op.target] = self._slots[op.source]
        elif isinstance(op, ZeroSlot):
            self._slots[op.slot] = 0
        elif isinstance(op, SaveState):
            self._checkpoints[op.checkpoint] = self._slots[op.slot].copy()
        elif isinstance(op, RestoreState):
            self._slots[op.slot] = self._checkpoints[op.checkpoint]
        elif isinstance(op, DropCheckpoint):
            self._checkpoints.pop(op.checkpoint, None)

    def write(self, layer: int, table: Ints, positions: Ints, keys: Floats, values: Floats) -> None:
        """keys (n, kv_heads, head_dim) and values (n, kv_heads, value_dim) of n tokens of one row."""
        pages, offsets = self._lookup(table, positions)
        key_pages, value_pages = self._views(layer)
        key_pages[pages, offsets] = keys
        value_pages[pages, offsets] = values

    def read(self, layer: int, table: Ints, positions: Ints) -> tuple[Floats, Floats]:
        """What was written for these positions of one row, as float32."""
        pages, offsets = self._lookup(table, positions)
        keys, values = self._views(layer)
        return keys[pages, offsets].astype(np.float32), values[pages, offsets].astype(np.float32)

    def group(self, layer: int) -> int:
        return self._kv_places[layer].group

    def state(self, layer: int, slot: int, part: int = 0) -> Floats:
        """One part of a layer's state, of the shape that its spec names, as a view that may be written."""
        assert slot >= 0, "a row of a model with state names its slot"
        own = self._state_places[layer][part]
        return self._slots[slot, own.first : own.end].reshape(own.shape)

    def roll_back(self, seq: SeqId, num_tokens: int) -> None:
        """The state of before the last `num_tokens` tokens of the row that was checked last."""
        slot, states = self.trails.take(seq, num_tokens)
        for (layer, part), state in states.items():
            self.state(layer, slot, part)[:] = state

    def _lookup(self, table: Ints, positions: Ints) -> tuple[Ints, Ints]:
        pages = table[positions // self.layout.page_size]
        assert (pages != NO_PAGE).all(), "a token's page was freed while it is still seen"
        return pages, positions % self.layout.page_size

    def _views(self, layer: int) -> tuple[NDArray[Any], NDArray[Any]]:
        """Keys and values of a layer: (pages, page_size, kv_heads, dim) each."""
        spec, page_size = self._specs[layer], self.layout.page_size
        room = self._pages[:, self._kv_places[layer].index]
        cut = page_size * spec.num_kv_heads * spec.head_dim
        end = cut + page_size * spec.num_kv_heads * spec.value_dim
        shape = (len(room), page_size, spec.num_kv_heads)
        return room[:, :cut].reshape(*shape, spec.head_dim), room[:, cut:end].reshape(*shape, spec.value_dim)

    def _pages_shape(self, num_pages: int) -> tuple[int, int, int]:
        per_group = max((len(group.layers) for group in self.layout.groups), default=0)
        return num_pages, per_group, self.layout.page_size * layer_values(self._config)

    def _resize(self, num_pages: int) -> None:
        resized = np.zeros(self._pages_shape(num_pages), self._kv_type)
        kept = min(num_pages, len(self._pages))
        resized[:kept] = self._pages[:kept]
        self._pages = resized
