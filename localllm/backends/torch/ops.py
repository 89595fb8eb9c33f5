"""The verbs over tensors of one device, for the step that `begin` named. Activations are float32."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from localllm.backends.adapters import Stacks
from localllm.backends.batch import Batch
from localllm.backends.layout import layer_values
from localllm.backends.torch.experts import Experts
from localllm.backends.torch.formulas import (
    activate,
    attend,
    convolve,
    gate_times_up,
    gated_norm,
    rotate,
    route,
    softcap,
)
from localllm.backends.torch.memory import DeviceMemory
from localllm.backends.torch.products import Products, check_width
from localllm.backends.torch.reach import Pool, Reach, Span, reach, uploaded
from localllm.backends.torch.recurrences import delta_net
from localllm.backends.torch.state_space import scan
from localllm.backends.torch.streams import add_streams, as_long_as, cut_low
from localllm.backends.torch.weights import Weight
from localllm.engine.step import StepPlan
from localllm.errors import BadModelFile, InvalidRequest
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
from localllm.models.source import LOOKED_UP

Recurrence = Callable[..., tuple[Tensor, Tensor]]
"""Takes rows' inputs (G, n, width) each, and `state`; gives what comes out (G, n, width), and the next state."""


@dataclass(frozen=True, slots=True)
class Step:
    """What the verbs of one step share. `convolved`: rows (G,) of one length with their tokens (G, n)."""

    plan: StepPlan
    batch: Batch
    reaches: tuple[Reach, ...]
    convolved: tuple[tuple[NDArray[np.int64], Tensor], ...]
    turns: dict[RopeSpec, tuple[Tensor, Tensor]]


class TorchOps:
    """`attention_type`: what scores and values are multiplied in."""

    def __init__(self, config: ModelConfig, memory: DeviceMemory, attention_type: torch.dtype, device: torch.device):
        self._config, self._memory, self._device = config, memory, device
        self._attention_type = attention_type
        self._products = Products(device)
        self.adapters: Stacks[Tensor] = Stacks(lambda values: torch.from_numpy(values).to(device), torch.cat)
        self._step: Step | None = None
        self.hidden: Tensor | None = None
        self.logits: Tensor | None = None

    def begin(self, plan: StepPlan, batch: Batch) -> None:
        """InvalidRequest where a row names tokens, pages or slots that do not exist; nothing is computed then."""
        self.hidden = self.logits = None
        self.adapters.begin(plan, batch)
        span = Span.of(batch)
        self._check(batch)
        self._step = Step(plan, batch, self._reaches(batch, span), self._convolved(batch, span), {})
        self._memory.trails.follow(plan)
        for each in self._step.reaches:
            self._memory.blank(each.begun)

    @property
    def step(self) -> Step:
        assert self._step is not None, "begin() comes first"
        return self._step

    def embed(self, weight: Weight, of: Indices = "tokens", scale: float = 1.0) -> Tensor:
        indices = self.step.batch.indices(of)
        if weight.name in LOOKED_UP:
            indices = np.where(indices < weight.shape[0], indices, 0)
        elif indices.max() >= weight.shape[0]:
            raise InvalidRequest(f"{of} reach {indices.max()}, the tensor {weight.name} has {weight.shape[0]}")
        rows = weight.rows(uploaded(indices, self._device))
        return rows if scale == 1.0 else rows * scale

    def linear(self, x: Tensor, weight: Weight, bias: Weight | None = None) -> Tensor:
        return self._adapted(x, weight, self._products.linear(x, weight, bias, is_bounded=False))

    def linear_group(self, x: Tensor, weights: Sequence[Weight], biases: Sequence[Weight | None]) -> tuple[Tensor, ...]:
        return tuple(self._of_norm(x, weight, bias) for weight, bias in zip(weights, biases, strict=True))

    def gated(
        self,
        x: Tensor,
        gate: Weight,
        up: Weight,
        activation: Activation,
        gate_bias: Weight | None = None,
        up_bias: Weight | None = None,
    ) -> Tensor:
        return gate_times_up(self._of_norm(x, gate, gate_bias), self._of_norm(x, up, up_bias), activation)

    def activate(self, x: Tensor, activation: Activation) -> Tensor:
        return activate(x, activation)

    def gate_mul(self, gate: Tensor, up: Tensor, activation: Activation, first: int = 0) -> Tensor:
        return gate_times_up(gate, up[:, first : first + gate.shape[1]], activation)

    def rms_norm(self, x: Tensor, weight: Weight | None, eps: float, run: int = 0) -> Tensor:
        width = run if weight is None else weight.shape[0]
        if weight is not None and x.shape[1] % width:
            raise BadModelFile(f"the tensor {weight.name} is {width} wide, which does not divide {x.shape[1]}")
        store = None if weight is None else weight.store
        return functional.rms_norm(x.view(len(x), -1, width), (width,), store, eps).view(x.shape)

    def layer_norm(self, x: Tensor, weight: Weight, bias: Weight | None, eps: float, run: int = 0) -> Tensor:
        check_width(x, weight)
        if run:
            normed = functional.layer_norm(x.view(len(x), -1, run), (run,), eps=eps).view(x.shape) * weight.store
            return normed if bias is None else normed + bias.store
        return functional.layer_norm(x, weight.shape, weight.store, None if bias is None else bias.store, eps)

    def add(self, x: Tensor, y: Tensor, scale: float = 1.0) -> Tensor:
        return torch.add(x, y, alpha=scale)

    def add_rms_norm(
        self, x: Tensor, y: Tensor, weight: Weight, eps: float, scale: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        total = self.add(x, y, scale)
        return total, self.rms_norm(total, weight, eps)

    def scale(self, x: Tensor, factor: float) -> Tensor:
        return x * factor

    def gate_rows(self, x: Tensor, gate: Tensor) -> Tensor:
        return x * torch.sigmoid(gate)

    def columns(self, x: Tensor, first: int, count: int) -> Tensor:
        return x[:, first : first + count]

    def mul_columns(self, x: Tensor, weight: Weight) -> Tensor:
        return x * weight.store

    def add_streams(
        self, x: Tensor, y: Tensor, coefs: Tensor | None, size: int, plus: float = 0.0, first: int = 0
    ) -> Tensor:
        return add_streams(x, y, coefs, size, plus, first)

    def as_long_as(self, x: Tensor, y: Tensor) -> Tensor:
        return as_long_as(x, y)

    def cut_low(self, x: Tensor, spread: float) -> Tensor:
        return cut_low(x, spread)

    def linear_heads(self, x: Tensor, weight: Weight) -> Tensor:
        num_heads, _, width = weight.shape
        heads = x.view(len(x), num_heads, width).transpose(0, 1)
        out = self._products.each(heads, weight.experts(np.arange(num_heads, dtype=np.int64)))
        return out.transpose(0, 1).reshape(len(x), -1)

    def join(self, x: Tensor, y: Tensor, num_heads: int) -> Tensor:
        parts = [part.reshape(len(part), num_heads, -1) for part in (x, y)]
        return torch.cat(parts, dim=-1).view(len(x), -1)

    def softcap(self, x: Tensor, cap: float) -> Tensor:
        return softcap(x, cap)

    def rope(self, x: Tensor, head_dim: int, spec: RopeSpec) -> Tensor:
        turns = self.step.turns
        if spec not in turns:
            tables = rope_tables(spec, self.step.batch.positions, self._config.context_length)
            cos, sin = (torch.from_numpy(table).to(self._device)[:, None] for table in tables)
            turns[spec] = cos, sin
        return rotate(x.view(len(x), -1, head_dim), *turns[spec]).view(x.shape)

    def attention(
        self,
        q: Tensor,
        k: Tensor | None,
        v: Tensor | None,
        spec: AttentionSpec,
        layer: int,
        sinks: Weight | None = None,
    ) -> Tensor:
        memory, own = self._memory, self.step.reaches[self._memory.group(layer)]
        if k is not None and v is not None:
            keys = k.view(len(k), spec.num_kv_heads, spec.head_dim)
            memory.write(layer, own.pages, own.offsets, keys, v.view(len(v), spec.num_kv_heads, spec.value_dim))
        out = q.new_empty((len(q), spec.num_heads * spec.value_dim))
        drains = None if sinks is None else sinks.store
        queries = q.view(len(q), spec.num_heads, spec.head_dim)
        for part in own.parts:
            seen = memory.read(layer, part.pages, self._attention_type)
            out[part.tokens] = attend(
                queries[part.tokens], *seen, part.hidden(spec.causal), spec, drains, self._products
            )
        return out

    def short_conv(
        self, x: Tensor, in_proj: Weight, kernel: Weight, out_proj: Weight, spec: ShortConvSpec, layer: int
    ) -> Tensor:
        before, after, inner = self._of_norm(x, in_proj, None).chunk(3, dim=1)
        return self.linear(after * self._mixed(before * inner, kernel, spec, layer), out_proj)

    def causal_conv(
        self, x: Tensor, kernel: Weight, bias: Weight | None, spec: DeltaNetSpec | StateSpaceSpec, layer: int
    ) -> Tensor:
        mixed = self._mixed(x, kernel, spec, layer)
        return functional.silu(mixed if bias is None else mixed + bias.store)

    def gated_norm(
        self, x: Tensor, gate: Tensor, weight: Weight | None, eps: float, run: int, gate_first: bool
    ) -> Tensor:
        return gated_norm(x, gate, None if weight is None else weight.store, eps, run, gate_first)

    def state_space(
        self, x: Tensor, step: Tensor, rate: Weight, bias: Weight, skip: Weight, spec: StateSpaceSpec, layer: int
    ) -> Tensor:
        run = partial(scan, rate=rate.store, bias=bias.store, skip=skip.store, spec=spec)
        return self._recur(layer, (x, step), spec.inner, run)

    def delta_net(
        self, x: Tensor, beta: Tensor, decay: Tensor, rate: Weight, bias: Weight, spec: DeltaNetSpec, layer: int
    ) -> Tensor:
        run = partial(delta_net, rate=rate.store, bias=bias.store, spec=spec)
        return self._recur(layer, (x, beta, decay), spec.num_value_heads * spec.value_dim, run)

    def _recur(self, layer: int, inputs: Sequence[Tensor], width: int, run: Recurrence) -> Tensor:
        """Rows of one length at once through a recurrence, whose state is the second part of the layer's."""
        states, out = self._memory.state(layer, part=1), inputs[0].new_empty((len(inputs[0]), width))
        for rows, tokens in self.step.convolved:
            slots = uploaded(self.step.batch.slots[rows], self._device)
            own, before = [each[tokens] for each in inputs], states[slots]
            out[tokens], states[slots] = run(*own, state=before)
            for index, row in enumerate(rows.tolist()):
                seq = self.step.plan.rows[row].seq
                if self._memory.trails.wants(seq):
                    lone = slice(index, index + 1)
                    again = partial(_state_after, run, [each[lone] for each in own], before[lone])
                    self._memory.trails.keep(seq, layer, again, part=1)
        return out

    def _mixed(self, inputs: Tensor, kernel: Weight, spec: RecurrentSpec, layer: int) -> Tensor:
        """The convolution over each row's own tokens and their past, which becomes the next one's."""
        mixed = torch.empty_like(inputs)
        states, taps = self._memory.state(layer), kernel.store.view(spec.channels, spec.kernel)
        for rows, tokens in self.step.convolved:
            slots = uploaded(self.step.batch.slots[rows], self._device)
            lines = torch.cat([states[slots], inputs[tokens]], dim=1)
            mixed[tokens] = convolve(lines, taps)
            states[slots] = lines[:, tokens.shape[1] :]
            self._keep_trails(rows, layer, lines)
        return mixed

    def route(
        self,
        x: Tensor,
        router: Weight,
        spec: MoeSpec,
        bias: Weight | None = None,
        choice_bias: Weight | None = None,
        expert_scale: Weight | None = None,
    ) -> Tensor:
        """(T, num_used, 2): the expert's index, which float32 holds exactly, and its weight."""
        routing = route(self._of_norm(x, router, bias), spec, None if choice_bias is None else choice_bias.store)
        if expert_scale is not None:
            routing[:, :, 1] *= expert_scale.store[routing[:, :, 0].long()]
        return routing

    def experts(
        self,
        x: Tensor,
        routing: Tensor,
        gate: Weight | None,
        up: Weight,
        down: Weight,
        activation: Activation,
        biases: tuple[Weight | None, Weight | None, Weight | None] = (None, None, None),
    ) -> Tensor:
        return Experts(gate, up, down, activation, biases).mix(x, routing, self._products)

    def pool(self, x: Tensor) -> None:
        self.hidden = x

    def take_rows(self, x: Tensor) -> Tensor:
        return x[uploaded(self.step.batch.taken, self._device)]

    def sample(self, logits: Tensor) -> None:
        self.logits = logits

    def _of_norm(self, x: Tensor, weight: Weight, bias: Weight | None) -> Tensor:
        return self._adapted(x, weight, self._products.linear(x, weight, bias, is_bounded=True))

    def _adapted(self, x: Tensor, weight: Weight, product: Tensor) -> Tensor:
        """With what the step's adapters add."""
        stack = self.adapters.of(weight.name)
        if stack is None:
            return product
        return torch.addmm(product, (x @ stack.a.t()) * stack.factors, stack.b.t())

    def _check(self, batch: Batch) -> None:
        low, high = int(batch.token_ids.min()), int(batch.token_ids.max())
        if low < 0 or high >= self._config.vocab_size:
            raise InvalidRequest(
                f"a token id is {low if low < 0 else high}, the vocabulary has {self._config.vocab_size}"
            )
        if batch.positions.min() < 0:
            raise InvalidRequest(f"a position is {batch.positions.min()}")
        if self._memory.layout.has_state:
            for slot in batch.slots.tolist():
                self._memory.slot(slot)

    def _reaches(self, batch: Batch, span: Span) -> tuple[Reach, ...]:
        layout = self._memory.layout
        pool = Pool(layout.page_size, self._memory.num_pages, layer_values(self._config), self._device)
        return tuple(
            reach(batch, span, table, group.window, pool)
            for group, table in zip(layout.groups, batch.tables, strict=True)
        )

    def _convolved(self, batch: Batch, span: Span) -> tuple[tuple[NDArray[np.int64], Tensor], ...]:
        if not self._memory.layout.has_state:
            return ()
        parts = []
        for count in np.unique(span.counts):
            rows = np.flatnonzero(span.counts == count)
            tokens = batch.row_starts[:-1][rows, None] + np.arange(count, dtype=np.int32)
            parts.append((rows, uploaded(tokens, self._device)))
        return tuple(parts)

    def _keep_trails(self, rows: NDArray[np.int64], layer: int, lines: Tensor) -> None:
        """`lines` (G, past + n, channels): states before the rows, then inputs; a state is a stretch of its line."""
        past = self._memory.state(layer).shape[1]
        for index, row in enumerate(rows.tolist()):
            seq = self.step.plan.rows[row].seq
            if self._memory.trails.wants(seq):
                self._memory.trails.keep(seq, layer, partial(_stretch, lines[index], past))


def _stretch(line: Tensor, length: int, first: int) -> Tensor:
    return line[first : first + length]


def _state_after(run: Recurrence, inputs: list[Tensor], before: Tensor, count: int) -> Tensor:
    """That of one row after its first `count` tokens."""
    return run(*(each[:, :count] for each in inputs), state=before)[1][0] if count else before[0]
