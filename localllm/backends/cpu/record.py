"""The verbs, written down instead of computed: the decoder runs once over this, at load."""

from __future__ import annotations

from collections.abc import Sequence

from localllm.backends.cpu import nodes
from localllm.backends.cpu.nodes import NATIVE_TYPES, Node, Value, Weight
from localllm.errors import BadModelFile, UnsupportedModel
from localllm.models.config import (
    Activation,
    AttentionSpec,
    DeltaNetSpec,
    ModelConfig,
    MoeSpec,
    RopeSpec,
    ShortConvSpec,
    StateSpaceSpec,
)
from localllm.models.decoder import Decoder
from localllm.models.ops import Indices
from localllm.models.source import WeightSource

LANES, BLOCK = 8, 32
"""Rows of a matrix that are multiplied together, and inputs that are rounded together."""


def record(config: ModelConfig, source: WeightSource) -> list[Node]:
    """The decoder's verbs in order. UnsupportedModel names a block type without kernels."""
    ops = RecordingOps()
    decoder: Decoder[Value, Weight] = Decoder(config, ops, NamedWeights(source))
    decoder.run()
    return ops.nodes


class NamedWeights:
    """Handles that only name a tensor; its bytes are read when its instruction is made."""

    def __init__(self, source: WeightSource) -> None:
        self._source = source

    def get(self, name: str) -> Weight | None:
        info = self._source.info(name)
        if info is None:
            return None
        if len(info.shape) > 1 and info.type not in NATIVE_TYPES:
            raise UnsupportedModel(
                f"{name} is of type {info.type.name}, for which there are no native kernels yet",
                hint="choose a Q4_K_M, Q8_0 or F16 file of this model",
            )
        return Weight(name, info.shape, info.type)

    def __getitem__(self, name: str) -> Weight:
        weight = self.get(name)
        if weight is None:
            raise BadModelFile(f"the model file lacks the tensor {name}")
        return weight


class RecordingOps:
    """`Ops` over values without content. Verbs that are two instructions here are written down as two nodes."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []

    def _keep(self, out: Value, node: Node) -> Value:
        self.nodes.append(node)
        return out

    def embed(self, weight: Weight, of: Indices = "tokens", scale: float = 1.0) -> Value:
        out = Value(weight.shape[1])
        return self._keep(out, nodes.Embed(out, weight, of, scale))

    def linear(self, x: Value, weight: Weight, bias: Weight | None = None) -> Value:
        out = Value(weight.shape[0], x.taken)
        return self._keep(out, nodes.Linear(out, x, weight, bias))

    def linear_group(self, x: Value, weights: Sequence[Weight], biases: Sequence[Weight | None]) -> tuple[Value, ...]:
        """One pass: nobody waits between the products."""
        outs = tuple(Value(weight.shape[0], x.taken) for weight in weights)
        for index, (out, weight, bias) in enumerate(zip(outs, weights, biases, strict=True)):
            self.nodes.append(nodes.Linear(out, x, weight, bias, sync=index == len(outs) - 1))
        return outs

    def gated(
        self,
        x: Value,
        gate: Weight,
        up: Weight,
        activation: Activation,
        gate_bias: Weight | None = None,
        up_bias: Weight | None = None,
    ) -> Value:
        out = Value(gate.shape[0], x.taken)
        if gate.type == up.type:
            return self._keep(out, nodes.Gated(out, x, gate, up, activation, gate_bias, up_bias))
        gates, ups = self.linear_group(x, [gate, up], [gate_bias, up_bias])
        return self._keep(out, nodes.GateMul(out, gates, ups, activation))

    def activate(self, x: Value, activation: Activation) -> Value:
        if activation == "swiglu_oai":
            raise UnsupportedModel(f"{activation} needs a gate")
        out = Value(x.width, x.taken)
        return self._keep(out, nodes.Activate(out, x, activation))

    def gate_mul(self, gate: Value, up: Value, activation: Activation, first: int = 0) -> Value:
        out = Value(gate.width, gate.taken)
        return self._keep(out, nodes.GateMul(out, gate, up, activation, first))

    def rms_norm(self, x: Value, weight: Weight | None, eps: float, run: int = 0) -> Value:
        out = Value(x.width, x.taken)
        return self._keep(out, nodes.RmsNorm(out, x, weight, eps, run if weight is None else weight.shape[0]))

    def layer_norm(self, x: Value, weight: Weight, bias: Weight | None, eps: float, run: int = 0) -> Value:
        out = Value(x.width, x.taken)
        return self._keep(out, nodes.LayerNorm(out, x, weight, bias, eps, run))

    def add(self, x: Value, y: Value, scale: float = 1.0) -> Value:
        out = Value(x.width, x.taken)
        return self._keep(out, nodes.Add(out, x, y, scale))

    def add_rms_norm(self, x: Value, y: Value, weight: Weight, eps: float, scale: float = 1.0) -> tuple[Value, Value]:
        """Two nodes: the sum melts into the product before it, the norm quantizes for the product after it."""
        total = self.add(x, y, scale)
        return total, self.rms_norm(total, weight, eps)

    def scale(self, x: Value, factor: float) -> Value:
        out = Value(x.width, x.taken)
        return self._keep(out, nodes.Scale(out, x, factor))

    def gate_rows(self, x: Value, gate: Value) -> Value:
        out = Value(x.width, x.taken)
        return self._keep(out, nodes.GateRows(out, x, gate))

    def gated_norm(self, x: Value, gate: Value, weight: Weight | None, eps: float, run: int, gate_first: bool) -> Value:
        out = Value(x.width, x.taken)
        return self._keep(out, nodes.GatedNorm(out, x, gate, weight, eps, run, gate_first))

    def columns(self, x: Value, first: int, count: int) -> Value:
        out = Value(count, x.taken)
        return self._keep(out, nodes.Columns(out, x, first, count))

    def mul_columns(self, x: Value, weight: Weight) -> Value:
        out = Value(x.width, x.taken)
        return self._keep(out, nodes.MulColumns(out, x, weight))

    def add_streams(
        self, x: Value, y: Value, coefs: Value | None, size: int, plus: float = 0.0, first: int = 0
    ) -> Value:
        out = Value(x.width, x.taken)
        return self._keep(out, nodes.AddStreams(out, x, y, coefs, size, plus, first))

    def as_long_as(self, x: Value, y: Value) -> Value:
        out = Value(x.width, x.taken)
        return self._keep(out, nodes.AsLongAs(out, x, y))

    def cut_low(self, x: Value, spread: float) -> Value:
        out = Value(x.width, x.taken)
        return self._keep(out, nodes.CutLow(out, x, spread))

    def linear_heads(self, x: Value, weight: Weight) -> Value:
        if weight.shape[1] % LANES or (weight.takes_blocks and weight.shape[2] % BLOCK):
            raise UnsupportedModel(f"{weight.name} has heads of {weight.shape[1:]}, for which there are no kernels")
        out = Value(weight.shape[0] * weight.shape[1], x.taken)
        return self._keep(out, nodes.LinearHeads(out, x, weight))

    def join(self, x: Value, y: Value, num_heads: int) -> Value:
        out = Value(x.width + y.width, x.taken)
        return self._keep(out, nodes.Join(out, x, y, num_heads))

    def softcap(self, x: Value, cap: float) -> Value:
        out = Value(x.width, x.taken)
        return self._keep(out, nodes.Softcap(out, x, cap))

    def rope(self, x: Value, head_dim: int, spec: RopeSpec) -> Value:
        out = Value(x.width, x.taken)
        return self._keep(out, nodes.Rope(out, x, head_dim, spec))

    def attention(
        self,
        q: Value,
        k: Value | None,
        v: Value | None,
        spec: AttentionSpec,
        layer: int,
        sinks: Weight | None = None,
    ) -> Value:
        out = Value(spec.num_heads * spec.value_dim)
        return self._keep(out, nodes.Attention(out, q, k, v, spec, layer, sinks))

    def short_conv(
        self, x: Value, in_proj: Weight, kernel: Weight, out_proj: Weight, spec: ShortConvSpec, layer: int
    ) -> Value:
        parts = self.linear(x, in_proj)
        mixed = Value(spec.channels)
        self.nodes.append(nodes.ShortConv(mixed, parts, kernel, spec, layer))
        return self.linear(mixed, out_proj)

    def causal_conv(
        self, x: Value, kernel: Weight, bias: Weight | None, spec: DeltaNetSpec | StateSpaceSpec, layer: int
    ) -> Value:
        out = Value(spec.channels)
        return self._keep(out, nodes.CausalConv(out, x, kernel, bias, spec, layer))

    def state_space(
        self, x: Value, step: Value, rate: Weight, bias: Weight, skip: Weight, spec: StateSpaceSpec, layer: int
    ) -> Value:
        out = Value(spec.inner)
        return self._keep(out, nodes.StateSpace(out, x, step, rate, bias, skip, spec, layer))

    def delta_net(
        self, x: Value, beta: Value, decay: Value, rate: Weight, bias: Weight, spec: DeltaNetSpec, layer: int
    ) -> Value:
        out = Value(spec.num_value_heads * spec.value_dim)
        return self._keep(out, nodes.DeltaNet(out, x, beta, decay, rate, bias, spec, layer))

    def route(
        self,
        x: Value,
        router: Weight,
        spec: MoeSpec,
        bias: Weight | None = None,
        choice_bias: Weight | None = None,
        expert_scale: Weight | None = None,
    ) -> Value:
        logits = self.linear(x, router, bias)
        out = Value(2 * spec.num_used)
        return self._keep(out, nodes.Route(out, logits, choice_bias, spec, expert_scale))

    def experts(
        self,
        x: Value,
        routing: Value,
        gate: Weight | None,
        up: Weight,
        down: Weight,
        activation: Activation,
        biases: tuple[Weight | None, Weight | None, Weight | None] = (None, None, None),
    ) -> Value:
        out = Value(down.shape[1])
        return self._keep(out, nodes.Experts(out, x, routing, gate, up, down, activation, *biases))

    def pool(self, x: Value) -> None:
        self.nodes.append(nodes.Pool(x))

    def take_rows(self, x: Value) -> Value:
        out = Value(x.width, taken=True)
        return self._keep(out, nodes.TakeRows(out, x))

    def sample(self, logits: Value) -> None:
        self.nodes.append(nodes.Sample(logits))
