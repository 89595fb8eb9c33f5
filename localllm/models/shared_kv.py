"""Layers that read the keys and values of an earlier one: which, and what of their tensors nobody reads."""

from __future__ import annotations

import re
from collections.abc import Iterable

from localllm.errors import BadModelFile
from localllm.models.config import AttentionSpec, ModelConfig

_OWN = re.compile(r"attn_(?:k|v|k_norm|v_norm)\.\w+")


def kv_source(num_shared: int, index: int, windowed: tuple[bool, ...]) -> int | None:
    """Of the last `num_shared` layers each reads the last layer before them that has a window, as it has, or none, as
    it has none. None: the layer has its own. BadModelFile where there is no such layer."""
    first = len(windowed) - num_shared
    if not num_shared or index < first:
        return None
    sources = [other for other in range(max(first, 0)) if windowed[other] == windowed[index]]
    if not sources:
        raise BadModelFile(f"layer {index} shares keys and values, but no layer before it has such")
    return sources[-1]


def unread(names: Iterable[str], config: ModelConfig) -> list[str]:
    """Tensors that files have for layers which read others' keys and values."""
    prefixes = {
        f"blk.{index}."
        for index, layer in enumerate(config.layers)
        if isinstance(layer.mixer, AttentionSpec) and layer.mixer.kv_from is not None
    }
    found = []
    for name in names if prefixes else ():
        head, layer, rest = (*name.split(".", 2), "", "")[:3]
        if f"{head}.{layer}." in prefixes and _OWN.fullmatch(rest):
            found.append(name)
    return found
