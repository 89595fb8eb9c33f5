"""Sizes that fill no vector, no block and no tile, on every backend, against the plain float64 transformer."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from localllm.engine.step import Want
from localllm.formats.blocks import BlockType
from localllm.models.config import (
    AttentionSpec,
    LayerSpec,
    ModelConfig,
    MoeSpec,
    PositionGrowth,
    RopeSpec,
    ShortConvSpec,
)
from tests.contract.conftest import Host, KvType
from tests.contract.walk import Walk
from tests.contract.worlds import MemorySource, draw, plain

ALL = Want(logits="all")
CHUNKS = (11, 1, 7, 1, 1)
EXACT = 2e-4
"""Largest difference over largest logit where keys, values and weights are float32."""


def heads(num_heads: int, num_kv_heads: int, head_dim: int, **changes: Any) -> AttentionSpec:
    fields: dict[str, Any] = {
        "value_dim": head_dim,
        "scale": head_dim**-0.5,
        "rope": RopeSpec(head_dim, 10000.0),
        **changes,
    }
    return AttentionSpec(num_heads, num_kv_heads, head_dim, **fields)


@dataclass(frozen=True)
class Shape:
    """One layer after another over `hidden` values, feed-forwards of `width`; `extras` switch tensors on."""

    name: str
    hidden: int
    width: int
    vocab: int
    layers: tuple[LayerSpec, ...]
    config: dict[str, Any] = field(default_factory=dict)
    extras: tuple[str, ...] = ()
    type: BlockType = BlockType.F32
    types: dict[str, BlockType] = field(default_factory=dict)

    def build(self) -> tuple[ModelConfig, MemorySource]:
        config = ModelConfig("odd", self.hidden, self.vocab, 64, self.layers, **self.config)
        rng = np.random.default_rng(21)
        arrays = {name: draw(rng, name, shape) for name, shape in self.tensors()}
        return config, MemorySource(arrays, self.type, self.types)

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield "token_embd.weight", (self.vocab, self.hidden)
        if "positions" in self.extras:
            yield "position_embd.weight", (64, self.hidden)
        for index, layer in enumerate(self.layers):
            for name, shape in self.layer_tensors(layer):
                yield f"blk.{index}.{name}", shape
        yield from self.norm("output_norm")

    def layer_tensors(self, layer: LayerSpec) -> Iterator[tuple[str, tuple[int, ...]]]:
        if "only_after" not in self.extras:
            yield from self.norm("attn_norm")
            yield from self.norm("ffn_norm")
        if "only_after" in self.extras or "after" in self.extras:
            yield from self.norm("post_attention_norm")
            yield from self.norm("post_ffw_norm")
        yield from self.conv(layer.mixer) if isinstance(layer.mixer, ShortConvSpec) else self.attention(layer.mixer)
        yield from self.feed_forward(layer.moe)

    def norm(self, name: str) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield f"{name}.weight", (self.hidden,)
        if self.config.get("norm") == "layer":
            yield f"{name}.bias", (self.hidden,)

    def linear(self, name: str, *shape: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield f"{name}.weight", shape
        if "bias" in self.extras:
            yield f"{name}.bias", shape[:-1]

    def conv(self, spec: ShortConvSpec) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield "shortconv.in_proj.weight", (3 * spec.channels, self.hidden)
        yield "shortconv.conv.weight", (spec.channels, spec.kernel)
        yield "shortconv.out_proj.weight", (self.hidden, spec.channels)

    def attention(self, spec: AttentionSpec) -> Iterator[tuple[str, tuple[int, ...]]]:
        queries, keys = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
        yield from self.linear("attn_q", queries, self.hidden)
        yield from self.linear("attn_k", keys, self.hidden)
        yield from self.linear("attn_v", spec.num_kv_heads * spec.value_dim, self.hidden)
        yield from self.linear("attn_output", self.hidden, spec.num_heads * spec.value_dim)
        if "qk_norm" in self.extras:
            yield "attn_q_norm.weight", (spec.head_dim,)
            yield "attn_k_norm.weight", (spec.head_dim,)
        if "wide_qk_norm" in self.extras:
            yield "attn_q_norm.weight", (queries,)
            yield "attn_k_norm.weight", (keys,)
        if "sinks" in self.extras:
            yield "attn_sinks.weight", (spec.num_heads,)

    def feed_forward(self, moe: MoeSpec | None) -> Iterator[tuple[str, tuple[int, ...]]]:
        experts, suffix = ((), "") if moe is None else ((moe.num_experts,), "_exps")
        if moe is not None:
            yield from self.linear("ffn_gate_inp", moe.num_experts, self.hidden)
        if "no_gate" not in self.extras:
            yield from self.linear(f"ffn_gate{suffix}", *experts, self.width, self.hidden)
        yield from self.linear(f"ffn_up{suffix}", *experts, self.width, self.hidden)
        yield from self.linear(f"ffn_down{suffix}", *experts, self.hidden, self.width)


def twice(spec: AttentionSpec, moe: MoeSpec | None = None) -> tuple[LayerSpec, ...]:
    return (LayerSpec(spec, moe),) * 2


OAI = {"activation": "swiglu_oai"}
MULTIPLIERS = {"embed_scale": 12.0, "residual_scale": 0.22, "logit_scale": 1 / 8}
GEMMA = {"activation": "gelu_tanh", "embed_scale": 72**0.5, "logit_softcap": 30.0}

SHAPES = (
    Shape("3 heads share one", 72, 88, 61, twice(heads(3, 1, 24))),
    Shape("5 heads share one, 20 wide", 100, 88, 77, twice(heads(5, 1, 20))),
    Shape("7 heads share each, 10 wide", 68, 36, 53, twice(heads(14, 2, 10)), extras=("bias",)),
    Shape("9 heads share one, 96 wide", 44, 20, 31, twice(heads(9, 1, 96))),
    Shape("576 with heads of 64", 576, 40, 49, (LayerSpec(heads(9, 3, 64)),)),
    Shape("80 wide, 32 of them turn", 60, 52, 45, twice(heads(2, 2, 80, rope=RopeSpec(32, 5000.0)))),
    Shape("20 wide, 6 of them turn", 36, 28, 33, twice(heads(3, 3, 20, rope=RopeSpec(6, 500.0)))),
    Shape("values of another width", 52, 44, 37, twice(heads(6, 2, 40, value_dim=12))),
    Shape("one number per value", 28, 12, 19, twice(heads(4, 2, 6, value_dim=1))),
    Shape("queries grow", 36, 28, 33, twice(heads(6, 2, 20, query_growth=PositionGrowth(0.3, 5)))),
    Shape("norms per head", 52, 44, 37, twice(heads(6, 2, 20)), extras=("qk_norm",)),
    Shape("norms after, and over all heads", 60, 44, 37, twice(heads(3, 3, 20)), extras=("wide_qk_norm", "only_after")),
    Shape("layer norms", 52, 44, 37, twice(heads(4, 4, 13, rope=None)),
          {"norm": "layer", "activation": "gelu", "learned_positions": True}, ("bias", "no_gate", "positions")),
    Shape("multipliers", 60, 44, 37, twice(heads(5, 1, 12, scale=0.015625)), MULTIPLIERS),
    Shape("softcaps and a window", 72, 44, 37, twice(heads(3, 1, 40, softcap=50.0, window=3)), GEMMA, ("after",)),
    Shape("small logits under a softcap", 36, 20, 33, twice(heads(2, 1, 18, softcap=50.0)),
          {"logit_softcap": 30.0, "logit_scale": 1e-3}),
    Shape("sinks and a window", 52, 44, 37, twice(heads(9, 3, 12, window=6)), extras=("sinks", "bias")),
    Shape("experts", 52, 20, 37, twice(heads(2, 1, 26), MoeSpec(7, 3))),
    Shape("experts with biases", 52, 12, 37, twice(heads(2, 1, 26), MoeSpec(8, 3, "softmax_chosen")), OAI, ("bias",)),
    Shape("one expert of one", 36, 20, 33, twice(heads(2, 1, 18), MoeSpec(1, 1)), OAI, ("bias",)),
    Shape("convolutions", 100, 44, 37, (LayerSpec(ShortConvSpec(3, 100)), LayerSpec(heads(5, 1, 20)))),
    Shape("blocks, half a block per head", 96, 160, 61, twice(heads(4, 2, 24)), type=BlockType.Q8_0),
    Shape("experts in blocks", 96, 32, 61, twice(heads(6, 1, 16), MoeSpec(5, 5)), type=BlockType.Q8_0),
    Shape("experts, their gates in blocks", 96, 20, 61, twice(heads(6, 1, 16), MoeSpec(5, 3)), extras=("bias",),
          types={"ffn_gate_exps.weight": BlockType.Q8_0}),
    Shape("experts, their ups in blocks", 96, 20, 61, twice(heads(6, 1, 16), MoeSpec(5, 3)),
          types={"ffn_up_exps.weight": BlockType.Q4_1}),
)  # fmt: skip


def walked(host: Host, shape: Shape, kv_type: KvType) -> tuple[np.ndarray, np.ndarray]:
    """Logits of a prompt in chunks and single tokens, beside another row; and what they should be."""
    config, source = shape.build()
    tokens = np.random.default_rng(5).integers(0, shape.vocab, sum(CHUNKS)).tolist()
    backend = host.open(config, source, kv_type)
    walk, seen, first = Walk(backend), [], 0
    for index, size in enumerate(CHUNKS):
        parts = [(1, tokens[first : first + size], ALL)]
        if index % 2:
            parts.append((2, tokens[index : index + 4], ALL))
        result = walk.step(*parts)[0].logits
        assert result is not None
        seen.append(result)
        first += size
    backend.close()
    return np.concatenate(seen), plain(config, source).logits(tokens)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_odd_sizes_are_exact_with_float32_pages(host: Host, shape: Shape) -> None:
    ours, expected = walked(host, shape, "f32")
    limit = EXACT if shape.type == BlockType.F32 else host.quantized
    assert np.abs(ours - expected).max() <= limit * np.abs(expected).max()


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_odd_sizes_are_near_with_float16_pages(host: Host, shape: Shape) -> None:
    ours, expected = walked(host, shape, "f16")
    limit = 3e-3 if shape.type == BlockType.F32 else max(host.quantized, 3e-3)
    assert np.abs(ours - expected).max() <= limit * np.abs(expected).max()
