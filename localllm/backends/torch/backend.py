"""A model on any device torch sees: eager, a verb at a time; needs nothing compiled for the machine."""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING

from localllm.backends.batch import Flattener, answer
from localllm.backends.torch.library import describe, memory_named, open_device, require_torch, suitable_threads
from localllm.engine.step import BackendInfo, CommitDraft, RowResult, StepPlan, StepResult
from localllm.errors import LocalLLMError, UnsupportedModel
from localllm.models.adapters import Adapter
from localllm.models.config import ModelConfig
from localllm.models.source import WeightSource

if TYPE_CHECKING:
    from localllm.backends.torch.model import KvType
    from localllm.backends.torch.weights import Compute


class TorchBackend:
    """Backend over eager torch. Steps are computed when they are submitted.

    `device`: a name of torch's, empty for the best one. `threads` 0: what suits the processor. `kv_type` auto: f16.
    `compute`: what matrices are multiplied in, `auto` as the device and the weights suggest. `keep_decoded`: weights
    are decoded once, or stay in their blocks; None: by the memory that is free. Raises UnsupportedModel where torch
    cannot be loaded or a block type has no decoder, UsageError for a device that torch does not see, BadModelFile
    where bytes and shapes do not agree, NotEnoughMemory where the weights do not fit.
    """

    def __init__(
        self,
        config: ModelConfig,
        source: WeightSource,
        *,
        page_size: int = 16,
        threads: int = 0,
        device: str = "",
        kv_type: KvType = "auto",
        compute: Compute = "auto",
        keep_decoded: bool | None = None,
        notes: tuple[str, ...] = (),
    ) -> None:
        require_torch()
        import torch  # deferred: takes seconds, and may be broken

        from localllm.backends.torch.model import TorchModel

        threads = suitable_threads(threads)
        torch.set_num_threads(threads)
        place = open_device(device)
        try:
            self._model = TorchModel(
                config,
                source,
                place,
                page_size=page_size,
                kv_type=kv_type,
                compute=compute,
                keep_decoded=keep_decoded,
            )
        except RuntimeError as error:  # a build of torch without kernels for this device, a driver that is too old
            raise UnsupportedModel(
                f"torch cannot use the device {place}: {_gist(error)}", hint="choose another device, for example cpu"
            ) from error
        self.layout = self._model.memory.layout
        self.vocab_size = config.vocab_size
        self._flattener = Flattener(len(self.layout.groups))
        self._done: deque[StepResult] = deque()
        self.info = BackendInfo(
            name="torch",
            device=describe(str(place)),
            native=False,
            threads=threads,
            weight_bytes=self._model.weights.size_bytes,
            notes=(*notes, *self._model.weights.notes),
        )

    def allocate(self, num_pages: int, num_slots: int) -> None:
        """NotEnoughMemory when the pools do not fit."""
        self._model.allocate(num_pages, num_slots)

    def add_adapter(self, adapter: Adapter) -> int:
        return self._model.add_adapter(adapter)

    def drop_adapter(self, number: int) -> None:
        self._model.drop_adapter(number)

    def submit(self, plan: StepPlan) -> None:
        """Compute the step. InvalidRequest where it names tokens, pages or slots that do not exist, NotEnoughMemory
        where it does not fit."""
        started = time.perf_counter()
        try:
            with memory_named("this step", "set a smaller max_tokens_per_step, or fewer kv_pages"):
                self._apply(plan)
                rows = self._compute(plan) if plan.rows else ()
        except RuntimeError as error:
            raise LocalLLMError(f"torch failed in this step: {_gist(error)}", hint="load the model again") from error
        self._done.append(StepResult(plan.step_id, rows, time.perf_counter() - started))

    def collect(self) -> StepResult:
        return self._done.popleft()

    def close(self) -> None:
        """Gives the pools back; weights go with the last reference."""
        self._done.clear()
        self._model.allocate(0, 0)

    def _apply(self, plan: StepPlan) -> None:
        for op in plan.memory:
            self._model.apply(op)
            if isinstance(op, CommitDraft):
                self._flattener.commit_draft(op)

    def _compute(self, plan: StepPlan) -> tuple[RowResult, ...]:
        batch = self._flattener.flatten(plan)
        computed = self._model.run(plan, batch)
        rows = answer(plan, batch, computed.logits, computed.hidden, computed.argmax)
        self._flattener.remember(rows)
        return rows


def _gist(error: RuntimeError) -> str:
    """Torch goes on for pages."""
    return str(error).split("\n", 1)[0]
