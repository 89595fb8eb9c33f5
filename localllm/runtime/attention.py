"""Which tokens each token looked at, by layer and head: recorded on the reference backend, which shows all it does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from localllm.backends.reference import ReferenceBackend
from localllm.backends.reference_weights import Floats
from localllm.engine.step import PageId, Row, SeqId, SlotId, StepPlan, Want
from localllm.errors import InvalidRequest
from localllm.models.config import ModelConfig
from localllm.runtime.open_model import open_model

MAX_TOKENS = 1024
"""All maps of a text are kept: their size grows with the square of its length."""
PAGE_SIZE = 16


@dataclass(frozen=True, slots=True)
class AttentionMaps:
    """`layers[i]` is (heads, tokens, tokens) float32: a row says how one token's attention is spread, and sums to 1,
    less what went to a sink. `names[i]` is the number of the layer, where some layers have no attention."""

    token_ids: tuple[int, ...]
    names: tuple[int, ...]
    layers: tuple[NDArray[np.float32], ...]

    def of(self, layer: int, head: int | None = None) -> NDArray[np.float32]:
        """(tokens, tokens) of a head, or the mean of all heads of the layer. InvalidRequest where there is none."""
        if layer not in self.names:
            raise InvalidRequest(f"there is no attention in layer {layer}", hint=f"layers: {_span(self.names)}")
        heads = self.layers[self.names.index(layer)]
        if head is None:
            mean: NDArray[np.float32] = heads.mean(axis=0)
            return mean
        if not 0 <= head < len(heads):
            raise InvalidRequest(f"layer {layer} has no head {head}", hint=f"heads: 0 to {len(heads) - 1}")
        one: NDArray[np.float32] = heads[head]
        return one


def attention_of(path: Path, token_ids: Sequence[int]) -> AttentionMaps:
    """Reads the text once, in one piece. InvalidRequest beyond MAX_TOKENS or the model's context; typed errors for bad
    files."""
    opened = open_model(path, "")
    most = min(MAX_TOKENS, opened.config.context_length)
    if not 0 < len(token_ids) <= most:
        raise InvalidRequest(
            f"attention is shown for 1 to {most} tokens, not {len(token_ids)}", hint="shorten the text"
        )
    seen: dict[int, NDArray[np.float32]] = {}

    def tap(verb: str, name: str, values: Floats) -> None:
        if verb == "attention":
            seen[int(name.removeprefix("blk."))] = np.array(values, np.float32)

    backend = ReferenceBackend(opened.config, opened.source, PAGE_SIZE, tap=tap)
    try:
        _read(backend, opened.config, token_ids)
    finally:
        backend.close()
    layers = tuple(_whole(seen[layer], len(token_ids)) for layer in sorted(seen))
    return AttentionMaps(tuple(token_ids), tuple(sorted(seen)), layers)


def _read(backend: ReferenceBackend, config: ModelConfig, token_ids: Sequence[int]) -> None:
    per_table = -(-len(token_ids) // PAGE_SIZE)
    num_groups = len(backend.layout.groups)
    backend.allocate(per_table * num_groups, 1)
    tables = tuple(tuple(PageId(group * per_table + page) for page in range(per_table)) for group in range(num_groups))
    row = Row(SeqId(1), tuple(token_ids), 0, tables, Want(logits="last"), SlotId(0))
    backend.submit(StepPlan(0, (row,)))
    backend.collect()


def _whole(chances: NDArray[np.float32], num_tokens: int) -> NDArray[np.float32]:
    """Over all tokens, where a layer's window has seen the last ones only."""
    missing = num_tokens - chances.shape[-1]
    return np.pad(chances, ((0, 0), (0, 0), (missing, 0))) if missing else chances


def _span(names: Sequence[int]) -> str:
    return ", ".join(map(str, names)) if len(names) < 6 else f"{names[0]} to {names[-1]}"
