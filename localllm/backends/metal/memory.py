"""A sequence's memory in MLX arrays: pages of keys and values, slots of recurrent state, checkpoints, trails.

MLX arrays are values: writing some rows makes a new array, which takes over the old buffer only when nothing that
still waits to be computed reads it. So each room of the pool is an array of its own, which is written at most once
between two waits; a second write would copy the whole room.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from localllm.backends.layout import attention_specs, cache_layout, kv_places, layer_values, recurrent_specs
from localllm.backends.metal.border import check_memory
from localllm.backends.metal.load import free_bytes
from localllm.backends.metal.shortage import shortage
from localllm.backends.trails import Trails
from localllm.engine.step import (
    CheckpointId,
    CommitDraft,
    CopyPage,
    CopySlot,
    DropCheckpoint,
    MemoryOp,
    ResizePool,
    RestoreState,
    SaveState,
    SlotId,
    ZeroSlot,
)
from localllm.errors import FEWER_PAGES, NotEnoughMemory
from localllm.models.config import ModelConfig

Ints = NDArray[np.int32]
States = dict[tuple[int, int], mx.array]
"""By layer and part."""


class MetalMemory:
    """Room i holds the i-th layer of every page: (pages * page_size, values of a token), keys before values.

    State is float32, one array (slots, *shape) for each part of a layer's state.
    """

    def __init__(self, config: ModelConfig, page_size: int, kv_type: mx.Dtype) -> None:
        self.layout = cache_layout(config, page_size, kv_type.size)
        self.kv_type = kv_type
        self.width = layer_values(config)  # numbers of a token in a room
        self._config = config
        self._specs = dict(attention_specs(config))
        self._places = kv_places(config, self.layout)
        self._num_rooms = max((len(group.layers) for group in self.layout.groups), default=0)
        self._rooms: list[mx.array] = []
        self._written: set[int] = set()
        self._state_shapes = {
            (layer, part): shape
            for layer, spec in recurrent_specs(config)
            for part, shape in enumerate(spec.state_shapes)
        }
        self._states: States = {}
        self._checkpoints: dict[CheckpointId, States] = {}
        self.trails: Trails[mx.array] = Trails()

    def allocate(self, num_pages: int, num_slots: int) -> None:
        """NotEnoughMemory when pages and slots do not fit."""
        wanted = num_pages * self.layout.page_bytes + num_slots * self.layout.state_bytes
        if wanted > free_bytes():
            raise NotEnoughMemory(f"there is no memory for {num_pages} pages", hint=FEWER_PAGES)
        self._rooms = _made(lambda: [self._room(num_pages) for _ in range(self._num_rooms)])
        self._states = dict(zip(self._state_shapes, _made(lambda: [*self._new_states(num_slots)]), strict=True))

    def clear(self) -> None:
        self._rooms, self._states = [], {}
        self._checkpoints.clear()
        self.trails.clear()

    def arrays(self) -> Iterator[mx.array]:
        """What a step may have changed; a line of a trail is computed when it is asked for."""
        yield from self._rooms
        for states in (self._states, *self._checkpoints.values()):
            yield from states.values()

    def settled(self) -> None:
        """All arrays were waited for: rooms may be written again."""
        self._written.clear()

    @property
    def num_pages(self) -> int:
        return self._rooms[0].shape[0] // self.layout.page_size if self._rooms else 0

    @property
    def num_slots(self) -> int:
        return next((states.shape[0] for states in self._states.values()), 0)

    def check(self, ops: Sequence[MemoryOp]) -> None:
        """InvalidRequest for what is not there."""
        check_memory(ops, self.num_pages, self.num_slots if self.layout.has_state else None, self._checkpoints)

    def group(self, layer: int) -> int:
        return self._places[layer].group

    def write(self, layer: int, places: mx.array, keys: mx.array, values: mx.array) -> None:
        """keys and values (T, kv_heads * dim) of the tokens at `places`, (T,) indices of tokens in the pool."""
        room = self._room_of(layer)
        tokens = mx.concatenate([keys, values], axis=-1).astype(self.kv_type)
        if room in self._written:
            mx.eval(tokens)  # which waits for every earlier reader of the room, too
            self._written.clear()
        self._written.add(room)
        self._rooms[room][places, : tokens.shape[1]] = tokens

    def read(self, layer: int, places: mx.array) -> tuple[mx.array, mx.array]:
        """Keys and values (..., kv_heads, dim) of the tokens at `places` (...)."""
        spec = self._specs[layer]
        tokens = self._rooms[self._room_of(layer)][places]
        cut = spec.num_kv_heads * spec.head_dim
        end = cut + spec.num_kv_heads * spec.value_dim
        shape = (*places.shape, spec.num_kv_heads)
        return tokens[..., :cut].reshape(*shape, spec.head_dim), tokens[..., cut:end].reshape(*shape, spec.value_dim)

    def states(self, layer: int, slots: mx.array, part: int = 0) -> mx.array:
        """One part of a layer's states: (len(slots), *shape)."""
        return self._states[layer, part][slots]

    def set_states(self, layer: int, slots: mx.array, states: mx.array, part: int = 0) -> None:
        self._states[layer, part][slots] = states

    def apply(self, op: MemoryOp) -> None:
        """One memory operation of a plan. CommitDraft has its own door: it needs to know what was drafted."""
        if isinstance(op, CopyPage):
            self._copy_page(op)
        elif isinstance(op, ResizePool):
            self._resize(op.num_pages)
        elif isinstance(op, CopySlot):
            self._set_slot(op.target, self._slot(op.source))
        elif isinstance(op, ZeroSlot):
            self._set_slot(op.slot, {place: mx.zeros_like(states[:1]) for place, states in self._states.items()})
        elif isinstance(op, SaveState):
            self._checkpoints[op.checkpoint] = self._slot(op.slot)
        elif isinstance(op, RestoreState):
            self._set_slot(op.slot, self._checkpoints[op.checkpoint])
        elif isinstance(op, DropCheckpoint):
            self._checkpoints.pop(op.checkpoint, None)

    def roll_back(self, op: CommitDraft) -> None:
        """The state of before the rejected tokens of the row that was checked last."""
        slot, states = self.trails.take(op.seq, op.num_drafted - op.num_accepted)
        for place, state in states.items():
            self._states[place][slot] = state

    def _room_of(self, layer: int) -> int:
        """Groups start at different rooms, so that layers that follow each other seldom write the same one."""
        place, num_groups = self._places[layer], len(self.layout.groups)
        return (place.index + place.group * self._num_rooms // num_groups) % self._num_rooms

    def _room(self, num_pages: int) -> mx.array:
        return mx.zeros((num_pages * self.layout.page_size, self.width), self.kv_type)

    def _copy_page(self, op: CopyPage) -> None:
        page_size = self.layout.page_size
        source, target = (mx.arange(page * page_size, (page + 1) * page_size) for page in (op.source, op.target))
        copied = [room[source] for room in self._rooms]
        mx.eval(copied)  # so that nothing still reads the rooms when they are written
        for room, tokens in zip(self._rooms, copied, strict=True):
            room[target] = tokens
        mx.eval(self._rooms)

    def _resize(self, num_pages: int) -> None:
        num_tokens = num_pages * self.layout.page_size
        for index, room in enumerate(self._rooms):  # one after the other: only one room is there twice
            kept = min(num_tokens, room.shape[0])
            (self._rooms[index],) = _made(partial(_resized, room, kept, num_tokens))

    def _slot(self, slot: SlotId) -> States:
        """A copy: each (1, *shape)."""
        index = mx.array([slot])
        return {place: states[index] for place, states in self._states.items()}

    def _set_slot(self, slot: SlotId, values: States) -> None:
        index = mx.array([slot])
        for place, states in self._states.items():
            states[index] = values[place]

    def _new_states(self, num_slots: int) -> Iterator[mx.array]:
        for shape in self._state_shapes.values():
            yield mx.zeros((num_slots, *shape))


def _resized(room: mx.array, kept: int, num_tokens: int) -> list[mx.array]:
    # indices, as a slice would keep the old buffer alive
    return [mx.concatenate([room[mx.arange(kept)], mx.zeros((num_tokens - kept, room.shape[1]), room.dtype)])]


def _made(make: Callable[[], list[mx.array]]) -> list[mx.array]:
    """Arrays with their memory taken. NotEnoughMemory where there is none."""
    with shortage("there is no memory for the pages", FEWER_PAGES):
        arrays = make()
        mx.eval(arrays)
    return arrays
