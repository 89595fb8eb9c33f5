"""The judge: every verb in plain numpy float32, slow, one row after another. All other backends are held against it."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from localllm.backends.adapters import Numbered, adapted
from localllm.backends.batch import Batch, Flattener, answer
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
from localllm.backends.named import NamedWeights
from localllm.backends.paged import PagedMemory
from localllm.backends.recurrences import delta_net
from localllm.backends.state_space import scan
from localllm.backends.streams import add_streams, as_long_as, cut_low
from localllm.engine.step import BackendInfo, CommitDraft, StepPlan, StepResult
from localllm.formats.blocks import BlockType, decode, row_bytes
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
from localllm.models.decoder import Decoder
from localllm.models.ops import Indices
from localllm.models.rope import rope_tables
from localllm.models.source import WeightInfo, WeightSource

Floats = NDArray[np.float32]
KEPT_DECODED_BYTES = 1 << 30
Tap = Callable[[str, str, Floats], None]
"""Called with a verb, the weight's or layer's name, and what it saw: the input of a linear (T, in), that of one expert
or head of a weight with several ("matrix", under the name with its number: `name[3]`), the probabilities of an
attention row (heads, tokens, tokens seen)."""


class Tensor:
    """A weight in the blocks of its file; decoded when used, or once where `keeps` says so."""

    def __init__(self, source: WeightSource, info: WeightInfo, keeps: bool) -> None:
        self.name = info.name
        self.shape = info.shape
        self._type = info.type
        self._raw = source.raw(info.name)
        self._keeps = keeps or len(info.shape) == 1
        self._decoded: Floats | None = None

    @property
    def size_bytes(self) -> int:
        return self._raw.nbytes

    def replace(self, kind: BlockType, blocks: NDArray[np.uint8]) -> None:
        """Other values of the same shape, from the next verb on: calibration rounds weights while they are in use."""
        self._type, self._raw, self._decoded = kind, blocks.reshape(-1), None

    @property
    def values(self) -> Floats:
        """All of it, float32."""
        if self._decoded is not None:
            return self._decoded
        values = decode(self._type, self._raw, self.shape)
        if self._keeps:
            self._decoded = values
        return values

    def rows(self, indices: NDArray[np.int32]) -> Floats:
        """Some rows of a matrix, (len(indices), in)."""
        blocks = self._raw.reshape(self.shape[0], row_bytes(self._type, self.shape[1]))[indices]
        return decode(self._type, blocks, (len(indices), self.shape[1]))

    def expert(self, index: int) -> Floats:
        """One expert's matrix of (experts, out, in)."""
        if self._keeps:
            return np.asarray(self.values[index])
        blocks = self._raw.reshape(self.shape[0], -1)[index]
        return decode(self._type, blocks, self.shape[1:])


class Tensors(NamedWeights[Tensor]):
    """Weights by canonical name; each is opened once."""

    def __init__(self, source: WeightSource, keeps: bool) -> None:
        infos = (source.info(name) for name in source.names())
        super().__init__({info.name: Tensor(source, info, keeps) for info in infos if info is not None})

    @property
    def size_bytes(self) -> int:
        return sum(tensor.size_bytes for tensor in self._weights.values())


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


class ReferenceBackend:
    """A model on numpy. `keep_decoded` trades memory (4 bytes per weight) for speed; None: where that is little.

    `kv_type` float16 rounds the cache as faster backends do; `tap` sees activations.
    """

    def __init__(
        self,
        config: ModelConfig,
        source: WeightSource,
        page_size: int = 16,
        *,
        keep_decoded: bool | None = None,
        kv_type: type[np.float32] | type[np.float16] = np.float32,
        tap: Tap | None = None,
        notes: tuple[str, ...] = (),
    ) -> None:
        self.weights = weights = Tensors(source, fits_decoded(source) if keep_decoded is None else keep_decoded)
        self._memory = PagedMemory(config, page_size, kv_type)
        self._ops = ReferenceOps(config, self._memory, tap)
        self._decoder: Decoder[Floats, Tensor] = Decoder(config, self._ops, weights)
        self._flattener = Flattener(len(self._memory.layout.groups))
        self._done: deque[StepResult] = deque()
        self.layout = self._memory.layout
        self.vocab_size = config.vocab_size
        self.info = BackendInfo(
            name="reference",
            device="cpu",
            native=False,
            threads=1,
            weight_bytes=weights.size_bytes,
            notes=(*notes, "plain numpy, for judging other backends: slow"),
        )

    def allocate(self, num_pages: int, num_slots: int) -> None:
        self._memory.allocate(num_pages, num_slots)

    def add_adapter(self, adapter: Adapter) -> int:
        return self._ops.adapters.add(adapter)

    def drop_adapter(self, number: int) -> None:
        self._ops.adapters.drop(number)

    def submit(self, plan: StepPlan) -> None:
        started = time.perf_counter()
        for op in plan.memory:
            if isinstance(op, CommitDraft):
                self._memory.roll_back(op.seq, op.num_drafted - op.num_accepted)
                self._flattener.commit_draft(op)
            else:
                self._memory.apply(op)
        batch = self._flattener.flatten(plan)
        self._memory.trails.follow(plan)
        self._ops.begin(plan, batch)
        if plan.rows:
            self._decoder.run()
        rows = answer(plan, batch, self._ops.logits, self._ops.hidden)
        self._flattener.remember(rows)
        self._done.append(StepResult(plan.step_id, rows, time.perf_counter() - started))

    def collect(self) -> StepResult:
        return self._done.popleft()

    def close(self) -> None:
        self._done.clear()
        self._memory.allocate(0, 0)


def _stretch(line: Floats, length: int, first: int) -> Floats:
    return line[first : first + length]


def _state_after(run: Callable[..., Floats], inputs: list[Floats], before: Floats, count: int) -> Floats:
    """That of one row after its first `count` tokens."""
    state = before.copy()
    run(*(each[:count] for each in inputs), state=state)
    return state


def fits_decoded(source: WeightSource) -> bool:
    """Whether all weights as float32 take less than KEPT_DECODED_BYTES."""
    infos = (source.info(name) for name in source.names())
    return sum(4 * math.prod(info.shape) for info in infos if info is not None) <= KEPT_DECODED_BYTES
