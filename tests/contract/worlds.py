"""Tiny random models, one or more for every verb: a config, its weights, and the block type of its matrices."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from localllm.formats import blocks
from localllm.formats.blocks import BlockType, decode
from localllm.models.config import (
    AttentionSpec,
    DeltaNetSpec,
    LatentSpec,
    LayerSpec,
    ModelConfig,
    MoeSpec,
    PositionGrowth,
    RopeScaling,
    RopeSpec,
    ShortConvSpec,
    StateSpaceSpec,
)
from localllm.models.source import WeightInfo
from localllm.models.state_space import IN, in_widths
from localllm.quantize.encode import ENCODABLE, encode
from tests.oracles.plain import Plain
from tests.oracles.random_blocks import blocks_like

HIDDEN, WIDTH, VOCAB, CONTEXT = 64, 96, 80, 128
ROPE = RopeSpec(16, 10000.0)
ATTENTION = AttentionSpec(num_heads=4, num_kv_heads=2, head_dim=16, value_dim=16, scale=0.25, rope=ROPE)
CONV = ShortConvSpec(kernel=3, channels=HIDDEN)
MOE = MoeSpec(num_experts=6, num_used=2)
PLAIN = LayerSpec(ATTENTION)


KEPT_FLOAT = ("ffn_gate_inp.weight", "ffn_gate_inp_shexp.weight", "shortconv.conv.weight", "ssm_conv1d.weight")


@dataclass(frozen=True)
class World:
    """What makes this model special, as config and as extra tensors. `without` drops tensors whose name ends so;
    `types` are those of tensors whose name ends so, `type` that of all other matrices."""

    name: str
    layers: tuple[LayerSpec, ...] = (PLAIN, PLAIN)
    config: dict[str, Any] = field(default_factory=dict)
    extras: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    type: BlockType = BlockType.F32
    types: dict[str, BlockType] = field(default_factory=dict)
    hidden: int = HIDDEN
    width: int = WIDTH


def packed(kind: BlockType, values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Blocks of the values, or random ones for types that nothing encodes."""
    if kind not in ENCODABLE:
        return blocks_like(kind, values)
    # the plain encoder writes any number, so a world may hold some that are none
    return blocks.encode(kind, values) if kind in blocks.PLAINLY_ENCODABLE else encode(kind, values)


class MemorySource:
    """A WeightSource over arrays; matrices are in blocks of `block_type`, vectors and tiny rows are float32."""

    def __init__(
        self,
        arrays: dict[str, NDArray[np.float32]],
        block_type: BlockType = BlockType.F32,
        types: Mapping[str, BlockType] = MappingProxyType({}),
    ) -> None:
        self._infos: dict[str, WeightInfo] = {}
        self._blocks: dict[str, NDArray[np.uint8]] = {}
        for name, array in arrays.items():
            # vectors, router and convolution stay float32, as converters leave them
            small = array.ndim == 1 or name.endswith((".bias", *KEPT_FLOAT))
            of_its_own = (kind for suffix, kind in types.items() if name.endswith(suffix))
            kind = next(of_its_own, BlockType.F32 if small else block_type)
            self._infos[name] = WeightInfo(name, array.shape, kind)
            self._blocks[name] = packed(kind, array).reshape(-1)

    def names(self) -> Iterable[str]:
        return self._infos

    def info(self, name: str) -> WeightInfo | None:
        return self._infos.get(name)

    def raw(self, name: str) -> NDArray[np.uint8]:
        return self._blocks[name]

    def put(self, name: str, values: NDArray[np.float32]) -> None:
        """Other values of a weight that is float32."""
        self._blocks[name] = blocks.encode(BlockType.F32, values).reshape(-1)

    def release(self, name: str) -> None: ...

    def decoded(self) -> dict[str, NDArray[np.float64]]:
        return {
            name: decode(info.type, self._blocks[name], info.shape).astype(np.float64)
            for name, info in self._infos.items()
        }


def build(world: World) -> tuple[ModelConfig, MemorySource]:
    config = ModelConfig("tiny", world.hidden, VOCAB, CONTEXT, world.layers, **world.config)
    rng = np.random.default_rng(7)
    arrays = {
        name: draw(rng, name, shape)
        for name, shape in shapes(config, world.extras, world.width)
        if not name.endswith(world.without or ("\0",))
    }
    return config, MemorySource(arrays, world.type, world.types)


def plain(config: ModelConfig, source: MemorySource, sees_ahead: bool = False) -> Plain:
    return Plain(config, source.decoded(), sees_ahead)


def draw(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Norms around one, everything else around zero and so that widths keep their size."""
    noise = rng.standard_normal(shape)
    if name.endswith("norm.weight"):
        return (1 + 0.2 * noise).astype(np.float32)
    if name.endswith("ssm_a"):
        return -np.abs(noise).astype(np.float32)  # what is kept of a state is a part of it
    if len(shape) == 1:
        return (0.3 * noise).astype(np.float32)
    spread = (1 if name.startswith("blk") else 4) / shape[-1] ** 0.5
    return np.asarray(noise * spread, np.float32)


def shapes(config: ModelConfig, extras: tuple[str, ...], width: int = WIDTH) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Every tensor of the config; `extras` switch on what configs do not tell."""
    hidden = config.hidden_size
    yield "token_embd.weight", (VOCAB, hidden)
    if config.learned_positions:
        yield "position_embd.weight", (CONTEXT, hidden)
    for index, layer in enumerate(config.layers):
        for name, shape in layer_shapes(layer, extras, hidden, width):
            yield f"blk.{index}.{name}", shape
        if config.token_inputs:
            yield f"blk.{index}.inp_gate.weight", (config.token_inputs, hidden)
            yield f"blk.{index}.proj.weight", (hidden, config.token_inputs)
            yield f"blk.{index}.post_norm.weight", (hidden,)
        if config.streams:
            yield from ((f"blk.{index}.{name}", shape) for name, shape in stream_shapes(config.streams, hidden))
    if config.streams:
        yield "altup_proj.weight", (config.streams - 1, hidden, hidden)
        yield "altup_unembd_proj.weight", (config.streams - 1, hidden, hidden)
    if config.token_inputs:
        yield "per_layer_token_embd.weight", (VOCAB, config.token_inputs * len(config.layers))
        yield "per_layer_model_proj.weight", (config.token_inputs * len(config.layers), hidden)
        yield "per_layer_proj_norm.weight", (config.token_inputs,)
    yield "output_norm.weight", (hidden,)
    if config.norm == "layer":
        yield "output_norm.bias", (hidden,)
    if "tied" not in extras:
        yield "output.weight", (VOCAB, hidden)


def layer_shapes(
    layer: LayerSpec, extras: tuple[str, ...], hidden: int = HIDDEN, width: int = WIDTH
) -> Iterator[tuple[str, tuple[int, ...]]]:
    if layer.mixer is None or not layer.feeds:
        yield "attn_norm.weight", (hidden,)
        if layer.mixer is None:
            yield from feed_forward_shapes(layer, extras, hidden, width)
        else:
            yield from mixer_shapes(layer, extras, hidden)
        return
    for norm in ("attn_norm", "ffn_norm", *(("post_attention_norm", "post_ffw_norm") if "post" in extras else ())):
        yield f"{norm}.weight", (hidden,)
        if "norm_bias" in extras:
            yield f"{norm}.bias", (hidden,)
    yield from mixer_shapes(layer, extras, hidden)
    yield from feed_forward_shapes(layer, extras, hidden, width)


def mixer_shapes(layer: LayerSpec, extras: tuple[str, ...], hidden: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    if isinstance(layer.mixer, ShortConvSpec):
        yield "shortconv.in_proj.weight", (3 * hidden, hidden)
        yield "shortconv.conv.weight", (hidden, layer.mixer.kernel)
        yield "shortconv.out_proj.weight", (hidden, hidden)
    elif isinstance(layer.mixer, DeltaNetSpec):
        yield from delta_shapes(layer.mixer, hidden)
    elif isinstance(layer.mixer, AttentionSpec):
        if layer.mixer.latent is not None:
            yield from latent_shapes(layer.mixer, layer.mixer.latent, hidden)
        else:
            yield from attention_shapes(layer.mixer, extras, hidden)
    if isinstance(layer.recurrent, StateSpaceSpec):
        yield from state_space_shapes(layer.recurrent, hidden)


def feed_forward_shapes(
    layer: LayerSpec, extras: tuple[str, ...], hidden: int, width: int
) -> Iterator[tuple[str, tuple[int, ...]]]:
    if layer.moe is None or "experts_beside" in extras:
        for name, out, columns in (("ffn_gate", width, hidden), ("ffn_up", width, hidden), ("ffn_down", hidden, width)):
            yield from linear_shapes(name, out, columns, extras)
    if layer.moe is not None:
        yield from moe_shapes(layer.moe, extras, hidden, width)


def delta_shapes(spec: DeltaNetSpec, hidden: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    values = spec.num_value_heads * spec.value_dim
    yield "attn_qkv.weight", (spec.channels, hidden)
    yield "attn_gate.weight", (values, hidden)
    yield "ssm_beta.weight", (spec.num_value_heads, hidden)
    yield "ssm_alpha.weight", (spec.num_value_heads, hidden)
    yield "ssm_conv1d.weight", (spec.channels, spec.kernel)
    yield "ssm_a", (spec.num_value_heads,)
    yield "ssm_dt.bias", (spec.num_value_heads,)
    yield "ssm_norm.weight", (spec.value_dim,)
    yield "ssm_out.weight", (hidden, values)


def state_space_shapes(spec: StateSpaceSpec, hidden: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    for name, rows in zip(IN, in_widths(spec), strict=True):
        yield f"{name}.weight", (rows, hidden)
    yield "ssm_conv1d.weight", (spec.channels, spec.kernel)
    yield "ssm_conv1d.bias", (spec.channels,)
    yield "ssm_a", (spec.num_heads,)
    yield "ssm_d", (spec.num_heads,)
    yield "ssm_dt.bias", (spec.num_heads,)
    yield "ssm_norm.weight", (spec.inner,)
    yield "ssm_out.weight", (hidden, spec.inner)


def attention_shapes(
    spec: AttentionSpec, extras: tuple[str, ...], hidden: int
) -> Iterator[tuple[str, tuple[int, ...]]]:
    owns = spec.kv_from is None
    yield from linear_shapes("attn_q", spec.num_heads * spec.head_dim, hidden, extras)
    if owns:
        yield from linear_shapes("attn_k", spec.num_kv_heads * spec.head_dim, hidden, extras)
    if owns and not spec.values_are_keys:
        yield from linear_shapes("attn_v", spec.num_kv_heads * spec.value_dim, hidden, extras)
    yield from linear_shapes("attn_output", hidden, spec.num_heads * spec.value_dim, extras)
    if spec.gated:
        yield from linear_shapes("attn_gate", spec.num_heads * spec.value_dim, hidden, extras)
    if "qk_norm" in extras:
        yield "attn_q_norm.weight", (spec.head_dim,)
    if "qk_norm" in extras and owns:
        yield "attn_k_norm.weight", (spec.head_dim,)
    if "wide_qk_norm" in extras:
        yield "attn_q_norm.weight", (spec.num_heads * spec.head_dim,)
        yield "attn_k_norm.weight", (spec.num_kv_heads * spec.head_dim,)
    if "sinks" in extras:
        yield "attn_sinks.weight", (spec.num_heads,)


def latent_shapes(spec: AttentionSpec, latent: LatentSpec, hidden: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    assert spec.rope is not None
    heads, dims, width = spec.num_heads, spec.rope.dims, latent.query_rank or hidden
    if latent.query_rank:
        yield "attn_q_a.weight", (latent.query_rank, hidden)
        yield "attn_q_a_norm.weight", (latent.query_rank,)
    yield "attn_q_plain.weight", (heads * latent.plain_dims, width)
    yield "attn_q_turned.weight", (heads * dims, width)
    yield "attn_kv_a.weight", (latent.kv_rank, hidden)
    yield "attn_k_turned.weight", (dims, hidden)
    yield "attn_kv_a_norm.weight", (latent.kv_rank,)
    yield "attn_k_b.weight", (heads, latent.kv_rank, latent.plain_dims)
    yield "attn_v_b.weight", (heads, latent.value_dim, latent.kv_rank)
    yield "attn_output.weight", (hidden, heads * latent.value_dim)


def moe_shapes(
    spec: MoeSpec, extras: tuple[str, ...], hidden: int, width: int
) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield "ffn_gate_inp.weight", (spec.num_experts, hidden)
    if "bias" in extras:
        yield "ffn_gate_inp.bias", (spec.num_experts,)
    if "choice_bias" in extras:
        yield "exp_probs_b.bias", (spec.num_experts,)
    for name, out, columns in (("gate", width, hidden), ("up", width, hidden), ("down", hidden, width)):
        yield f"ffn_{name}_exps.weight", (spec.num_experts, out, columns)
        if "bias" in extras:
            yield f"ffn_{name}_exps.bias", (spec.num_experts, out)
        if "shared_expert" in extras:
            yield f"ffn_{name}_shexp.weight", (out, columns)
    if "experts_beside" in extras:
        for norm in ("post_ffw_norm_1", "post_ffw_norm_2", "pre_ffw_norm_2"):
            yield f"{norm}.weight", (hidden,)
        yield "ffn_gate_inp.scale", (hidden,)
        yield "ffn_down_exps.scale", (spec.num_experts,)
    if "shared_gate" in extras:
        yield "ffn_gate_inp_shexp.weight", (1, hidden)


def stream_shapes(count: int, hidden: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield "altup_router.weight", (count, hidden)
    yield "altup_router_norm.weight", (hidden,)
    yield "altup_predict_coef.weight", (count * count, count)
    yield "altup_correct_coef.weight", (count, count)
    yield "altup_correct_scale.weight", (hidden,)
    yield "laurel_l.weight", (24, hidden)
    yield "laurel_r.weight", (hidden, 24)
    yield "laurel_post_norm.weight", (hidden,)


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


def over_latents(query_rank: int = 0, kv_rank: int = 32) -> tuple[LayerSpec, ...]:
    """Four heads of 32 plain and 16 turning values, to values of 24."""
    spec = AttentionSpec(
        num_heads=4,
        num_kv_heads=1,
        head_dim=kv_rank + 16,
        value_dim=kv_rank,
        scale=(kv_rank + 16) ** -0.5,
        rope=ROPE,
        latent=LatentSpec(query_rank, kv_rank, plain_dims=32, value_dim=24),
    )
    return (LayerSpec(spec),) * 2


def wide(name: str, **changes: Any) -> World:
    """Every row is 256 long, as blocks of 256 values need it."""
    attention = replace(ATTENTION, head_dim=64, value_dim=64, scale=0.125, rope=RopeSpec(64, 10000.0))
    return World(name, (LayerSpec(attention),) * 2, hidden=256, width=256, **changes)


HALVES = tuple(1.0 + 0.5 * i for i in range(8))
WINDOWED = (*attending(window=9)[:1], PLAIN, *attending(window=9)[:1], PLAIN, *attending(window=9)[:1])
WIDE_FULL = replace(ATTENTION, num_kv_heads=1, head_dim=32, value_dim=32, norms_values=True, values_are_keys=True)
NEAR = replace(ATTENTION, window=9, norms_values=True)
TWO_KINDS = (LayerSpec(NEAR, scale=0.8), LayerSpec(NEAR), LayerSpec(WIDE_FULL, scale=1.25))
SHARING = (*TWO_KINDS, *(LayerSpec(replace(spec, kv_from=other, values_are_keys=False), scale=0.9)
                         for spec, other in ((NEAR, 1), (NEAR, 1), (WIDE_FULL, 2))))  # fmt: skip
DELTA_NETS = (
    LayerSpec(DeltaNetSpec(2, 4, key_dim=8, value_dim=12, kernel=4)),
    LayerSpec(replace(ATTENTION, gated=True)),
    LayerSpec(DeltaNetSpec(2, 6, key_dim=20, value_dim=36, kernel=3, tiled=True)),
)
SPACE = StateSpaceSpec(num_heads=4, head_dim=16, num_groups=2, state_dim=16, kernel=4)
# heads of no whole registers, and limited steps
SPACE_ODD = StateSpaceSpec(num_heads=3, head_dim=21, num_groups=1, state_dim=5, kernel=2, step_limits=(0.3, 1.1))
SPACES = (LayerSpec(SPACE), PLAIN, LayerSpec(replace(SPACE, head_dim=40, kernel=3)), PLAIN)
GROUPED = replace(MOE, scoring="sigmoid", scale=2.5)
HYBRID = (LayerSpec(CONV), PLAIN, LayerSpec(ShortConvSpec(4, HIDDEN)), PLAIN)

OF_32_OR_ANY = (
    BlockType.F16,
    BlockType.BF16,
    BlockType.Q8_0,
    BlockType.Q4_0,
    BlockType.Q4_1,
    BlockType.Q5_0,
    BlockType.Q5_1,
    BlockType.IQ4_NL,
    BlockType.MXFP4,
)
OF_256 = (
    BlockType.Q2_K,
    BlockType.Q3_K,
    BlockType.Q4_K,
    BlockType.Q5_K,
    BlockType.Q6_K,
    BlockType.IQ4_XS,
    BlockType.IQ1_S,
    BlockType.IQ1_M,
    BlockType.IQ2_XXS,
    BlockType.IQ2_XS,
    BlockType.IQ2_S,
    BlockType.IQ3_XXS,
    BlockType.IQ3_S,
    BlockType.TQ1_0,
    BlockType.TQ2_0,
    BlockType.Q1_0,
)

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
    World("experts of the best groups", routed(num_groups=3, num_used_groups=2)),
    World(
        "experts of the groups with the best two",
        routed(scoring="sigmoid", num_experts=12, num_used=3, num_groups=4, num_used_groups=2, group_best=2),
        extras=("choice_bias",),
    ),
    World("a shared expert behind a gate", routed(), extras=("shared_expert", "shared_gate")),
    World("attention beside the feed-forward", config={"parallel": True}, without=("ffn_norm.weight",)),
    World("attention beside, with two norms", config={"parallel": True, "norm": "layer"}, extras=("norm_bias", "bias")),
    World("layer norms of every head", config={"norm": "layer"}, extras=("wide_qk_norm",)),
    World("attention over latents", over_latents()),
    World("attention over latents, queries from latents", over_latents(query_rank=40)),
    World("attention over latents in Q8_0", over_latents(query_rank=32), type=BlockType.Q8_0),
    World(
        "attention over latents in several types",
        over_latents(query_rank=256, kv_rank=256),
        type=BlockType.Q4_K,
        types={"attn_k_b.weight": BlockType.Q5_0, "attn_output.weight": BlockType.F16},
        hidden=256,
        width=256,
    ),
    World("experts by sigmoid and bias", routed(scoring="sigmoid"), extras=("choice_bias", "shared_expert")),
    World("softmax over the chosen", routed(scoring="softmax_chosen"), {"activation": "swiglu_oai"}),
    World("experts with biases", routed(scoring="softmax_chosen"), {"activation": "swiglu_oai"}, extras=("bias",)),
    World("two kinds of attention, values made as keys", TWO_KINDS, extras=("qk_norm", "post")),
    World("keys and values of another layer", SHARING, extras=("qk_norm", "post")),
    World("keys and values of another layer, without norms of heads", SHARING),
    World("inputs of a layer's own", config={"token_inputs": 16, "activation": "gelu_tanh"}),
    World("inputs of a layer's own in Q8_0", config={"token_inputs": 64}, extras=("post",), type=BlockType.Q8_0),
    wide("inputs of a layer's own in Q4_K", config={"token_inputs": 256}, type=BlockType.Q4_K),
    World(
        "several streams, of which one is computed",
        (LayerSpec(NEAR, spread=1.2), LayerSpec(ATTENTION), LayerSpec(replace(NEAR, kv_from=0), spread=0.0)),
        {"token_inputs": 16, "streams": 3, "activation": "gelu_tanh"},
        extras=("qk_norm", "post"),
    ),
    World("experts beside the feed-forward", routed(), extras=("experts_beside", "post")),
    World("hybrid", HYBRID),
    World("delta nets", DELTA_NETS),
    World(
        "delta nets in blocks",
        (LayerSpec(DeltaNetSpec(1, 3, 32, 32, 4, tiled=True)), *attending(gated=True)[:1]),
        type=BlockType.Q8_0,
        types=dict.fromkeys(("ssm_beta.weight", "ssm_alpha.weight"), BlockType.F32),
    ),
    World("hybrid of state spaces", SPACES),
    # its inputs in halves: where they are rounded, values, what is written and what is read are, and multiply
    World(
        "a state space in Q8_0",
        (LayerSpec(SPACE),),
        type=BlockType.Q8_0,
        types={f"{name}.weight": BlockType.F16 for name in IN},
    ),
    World("state spaces beside attention", (LayerSpec(ATTENTION, beside=SPACE),) * 2, without=("ssm_norm.weight",)),
    World(
        "blocks of one half",
        (LayerSpec(SPACE, feeds=False), LayerSpec(None), LayerSpec(ATTENTION, feeds=False), LayerSpec(None, GROUPED)),
        {"activation": "relu2"},
        extras=("shared_expert", "choice_bias"),
        without=("ffn_gate.weight", "ffn_gate_exps.weight", "ffn_gate_shexp.weight"),
    ),
    World(
        "experts without gates in Q8_0",
        (LayerSpec(None, replace(GROUPED, num_used=6)),),
        {"activation": "relu2"},
        extras=("bias",),
        without=("ffn_gate_exps.weight", "ffn_gate_exps.bias"),
        type=BlockType.Q8_0,
    ),
    World("state spaces alone", (LayerSpec(SPACE, feeds=False), LayerSpec(SPACE_ODD, feeds=False))),
    World("hybrid with experts", (LayerSpec(CONV, MOE), LayerSpec(ATTENTION, MOE))),
    *(World(f"blocks of {kind.name}", type=kind) for kind in OF_32_OR_ANY),
    *(wide(f"blocks of {kind.name}", type=kind) for kind in OF_256),
    wide(
        "several types in a layer",
        type=BlockType.Q4_K,
        types={
            "attn_v.weight": BlockType.Q6_K,
            "ffn_up.weight": BlockType.Q5_K,
            "ffn_down.weight": BlockType.Q6_K,
            "token_embd.weight": BlockType.Q6_K,
        },
        extras=("tied",),
    ),
    # all of them used: where inputs are rounded, a choice between two nearly equal experts may fall either way
    World("experts in Q8_0", routed(num_used=6), type=BlockType.Q8_0),
    World(
        "experts of several types",
        routed(num_used=6),
        type=BlockType.Q8_0,
        types={
            "ffn_gate_inp.weight": BlockType.Q5_1,
            "ffn_gate_exps.weight": BlockType.Q5_0,
            "ffn_up_exps.weight": BlockType.Q4_1,
            "ffn_down_exps.weight": BlockType.MXFP4,
        },
    ),
)
BY_NAME = {world.name: world for world in WORLDS}
