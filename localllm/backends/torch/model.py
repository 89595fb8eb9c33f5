"""A decoder bound to a device: its weights, its memory, and one step at a time, in and out as numpy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from localllm.backends.batch import NOT_USABLE, Batch
from localllm.backends.torch.library import memory_named
from localllm.backends.torch.memory import DeviceMemory
from localllm.backends.torch.ops import TorchOps
from localllm.backends.torch.weights import Compute, Weight, Weights
from localllm.engine.step import MemoryOp, StepPlan
from localllm.models.adapters import Adapter
from localllm.models.config import ModelConfig
from localllm.models.decoder import Decoder
from localllm.models.source import WeightSource

KvType = Literal["auto", "f16", "f32"]


@dataclass(frozen=True, slots=True)
class Computed:
    """As `batch.answer` takes it."""

    logits: NDArray[np.float32] | None
    hidden: NDArray[np.float32] | None
    argmax: NDArray[np.int32] | None


class TorchModel:
    """Weights are loaded when it is made. NotEnoughMemory when they do not fit."""

    @torch.inference_mode()
    def __init__(
        self,
        config: ModelConfig,
        source: WeightSource,
        device: torch.device,
        *,
        page_size: int,
        kv_type: KvType,
        compute: Compute,
        keep_decoded: bool | None,
    ) -> None:
        keep_digits()
        self.device = device
        with memory_named("the weights", "choose a smaller model, or another device"):
            self.weights = Weights(source, device, compute, keep_decoded)
        pages = torch.float32 if kv_type == "f32" else torch.float16
        self.memory = DeviceMemory(config, page_size, pages, device)
        self._ops = TorchOps(config, self.memory, pages if self.weights.in_halves else torch.float32, device)
        self._decoder: Decoder[Tensor, Weight] = Decoder(config, self._ops, self.weights)

    @torch.inference_mode()
    def allocate(self, num_pages: int, num_slots: int) -> None:
        self.memory.allocate(num_pages, num_slots)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    @torch.inference_mode()
    def add_adapter(self, adapter: Adapter) -> int:
        with memory_named(f"the adapter {adapter.name}", "use fewer adapters at once"):
            return self._ops.adapters.add(adapter)

    def drop_adapter(self, number: int) -> None:
        self._ops.adapters.drop(number)

    @torch.inference_mode()
    def apply(self, op: MemoryOp) -> None:
        self.memory.apply(op)

    @torch.inference_mode()
    def run(self, plan: StepPlan, batch: Batch) -> Computed:
        """All rows of a step."""
        self._ops.begin(plan, batch)
        self._decoder.run()
        logits, hidden = self._ops.logits, self._ops.hidden
        return Computed(
            logits=None if logits is None or batch.only_argmax else on_host(logits, batch.needs_logits),
            hidden=hidden.cpu().numpy() if hidden is not None and batch.wants_hidden else None,
            argmax=None if logits is None else largest(logits),
        )


def keep_digits() -> None:
    """Products keep all the digits of their type, where torch may be told to round them."""
    torch.set_float32_matmul_precision("highest")
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False


def on_host(logits: Tensor, needed: NDArray[np.bool_]) -> NDArray[np.float32]:
    """(N, vocab), of which only the needed lines are filled."""
    if needed.all():
        return np.asarray(logits.cpu().numpy())
    lines = np.flatnonzero(needed)
    whole = np.empty(tuple(logits.shape), np.float32)
    whole[lines] = logits[torch.from_numpy(lines).to(logits.device)].cpu().numpy()
    return whole


def largest(logits: Tensor) -> NDArray[np.int32]:
    """The first index of the largest logit of each line, NOT_USABLE where that is no finite number."""
    if not len(logits):
        return np.empty(0, np.int32)
    best, where = logits.max(dim=1)
    return np.asarray(torch.where(best.isfinite(), where, NOT_USABLE).int().cpu().numpy())
