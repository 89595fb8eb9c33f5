"""A sequence's memory on the device: one pool of pages, slots of recurrent state, checkpoints of slots, trails."""

from __future__ import annotations

import torch
from torch import Tensor

from localllm.backends.layout import attention_specs, cache_layout, kv_places, layer_values, state_bytes, state_places
from localllm.backends.torch.library import memory_named
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
    ZeroSlot,
)
from localllm.errors import FEWER_PAGES, InvalidRequest
from localllm.models.config import ModelConfig


class DeviceMemory:
    """Pages are of `kv_type`, state is float32. In a page a layer's keys come first, then its values; a head's tokens
    lie together, so that what a head sees is read in long runs. The first page of the pool is nobody's and stays zero:
    rows are padded with it. Page p of a plan is page p + 1."""

    def __init__(self, config: ModelConfig, page_size: int, kv_type: torch.dtype, device: torch.device) -> None:
        self.layout = cache_layout(config, page_size, kv_type.itemsize)
        self.trails: Trails[Tensor] = Trails()
        self._config, self._kv_type, self._device = config, kv_type, device
        self._specs = dict(attention_specs(config))
        self._kv_places = kv_places(config, self.layout)
        self._state_places = state_places(config)
        self._pages = self._new_pages(0)
        self._slots = self._new_slots(0)
        self._checkpoints: dict[CheckpointId, Tensor] = {}

    @property
    def num_pages(self) -> int:
        return len(self._pages) - 1

    @property
    def num_slots(self) -> int:
        return len(self._slots)

    def allocate(self, num_pages: int, num_slots: int) -> None:
        self._pages = self._new_pages(0)  # what was there is given back first
        with memory_named(f"{num_pages} pages", FEWER_PAGES):
            self._pages, self._slots = self._new_pages(num_pages), self._new_slots(num_slots)
        self._checkpoints.clear()
        self.trails.clear()

    def apply(self, op: MemoryOp) -> None:
        """One memory operation of a plan. InvalidRequest where it names what does not exist."""
        if isinstance(op, CopyPage):
            self._pages[self._page(op.target)] = self._pages[self._page(op.source)]
        elif isinstance(op, ResizePool):
            self._resize(op.num_pages)
        elif isinstance(op, CommitDraft):
            self._roll_back(op)
        elif isinstance(op, DropCheckpoint):
            self._checkpoints.pop(op.checkpoint, None)
        else:
            self._change_slot(op)

    def _change_slot(self, op: CopySlot | ZeroSlot | SaveState | RestoreState) -> None:
        if isinstance(op, CopySlot):
            self._slots[self.slot(op.target)] = self._slots[self.slot(op.source)]
        elif isinstance(op, ZeroSlot):
            self._slots[self.slot(op.slot)] = 0
        elif isinstance(op, SaveState):
            self._checkpoints[op.checkpoint] = self._slots[self.slot(op.slot)].clone()
        elif op.checkpoint in self._checkpoints:
            self._slots[self.slot(op.slot)] = self._checkpoints[op.checkpoint]
        else:
            raise InvalidRequest(f"there is no checkpoint {op.checkpoint}")

    def blank(self, pages: Tensor) -> None:
        """Pages that a row begins to write: what another left there may be no numbers, and nothing times those is not
        nothing."""
        self._pages[pages] = 0

    def write(self, layer: int, pages: Tensor, offsets: Tensor, keys: Tensor, values: Tensor) -> None:
        """keys (T, kv_heads, head_dim) and values (T, kv_heads, value_dim) of T tokens at their places (T,)."""
        key_pages, value_pages = self._views(layer)
        key_pages[pages, :, offsets] = keys.to(self._kv_type)
        value_pages[pages, :, offsets] = values.to(self._kv_type)

    def read(self, layer: int, pages: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """What is in the pages (G, P) of G rows: keys (G, kv_heads, P * page_size, head_dim), and values."""
        spec = self._specs[layer]
        heads = torch.arange(spec.num_kv_heads, device=self._device)[None, :, None]
        keys, values = (view[pages[:, None], heads].flatten(2, 3).to(dtype) for view in self._views(layer))
        return keys, values

    def group(self, layer: int) -> int:
        return self._kv_places[layer].group

    def state(self, layer: int, part: int = 0) -> Tensor:
        """One part of the states of a layer, (slots, *shape), as a view that may be written."""
        own = self._state_places[layer][part]
        return self._slots[:, own.first : own.end].view(self.num_slots, *own.shape)

    def slot(self, index: int) -> int:
        if not 0 <= index < self.num_slots:
            raise InvalidRequest(f"a state slot is {index}, there are {self.num_slots}")
        return index

    def _page(self, index: int) -> int:
        if not 0 <= index < self.num_pages:
            raise InvalidRequest(f"a page is {index}, there are {self.num_pages}")
        return index + 1

    def _roll_back(self, op: CommitDraft) -> None:
        slot, states = self.trails.take(op.seq, op.num_drafted - op.num_accepted)
        for (layer, part), state in states.items():
            self.state(layer, part)[slot] = state

    def _views(self, layer: int) -> tuple[Tensor, Tensor]:
        """Keys and values of a layer: (pages, kv_heads, page_size, dim) each."""
        spec, page_size = self._specs[layer], self.layout.page_size
        room = self._pages[:, self._kv_places[layer].index]
        cut = spec.num_kv_heads * page_size * spec.head_dim
        end = cut + spec.num_kv_heads * page_size * spec.value_dim
        shape = (len(room), spec.num_kv_heads, page_size)
        return room[:, :cut].view(*shape, spec.head_dim), room[:, cut:end].view(*shape, spec.value_dim)

    def _new_pages(self, num_pages: int) -> Tensor:
        per_group = max((len(group.layers) for group in self.layout.groups), default=0)
        shape = (num_pages + 1, per_group, self.layout.page_size * layer_values(self._config))
        return torch.zeros(shape, dtype=self._kv_type, device=self._device)

    def _new_slots(self, num_slots: int) -> Tensor:
        return torch.zeros((num_slots, state_bytes(self._config) // 4), device=self._device)

    def _resize(self, num_pages: int) -> None:
        with memory_named(f"{num_pages} pages", "set fewer kv_pages"):
            resized = self._new_pages(num_pages)
        kept = min(len(resized), len(self._pages))
        resized[:kept] = self._pages[:kept]
        self._pages = resized
