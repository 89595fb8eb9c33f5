"""Tiny random models, one or more for every verb: a config, its weights, and the block type of its matrices."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from localllm.formats.blocks import BlockType, decode, encode
from localllm.models.config import (
    AttentionSpec,
    LayerSpec,
    ModelConfig,
    MoeSpec,
    PositionGrowth,
    RopeScaling,
    RopeSpec,
    ShortConvSpec,
)
from localllm.models.source import WeightInfo
from tests.oracles.plain import Plain

HIDDEN, WIDTH, VOCAB, CONTEXT = 64, 96, 80, 128
ROPE = RopeSpec(16, 10000.0)
ATTENTION = AttentionSpec(num_heads=4, num_kv_heads=2, head_dim=16, value_dim=16, scale=0.25, rope=ROPE)
CONV = ShortConvSpec(kernel=3, channels=HIDDEN)
MOE = MoeSpec(num_experts=6, num_used=2)
PLAIN = LayerSpec(ATTENTION)


@dataclass(frozen=True)
class World:
    """What makes this model special, as config and as extra tensors. `without` drops tensors whose name ends so."""

    name: str
    layers: tuple[LayerSpec, ...] = (PLAIN, PLAIN)
    config: dict[str, Any] = field(default_factory=dict)
    extras: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    type: BlockType = BlockType.F32


class MemorySource:
    """A WeightSource over arrays; matrices are in blocks of `block_type`, vectors and tiny rows are float32."""

    def __init__(self, arrays: dict[str, NDArray[np.float32]], block_type: BlockType = BlockType.F32) -> None:
        self._infos: dict[str, WeightInfo] = {}
        self._blocks: dict[str, NDArray[np.uint8]] = {}
        for name, array in arrays.items():
            # vectors, router and convolution stay float32, as converters leave them
            small = array.ndim == 1 or name.endswith((".bias", "ffn_gate_inp.weight", "shortconv.conv.weight"))
            kind = BlockType.F32 if small else block_type
            self._infos[name] = WeightInfo(name, array.shape, kind)
            self._blocks[name] = encode(kind, array).reshape(-1)

    def names(self) -> Iterable[str]:
        return self._infos

    def info(self, name: str) -> WeightInfo | None:
        return self._infos.get(name)

    def raw(self, name: str) -> NDArray[np.uint8]:
        return self._blocks[name]

    def release(self, name: str) -> None: ...

    def decoded(self) -> dict[str, NDArray[np.float64]]:
        return {
            name: decode(info.type, self._blocks[name], info.shape).astype(np.float64)
            for name, info in self._infos.items()
        }


def build(world: World) -> tuple[ModelConfig, MemorySource]:
    config = ModelConfig("tiny", HIDDEN, VOCAB, CONTEXT, world.layers, **world.config)
    rng = np.random.default_rng(7)
    arrays = {
        name: draw(rng, name, shape)
        for name, shape in shapes(config, world.extras)
        if not name.endswith(world.without or ("\0",))
    }
    return config, MemorySource(arrays, world.type)


def plain(config: ModelConfig, source: MemorySource, sees_ahead: bool = False) -> Plain:
    return Plain(config, source.decoded(), sees_ahead)


def draw(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Norms around one, everything else around zero and so that widths keep their size."""
    noise = rng.standard_normal(shape)
    if name.endswith("norm.weight"):
        return (1 + 0.2 * noise).astype(np.float32)
    if len(shape) == 1:
        return (0.3 * noise).astype(np.float32)
    spread = (1 if name.startswith("blk") else 4) / shape[-1] ** 0.5
    return np.asarray(noise * spread, np.float32)


def shapes(config: ModelConfig, extras: tuple[str, ...]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Every tensor of the config; `extras` switch on what configs do not tell."""
    yield "token_embd.weight", (VOCAB, HIDDEN)
    if config.learned_positions:
        yield "position_embd.weight", (CONTEXT, HIDDEN)
    for index, layer in enumerate(config.layers):
        for name, shape in layer_shapes(layer, extras):
            yield f"blk.{index}.{name}", shape
    yield "output_norm.weight", (HIDDEN,)
    if config.norm == "layer":
        yield "output_norm.bias", (HIDDEN,)
    if "tied" not in extras:
        yield "output.weight", (VOCAB, HIDDEN)


def layer_shapes(layer: LayerSpec, extras: tuple[str, ...]) -> Iterator[tuple[str, tuple[int, ...]]]:
    for norm in ("attn_norm", "ffn_norm", *(("post_attention_norm", "post_ffw_norm") if "post" in extras else ())):
        yield f"{norm}.weight", (HIDDEN,)
        if "norm_bias" in extras:
            yield f"{norm}.bias", (HIDDEN,)
    if isinstance(layer.mixer, ShortConvSpec):
        yield "shortconv.in_proj.weight", (3 * HIDDEN, HIDDEN)
        yield "shortconv.conv.weight", (HIDDEN, layer.mixer.kernel)
        yield "shortconv.out_proj.weight", (HIDDEN, HIDDEN)
    else:
        yield from attention_shapes(layer.mixer, extras)
    if layer.moe is None:
        for name, out, width in (("ffn_gate", WIDTH, HIDDEN), ("ffn_up", WIDTH, HIDDEN), ("ffn_down", HIDDEN, WIDTH)):
            yield from linear_shapes(name, out, width, extras)
    else:
        yield from moe_shapes(layer.moe, extras)


def attention_shapes(spec: AttentionSpec, extras: tuple[str, ...]) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield from linear_shapes("attn_q", spec.num_heads * spec.head_dim, HIDDEN, extras)
    yield from linear_shapes("attn_k", spec.num_kv_heads * spec.head_dim, HIDDEN, extras)
    yield from linear_shapes("attn_v", spec.num_kv_heads * spec.value_dim, HIDDEN, extras)
    yield from linear_shapes("attn_output", HIDDEN, spec.num_heads * spec.value_dim, extras)
    if "qk_norm" in extras:
        yield "attn_q_norm.weight", (spec.head_dim,)
        yield "attn_k_norm.weight", (spec.head_dim,)
    if "wide_qk_norm" in extras:
        yield "attn_q_norm.weight", (spec.num_heads * spec.head_dim,)
        yield "attn_k_norm.weight", (spec.num_kv_heads * spec.head_dim,)
    if "sinks" in extras:
        yield "attn_sinks.weight", (spec.num_heads,)


def moe_shapes(spec: MoeSpec, extras: tuple[str, ...]) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield "ffn_gate_inp.weight", (spec.num_experts, HIDDEN)
    if "bias" in extras:
        yield "ffn_gate_inp.bias", (spec.num_experts,)
    if "choice_bias" in extras:
        yield "exp_probs_b.bias", (spec.num_experts,)
    for name, out, width in (("gate", WIDTH, HIDDEN), ("up", WIDTH, HIDDEN), ("down", HIDDEN, WIDTH)):
        yield f"ffn_{name}_exps.weight", (spec.num_experts, out, width)
        if "bias" in extras:
            yield f"ffn_{name}_exps.bias", (spec.num_experts, out)
        if "shared_expert" in extras:
            yield f"ffn_{name}_shexp.weight", (out, width)


def linear_shapes(name: str, out: int, width: int, extras: tuple[str, ...]) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", (out, width)
    if "bias" in extras:
        yield f"{name}.bias", (out,)


def attending(**changes: Any) -> tuple[LayerSpec, ...]:
    return (LayerSpec(replace(ATTENTION, **changes)),) * 2


def routed(**changes: Any) -> tuple[LayerSpec, ...]:
    return (LayerSpec(ATTENTION, replace(MOE, **changes)),) * 2


def scaled(scaling: RopeScaling, dims: int = 16) -> tuple[LayerSpec, ...]:
    return attending(rope=RopeSpec(dims, 10000.0, scaling))


HALVES = tuple(1.0 + 0.5 * i for i in range(8))
WINDOWED = (*attending(window=9)[:1], PLAIN, *attending(window=9)[:1], PLAIN, *attending(window=9)[:1])
HYBRID = (LayerSpec(CONV), PLAIN, LayerSpec(ShortConvSpec(4, HIDDEN)), PLAIN)

WORLDS = (
    World("llama"),
    World("tied output", extras=("tied",)),
    World("biases", extras=("bias",)),
    World("norms per head", extras=("qk_norm",)),
    World("norms over all heads", extras=("wide_qk_norm",)),
    World("norms after", extras=("post",), without=("blk.0.attn_norm.weight", "blk.0.ffn_norm.weight")),
    World("layer norms", config={"norm": "layer"}, extras=("norm_bias", "bias")),
    World("learned positions", attending(rope=None), {"learned_positions": True}),
    World("embedding and residual scales", config={"embed_scale": 8.0, "residual_scale": 0.4}),
    World("logit scale", config={"logit_scale": 0.25}),
    World("logit softcap", config={"logit_softcap": 5.0}),
    World("attention softcap", attending(softcap=1.5, scale=1.0)),
    World("sinks", extras=("sinks",)),
    World("one kv head", attending(num_kv_heads=1)),
    World("every head its own", attending(num_kv_heads=4)),
    World("values narrower than keys", attending(value_dim=8)),
    World("windows in some layers", WINDOWED),
    World("window on every layer", attending(window=5)),
    World("no positions", attending(rope=None)),
    World("part of a head turns", attending(rope=RopeSpec(8, 500.0))),
    World("rope linear", scaled(RopeScaling("linear", 4.0))),
    World("rope llama3", scaled(RopeScaling("llama3", 8.0, 32))),
    World("rope yarn", scaled(RopeScaling("yarn", 4.0, 32))),
    World("rope yarn, not truncated", scaled(RopeScaling("yarn", 4.0, 32, truncate=False))),
    World("queries grow", attending(query_growth=PositionGrowth(0.4, 6))),
    World("rope longrope", scaled(RopeScaling("longrope", 4.0, 32, short_factors=(1.0,) * 8, long_factors=HALVES))),
    World("rope factors", scaled(RopeScaling("factors", short_factors=HALVES))),
    World("no gate, relu2", config={"activation": "relu2"}, without=("ffn_gate.weight",)),
    World("no gate, gelu", config={"activation": "gelu"}, without=("ffn_gate.weight",)),
    World("gelu with tanh", config={"activation": "gelu_tanh"}),
    World("gated relu", config={"activation": "relu"}),
    World("experts", routed()),
    World("experts not normalized", routed(normalize=False, scale=2.5)),
    World("experts by sigmoid and bias", routed(scoring="sigmoid"), extras=("choice_bias", "shared_expert")),
    World("softmax over the chosen", routed(scoring="softmax_chosen"), {"activation": "swiglu_oai"}),
    World("experts with biases", routed(scoring="softmax_chosen"), {"activation": "swiglu_oai"}, extras=("bias",)),
    World("hybrid", HYBRID),
    World("hybrid with experts", (LayerSpec(CONV, MOE), LayerSpec(ATTENTION, MOE))),
    *(
        World(f"blocks of {kind.name}", type=kind)
        for kind in (BlockType.F16, BlockType.BF16, BlockType.Q8_0, BlockType.Q4_0, BlockType.Q4_1)
    ),
    # all of them used: where inputs are rounded, a choice between two nearly equal experts may fall either way
    World("experts in Q8_0", routed(num_used=6), type=BlockType.Q8_0),
)
BY_NAME = {world.name: world for world in WORLDS}
