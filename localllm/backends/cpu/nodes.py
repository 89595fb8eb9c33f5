"""What the recorder writes down: one node per verb, values between them. Plain data, before any buffer exists."""

from __future__ import annotations

from dataclasses import dataclass, fields

from localllm.formats.blocks import BlockType
from localllm.models.config import (
    Activation,
    AttentionSpec,
    DeltaNetSpec,
    MoeSpec,
    RopeSpec,
    ShortConvSpec,
    StateSpaceSpec,
)
from localllm.models.ops import Indices

NATIVE_QUANTIZED = frozenset(
    {
        BlockType.Q4_0,
        BlockType.Q4_1,
        BlockType.Q5_0,
        BlockType.Q5_1,
        BlockType.Q8_0,
        BlockType.Q2_K,
        BlockType.Q3_K,
        BlockType.Q4_K,
        BlockType.Q5_K,
        BlockType.Q6_K,
        BlockType.IQ4_NL,
        BlockType.IQ4_XS,
        BlockType.MXFP4,
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
    }
)
"""Matrices of these types take activations rounded to 8 bits; the float types take floats."""
NATIVE_TYPES = NATIVE_QUANTIZED | {BlockType.F32, BlockType.F16, BlockType.BF16}


@dataclass(frozen=True, slots=True)
class Weight:
    """A tensor of the file; (out, in), (experts, out, in) or (n,)."""

    name: str
    shape: tuple[int, ...]
    type: BlockType

    @property
    def takes_blocks(self) -> bool:
        return self.type in NATIVE_QUANTIZED


@dataclass(frozen=True, slots=True, eq=False)
class Value:
    """An array of a step: (tokens, width), or (taken rows, width)."""

    width: int
    taken: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Node:
    """A verb with its inputs; `out` is what it makes."""

    @property
    def reads(self) -> tuple[Value, ...]:
        values = (getattr(self, field.name) for field in fields(self) if field.name != "out")
        return tuple(value for value in values if isinstance(value, Value))

    @property
    def writes(self) -> Value | None:
        value: Value | None = getattr(self, "out", None)
        return value

    @property
    def blocks_input(self) -> Value | None:
        """The input that is wanted quantized, if any."""
        return None


@dataclass(frozen=True, slots=True, eq=False)
class Embed(Node):
    out: Value
    weight: Weight
    of: Indices
    scale: float


@dataclass(frozen=True, slots=True, eq=False)
class Linear(Node):
    """out = product + bias, or residual + (product + bias) * scale. `sync` False: the next node reads none of it."""

    out: Value
    x: Value
    weight: Weight
    bias: Weight | None = None
    residual: Value | None = None
    scale: float = 1.0
    sync: bool = True

    @property
    def blocks_input(self) -> Value | None:
        return self.x if self.weight.takes_blocks else None


@dataclass(frozen=True, slots=True, eq=False)
class Gated(Node):
    out: Value
    x: Value
    gate: Weight
    up: Weight
    activation: Activation
    gate_bias: Weight | None
    up_bias: Weight | None

    @property
    def blocks_input(self) -> Value | None:
        return self.x if self.gate.takes_blocks else None


@dataclass(frozen=True, slots=True, eq=False)
class Activate(Node):
    out: Value
    x: Value
    activation: Activation


@dataclass(frozen=True, slots=True, eq=False)
class GateMul(Node):
    """Values of up from `first` on, as many as gate has."""

    out: Value
    gate: Value
    up: Value
    activation: Activation
    first: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class RmsNorm(Node):
    """Over each run of `run` values."""

    out: Value
    x: Value
    weight: Weight | None
    eps: float
    run: int


@dataclass(frozen=True, slots=True, eq=False)
class LayerNorm(Node):
    out: Value
    x: Value
    weight: Weight
    bias: Weight | None
    eps: float
    run: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Add(Node):
    out: Value
    x: Value
    y: Value
    scale: float


@dataclass(frozen=True, slots=True, eq=False)
class Scale(Node):
    out: Value
    x: Value
    factor: float


@dataclass(frozen=True, slots=True, eq=False)
class GateRows(Node):
    out: Value
    x: Value
    gate: Value


@dataclass(frozen=True, slots=True, eq=False)
class GatedNorm(Node):
    out: Value
    x: Value
    gate: Value
    weight: Weight | None
    eps: float
    run: int
    gate_first: bool


@dataclass(frozen=True, slots=True, eq=False)
class Columns(Node):
    out: Value
    x: Value
    first: int
    count: int


@dataclass(frozen=True, slots=True, eq=False)
class MulColumns(Node):
    out: Value
    x: Value
    weight: Weight


@dataclass(frozen=True, slots=True, eq=False)
class AddStreams(Node):
    out: Value
    x: Value
    y: Value
    coefs: Value | None
    size: int
    plus: float
    first: int


@dataclass(frozen=True, slots=True, eq=False)
class AsLongAs(Node):
    out: Value
    x: Value
    y: Value


@dataclass(frozen=True, slots=True, eq=False)
class CutLow(Node):
    out: Value
    x: Value
    spread: float


@dataclass(frozen=True, slots=True, eq=False)
class LinearHeads(Node):
    out: Value
    x: Value
    weight: Weight

    @property
    def blocks_input(self) -> Value | None:
        return self.x if self.weight.takes_blocks else None


@dataclass(frozen=True, slots=True, eq=False)
class Join(Node):
    out: Value
    x: Value
    y: Value
    num_heads: int


@dataclass(frozen=True, slots=True, eq=False)
class Softcap(Node):
    out: Value
    x: Value
    cap: float


@dataclass(frozen=True, slots=True, eq=False)
class Rope(Node):
    out: Value
    x: Value
    head_dim: int
    spec: RopeSpec


@dataclass(frozen=True, slots=True, eq=False)
class Attention(Node):
    """`query_rope` and `key_rope`: rotations of q and k, done while they are written. No k and v: see AttentionSpec."""

    out: Value
    q: Value
    k: Value | None
    v: Value | None
    spec: AttentionSpec
    layer: int
    sinks: Weight | None
    query_rope: RopeSpec | None = None
    key_rope: RopeSpec | None = None


@dataclass(frozen=True, slots=True, eq=False)
class ShortConv(Node):
    """The convolution alone: x is (before, after, inner), each `channels` wide."""

    out: Value
    x: Value
    kernel: Weight
    spec: ShortConvSpec
    layer: int


@dataclass(frozen=True, slots=True, eq=False)
class CausalConv(Node):
    out: Value
    x: Value
    kernel: Weight
    bias: Weight | None
    spec: DeltaNetSpec | StateSpaceSpec
    layer: int


@dataclass(frozen=True, slots=True, eq=False)
class DeltaNet(Node):
    out: Value
    x: Value
    beta: Value
    decay: Value
    rate: Weight
    bias: Weight
    spec: DeltaNetSpec
    layer: int


@dataclass(frozen=True, slots=True, eq=False)
class StateSpace(Node):
    out: Value
    x: Value
    step: Value
    rate: Weight
    bias: Weight
    skip: Weight
    spec: StateSpaceSpec
    layer: int


@dataclass(frozen=True, slots=True, eq=False)
class Route(Node):
    """Router logits to (experts, weights), `num_used` of each."""

    out: Value
    logits: Value
    bias: Weight | None
    spec: MoeSpec
    expert_scale: Weight | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Experts(Node):
    out: Value
    x: Value
    routing: Value
    gate: Weight | None
    up: Weight
    down: Weight
    activation: Activation
    gate_bias: Weight | None = None
    up_bias: Weight | None = None
    down_bias: Weight | None = None

    @property
    def blocks_input(self) -> Value | None:
        takes_blocks = self.up.takes_blocks and (self.gate is None or self.gate.takes_blocks)
        return self.x if takes_blocks else None


@dataclass(frozen=True, slots=True, eq=False)
class Pool(Node):
    x: Value


@dataclass(frozen=True, slots=True, eq=False)
class TakeRows(Node):
    out: Value
    x: Value


@dataclass(frozen=True, slots=True, eq=False)
class Sample(Node):
    logits: Value


@dataclass(frozen=True, slots=True, eq=False)
class Head(Node):
    """The vocabulary product with what follows it, down to the largest logit of each row."""

    x: Value
    weight: Weight
    scale: float = 1.0
    softcap: float = 0.0

    @property
    def blocks_input(self) -> Value | None:
        return self.x if self.weight.takes_blocks else None
