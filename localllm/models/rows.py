"""Which rows of a file's tensor a weight is, and in which order: what quirks.py and hf_source.py both undo."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from localllm.errors import BadModelFile
from localllm.models.config import AttentionSpec, ModelConfig

Order = NDArray[np.intp]
LatentPart = Literal["plain queries", "turned queries", "latent", "turned keys"]

LATENT_PARTS: dict[str, tuple[tuple[str, LatentPart], ...]] = {
    "attn_q": (("attn_q_plain", "plain queries"), ("attn_q_turned", "turned queries")),
    "attn_q_b": (("attn_q_plain", "plain queries"), ("attn_q_turned", "turned queries")),
    "attn_kv_a_mqa": (("attn_kv_a", "latent"), ("attn_k_turned", "turned keys")),
}
"""Matrices that hold rows that turn with the position beside rows that do not, and what we make of them."""


def halves_from_neighbours(num_heads: int, head_dim: int, dims: int) -> Order:
    """For each row in halves (value i pairs with i + dims / 2) the row of the file, where 2 i pairs with 2 i + 1.

    Only the first `dims` values of a head turn; the others stay in place.
    """
    pairs = np.arange(dims, dtype=np.intp).reshape(dims // 2, 2).T.reshape(-1)
    head = np.concatenate([pairs, np.arange(dims, head_dim, dtype=np.intp)])
    rows: Order = np.arange(num_heads, dtype=np.intp)[:, None] * head_dim + head
    return rows.reshape(-1)


def attention_of(name: str, config: ModelConfig) -> AttentionSpec | None:
    """The attention that a weight `blk.N.*` belongs to."""
    prefix, _, rest = name.partition(".")
    number = rest.partition(".")[0]
    if prefix != "blk" or not number.isdecimal() or int(number) >= len(config.layers):
        return None
    mixer = config.layers[int(number)].mixer
    return mixer if isinstance(mixer, AttentionSpec) else None


def turned_order(name: str, width: int, config: ModelConfig) -> Order | None:
    """Rows of queries, keys and their norms of `width` values where the file pairs neighbours; None: as they are.

    BadModelFile where there are more or fewer than the heads make.
    """
    module = name.rpartition(".")[0].rpartition(".")[2]
    spec = attention_of(name, config)
    if spec is None or spec.rope is None or spec.latent is not None:
        return None
    heads = {"attn_q": spec.num_heads, "attn_k": spec.num_kv_heads}.get(module.removesuffix("_norm"))
    if heads is None:
        return None
    whole = heads * spec.head_dim
    if width != whole and not (module.endswith("_norm") and width == spec.head_dim):
        raise BadModelFile(f"{name} has {width} rows, but the heads make {whole}")
    return halves_from_neighbours(width // spec.head_dim, spec.head_dim, spec.rope.dims)


def latent_rows(part: LatentPart, spec: AttentionSpec, pairs_neighbours: bool) -> Order:
    """Rows of `part` among those of its tensor, what turns in halves."""
    assert spec.latent is not None and spec.rope is not None, "latent attention turns a part of its keys"
    dims, plain, rank = spec.rope.dims, spec.latent.plain_dims, spec.latent.kv_rank
    turned = halves_from_neighbours(1, dims, dims) if pairs_neighbours else np.arange(dims, dtype=np.intp)
    if part == "latent":
        return np.arange(rank, dtype=np.intp)
    if part == "turned keys":
        return rank + turned
    own = np.arange(plain, dtype=np.intp) if part == "plain queries" else plain + turned
    rows: Order = np.arange(spec.num_heads, dtype=np.intp)[:, None] * (plain + dims) + own
    return rows.reshape(-1)


def grouped_rows(part: str, spec: AttentionSpec) -> Order:
    """Rows of `part` ("q", "k" or "v") where every key head's queries, its keys and its values follow each other."""
    shared = spec.num_heads // spec.num_kv_heads
    first, count = {"q": (0, shared), "k": (shared, 1), "v": (shared + 1, 1)}[part]
    group = np.arange(count * spec.head_dim, dtype=np.intp) + first * spec.head_dim
    rows: Order = np.arange(spec.num_kv_heads, dtype=np.intp)[:, None] * ((shared + 2) * spec.head_dim) + group
    return rows.reshape(-1)
