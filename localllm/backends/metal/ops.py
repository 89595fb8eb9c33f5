"""The verbs as MLX graphs. Nothing is computed here: the backend waits once, when the whole step is built."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import mlx.core as mx
import numpy as np

from localllm.backends.adapters import Stacks
from localllm.backends.batch import Batch
from localllm.backends.layout import attention_specs
from localllm.backends.metal.formulas import activate, attend, gate_times_up, gated_norm, rotate, route, softcap
from localllm.backends.metal.memory import MetalMemory
from localllm.backends.metal.precision import Precision
from localllm.backends.metal.recurrences import delta_net
from localllm.backends.metal.state_space import scan
from localllm.backends.metal.streams import add_streams, as_long_as, cut_low
from localllm.backends.metal.views import AlikeView, ConvView, KvView, Pages, alike_view, conv_view, kv_view, line_of
from localllm.backends.metal.weights import Weight
from localllm.engine.step import StepPlan
from localllm.models.config import (
    Activation,
    AttentionSpec,
    DeltaNetSpec,
    ModelConfig,
    MoeSpec,
    RecurrentSpec,
    RopeSpec,
    ShortConvSpec,
    StateSpaceSpec,
)
from localllm.models.ops import Indices
from localllm.models.rope import rope_tables

SORTED_FROM = 64
"""So many uses of experts in a step are sorted by expert, so that a matrix is read once for all its tokens."""


Recurrence = Callable[..., tuple[mx.array, mx.array]]
"""Takes rows' inputs (G, n, width) each, and `state`; gives what comes out (G, n, width), and the next state."""


class MetalOps:
    """The verbs for the step that `begin` named; what layers share of a step is kept until the next."""

    def __init__(
        self, config: ModelConfig, memory: MetalMemory, precision: Precision, names: Mapping[int, str]
    ) -> None:
        """`names` of the weights by their `id`."""
        self._names = names
        self.adapters: Stacks[mx.array] = Stacks(mx.array, lambda parts, axis: mx.concatenate(parts, axis=axis))
        self._context_length = config.context_length
        self._memory = memory
        self._kv_kinds = {(memory.group(layer), spec.causal) for layer, spec in attention_specs(config)}
        self._attends_in = memory.kv_type if precision.half else mx.float32
        self.hidden: mx.array | None = None
        self.logits: mx.array | None = None

    def begin(self, plan: StepPlan, batch: Batch) -> None:
        """InvalidRequest where a row's table lacks a page; then nothing has happened."""
        self._plan, self._batch = plan, batch
        self.adapters.begin(plan, batch)
        self._kv_views = {key: self._kv_view(*key) for key in self._kv_kinds} if plan.rows else {}
        self._conv_views: dict[int, ConvView] = {}
        self._alike_rows: AlikeView | None = None
        self._turns: dict[RopeSpec, tuple[mx.array, mx.array]] = {}
        self.hidden = self.logits = None

    def embed(self, weight: Weight, of: Indices = "tokens", scale: float = 1.0) -> mx.array:
        indices = self._batch.indices(of)
        rows = weight.rows(np.where(indices < weight.shape[0], indices, 0))
        return rows if scale == 1.0 else rows * scale

    def linear(self, x: mx.array, weight: Weight, bias: Weight | None = None) -> mx.array:
        product = weight.product(x)
        stack = self.adapters.of(self._names.get(id(weight), ""))
        if stack is not None:
            product = product + ((x @ stack.a.T) * stack.factors) @ stack.b.T
        return product if bias is None else product + bias.values()

    def linear_group(
        self, x: mx.array, weights: Sequence[Weight], biases: Sequence[Weight | None]
    ) -> tuple[mx.array, ...]:
        return tuple(self.linear(x, weight, bias) for weight, bias in zip(weights, biases, strict=True))

    def gated(
        self,
        x: mx.array,
        gate: Weight,
        up: Weight,
        activation: Activation,
        gate_bias: Weight | None = None,
        up_bias: Weight | None = None,
    ) -> mx.array:
        return gate_times_up(self.linear(x, gate, gate_bias), self.linear(x, up, up_bias), activation)

    def activate(self, x: mx.array, activation: Activation) -> mx.array:
        return activate(x, activation)

    def gate_mul(self, gate: mx.array, up: mx.array, activation: Activation, first: int = 0) -> mx.array:
        return gate_times_up(gate, up[:, first : first + gate.shape[1]], activation)

    def rms_norm(self, x: mx.array, weight: Weight | None, eps: float, run: int = 0) -> mx.array:
        runs = x.reshape(x.shape[0], -1, run if weight is None else weight.shape[0])
        return mx.fast.rms_norm(runs, None if weight is None else weight.values(), eps).reshape(x.shape)

    def layer_norm(self, x: mx.array, weight: Weight, bias: Weight | None, eps: float, run: int = 0) -> mx.array:
        if run:
            runs = x.reshape(x.shape[0], -1, run)
            normed = mx.fast.layer_norm(runs, None, None, eps).reshape(x.shape) * weight.values()
            return normed if bias is None else normed + bias.values()
        return mx.fast.layer_norm(x, weight.values(), None if bias is None else bias.values(), eps)

    def add(self, x: mx.array, y: mx.array, scale: float = 1.0) -> mx.array:
        return x + y if scale == 1.0 else x + y * scale

    def add_rms_norm(
        self, x: mx.array, y: mx.array, weight: Weight, eps: float, scale: float = 1.0
    ) -> tuple[mx.array, mx.array]:
        total = self.add(x, y, scale)
        return total, self.rms_norm(total, weight, eps)

    def scale(self, x: mx.array, factor: float) -> mx.array:
        return x * factor

    def gate_rows(self, x: mx.array, gate: mx.array) -> mx.array:
        return x * mx.sigmoid(gate)

    def columns(self, x: mx.array, first: int, count: int) -> mx.array:
        return x[:, first : first + count]

    def mul_columns(self, x: mx.array, weight: Weight) -> mx.array:
        return x * weight.values()

    def add_streams(
        self, x: mx.array, y: mx.array, coefs: mx.array | None, size: int, plus: float = 0.0, first: int = 0
    ) -> mx.array:
        return add_streams(x, y, coefs, size, plus, first)

    def as_long_as(self, x: mx.array, y: mx.array) -> mx.array:
        return as_long_as(x, y)

    def cut_low(self, x: mx.array, spread: float) -> mx.array:
        return cut_low(x, spread)

    def linear_heads(self, x: mx.array, weight: Weight) -> mx.array:
        num_tokens, (num_heads, _, width) = x.shape[0], weight.shape
        lines = x.reshape(num_tokens, num_heads, width).swapaxes(0, 1).reshape(-1, width)
        heads = mx.repeat(mx.arange(num_heads, dtype=mx.int32), num_tokens)
        out = weight.by_expert(lines, heads, True)
        return out.reshape(num_heads, num_tokens, -1).swapaxes(0, 1).reshape(num_tokens, -1)

    def join(self, x: mx.array, y: mx.array, num_heads: int) -> mx.array:
        parts = [part.reshape(part.shape[0], num_heads, -1) for part in (x, y)]
        return mx.concatenate(parts, axis=-1).reshape(x.shape[0], -1)

    def softcap(self, x: mx.array, cap: float) -> mx.array:
        return softcap(x, cap)

    def rope(self, x: mx.array, head_dim: int, spec: RopeSpec) -> mx.array:
        if spec not in self._turns:
            cos, sin = rope_tables(spec, self._batch.positions, self._context_length)
            self._turns[spec] = mx.array(cos[:, None]), mx.array(sin[:, None])
        return rotate(x.reshape(x.shape[0], -1, head_dim), *self._turns[spec]).reshape(x.shape)

    def attention(
        self,
        q: mx.array,
        k: mx.array | None,
        v: mx.array | None,
        spec: AttentionSpec,
        layer: int,
        sinks: Weight | None = None,
    ) -> mx.array:
        view = self._kv_views[self._memory.group(layer), spec.causal]
        if k is not None and v is not None:
            self._memory.write(layer, view.written, k, v)
        drains = None if sinks is None else sinks.values()
        heads = q.reshape(q.shape[0], spec.num_heads, spec.head_dim).astype(self._attends_in)
        outs = []
        for span in view.spans:
            keys, values = (each.astype(self._attends_in) for each in self._memory.read(layer, span.seen))
            queries = heads[span.tokens]
            q, k, v = (each.swapaxes(1, 2) for each in (queries, keys, values))
            out = attend(q, k, v, span.mask, spec, drains)  # (B, heads, n, value_dim)
            outs.append(out.swapaxes(1, 2).reshape(-1, spec.num_heads * spec.value_dim))
        together = outs[0] if len(outs) == 1 else mx.concatenate(outs)
        return (together if view.back is None else together[view.back]).astype(mx.float32)

    def short_conv(
        self, x: mx.array, in_proj: Weight, kernel: Weight, out_proj: Weight, spec: ShortConvSpec, layer: int
    ) -> mx.array:
        before, after, inner = mx.split(self.linear(x, in_proj), 3, axis=1)
        return self.linear(after * self._convolved(before * inner, kernel, spec, layer), out_proj)

    def causal_conv(
        self, x: mx.array, kernel: Weight, bias: Weight | None, spec: DeltaNetSpec | StateSpaceSpec, layer: int
    ) -> mx.array:
        mixed = self._convolved(x, kernel, spec, layer)
        return activate(mixed if bias is None else mixed + bias.values(), "silu")

    def gated_norm(
        self, x: mx.array, gate: mx.array, weight: Weight | None, eps: float, run: int, gate_first: bool
    ) -> mx.array:
        return gated_norm(x, gate, None if weight is None else weight.values(), eps, run, gate_first)

    def state_space(
        self, x: mx.array, step: mx.array, rate: Weight, bias: Weight, skip: Weight, spec: StateSpaceSpec, layer: int
    ) -> mx.array:
        run = partial(scan, rate=rate.values(), bias=bias.values(), skip=skip.values(), spec=spec)
        return self._recur(layer, (x, step), run)

    def delta_net(
        self, x: mx.array, beta: mx.array, decay: mx.array, rate: Weight, bias: Weight, spec: DeltaNetSpec, layer: int
    ) -> mx.array:
        run = partial(delta_net, rate=rate.values(), bias=bias.values(), spec=spec)
        return self._recur(layer, (x, beta, decay), run)

    def _recur(self, layer: int, inputs: Sequence[mx.array], run: Recurrence) -> mx.array:
        """Rows of one length at once through a recurrence, whose state is the second part of the layer's."""
        view, outs = self._alike(), []
        for rows, tokens in view.parts:
            slots = mx.array(self._batch.slots[rows])
            own, before = [each[tokens] for each in inputs], self._memory.states(layer, slots, part=1)
            out, after = run(*own, state=before)
            outs.append(out.reshape(-1, out.shape[-1]))
            self._memory.set_states(layer, slots, after, part=1)
            for index, row in enumerate(rows.tolist()):
                seq = self._plan.rows[row].seq
                if self._memory.trails.wants(seq):
                    lone = slice(index, index + 1)
                    again = partial(_state_after, run, [each[lone] for each in own], before[lone])
                    self._memory.trails.keep(seq, layer, again, part=1)
        return mx.concatenate(outs)[view.back]

    def _alike(self) -> AlikeView:
        if self._alike_rows is None:
            self._alike_rows = alike_view(self._batch)
        return self._alike_rows

    def _convolved(self, inputs: mx.array, kernel: Weight, spec: RecurrentSpec, layer: int) -> mx.array:
        """The convolution over each row's own tokens and their past, which becomes the next one's."""
        if spec.kernel not in self._conv_views:
            self._conv_views[spec.kernel] = conv_view(self._batch, spec.kernel)
        view, slots = self._conv_views[spec.kernel], mx.array(self._batch.slots)
        states = self._memory.states(layer, slots).reshape(-1, spec.channels)
        line = mx.concatenate([states, inputs])
        self._memory.set_states(layer, slots, line[view.last])
        for index, row in enumerate(self._plan.rows):
            if self._memory.trails.wants(row.seq):
                own = line[line_of(self._batch, spec.kernel, index)]
                self._memory.trails.keep(row.seq, layer, partial(_stretch, own, spec.kernel - 1))
        taps = kernel.values().reshape(spec.channels, spec.kernel).T
        return (line[view.taps] * taps).sum(axis=1)

    def route(
        self,
        x: mx.array,
        router: Weight,
        spec: MoeSpec,
        bias: Weight | None = None,
        choice_bias: Weight | None = None,
        expert_scale: Weight | None = None,
    ) -> mx.array:
        """(T, num_used, 2): the expert's index, which float32 holds exactly, and its weight."""
        logits = self.linear(x, router, bias)
        chosen, weights = route(logits, spec, None if choice_bias is None else choice_bias.values())
        if expert_scale is not None:
            weights = weights * expert_scale.values()[chosen]
        return mx.stack([chosen.astype(mx.float32), weights], axis=-1)

    def experts(
        self,
        x: mx.array,
        routing: mx.array,
        gate: Weight | None,
        up: Weight,
        down: Weight,
        activation: Activation,
        biases: tuple[Weight | None, Weight | None, Weight | None] = (None, None, None),
    ) -> mx.array:
        num_tokens, num_used, _ = routing.shape
        experts = routing[:, :, 0].astype(mx.int32).reshape(-1)
        lines = mx.repeat(mx.arange(num_tokens), num_used)
        back = None
        if are_sorted := len(lines) >= SORTED_FROM:
            order = mx.argsort(experts)
            experts, lines, back = experts[order], lines[order], mx.argsort(order)

        def product(inputs: mx.array, weight: Weight, bias: Weight | None) -> mx.array:
            out = weight.by_expert(inputs, experts, are_sorted)
            return out if bias is None else out + bias.values()[experts]

        inputs = x[lines]
        hidden = product(inputs, up, biases[1])
        if gate is None:
            hidden = activate(hidden, activation)
        else:
            hidden = gate_times_up(product(inputs, gate, biases[0]), hidden, activation)
        out = product(hidden, down, biases[2])
        parts = (out if back is None else out[back]).reshape(num_tokens, num_used, -1)
        return (parts * routing[:, :, 1:]).sum(axis=1)

    def pool(self, x: mx.array) -> None:
        self.hidden = x if self._batch.wants_hidden else None

    def take_rows(self, x: mx.array) -> mx.array:
        taken = self._batch.taken
        return x if len(taken) == x.shape[0] else x[mx.array(taken)]

    def sample(self, logits: mx.array) -> None:
        self.logits = logits

    def _kv_view(self, group: int, causal: bool) -> KvView:
        layout = self._memory.layout
        pages = Pages(self._batch.tables[group], layout.page_size, self._memory.num_pages, self._memory.width)
        return kv_view(self._batch, pages, layout.groups[group].window, causal)


def _stretch(line: mx.array, length: int, first: int) -> mx.array:
    return line[first : first + length]


def _state_after(run: Recurrence, inputs: list[mx.array], before: mx.array, count: int) -> mx.array:
    """That of one row after its first `count` tokens."""
    return run(*(each[:, :count] for each in inputs), state=before)[1][0] if count else before[0]
