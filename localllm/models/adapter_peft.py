"""PEFT adapters: adapter_config.json beside adapter_model.safetensors.

Source: the LoRA layers of peft. Modules are named as in transformers, so their rows are ordered as a checkpoint's.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from localllm.errors import BadModelFile, UnsupportedModel
from localllm.formats.json_file import read_json_object
from localllm.formats.safetensors import SafetensorInfo, SafetensorsFolder
from localllm.models.adapters import (
    MAX_PARTS,
    NO_ROOM_FOR,
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
from localllm.models.family import Family
from localllm.models.hf_source import HFSource
from localllm.models.names import pieces_of_module
from localllm.models.pieces import Piece

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
MAX_NAME = 256

_WEIGHT = re.compile(r"(?:base_model\.model\.)?(.+)\.lora_([AB])(?:\.[A-Za-z0-9_-]+)?\.weight")
_UNKNOWN = (
    ("lora_magnitude_vector", "DoRA"),
    ("modules_to_save", "modules trained as a whole"),
    ("lora_embedding_", "an adapted embedding"),
)
_REFUSED: Mapping[str, str] = {
    "use_dora": "DoRA",
    "modules_to_save": "modules trained as a whole (modules_to_save)",
    "lora_bias": "biases of its own (lora_bias)",
    "target_parameters": "adapted parameters (target_parameters)",
    "trainable_token_indices": "trained tokens (trainable_token_indices)",
    "alora_invocation_tokens": "activation by tokens (aLoRA)",
    "use_qalora": "QA-LoRA",
    "use_bdlora": "BD-LoRA",
    "layer_replication": "replicated layers (layer_replication)",
    "arrow_config": "arrow routing",
    "kasa_config": "KaSA",
    "velora_config": "VeLoRA",
    "monteclora_config": "MonteCLoRA",
}
_CHANGES_BASE = ("pissa", "olora", "loftq", "corda", "lora_ga")
"""Ways to begin that leave another base than the one that was published."""
_PLAIN_PATTERN = re.compile(r"(?:[\w.^$|-]|\\\.|\\d\+?|\[[0-9-]+\])+", re.ASCII)


@dataclass(frozen=True, slots=True)
class PeftConfig:
    """`alphas` and `ranks`: by patterns of module names, tried in order."""

    alpha: float
    rank: int
    alphas: Mapping[str, float]
    ranks: Mapping[str, int]
    by_root: bool
    base: str

    def alpha_of(self, module: str) -> float:
        return next((value for pattern, value in self.alphas.items() if _fits(pattern, module)), self.alpha)

    def rank_of(self, module: str) -> int:
        return next((value for pattern, value in self.ranks.items() if _fits(pattern, module)), self.rank)

    def scale_of(self, module: str, rank: int) -> float:
        return self.alpha_of(module) / (math.sqrt(rank) if self.by_root else rank)


def _fits(pattern: str, module: str) -> bool:
    return re.match(rf"(.*\.)?({pattern})$", module) is not None


def read_peft(path: Path, config: ModelConfig) -> dict[str, LowRank]:
    """The parts of an adapter by canonical name, rows in the decoder's order. `path`: its folder or its weights.

    UnsupportedModel names what is no plain LoRA, or a module that this family does not have.
    """
    family = family_of(config.architecture)
    said = peft_config(path)
    parts: dict[str, LowRank] = {}
    with SafetensorsFolder.open(weights_of(path)) as file:
        for module, (a, b) in _pairs(file, path.name).items():
            _check_rank(path.name, module, said.rank_of(module), file.tensors[a].shape[0])
            values_a, values_b = file.as_float32(a), file.as_float32(b)
            scale = checked_scale(path.name, said.scale_of(module, values_a.shape[0]))
            for name, part in _canonical(path.name, module, LowRank(values_a, values_b, scale), config, family):
                if name in parts:
                    raise BadModelFile(f"the adapter {path.name} changes {name} twice ({module})")
                parts[name] = part
    return parts


def weights_of(path: Path) -> Path:
    """BadModelFile where there are none, or only such as can run code."""
    if path.is_file():
        return path
    if not (path / WEIGHTS_NAME).exists():
        pickled = any(path.glob("adapter_model.bin"))
        why = f"only adapter_model.bin, which can run code when it is opened; {WEIGHTS_NAME} is read" if pickled else ""
        raise BadModelFile(f"{path} has {why or f'no {WEIGHTS_NAME}'}", hint="save it again with safetensors")
    return path / WEIGHTS_NAME


def peft_config(path: Path) -> PeftConfig:
    """What adapter_config.json says. UnsupportedModel for all that is no plain LoRA."""
    folder = path if path.is_dir() else path.parent
    said = read_json_object(folder / CONFIG_NAME)
    kind = said.get("peft_type")
    if kind != "LORA":
        raise UnsupportedModel(f"the adapter {path.name} is of the kind {_shown(kind)}, and only LORA is run here")
    for name, meaning in _REFUSED.items():
        if said.get(name):
            raise UnsupportedModel(
                f"the adapter {path.name} uses {meaning}, which this build cannot do", hint=NO_ROOM_FOR
            )
    if said.get("bias", "none") != "none":
        raise UnsupportedModel(f"the adapter {path.name} has trained biases (bias), which this build cannot do")
    begun = said.get("init_lora_weights")
    if isinstance(begun, str) and begun.lower().startswith(_CHANGES_BASE):
        raise UnsupportedModel(
            f"the adapter {path.name} was begun with {_shown(begun)}, which changes the base, too",
            hint="save it as a plain LoRA (path_initial_model_for_weight_conversion)",
        )
    base = said.get("base_model_name_or_path")
    return PeftConfig(
        alpha=_number(path.name, "lora_alpha", said.get("lora_alpha")),
        rank=_rank(path.name, said.get("r")),
        alphas={key: _number(path.name, "alpha_pattern", value) for key, value in _patterns(path, said, "alpha")},
        ranks={key: _rank(path.name, value) for key, value in _patterns(path, said, "rank")},
        by_root=said.get("use_rslora") is True,
        base=base if isinstance(base, str) else "",
    )


def peft_facts(path: Path) -> AdapterFacts:
    """What `show` says of it."""
    said = peft_config(path)
    with SafetensorsFolder.open(weights_of(path)) as file:
        pairs = _pairs(file, path.name)
        ranks = {file.tensors[a].shape[0] for a, _ in pairs.values()}
        size = file.size_bytes
    return AdapterFacts(
        path, "peft", said.base, "", tuple(sorted(ranks)), said.alpha, modules_of(pairs, "layers"), len(pairs), size
    )


def _patterns(path: Path, said: Mapping[str, Any], what: Literal["alpha", "rank"]) -> list[tuple[str, Any]]:
    """Regular expressions of a stranger: only such as cannot take for ever."""
    patterns = said.get(f"{what}_pattern") or {}
    if not isinstance(patterns, dict) or len(patterns) > MAX_PARTS:
        raise BadModelFile(f"the adapter {path.name} has no patterns in {what}_pattern")
    for pattern in patterns:
        if len(pattern) > MAX_NAME or pattern.count("\\d+") > 3 or not _PLAIN_PATTERN.fullmatch(pattern):
            raise UnsupportedModel(f"the adapter {path.name} has the pattern {_shown(pattern)}, which is not read here")
        try:
            re.compile(pattern)
        except re.error:
            raise BadModelFile(f"the adapter {path.name} has the pattern {_shown(pattern)}, which is none") from None
    return list(patterns.items())


def _number(name: str, field: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise BadModelFile(f"the adapter {name} has {field} {_shown(value)}, which is no number")
    return float(value)


def _rank(name: str, value: Any) -> int:
    if type(value) is not int or not 0 < value < 1 << 31:
        raise BadModelFile(f"the adapter {name} has the rank {_shown(value)}, which is no count")
    return value


def _check_rank(name: str, module: str, said: int, rank: int) -> None:
    if said != rank:
        raise BadModelFile(f"the adapter {name} has the rank {rank} in {module}, but {CONFIG_NAME} says {said}")


def _shown(value: Any) -> str:
    return repr(value)[:80]


def _pairs(file: SafetensorsFolder, name: str) -> dict[str, tuple[str, str]]:
    """Modules with the names of their A and B. BadModelFile for one without the other."""
    found: dict[str, dict[str, str]] = {}
    if len(file.tensors) > MAX_PARTS:
        raise BadModelFile(f"the adapter {name} has {len(file.tensors)} tensors")
    for tensor in file.tensors:
        match = _WEIGHT.fullmatch(tensor) if len(tensor) <= MAX_NAME else None
        if match is None:
            raise _not_plain(name, tensor)
        sides = found.setdefault(match[1], {})
        if match[2] in sides:
            raise BadModelFile(f"the adapter {name} has {match[1]}.lora_{match[2]} twice")
        sides[match[2]] = tensor
    for module, sides in found.items():
        if len(sides) != 2:
            raise BadModelFile(f"the adapter {name} has only one of lora_A and lora_B for {module}")
        checked_pair(name, module, file.tensors[sides["A"]].shape, file.tensors[sides["B"]].shape)
    return {module: (sides["A"], sides["B"]) for module, sides in found.items()}


def _not_plain(name: str, tensor: str) -> UnsupportedModel:
    meaning = next((meaning for mark, meaning in _UNKNOWN if mark in tensor), f"the tensor {_shown(tensor)}")
    return UnsupportedModel(f"the adapter {name} has {meaning}, which this build cannot do", hint=NO_ROOM_FOR)


class _OneTensor:
    """B as if it were the tensor of its module, to be cut and ordered as that would be."""

    config: Mapping[str, Any] = {}

    def __init__(self, tensor: str, values: Floats) -> None:
        info = SafetensorInfo(tensor, values.shape, "F32", 0, 0, values.nbytes)
        self.tensors: Mapping[str, SafetensorInfo] = {tensor: info}
        self._values = values

    def array(self, name: str) -> NDArray[Any]:
        return self._values

    def as_float32(self, name: str) -> Floats:
        return self._values

    def release(self, name: str) -> None: ...


def _canonical(
    name: str, module: str, part: LowRank, config: ModelConfig, family: Family
) -> Iterator[tuple[str, LowRank]]:
    """The weights that the module's tensor makes, each with its rows of B; A is that of all, unless columns move."""
    found = pieces_of_module(module, family, any(layer.moe is not None for layer in config.layers))
    if not found:
        raise UnsupportedModel(f"the adapter {name} changes {_shown(module)}, which {family.title} does not have")
    for weight, piece in found.items():
        check_adaptable(name, weight)
        # A and B are matrices of their own: they are (out, in) also where the module's tensor is (in, out)
        own = {weight: [replace(piece, transposed=False)]}
        if piece.cut == "tiled columns":
            yield weight, replace(part, a=_ordered(part.a, own, config, family))
        else:
            yield weight, replace(part, b=_ordered(part.b, own, config, family))


def _ordered(values: Floats, pieces: dict[str, list[Piece]], config: ModelConfig, family: Family) -> Floats:
    ((weight, (piece,)),) = pieces.items()
    source = HFSource(_OneTensor(piece.tensor, values), pieces, config, False, family.hf_pairs_neighbours)
    width = values.shape[1]
    return np.array(source.raw(weight).view(np.float32)).reshape(-1, width)
