"""What a sequence's memory is made of: which layers share a page table, and where a layer lies in a page or a slot."""

import math
from dataclasses import dataclass

from localllm.engine.step import CacheLayout, KvGroup
from localllm.models.config import AttentionSpec, ModelConfig, RecurrentSpec

STATE_VALUE_BYTES = 4  # recurrent state is float32 on every backend: it is small, and errors in it would add up
COST_OF_A_GROUP = 0.02
"""A group costs a page table in every row; it is worth splitting where it saves this share of the cache."""


@dataclass(frozen=True, slots=True)
class KvPlace:
    """Where a layer's keys and values are: table `group`, and the `index`-th layer of each page of that table."""

    group: int
    index: int


def cache_layout(
    config: ModelConfig, page_size: int, value_bytes: int = 2, *, layer_bytes: int | None = None
) -> CacheLayout:
    """The layout of `config` with pages of `page_size` tokens and `value_bytes` per cached number.

    `layer_bytes`: the room of one layer in a page, where that is more than its numbers.
    Layers of one window share groups, all groups have room for the same number of layers; a group may be short of
    some, which stay unused. Layers that read another's keys and values have no room.
    """
    by_window: dict[int | None, list[int]] = {}
    for index, spec in attention_specs(config):
        if spec.kv_from is None:
            by_window.setdefault(spec.window, []).append(index)
    per_group = layers_per_group([len(layers) for layers in by_window.values()])
    groups = tuple(
        KvGroup(window, tuple(layers[first : first + per_group]))
        for window, layers in by_window.items()
        for first in range(0, len(layers), per_group)
    )
    if layer_bytes is None:
        layer_bytes = layer_values(config) * page_size * value_bytes
    return CacheLayout(page_size, groups, per_group * layer_bytes, state_bytes(config))


def layers_per_group(counts: list[int]) -> int:
    """The group size that wastes least, for windows with so many layers each: unused room plus the price of groups."""

    def cost(size: int) -> float:
        num_groups = sum(-(-count // size) for count in counts)
        return (num_groups * size - sum(counts)) / sum(counts) + COST_OF_A_GROUP * num_groups

    return min(range(1, max(counts, default=1) + 1), key=cost) if counts else 1


def kv_places(config: ModelConfig, layout: CacheLayout) -> dict[int, KvPlace]:
    """For each attention layer the place of what it reads: its own, or that of the layer that it names."""
    places = {
        layer: KvPlace(group, index)
        for group, members in enumerate(layout.groups)
        for index, layer in enumerate(members.layers)
    }
    others = {layer: spec.kv_from for layer, spec in attention_specs(config) if spec.kv_from is not None}
    return {**places, **{layer: places[other] for layer, other in others.items()}}


def layer_values(config: ModelConfig) -> int:
    """Numbers cached per token in the room of one layer: keys, then values, of the widest layer."""
    return max((spec.num_kv_heads * (spec.head_dim + spec.value_dim) for _, spec in attention_specs(config)), default=0)


def attention_specs(config: ModelConfig) -> list[tuple[int, AttentionSpec]]:
    return [(i, layer.mixer) for i, layer in enumerate(config.layers) if isinstance(layer.mixer, AttentionSpec)]


def recurrent_specs(config: ModelConfig) -> list[tuple[int, RecurrentSpec]]:
    """The layers with a state of fixed size."""
    return [(i, layer.recurrent) for i, layer in enumerate(config.layers) if layer.recurrent is not None]


def state_values(spec: RecurrentSpec) -> int:
    """Numbers in the state of one layer, all parts together."""
    return sum(math.prod(shape) for shape in spec.state_shapes)


@dataclass(frozen=True, slots=True)
class StatePart:
    """Where one part of a layer's state is in a slot: numbers `first` to `end`, as an array of `shape`."""

    first: int
    shape: tuple[int, ...]

    @property
    def end(self) -> int:
        return self.first + math.prod(self.shape)


def state_places(config: ModelConfig) -> dict[int, tuple[StatePart, ...]]:
    """For each layer with recurrent state its parts, in the order of `state_shapes`; layer after layer in a slot."""
    places: dict[int, tuple[StatePart, ...]] = {}
    end = 0
    for index, spec in recurrent_specs(config):
        parts: list[StatePart] = []
        for shape in spec.state_shapes:
            parts.append(StatePart(end, shape))
            end = parts[-1].end
        places[index] = tuple(parts)
    return places


def state_bytes(config: ModelConfig) -> int:
    """Size of one state slot over all layers; 0 for a model without recurrent state."""
    return STATE_VALUE_BYTES * sum(state_values(spec) for _, spec in recurrent_specs(config))
