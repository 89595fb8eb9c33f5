"""The judge: every verb in plain numpy float32, slow, one row after another. All other backends are held against it."""

from __future__ import annotations

import time
from collections import deque

import numpy as np

from localllm.backends.batch import Flattener, answer
from localllm.backends.paged import PagedMemory
from localllm.backends.reference_ops import ReferenceOps, Tap
from localllm.backends.reference_weights import Floats, Tensor, Tensors, fits_decoded
from localllm.engine.step import BackendInfo, CommitDraft, StepPlan, StepResult
from localllm.models.adapters import Adapter
from localllm.models.config import ModelConfig
from localllm.models.decoder import Decoder
from localllm.models.source import WeightSource


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
