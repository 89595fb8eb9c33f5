"""Weights that GPTQ has rounded, in the order and under the names of a file: what `runtime.quantize` asks for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from localllm.formats.blocks import BlockType
from localllm.lab.calibrate import Reading, compensated
from localllm.quantize.plans import Plan, PlannedTensor
from localllm.quantize.quantize import Rounding
from localllm.quantize.stored import stored_blocks, stored_tensors
from localllm.runtime.open_model import open_model

Bytes = NDArray[np.uint8]
Progress = Callable[[str, int, int], None]


def gptq_rounding(reading: Reading) -> Callable[[Path, Plan, Progress], Rounding]:
    """For `Order.rounding`: the text is read, and everything rounded, before a tensor is written."""

    def make(model: Path, plan: Plan, progress: Progress) -> Rounding:
        opened = open_model(model)
        stored = stored_tensors(opened.config, opened.source)
        kinds = _kinds(plan, {name: each.parts for name, each in stored.items()})
        told = 0

        def tell(done: int, total: int) -> None:
            nonlocal told
            if done != told:
                progress(f"calibrating: weight {done} of {total}", 0, 0)
            told = done

        rounded = compensated(model, reading, lambda info: kinds.get(info.name), tell)

        def rounding(line: PlannedTensor, raw: Bytes) -> Bytes | None:
            each = stored.get(line.name)
            if each is None or any(part not in rounded.kept for part in each.parts):
                return None
            return stored_blocks(rounded, each, line.target_type)

        return rounding

    return make


def _kinds(plan: Plan, parts: Mapping[str, Sequence[str]]) -> dict[str, BlockType]:
    """What each canonical weight becomes; those that stay as they are are not among them."""
    return {
        part: line.target_type
        for line in plan.tensors
        if line.source_type is not line.target_type
        for part in parts.get(line.name, ())
    }
