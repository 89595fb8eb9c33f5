"""Nodes to native instructions: packs weights, chooses each value's form and buffer, appends."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from localllm.backends.cpu import nodes
from localllm.backends.cpu.buffers import Buffer, Buffers, Kind
from localllm.backends.cpu.nodes import Node, Value
from localllm.backends.cpu.pack import NONE, Pack
from localllm.backends.cpu.sites import Sites
from localllm.backends.layout import KvPlace, kv_places, state_places
from localllm.engine.step import CacheLayout
from localllm.models.config import ModelConfig, PositionGrowth, RopeSpec
from localllm.models.rope import rope_frequencies
from localllm.models.source import LOOKED_UP, WeightSource

if TYPE_CHECKING:
    from localllm.backends.cpu._native import Program

EMBEDDED = ("tokens", "positions", "types")
ACTIVATIONS = ("silu", "gelu", "gelu_tanh", "relu", "relu2", "swiglu_oai")
SCORINGS = ("softmax", "sigmoid", "softmax_chosen")
BLOCK = 32


class Emitter:
    """Appends the nodes of one model to a program.

    A value exists as floats, as quantized blocks, or as both: whatever its readers need. Instructions that work token
    by token write either form, and privately: with a lone row every thread computes them for itself. Products and
    attention share their floats; those are quantized by an instruction of its own where somebody wants blocks.
    """

    def __init__(
        self,
        program: Program,
        config: ModelConfig,
        source: WeightSource,
        layout: CacheLayout,
        context_length: int,
        layer_bytes: int,
    ) -> None:
        self._program = program
        self._context_length = context_length
        self._pack = Pack(program, source)
        self.sites = Sites(program)
        self._buffers = Buffers(program)
        self._layer_bytes = layer_bytes
        self._windows = [group.window for group in layout.groups]
        self._kv_places: dict[int, KvPlace] = kv_places(config, layout)
        self._state_places = state_places(config)
        self._angles: dict[RopeSpec, int] = {}
        self._forms: dict[Value, set[bool]] = {}
        self._dying: list[Value] = []
        self.kept: list[int] = []
        """For each recurrent instruction the buffer of what it takes in, filled where a step asks for it."""

    def emit(self, recorded: list[Node]) -> None:
        """Append all nodes. ValueError where shapes do not fit together."""
        last_use: dict[Value, int] = {}
        for index, node in enumerate(recorded):
            for value in node.reads:
                last_use[value] = index
                self._forms.setdefault(value, set()).add(value is node.blocks_input)
        for index, node in enumerate(recorded):
            self._dying = [value for value in dict.fromkeys(node.reads) if last_use[value] == index]
            self._prepare(node)
            self._append(node)

    def _append(self, node: Node) -> None:
        writer: Callable[..., bool] = getattr(self, f"_{type(node).__name__.lower()}")
        reads = [self._buffers.find(value, value is node.blocks_input) for value in node.reads]
        synced = writer(node)
        for value in self._dying:
            self._buffers.drop(value)
        out = node.writes
        if out is not None and out not in self._forms:
            self._buffers.drop(out)  # nobody reads it
        self._buffers.after([buffer for buffer in reads if buffer is not None], synced)

    def _prepare(self, node: Node) -> None:
        """Quantize an input that its maker could only give as floats."""
        value = node.blocks_input
        if value is None or self._buffers.find(value, True) is not None:
            return
        floats = self._floats(value)
        blocks = self._buffers.hold(value, quantized=True, is_private=True)
        self._program.quantize(floats, blocks.id)
        self._buffers.after([self._found(value, False)], synced=False)

    # ---- inputs and outputs

    def _found(self, value: Value, quantized: bool) -> Buffer:
        buffer = self._buffers.find(value, quantized)
        assert buffer is not None, "a value is read in a form that nobody made"
        return buffer

    def _floats(self, value: Value) -> int:
        return self._found(value, False).id

    def _input(self, node: Node, value: Value) -> int:
        return self._found(value, value is node.blocks_input).id

    def _shared(self, out: Value) -> int:
        return self._buffers.hold(out, quantized=False, is_private=False).id

    def _either(self, out: Value, is_private: bool, can_quantize: bool = True) -> dict[str, int]:
        """Buffers for the forms that readers want of an output that can have both."""
        wanted = self._forms.get(out, {False})
        blocks = True in wanted and can_quantize and out.width % BLOCK == 0
        floats = False in wanted or not blocks
        return {
            "values": self._buffers.hold(out, False, is_private).id if floats else NONE,
            "blocks": self._buffers.hold(out, True, is_private).id if blocks else NONE,
        }

    def _by_row(self, append: Callable[..., None], out: Value, *arguments: Any) -> bool:
        """An instruction that works row by row: private, so nobody waits after it with a lone row."""
        append(*arguments, **self._either(out, is_private=True))
        return False

    # ---- one method per node: append it, say whether threads meet after it with a lone row

    def _embed(self, node: nodes.Embed) -> bool:
        out = self._shared(node.out)
        if node.weight.name in LOOKED_UP:
            raw, (rows, columns) = self._pack.kept(node.weight), node.weight.shape
            self._program.lookup(raw, int(node.weight.type), rows, columns, node.scale, out)
        else:
            self._program.embed(self._pack.matrix(node.weight), EMBEDDED.index(node.of), node.scale, out)
        return True

    def _linear(self, node: nodes.Linear) -> bool:
        matrix, bias = self._pack.matrix(node.weight), self._pack.vector(node.bias)
        x, residual = self._input(node, node.x), NONE
        in_place: Buffer | None = None
        if node.residual is not None:
            residual = self._floats(node.residual)
            if node.residual in self._dying and node.residual is not node.x:
                in_place = self._buffers.reuse(node.out, node.residual)
        out = in_place.id if in_place is not None else self._shared(node.out)
        site = self.sites.of(node.weight, node.x)
        self._program.linear(x, matrix, bias, residual, node.scale, out, node.sync, site)
        return node.sync

    def _gated(self, node: nodes.Gated) -> bool:
        matrix = self._pack.gated(node.gate, node.up)
        biases = self._pack.vector(node.gate_bias), self._pack.vector(node.up_bias)
        out = self._either(node.out, is_private=False)
        x, kind = self._input(node, node.x), ACTIVATIONS.index(node.activation)
        sites = self.sites.of(node.gate, node.x), self.sites.of(node.up, node.x)
        self._program.gated(x, matrix, kind, *biases, out["values"], out["blocks"], *sites)
        return True

    def _activate(self, node: nodes.Activate) -> bool:
        kind = ACTIVATIONS.index(node.activation)
        return self._by_row(self._program.activate, node.out, self._floats(node.x), kind)

    def _gatemul(self, node: nodes.GateMul) -> bool:
        kind = ACTIVATIONS.index(node.activation)
        gate, up = self._floats(node.gate), self._floats(node.up)
        return self._by_row(self._program.gate_mul, node.out, gate, up, kind, node.first)

    def _rmsnorm(self, node: nodes.RmsNorm) -> bool:
        weight = self._pack.ones(node.run) if node.weight is None else self._pack.vector(node.weight)
        return self._by_row(self._program.rms_norm, node.out, self._floats(node.x), weight, node.run, node.eps)

    def _layernorm(self, node: nodes.LayerNorm) -> bool:
        weight, bias = self._pack.vector(node.weight), self._pack.vector(node.bias)
        return self._by_row(self._program.layer_norm, node.out, self._floats(node.x), weight, bias, node.eps, node.run)

    def _add(self, node: nodes.Add) -> bool:
        return self._by_row(self._program.add, node.out, self._floats(node.x), self._floats(node.y), node.scale)

    def _scale(self, node: nodes.Scale) -> bool:
        return self._by_row(self._program.scale, node.out, self._floats(node.x), node.factor)

    def _gaterows(self, node: nodes.GateRows) -> bool:
        return self._by_row(self._program.gate_rows, node.out, self._floats(node.x), self._floats(node.gate))

    def _gatednorm(self, node: nodes.GatedNorm) -> bool:
        x, gate, weight = self._floats(node.x), self._floats(node.gate), self._pack.vector(node.weight)
        is_wide = node.weight is not None and math.prod(node.weight.shape) > node.run
        how = (node.run, is_wide, node.eps, node.gate_first)
        return self._by_row(self._program.gated_norm, node.out, x, gate, weight, *how)

    def _columns(self, node: nodes.Columns) -> bool:
        return self._by_row(self._program.columns, node.out, self._floats(node.x), node.first, node.count)

    def _mulcolumns(self, node: nodes.MulColumns) -> bool:
        return self._by_row(self._program.mul_columns, node.out, self._floats(node.x), self._pack.vector(node.weight))

    def _addstreams(self, node: nodes.AddStreams) -> bool:
        coefs = NONE if node.coefs is None else self._floats(node.coefs)
        parts = self._floats(node.x), self._floats(node.y), coefs
        return self._by_row(self._program.add_streams, node.out, *parts, node.size, node.plus, node.first)

    def _aslongas(self, node: nodes.AsLongAs) -> bool:
        return self._by_row(self._program.as_long_as, node.out, self._floats(node.x), self._floats(node.y))

    def _cutlow(self, node: nodes.CutLow) -> bool:
        return self._by_row(self._program.cut_low, node.out, self._floats(node.x), node.spread)

    def _linearheads(self, node: nodes.LinearHeads) -> bool:
        matrices, x = self._pack.experts(node.weight), self._input(node, node.x)
        self._program.linear_heads(x, matrices, self._shared(node.out))
        return True

    def _join(self, node: nodes.Join) -> bool:
        parts = self._floats(node.x), self._floats(node.y)
        return self._by_row(self._program.join, node.out, *parts, node.num_heads)

    def _softcap(self, node: nodes.Softcap) -> bool:
        return self._by_row(self._program.softcap, node.out, self._floats(node.x), node.cap)

    def _rope(self, node: nodes.Rope) -> bool:
        angles = self._angles_of(node.spec)
        return self._by_row(self._program.rope, node.out, self._floats(node.x), node.head_dim, angles)

    def _takerows(self, node: nodes.TakeRows) -> bool:
        return self._by_row(self._program.take_rows, node.out, self._floats(node.x))

    def _attention(self, node: nodes.Attention) -> bool:
        spec, place = node.spec, self._kv_places[node.layer]
        turned = self._buffers.take(Kind(node.q.width, quantized=False, is_private=False, taken=False))
        whole_blocks = spec.num_heads // spec.num_kv_heads * spec.value_dim % BLOCK == 0
        self._program.attention(
            self._floats(node.q),
            NONE if node.k is None else self._floats(node.k),
            NONE if node.v is None else self._floats(node.v),
            turned.id,
            num_heads=spec.num_heads,
            num_kv_heads=spec.num_kv_heads,
            head_dim=spec.head_dim,
            value_dim=spec.value_dim,
            scale=spec.scale,
            softcap=spec.softcap,
            window=spec.window or 0,
            causal=spec.causal,
            group=place.group,
            offset=place.index * self._layer_bytes,
            query_angles=self._angles_of(node.query_rope),
            key_angles=self._angles_of(node.key_rope),
            sinks=self._pack.vector(node.sinks),
            **self._either(node.out, is_private=True, can_quantize=whole_blocks),
        )
        self._buffers.give_back(turned)
        return True  # after the attending; the merge that follows reads memory of its own only

    def _shortconv(self, node: nodes.ShortConv) -> bool:
        spec, place = node.spec, self._state_places[node.layer][0].first
        kernel, kept = self._pack.vector(node.kernel), self._keep(spec.channels)
        x, out = self._floats(node.x), self._shared(node.out)
        self._program.short_conv(x, kernel, spec.kernel, spec.channels, place, kept, out)
        return True

    def _causalconv(self, node: nodes.CausalConv) -> bool:
        spec, place = node.spec, self._state_places[node.layer][0].first
        kernel, bias = self._pack.vector(node.kernel), self._pack.vector(node.bias)
        x, kept = self._floats(node.x), self._keep(spec.channels)
        self._program.causal_conv(x, kernel, bias, spec.kernel, spec.channels, place, kept, self._shared(node.out))
        return True

    def _statespace(self, node: nodes.StateSpace) -> bool:
        spec, place = node.spec, self._state_places[node.layer][1].first
        rate, bias, skip = map(self._pack.vector, (node.rate, node.bias, node.skip))
        kept = self._keep(spec.inner + spec.num_groups * spec.state_dim + spec.num_heads)
        self._program.state_space(
            self._floats(node.x),
            self._floats(node.step),
            rate,
            bias,
            skip,
            num_heads=spec.num_heads,
            head_dim=spec.head_dim,
            num_groups=spec.num_groups,
            state_dim=spec.state_dim,
            least=spec.step_limits[0],
            most=spec.step_limits[1],
            state_offset=place,
            kept=kept,
            out=self._shared(node.out),
        )
        return True

    def _deltanet(self, node: nodes.DeltaNet) -> bool:
        spec, place = node.spec, self._state_places[node.layer][1].first
        inputs = self._floats(node.x), self._floats(node.beta), self._floats(node.decay)
        weights = self._pack.vector(node.rate), self._pack.vector(node.bias)
        kept = self._keep(spec.channels + 2 * spec.num_value_heads)
        self._program.delta_net(
            *inputs,
            *weights,
            num_key_heads=spec.num_key_heads,
            num_value_heads=spec.num_value_heads,
            key_dim=spec.key_dim,
            value_dim=spec.value_dim,
            tiled=spec.tiled,
            state_offset=place,
            kept=kept,
            out=self._shared(node.out),
        )
        return True

    def _keep(self, width: int) -> int:
        """A buffer for what a recurrent instruction takes in; it stays that instruction's own."""
        self.kept.append(self._program.buffer(width, quantized=False, is_private=False, taken=False))
        return self.kept[-1]

    def _route(self, node: nodes.Route) -> bool:
        spec, scoring = node.spec, SCORINGS.index(node.spec.scoring)
        bias, logits = self._pack.vector(node.bias), self._floats(node.logits)
        shape = (spec.num_experts, spec.num_used, scoring, spec.normalize, spec.scale)
        groups = (spec.num_groups, spec.num_used_groups, spec.group_best)
        scales = self._pack.vector(node.expert_scale)
        self._program.route(logits, bias, *shape, self._shared(node.out), *groups, scales)
        return True

    def _experts(self, node: nodes.Experts) -> bool:
        x, routing, kind = self._input(node, node.x), self._floats(node.routing), ACTIVATIONS.index(node.activation)
        gate_bias, up_bias, down_bias = map(self._pack.vector, (node.gate_bias, node.up_bias, node.down_bias))
        if node.gate is None:
            up, down = self._pack.experts(node.up), self._pack.experts(node.down)
            self._program.plain_experts(x, routing, up, down, up_bias, down_bias, kind, self._shared(node.out))
            return True
        gated, down = self._pack.gated_experts(node.gate, node.up), self._pack.experts(node.down)
        self._program.experts(x, routing, gated, down, gate_bias, up_bias, down_bias, kind, self._shared(node.out))
        return True

    def _pool(self, node: nodes.Pool) -> bool:
        self._program.pool(self._floats(node.x))
        return True

    def _head(self, node: nodes.Head) -> bool:
        self._program.head(self._input(node, node.x), self._pack.matrix(node.weight), node.scale, node.softcap)
        return True

    def _angles_of(self, spec: RopeSpec | None) -> int:
        if spec is None:
            return NONE
        if spec not in self._angles:
            frequencies, factor = rope_frequencies(spec, self._context_length)
            growth = spec.growth or PositionGrowth(0.0, 1)
            self._angles[spec] = self._program.angles(frequencies, factor, growth.beta, growth.every)
        return self._angles[spec]
