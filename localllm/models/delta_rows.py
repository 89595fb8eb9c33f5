"""Which rows of a file's matrices are a gated delta net's queries, keys, values, gates and rates, and in which order.

Value heads share key heads. Checkpoints have those of one key head side by side ("grouped"); GGUF files of Qwen 3.5 go
around the key heads again and again ("tiled"), and so do we for this family.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from localllm.models.config import AttentionSpec, DeltaNetSpec, ModelConfig

Order = NDArray[np.intp]
DeltaCut = Literal[
    # of a matrix that has everything of one key head together
    "joined qkv",
    "joined gates",
    "joined betas",
    "joined decays",
    # from grouped to tiled
    "tiled qkv",
    "tiled values",
    "tiled heads",
]
GatedCut = Literal["queries", "gates"]
DELTA_CUTS: frozenset[str] = frozenset(get_args(DeltaCut))
GATED_CUTS: frozenset[str] = frozenset(get_args(GatedCut))


def delta_of(name: str, config: ModelConfig) -> DeltaNetSpec | None:
    """The gated delta net that a weight `blk.N.*` belongs to."""
    prefix, _, rest = name.partition(".")
    number = rest.partition(".")[0]
    if prefix != "blk" or not number.isdecimal() or int(number) >= len(config.layers):
        return None
    mixer = config.layers[int(number)].mixer
    return mixer if isinstance(mixer, DeltaNetSpec) else None


def delta_rows(cut: str, spec: DeltaNetSpec) -> Order:
    """For each row of the weight the row of the file's tensor."""
    if cut.startswith("joined"):
        return _joined_rows(cut, spec)
    heads = tiled_heads(spec)
    if cut == "tiled heads":
        return heads
    values = tiled_values(spec)
    if cut == "tiled values":
        return values
    first = 2 * spec.num_key_heads * spec.key_dim
    return np.concatenate([np.arange(first, dtype=np.intp), first + values])


def tiled_heads(spec: DeltaNetSpec) -> Order:
    """For each head in tiled order its number in grouped order."""
    shared = spec.num_value_heads // spec.num_key_heads
    return np.arange(spec.num_value_heads, dtype=np.intp).reshape(-1, shared).T.reshape(-1)


def tiled_values(spec: DeltaNetSpec) -> Order:
    """The same for each value of the heads."""
    return _runs(tiled_heads(spec) * spec.value_dim, spec.value_dim)


def joined_count(cut: str, spec: DeltaNetSpec) -> int:
    """Rows of the tensor that a "joined" part is cut from."""
    if cut in ("joined betas", "joined decays"):
        return 2 * spec.num_value_heads
    return spec.channels + spec.num_value_heads * spec.value_dim


def _joined_rows(cut: str, spec: DeltaNetSpec) -> Order:
    shared = spec.num_value_heads // spec.num_key_heads
    groups = np.arange(spec.num_key_heads, dtype=np.intp)
    if cut in ("joined betas", "joined decays"):
        return _runs(groups * (2 * shared) + (shared if cut == "joined decays" else 0), shared)
    keys, values = spec.key_dim, shared * spec.value_dim
    starts = groups * (2 * keys + 2 * values)
    if cut == "joined gates":
        return _runs(starts + 2 * keys + values, values)
    return np.concatenate([_runs(starts, keys), _runs(starts + keys, keys), _runs(starts + 2 * keys, values)])


def gated_rows(cut: str, spec: AttentionSpec) -> Order:
    """Queries, or gates, where each head's queries come before its gates in one matrix."""
    starts = np.arange(spec.num_heads, dtype=np.intp) * (2 * spec.head_dim)
    return _runs(starts + (0 if cut == "queries" else spec.head_dim), spec.head_dim)


def _runs(starts: Order, length: int) -> Order:
    """`length` numbers from each start on."""
    runs: Order = starts[:, None] + np.arange(length, dtype=np.intp)
    return runs.reshape(-1)
