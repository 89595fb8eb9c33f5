"""A model on MLX: a step is built as one graph, started when it is submitted and waited for when it is collected."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, replace
from typing import Literal

from localllm.backends.metal.library import broken, metal_device

try:
    import mlx.core as mx
except ImportError as error:  # installed, but it does not load
    raise broken(error) from None

from localllm.backends.batch import Batch, Flattener
from localllm.backends.metal.answers import Wanted, answered, wanted
from localllm.backends.metal.border import check_rows
from localllm.backends.metal.load import Tensors
from localllm.backends.metal.memory import MetalMemory
from localllm.backends.metal.ops import MetalOps
from localllm.backends.metal.precision import Precision, precision_for
from localllm.backends.metal.shortage import shortage
from localllm.backends.metal.weights import Weight
from localllm.engine.step import BackendInfo, CommitDraft, SlotId, StepPlan, StepResult, Want, plain_row
from localllm.errors import BadModelFile
from localllm.models.adapters import Adapter
from localllm.models.config import ModelConfig
from localllm.models.decoder import Decoder
from localllm.models.source import WeightSource

KvType = Literal["auto", "f16", "f32"]
NO_ROOM = ("there is no memory to compute a step", "use a shorter context or fewer requests at once")


@dataclass(frozen=True, slots=True)
class Started:
    """A step that the device computes."""

    plan: StepPlan
    batch: Batch
    wanted: Wanted
    started: float


class MetalBackend:
    """Backend over MLX arrays on its default device.

    `kv_type` auto: float16. `precision` None: half on a GPU, float32 elsewhere; `decodes`: see load.Tensors; both for
    tests. Raises UnsupportedModel for a block type that cannot be decoded, BadModelFile for a tensor that is missing,
    NotEnoughMemory.
    """

    def __init__(
        self,
        config: ModelConfig,
        source: WeightSource,
        *,
        page_size: int = 16,
        kv_type: KvType = "auto",
        notes: tuple[str, ...] = (),
        precision: Precision | None = None,
        decodes: bool | None = None,
    ) -> None:
        device = metal_device()
        precision = precision or precision_for(config, device)
        self._weights = Tensors(source, precision, decodes)
        self._memory = MetalMemory(config, page_size, mx.float32 if kv_type == "f32" else mx.float16)
        self._ops = MetalOps(config, self._memory, precision, self._weights.names)
        self._decoder: Decoder[mx.array, Weight] = Decoder(config, self._ops, self._weights)
        self._flattener = Flattener(len(self._memory.layout.groups))
        self._started: deque[Started] = deque()
        self._done: deque[StepResult] = deque()
        self.layout = self._memory.layout
        self.vocab_size = config.vocab_size
        self._context_length = config.context_length
        self._try_shapes()
        self.info = BackendInfo(
            name="metal",
            device=device,
            native=False,
            threads=1,
            weight_bytes=self._weights.size_bytes,
            notes=(*notes, *self._weights.notes),
        )

    def allocate(self, num_pages: int, num_slots: int) -> None:
        self._memory.allocate(num_pages, num_slots)

    def add_adapter(self, adapter: Adapter) -> int:
        with shortage(f"there is no memory for the adapter {adapter.name}", "use fewer adapters at once"):
            return self._ops.adapters.add(adapter)

    def drop_adapter(self, number: int) -> None:
        self._ops.adapters.drop(number)

    def submit(self, plan: StepPlan) -> None:
        while self._started:  # tokens of this step may be what the last one samples
            self._finish()
        started = time.perf_counter()
        self._memory.check(plan.memory)
        self._apply(plan)
        batch = self._flattener.flatten(plan)
        num_slots = self._memory.num_slots if self.layout.has_state else None
        check_rows(plan, batch, self.vocab_size, self._context_length, num_slots)
        self._ops.begin(plan, batch)
        self._memory.trails.follow(plan)
        with shortage(*NO_ROOM):
            if plan.rows:
                self._decoder.run()
            found = wanted(batch, self._ops.logits, self._ops.hidden)
            mx.async_eval(*found.arrays(), *self._memory.arrays())  # type: ignore[no-untyped-call]  # no types in MLX
        self._started.append(Started(plan, batch, found, started))

    def collect(self) -> StepResult:
        if not self._done:
            self._finish()
        return self._done.popleft()

    def close(self) -> None:
        self._started.clear()
        self._done.clear()
        self._memory.clear()
        self._weights.clear()
        mx.clear_cache()

    def _finish(self) -> None:
        """Wait for the oldest step, so that it is done whole: the next one writes the pages it read."""
        step = self._started.popleft()
        with shortage(*NO_ROOM):
            mx.eval(*step.wanted.arrays(), *self._memory.arrays())
        self._memory.settled()
        seconds = time.perf_counter() - step.started
        rows = answered(step.plan, step.batch, step.wanted)
        self._flattener.remember(rows)
        self._done.append(StepResult(step.plan.step_id, rows, seconds))

    def _apply(self, plan: StepPlan) -> None:
        for op in plan.memory:
            if isinstance(op, CommitDraft):
                self._memory.roll_back(op)
                self._flattener.commit_draft(op)
            else:
                self._memory.apply(op)

    def _try_shapes(self) -> None:
        """BadModelFile where tensors are missing or do not fit: a step of one token is built, but not computed."""
        self._memory.allocate(1, 1)
        row = plain_row(0, [0], 0, [0], Want(logits="last"), num_groups=len(self.layout.groups))
        plan = StepPlan(0, (replace(row, slot=SlotId(0)),))
        self._ops.begin(plan, Flattener(len(self.layout.groups)).flatten(plan))
        try:
            self._decoder.run()
        except ValueError as error:
            raise BadModelFile(f"the model's tensors do not fit together: {error}") from None
        self._memory.allocate(0, 0)
