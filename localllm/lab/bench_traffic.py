"""How many bytes a step of decoding must read: the weights that its tokens meet, and the keys and values so far."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from localllm.engine.step import CacheLayout
from localllm.formats.blocks import row_bytes
from localllm.models.config import ModelConfig, MoeSpec
from localllm.models.source import WeightInfo, WeightSource

EXPERTS = "_exps."
LOOKED_UP = ("token_embd.weight", "position_embd.weight")
"""Tables of which a token reads one row."""


@dataclass(frozen=True, slots=True)
class Weights:
    """All weights of a model, in the block types they are loaded in."""

    infos: tuple[WeightInfo, ...]
    config: ModelConfig

    @staticmethod
    def of(source: WeightSource, config: ModelConfig) -> Weights:
        return Weights(tuple(info for name in source.names() if (info := source.info(name)) is not None), config)

    @property
    def size_bytes(self) -> int:
        return sum(map(_size_of, self.infos))

    @property
    def num_params(self) -> int:
        return sum(math.prod(info.shape) for info in self.infos)

    def read_bytes(self, num_tokens: int) -> int:
        """Read once by a step that computes one token of each of `num_tokens` sequences. Of experts those that the
        tokens use, as many as chance would have it: which ones, the text decides."""
        return int(sum(self._bytes_read(info, num_tokens) for info in self.infos))

    def _bytes_read(self, info: WeightInfo, num_tokens: int) -> float:
        if info.name in LOOKED_UP and not (info.name == LOOKED_UP[0] and self._is_tied):
            return _size_of(info) / info.shape[0] * num_tokens
        moe = self._moe_of(info)
        return _size_of(info) * (_share_of_experts(moe, num_tokens) if moe else 1.0)

    @property
    def _is_tied(self) -> bool:
        return all(info.name != "output.weight" for info in self.infos)

    def _moe_of(self, info: WeightInfo) -> MoeSpec | None:
        if EXPERTS not in info.name:
            return None
        return self.config.layers[int(info.name.split(".")[1])].moe


def _size_of(info: WeightInfo) -> int:
    return math.prod(info.shape[:-1]) * row_bytes(info.type, info.shape[-1])


def _share_of_experts(moe: MoeSpec, num_tokens: int) -> float:
    """The expected share of experts that at least one of the tokens uses, if each token draws its own at random."""
    return 1.0 - (1.0 - moe.num_used / moe.num_experts) ** num_tokens


def kv_read_bytes(layout: CacheLayout, depth: int, num_steps: int) -> float:
    """Keys and values that one sequence reads in a step, on average over `num_steps` tokens behind `depth` others."""
    return sum(_group_bytes(layout, depth, num_steps))


def _group_bytes(layout: CacheLayout, depth: int, num_steps: int) -> Iterator[float]:
    room = max((len(group.layers) for group in layout.groups), default=1)
    layer_bytes = layout.page_bytes / layout.page_size / max(room, 1)
    for group in layout.groups:
        seen = [min(depth + step + 1, group.window or math.inf) for step in range(num_steps)]
        yield sum(seen) / max(num_steps, 1) * layer_bytes * len(group.layers)
