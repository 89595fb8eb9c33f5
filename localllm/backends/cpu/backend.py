"""A model on the CPU: recorded at load, then one native call per step."""

from __future__ import annotations

import time
from collections import deque

import numpy as np

from localllm.backends.batch import Batch, Flattener, Floats, Ints, answer
from localllm.backends.cpu.library import default_threads, require_kernels
from localllm.backends.cpu.rooms import layer_bytes
from localllm.backends.layout import cache_layout, state_bytes
from localllm.engine.step import (
    BackendInfo,
    CommitDraft,
    CopyPage,
    MemoryOp,
    ResizePool,
    RowResult,
    StepPlan,
    StepResult,
)
from localllm.errors import FEWER_PAGES, BadModelFile, InvalidRequest, NotEnoughMemory
from localllm.models.adapters import Adapter
from localllm.models.config import ModelConfig
from localllm.models.source import WeightSource
from localllm.settings import KvType

FLOAT_BYTES = 4


class CpuBackend:
    """Backend over a native `Program`. Steps are computed when they are submitted.

    `threads` 0: one per physical core. `kernels`: "auto", or a set by name, for tests. `kv_type`: how keys
    and values are kept, "auto" as f16; see rooms.py. Raises UnsupportedModel for a
    block type without kernels or a missing native library, BadModelFile where tensors do not fit together, UsageError
    for a kernel set that this machine does not run.
    """

    def __init__(
        self,
        config: ModelConfig,
        source: WeightSource,
        *,
        page_size: int = 16,
        threads: int = 0,
        max_tokens_per_step: int = 512,
        context_length: int = 0,
        kernels: str = "auto",
        kv_type: KvType = "auto",
        notes: tuple[str, ...] = (),
    ) -> None:
        require_kernels(kernels)
        # deferred: these bind the native library, which may not have been built
        from localllm.backends.cpu._native import Program
        from localllm.backends.cpu.emit import Emitter
        from localllm.backends.cpu.fuse import fuse
        from localllm.backends.cpu.record import record
        from localllm.backends.cpu.slots import Slots

        context_length = context_length or config.context_length
        nodes = fuse(record(config, source))
        kept = "f16" if kv_type == "auto" else kv_type
        room = layer_bytes(config, page_size, kept)
        self.layout = cache_layout(config, page_size, layer_bytes=room)
        self.vocab_size = config.vocab_size
        self._hidden_size = config.hidden_size
        self._has_types = source.info("token_types.weight") is not None
        try:
            self._program = Program(
                threads=threads or default_threads(),
                kernels=kernels,
                max_tokens=max_tokens_per_step,
                context_length=context_length,
                vocab_size=config.vocab_size,
                page_size=page_size,
                kv_type=kept,
                page_bytes=self.layout.page_bytes,
                windows=[group.window or 0 for group in self.layout.groups],
                state_floats=state_bytes(config) // FLOAT_BYTES,
            )
            emitter = Emitter(self._program, config, source, self.layout, context_length, room)
            emitter.emit(nodes)
        except ValueError as error:
            raise BadModelFile(f"the model's tensors do not fit together: {error}") from None
        except MemoryError:
            raise NotEnoughMemory("there is no memory for the weights", hint="choose a smaller model") from None
        self._sites = emitter.sites
        self._slots = Slots(self._program, emitter.kept)
        self._flattener = Flattener(len(self.layout.groups))
        self._done: deque[StepResult] = deque()
        self.info = BackendInfo(
            name="cpu",
            device=f"cpu ({self._program.kernels})",
            native=True,
            threads=self._program.threads,
            weight_bytes=self._program.weight_bytes,
            notes=notes,
            same_in_any_step=True,
        )

    def allocate(self, num_pages: int, num_slots: int) -> None:
        try:
            self._program.allocate(num_pages, num_slots)
        except (MemoryError, ValueError, RuntimeError):
            raise NotEnoughMemory(f"there is no memory for {num_pages} pages", hint=FEWER_PAGES) from None

    def add_adapter(self, adapter: Adapter) -> int:
        return self._sites.add(adapter)

    def drop_adapter(self, number: int) -> None:
        self._program.drop_adapter(number)

    def submit(self, plan: StepPlan) -> None:
        """Compute the step. InvalidRequest where it names tokens, pages or slots that do not exist."""
        started = time.perf_counter()
        try:
            for op in plan.memory:
                self._apply(op)
            rows = self._compute(plan) if plan.rows else ()
        except ValueError as error:
            raise InvalidRequest(f"the step cannot be computed: {error}") from None
        except MemoryError:
            raise NotEnoughMemory("there is no memory for the pages of this step", hint="set fewer kv_pages") from None
        self._done.append(StepResult(plan.step_id, rows, time.perf_counter() - started))

    def collect(self) -> StepResult:
        return self._done.popleft()

    def close(self) -> None:
        """Gives the pools back; weights go with the last reference."""
        self._done.clear()
        self._program.allocate(0, 0)

    def _apply(self, op: MemoryOp) -> None:
        if isinstance(op, CopyPage):
            self._program.copy_page(op.source, op.target)
        elif isinstance(op, ResizePool):
            self._program.resize_pages(op.num_pages)
        elif isinstance(op, CommitDraft):
            self._slots.roll_back(op)
            self._flattener.commit_draft(op)
        else:
            self._slots.apply(op)

    def _compute(self, plan: StepPlan) -> tuple[RowResult, ...]:
        batch = self._flattener.flatten(plan)
        before = self._slots.before(plan) if self.layout.has_state else {}
        argmax = self._run(batch, bool(before), *adapters_of(plan))
        self._slots.after(plan, batch, before)
        rows = self._answer(plan, batch, argmax)
        self._flattener.remember(rows)
        return rows

    def _run(
        self, batch: Batch, keeps_inputs: bool, adapters: Ints | None = None, scales: Floats | None = None
    ) -> list[int]:
        """The largest logit of each taken position."""
        if self._has_types:
            self._program.types(batch.types)
        return self._program.step(
            batch.token_ids,
            batch.positions,
            batch.row_starts,
            list(batch.tables),
            batch.slots,
            batch.atomic,
            batch.taken,
            batch.needs_logits,
            batch.wants_hidden,
            keeps_inputs,
            adapters,
            scales,
        )

    def _answer(self, plan: StepPlan, batch: Batch, argmax: list[int]) -> tuple[RowResult, ...]:
        logits = None if batch.only_argmax else self._program.logits(len(batch.taken))
        hidden = self._program.hidden(batch.num_tokens, self._hidden_size) if batch.wants_hidden else None
        return answer(plan, batch, logits, hidden, argmax)


def adapters_of(plan: StepPlan) -> tuple[Ints | None, Floats | None]:
    """Number and scale of each row's adapter; None in a step without any."""
    if not any(row.adapter for row in plan.rows):
        return None, None
    numbers = np.array([row.adapter for row in plan.rows], np.int32)
    return numbers, np.array([row.adapter_scale for row in plan.rows], np.float32)
