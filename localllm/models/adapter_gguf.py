"""GGUF adapters as llama.cpp reads them: general.type is adapter, and tensors are `.lora_a` and `.lora_b` of others."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from localllm.errors import BadModelFile, UnsupportedModel
from localllm.formats.blocks import DECODABLE, BlockType, decode
from localllm.formats.gguf_read import GGUFFile
from localllm.models.adapters import (
    MAX_PARTS,
    AdapterFacts,
    Floats,
    LowRank,
    check_adaptable,
    checked_pair,
    checked_scale,
    modules_of,
)
from localllm.models.config import ModelConfig
from localllm.models.families import family_of
from localllm.models.quirks import GGUFSource

_ALPHA = "adapter.lora.alpha"
_SIDES = (".lora_a", ".lora_b")


def is_gguf_adapter(metadata: Mapping[str, Any]) -> bool:
    return metadata.get("general.type") == "adapter"


def read_gguf_adapter(path: Path, config: ModelConfig, feed_forward: tuple[int, ...]) -> dict[str, LowRank]:
    """The parts of an adapter by canonical name, rows in the decoder's order.

    `feed_forward`: widths of the base's. UnsupportedModel for another kind of adapter or another architecture.
    """
    with GGUFFile.open(path) as file:
        alpha = _checked(file, path.name)
        if file.architecture != config.architecture:
            raise BadModelFile(
                f"the adapter {path.name} is for models of the architecture {file.architecture!r}, "
                f"and this one is {config.architecture!r}"
            )
        parts: dict[str, LowRank] = {}
        for tensor, (name_a, name_b) in _pairs(file, path.name).items():
            a, b = _values(file, name_a, path.name), _values(file, name_b, path.name)
            scale = checked_scale(path.name, alpha / a.shape[0] if alpha else 1.0)
            for weight, rows in _canonical(path.name, tensor, b, config, feed_forward).items():
                parts[weight] = LowRank(a, rows, scale)
        return parts


def gguf_adapter_facts(path: Path) -> AdapterFacts:
    """What `show` says of it."""
    with GGUFFile.open(path) as file:
        alpha, pairs = _checked(file, path.name), _pairs(file, path.name)
        base = file.metadata.get("general.base_model.0.repo_url") or file.metadata.get("general.base_model.0.name")
        return AdapterFacts(
            path,
            "gguf",
            base.removeprefix("https://huggingface.co/") if isinstance(base, str) else "",
            file.architecture,
            tuple(sorted({file.tensors[a].shape[0] for a, _ in pairs.values()})),
            alpha,
            modules_of((tensor.removesuffix(".weight") for tensor in pairs), "blk"),
            len(pairs),
            file.size_bytes,
        )


def _checked(file: GGUFFile, name: str) -> float:
    """Its alpha. UnsupportedModel for what is no plain LoRA."""
    said = file.metadata
    if not is_gguf_adapter(said):
        raise BadModelFile(f"{name} is no adapter: general.type is {str(said.get('general.type'))[:80]!r}")
    if said.get("adapter.type") != "lora":
        kind = str(said.get("adapter.type"))[:80]
        raise UnsupportedModel(f"the adapter {name} is of the kind {kind!r}, and only lora is run here")
    if "adapter.alora.invocation_tokens" in said:
        raise UnsupportedModel(f"the adapter {name} is activated by tokens (aLoRA), which this build cannot do")
    alpha = said.get(_ALPHA)
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise BadModelFile(f"the adapter {name} has no number in {_ALPHA}")
    return float(alpha)


def _pairs(file: GGUFFile, name: str) -> dict[str, tuple[str, str]]:
    """Tensors of the model with the names of their A and B. BadModelFile for one without the other."""
    found: dict[str, dict[str, str]] = {}
    if len(file.tensors) > MAX_PARTS:
        raise BadModelFile(f"the adapter {name} has {len(file.tensors)} tensors")
    for tensor in file.tensors:
        side = next((side for side in _SIDES if tensor.endswith(side)), "")
        if not side:
            raise UnsupportedModel(f"the adapter {name} has the tensor {tensor[:100]!r}, which is no part of a LoRA")
        found.setdefault(tensor.removesuffix(side), {})[side] = tensor
    for tensor, sides in found.items():
        if len(sides) != 2:
            raise BadModelFile(f"the adapter {name} has only one of lora_a and lora_b for {tensor[:100]}")
        check_whole(name, tensor)
        checked_pair(name, tensor, *(file.tensors[sides[side]].shape for side in _SIDES))
    return {tensor: (sides[".lora_a"], sides[".lora_b"]) for tensor, sides in found.items()}


def check_whole(name: str, tensor: str) -> None:
    """UnsupportedModel for tensors that we take apart in ways that no low-rank product survives."""
    module = tensor.removesuffix(".weight").split(".")[-1]
    if module in ("attn_kv_b", "attn_k_b", "attn_v_b") or not tensor.startswith("blk."):
        check_adaptable(name, tensor)


def _values(file: GGUFFile, tensor: str, name: str) -> Floats:
    info = file.tensors[tensor]
    if info.type not in DECODABLE:
        raise UnsupportedModel(f"the adapter {name} has {tensor[:100]} as {info.type.name}, which is not read here")
    return decode(info.type, file.raw(tensor), info.shape).astype(np.float32)


@dataclass(frozen=True, slots=True)
class _Tensor:
    shape: tuple[int, ...]
    type: BlockType = BlockType.F32


class _OneTensor:
    """B as if it were its model's tensor, to be cut and ordered as that would be."""

    metadata: Mapping[str, Any] = {}

    def __init__(self, tensor: str, values: Floats, architecture: str) -> None:
        self.tensors: Mapping[str, _Tensor] = {tensor: _Tensor(values.shape)}
        self.architecture = architecture
        self._raw = np.ascontiguousarray(values).reshape(-1).view(np.uint8)

    def raw(self, name: str) -> NDArray[np.uint8]:
        return self._raw

    def release(self, name: str) -> None: ...


def _canonical(
    name: str, tensor: str, b: Floats, config: ModelConfig, feed_forward: tuple[int, ...]
) -> dict[str, Floats]:
    file = _OneTensor(tensor, b, config.architecture)
    source = GGUFSource(file, config, family_of(config.architecture), feed_forward)
    weights = list(source.names())
    for weight in weights:
        check_adaptable(name, weight)
    return {weight: np.array(source.raw(weight).view(np.float32)).reshape(-1, b.shape[1]) for weight in weights}
