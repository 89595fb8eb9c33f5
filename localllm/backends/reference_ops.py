"""The judge's verbs in plain numpy float32, one row after another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from localllm.backends.adapters import Numbered, adapted
from localllm.backends.batch import Batch
from localllm.backends.formulas import (
    activate,
    attend,
    convolve,
    gate_times_up,
    gated_norm,
    rotate,
    route,
    sigmoid,
    softcap,
    visible,
)
from localllm.backends.paged import PagedMemory
from localllm.backends.recurrences import delta_net
from localllm.backends.reference_weights import Floats, Tensor
from localllm.backends.state_space import scan
from localllm.backends.streams import add_streams, as_long_as, cut_low
from localllm.engine.step import StepPlan
from localllm.models.adapters import Adapter
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

Tap = Callable[[str, str, Floats], None]
"""Called with a verb, the weight's or layer's name, and what it saw: the input of a linear (T, in), that of one expert
or head of a weight with several ("matrix", under the name with its number: `name[3]`), the probabilities of an
attention row (heads, tokens, tokens seen)."""


class ReferenceOps:
    """The verbs over numpy arrays, for the step that `begin` named."""

    def __init__(self, config: ModelConfig, memory: PagedMemory, tap: Tap | None) -> None:
        self._context_length = config.context_length
        self._memory = memory
        self._tap = tap
        self._plan = StepPlan(0, ())
        self._batch: Batch | None = None
        self.adapters: Numbered[Adapter] = Numbered()
        self._adapted: list[tuple[slice, Adapter, float]] = []
        self.hidden: Floats | None = None
        self.logits: Floats | None = None

    def begin(self, plan: StepPlan, batch: Batch) -> None:
        self._plan, self._batch = plan, batch
        self._adapted = [
            (slice(first, end), self.adapters[row.adapter], row.adapter_scale)
            for row, first, end in adapted(plan, batch)
        ]
        self.hidden = self.logits = None

    @property
    def batch(self) -> Batch:
        assert self._batch is not None, "begin() comes first"
        return self._batch

    def embed(self, weight: Tensor, of: Indices = "tokens", scale: float = 1.0) -> Floats:
        indices = self.batch.indices(of)
        return weight.rows(np.where(indices < weight.shape[0], indices, 0)) * np.float32(scale)

    def linear(self, x: Floats, weight: Tensor, bias: Tensor | None = None) -> Floats:
        if self._tap is not None:
            self._tap("linear", weight.name, x)
        product: Floats = x @ weight.values.T
        self._adapt(x, weight.name, product)
        return product if bias is None else product + bias.values

    def _adapt(self, x: Floats, name: str, product: Floats) -> None:
        """Add to the product what the adapters of its rows add."""
        for tokens, adapter, scale in self._adapted:
            part = adapter.parts.get(name)
            if part is not None:
                product[tokens] += np.float32(part.scale * scale) * ((x[tokens] @ part.a.T) @ part.b.T)

    def linear_group(self, x: Floats, weights: Sequence[Tensor], biases: Sequence[Tensor | None]) -> tuple[Floats, ...]:
        return tuple(self.linear(x, weight, bias) for weight, bias in zip(weights, biases, strict=True))

    def gated(
        self,
        x: Floats,
        gate: Tensor,
        up: Tensor,
        activation: Activation,
        gate_bias: Tensor | None = None,
        up_bias: Tensor | None = None,
    ) -> Floats:
        return gate_times_up(self.linear(x, gate, gate_bias), self.linear(x, up, up_bias), activation)

    def activate(self, x: Floats, activation: Activation) -> Floats:
        return activate(x, activation)

    def gate_mul(self, gate: Floats, up: Floats, activation: Activation, first: int = 0) -> Floats:
        return gate_times_up(gate, up[:, first : first + gate.shape[1]], activation)

    def rms_norm(self, x: Floats, weight: Tensor | None, eps: float, run: int = 0) -> Floats:
        runs = x.reshape(len(x), -1, run if weight is None else weight.shape[0])
        mean_square = np.mean(runs * runs, axis=-1, keepdims=True, dtype=np.float32)
        normed: Floats = np.divide(runs, np.sqrt(mean_square + np.float32(eps)), dtype=np.float32)
        return (normed if weight is None else normed * weight.values).reshape(x.shape)

    def layer_norm(self, x: Floats, weight: Tensor, bias: Tensor | None, eps: float, run: int = 0) -> Floats:
        runs = x.reshape(len(x), -1, run or x.shape[1])
        centred = runs - runs.mean(axis=-1, keepdims=True, dtype=np.float32)
        variance = np.mean(centred * centred, axis=-1, keepdims=True, dtype=np.float32)
        normed: Floats = (centred / np.sqrt(variance + np.float32(eps))).reshape(x.shape) * weight.values
        return normed if bias is None else normed + bias.values

    def add(self, x: Floats, y: Floats, scale: float = 1.0) -> Floats:
        return x + y * np.float32(scale)

    def add_rms_norm(
        self, x: Floats, y: Floats, weight: Tensor, eps: float, scale: float = 1.0
    ) -> tuple[Floats, Floats]:
        total = self.add(x, y, scale)
        return total, self.rms_norm(total, weight, eps)

    def scale(self, x: Floats, factor: float) -> Floats:
        return x * np.float32(factor)

    def gate_rows(self, x: Floats, gate: Floats) -> Floats:
        return x * sigmoid(gate)

    def columns(self, x: Floats, first: int, count: int) -> Floats:
        return x[:, first : first + count]

    def mul_columns(self, x: Floats, weight: Tensor) -> Floats:
        return x * weight.values

    def add_streams(
        self, x: Floats, y: Floats, coefs: Floats | None, size: int, plus: float = 0.0, first: int = 0
    ) -> Floats:
        return add_streams(x, y, coefs, size, plus, first)

    def as_long_as(self, x: Floats, y: Floats) -> Floats:
        return as_long_as(x, y)

    def cut_low(self, x: Floats, spread: float) -> Floats:
        return cut_low(x, spread)

    def linear_heads(self, x: Floats, weight: Tensor) -> Floats:
        heads = x.reshape(len(x), weight.shape[0], weight.shape[2])
        for head in range(weight.shape[0]):
            self._show_matrix(weight, head, heads[:, head])
        return np.asarray(np.einsum("thi,hoi->tho", heads, weight.values).reshape(len(x), -1), np.float32)

    def join(self, x: Floats, y: Floats, num_heads: int) -> Floats:
        parts = [part.reshape(len(part), num_heads, -1) for part in (x, y)]
        return np.concatenate(parts, axis=-1).reshape(len(x), -1)

    def softcap(self, x: Floats, cap: float) -> Floats:
        return softcap(x, cap)

    def rope(self, x: Floats, head_dim: int, spec: RopeSpec) -> Floats:
        cos, sin = rope_tables(spec, self.batch.positions, self._context_length)
        return rotate(x.reshape(len(x), -1, head_dim), cos[:, None], sin[:, None]).reshape(x.shape)

    def attention(
        self,
        q: Floats,
        k: Floats | None,
        v: Floats | None,
        spec: AttentionSpec,
        layer: int,
        sinks: Tensor | None = None,
    ) -> Floats:
        batch, memory = self.batch, self._memory
        out = np.empty((len(q), spec.num_heads * spec.value_dim), np.float32)
        tables = batch.tables[memory.group(layer)]
        for row, (first, end) in enumerate(zip(batch.row_starts, batch.row_starts[1:], strict=False)):
            own, positions = slice(first, end), batch.positions[first:end]
            if k is not None and v is not None:
                keys = k[own].reshape(len(positions), spec.num_kv_heads, spec.head_dim)
                values = v[own].reshape(len(positions), spec.num_kv_heads, spec.value_dim)
                memory.write(layer, tables[row], positions, keys, values)
            first_seen = 0 if spec.window is None else max(0, int(positions[0]) - spec.window + 1)
            seen = np.arange(first_seen, positions[-1] + 1, dtype=np.int32)
            mask = visible(positions, seen, spec, bool(batch.atomic[row]))
            queries = q[own].reshape(len(positions), spec.num_heads, spec.head_dim)
            logits = None if sinks is None else sinks.values
            chances, out[own] = attend(queries, *memory.read(layer, tables[row], seen), mask, spec, logits)
            if self._tap is not None:
                self._tap("attention", f"blk.{layer}", chances)
        return out

    def short_conv(
        self, x: Floats, in_proj: Tensor, kernel: Tensor, out_proj: Tensor, spec: ShortConvSpec, layer: int
    ) -> Floats:
        before, after, inner = np.split(self.linear(x, in_proj), 3, axis=1)
        return self.linear(after * self._convolved(before * inner, kernel, spec, layer), out_proj)

    def causal_conv(
        self, x: Floats, kernel: Tensor, bias: Tensor | None, spec: DeltaNetSpec | StateSpaceSpec, layer: int
    ) -> Floats:
        mixed = self._convolved(x, kernel, spec, layer)
        return activate(mixed if bias is None else mixed + bias.values, "silu")

    def gated_norm(
        self, x: Floats, gate: Floats, weight: Tensor | None, eps: float, run: int, gate_first: bool
    ) -> Floats:
        return gated_norm(x, gate, None if weight is None else weight.values, eps, run, gate_first)

    def state_space(
        self, x: Floats, step: Floats, rate: Tensor, bias: Tensor, skip: Tensor, spec: StateSpaceSpec, layer: int
    ) -> Floats:
        run = partial(scan, rate=rate.values, bias=bias.values, skip=skip.values, spec=spec)
        return self._recur(layer, (x, step), spec.inner, run)

    def delta_net(
        self, x: Floats, beta: Floats, decay: Floats, rate: Tensor, bias: Tensor, spec: DeltaNetSpec, layer: int
    ) -> Floats:
        run = partial(delta_net, rate=rate.values, bias=bias.values, spec=spec)
        return self._recur(layer, (x, beta, decay), spec.num_value_heads * spec.value_dim, run)

    def _recur(self, layer: int, inputs: Sequence[Floats], width: int, run: Callable[..., Floats]) -> Floats:
        """Row after row through a recurrence, which changes the second part of the layer's state in place."""
        batch = self.batch
        out = np.empty((len(inputs[0]), width), np.float32)
        for row, (first, end) in enumerate(zip(batch.row_starts, batch.row_starts[1:], strict=False)):
            state, seq = self._memory.state(layer, int(batch.slots[row]), part=1), self._plan.rows[row].seq
            own = [each[first:end] for each in inputs]
            if self._memory.trails.wants(seq):
                self._memory.trails.keep(seq, layer, partial(_state_after, run, own, state.copy()), part=1)
            out[first:end] = run(*own, state=state)
        return out

    def _convolved(self, inputs: Floats, kernel: Tensor, spec: RecurrentSpec, layer: int) -> Floats:
        """The convolution over each row's own tokens and their past, which becomes the next one's."""
        batch = self.batch
        mixed = np.empty_like(inputs)
        for row, (first, end) in enumerate(zip(batch.row_starts, batch.row_starts[1:], strict=False)):
            state = self._memory.state(layer, int(batch.slots[row]))
            line = np.concatenate([state, inputs[first:end]])
            mixed[first:end] = convolve(line, kernel.values.reshape(spec.channels, spec.kernel))
            state[:] = line[len(line) - len(state) :]
            seq = self._plan.rows[row].seq
            if self._memory.trails.wants(seq):
                self._memory.trails.keep(seq, layer, partial(_stretch, line, len(state)))
        return mixed

    def route(
        self,
        x: Floats,
        router: Tensor,
        spec: MoeSpec,
        bias: Tensor | None = None,
        choice_bias: Tensor | None = None,
        expert_scale: Tensor | None = None,
    ) -> Floats:
        """(T, num_used, 2): the expert's index, which float32 holds exactly, and its weight."""
        routing = route(self.linear(x, router, bias), spec, None if choice_bias is None else choice_bias.values)
        if expert_scale is not None:
            routing[:, :, 1] *= expert_scale.values[routing[:, :, 0].astype(np.int64)]
        return routing

    def experts(
        self,
        x: Floats,
        routing: Floats,
        gate: Tensor | None,
        up: Tensor,
        down: Tensor,
        activation: Activation,
        biases: tuple[Tensor | None, Tensor | None, Tensor | None] = (None, None, None),
    ) -> Floats:
        total = np.zeros((len(x), down.shape[1]), np.float32)
        chosen = routing[:, :, 0].astype(np.int64)
        for index in np.unique(chosen):  # rising: the sum's order must not depend on who else is in the batch
            tokens, places = np.nonzero(chosen == index)
            inputs = x[tokens]
            ups = self._of_expert(inputs, up, index, biases[1])
            if gate is None:
                hidden = activate(ups, activation)
            else:
                hidden = gate_times_up(self._of_expert(inputs, gate, index, biases[0]), ups, activation)
            out = self._of_expert(hidden, down, index, biases[2])
            total[tokens] += routing[tokens, places, 1][:, None] * out
        return total

    def _of_expert(self, inputs: Floats, weight: Tensor, index: int, bias: Tensor | None) -> Floats:
        self._show_matrix(weight, index, inputs)
        product: Floats = inputs @ weight.expert(index).T
        return product if bias is None else product + bias.values[index]

    def _show_matrix(self, weight: Tensor, index: int, inputs: Floats) -> None:
        if self._tap is not None:
            self._tap("matrix", f"{weight.name}[{index}]", inputs)

    def pool(self, x: Floats) -> None:
        self.hidden = x

    def take_rows(self, x: Floats) -> Floats:
        return x[self.batch.taken]

    def sample(self, logits: Floats) -> None:
        self.logits = logits


def _stretch(line: Floats, length: int, first: int) -> Floats:
    return line[first : first + length]


def _state_after(run: Callable[..., Floats], inputs: list[Floats], before: Floats, count: int) -> Floats:
    """That of one row after its first `count` tokens."""
    state = before.copy()
    run(*(each[:count] for each in inputs), state=state)
    return state
