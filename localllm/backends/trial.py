"""Two small random models that every backend can run: one whose time is overhead, one whose time is weights."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from localllm.formats.blocks import BLOCK_LAYOUTS, PLAINLY_ENCODABLE, BlockType, encode
from localllm.models.config import AttentionSpec, LayerSpec, ModelConfig, RopeSpec
from localllm.models.source import WeightInfo, WeightSource

VOCAB = 1024
CONTEXT = 512
HEAD_DIM = 64
TILE_ROWS = 64
KINDS = ("Q4_0", "Q8_0", "BF16")
"""Block types that stand for all others of about as many bits."""
_EIGHT_BITS = 6.0


@dataclass(frozen=True, slots=True)
class Trial:
    """A Llama of these sizes; `num_weights` counts the matrices of its layers."""

    num_layers: int
    hidden: int
    width: int

    @property
    def num_weights(self) -> int:
        return sum(math.prod(shape) for name, shape in self.shapes() if name.startswith("blk") and len(shape) == 2)

    @property
    def config(self) -> ModelConfig:
        heads = self.hidden // HEAD_DIM
        attention = AttentionSpec(heads, heads // 2, HEAD_DIM, HEAD_DIM, HEAD_DIM**-0.5, RopeSpec(HEAD_DIM, 10000.0))
        return ModelConfig("llama", self.hidden, VOCAB, CONTEXT, (LayerSpec(attention),) * self.num_layers)

    def shapes(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield "token_embd.weight", (VOCAB, self.hidden)
        for layer in range(self.num_layers):
            for name, shape in self._layer():
                yield f"blk.{layer}.{name}.weight", shape
        yield "output_norm.weight", (self.hidden,)
        yield "output.weight", (VOCAB, self.hidden)

    def _layer(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        hidden, width = self.hidden, self.width
        yield from (("attn_norm", (hidden,)), ("ffn_norm", (hidden,)))
        yield from (("attn_q", (hidden, hidden)), ("attn_output", (hidden, hidden)))
        yield from (("attn_k", (hidden // 2, hidden)), ("attn_v", (hidden // 2, hidden)))
        yield from (("ffn_gate", (width, hidden)), ("ffn_up", (width, hidden)), ("ffn_down", (hidden, width)))


OVERHEAD = Trial(num_layers=4, hidden=512, width=1536)
WEIGHTS = Trial(num_layers=1, hidden=2048, width=6144)


class TrialSource:
    """The weights of a trial in blocks of one type. Matrices repeat a few random rows: drawing them all takes longer
    than the trial, and no backend can tell."""

    def __init__(self, trial: Trial, kind: BlockType) -> None:
        self._infos = {
            name: WeightInfo(name, shape, kind if len(shape) > 1 else BlockType.F32) for name, shape in trial.shapes()
        }

    def names(self) -> Iterable[str]:
        return self._infos

    def info(self, name: str) -> WeightInfo | None:
        return self._infos.get(name)

    def raw(self, name: str) -> NDArray[np.uint8]:
        info = self._infos[name]
        rng = np.random.default_rng(list(name.encode()))
        if len(info.shape) == 1:
            return encode(info.type, 1 + 0.1 * rng.standard_normal(info.shape)).reshape(-1)
        rows, columns = info.shape
        tile = encode(info.type, rng.standard_normal((TILE_ROWS, columns)) * columns**-0.5)
        return np.tile(tile, (rows // TILE_ROWS, 1)).reshape(-1)

    def release(self, name: str) -> None: ...


def kind_of(source: WeightSource) -> str:
    """The block type of KINDS, or the float type, that is nearest to what most of the weights are kept in."""
    sizes: dict[BlockType, int] = {}
    for info in filter(None, map(source.info, source.names())):
        if len(info.shape) > 1:
            sizes[info.type] = sizes.get(info.type, 0) + math.prod(info.shape)
    most = max(sizes, key=lambda kind: sizes[kind], default=BlockType.F32)
    layout = BLOCK_LAYOUTS[most]
    bits = 8 * layout.bytes_per_block / layout.values_per_block
    if bits >= 16:
        return most.name if most in PLAINLY_ENCODABLE else "BF16"
    return "Q8_0" if bits >= _EIGHT_BITS else "Q4_0"
