"""Which tensor gets which block type: the mixed recipes that users know by name, tensor by tensor as llama.cpp mixes.

Source: llama_tensor_get_type in llama-quant.cpp. Where rows are not whole blocks of the type, a type of 32 values takes
its place, and F16 where even that does not fit. Rules for architectures that we do not run (Falcon, GLM-5, Bailing 3)
are not here.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from types import MappingProxyType
from typing import Any, NamedTuple

from localllm.errors import BadModelFile, UsageError
from localllm.formats.blocks import BLOCK_LAYOUTS, BlockType

Q2_K, Q3_K, Q4_K, Q5_K, Q6_K = BlockType.Q2_K, BlockType.Q3_K, BlockType.Q4_K, BlockType.Q5_K, BlockType.Q6_K


@dataclass(frozen=True, slots=True)
class Recipe:
    """`base` is what most matrices become, `file_type` the number files give in general.file_type."""

    name: str
    base: BlockType
    file_type: int

    @property
    def is_plain(self) -> bool:
        """Whether it is floats alone."""
        return BLOCK_LAYOUTS[self.base].values_per_block == 1


RECIPES: Mapping[str, Recipe] = MappingProxyType(
    {
        name: Recipe(name, BlockType[base], number)
        for name, base, number in (
            ("F32", "F32", 0),
            ("F16", "F16", 1),
            ("BF16", "BF16", 32),
            ("Q8_0", "Q8_0", 7),
            ("Q6_K", "Q6_K", 18),
            ("Q5_K_M", "Q5_K", 17),
            ("Q5_K_S", "Q5_K", 16),
            ("Q5_1", "Q5_1", 9),
            ("Q5_0", "Q5_0", 8),
            ("Q4_K_M", "Q4_K", 15),
            ("Q4_K_S", "Q4_K", 14),
            ("Q4_1", "Q4_1", 3),
            ("Q4_0", "Q4_0", 2),
            ("IQ4_NL", "IQ4_NL", 25),
            ("IQ4_XS", "IQ4_XS", 30),
            ("MXFP4", "MXFP4", 38),
            ("MXFP4_MOE", "MXFP4", 38),
            ("Q3_K_L", "Q3_K", 13),
            ("Q3_K_M", "Q3_K", 12),
            ("Q3_K_S", "Q3_K", 11),
            ("Q2_K", "Q2_K", 10),
            ("Q2_K_S", "Q2_K", 21),
        )
    }
)
_SHORT_NAMES = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}

_EMBEDDINGS = ("token_embd.weight", "per_layer_token_embd.weight")
_ATTENTION_OUT_TO_Q5_K = ("Q2_K", "Q3_K_S", "Q3_K_M", "Q4_K_S", "Q4_K_M", "IQ4_NL", "IQ4_XS")
"""In models of eight experts, where attention is a small part of the whole."""
_LAYERS_OF_70B = {"llama": 80, "qwen2": 80, "deci": 80, "olmo": 80, "jais2": 68}


class TensorFacts(NamedTuple):
    """What a recipe looks at; `shape` in numpy order."""

    name: str
    shape: tuple[int, ...]
    type: BlockType


def recipe_of(text: str) -> Recipe:
    """The recipe of a name in any case; UsageError, with all names, for another one."""
    name = text.upper().replace("-", "_")
    found = RECIPES.get(_SHORT_NAMES.get(name, name))
    if found is None:
        raise UsageError(f"there is no quantization {text!r}", hint="choose one of " + ", ".join(RECIPES))
    return found


def layer_of(name: str) -> int:
    match = re.match(r"blk\.(\d+)\.", name)
    return int(match[1]) if match else -1


class _Role(Enum):
    OUTPUT = auto()
    EMBEDDING = auto()
    VALUES = auto()
    KEYS = auto()
    ATTENTION_OUT = auto()
    DOWN = auto()
    OTHER = auto()


def _role(name: str) -> _Role:
    if name == "output.weight":
        return _Role.OUTPUT
    if name in _EMBEDDINGS:
        return _Role.EMBEDDING
    parts = {
        "attn_qkv.weight": _Role.VALUES,
        "attn_kv_b.weight": _Role.VALUES,
        "attn_v.weight": _Role.VALUES,
        "attn_k.weight": _Role.KEYS,
        "attn_output.weight": _Role.ATTENTION_OUT,
        "ffn_down": _Role.DOWN,
    }
    return next((role for part, role in parts.items() if part in name), _Role.OTHER)


@dataclass(frozen=True, slots=True)
class ModelFacts:
    num_layers: int
    num_experts: int
    heads_per_kv: int
    num_values: int  # matrices that make values
    is_tied: bool
    is_70b: bool


def model_facts(metadata: Mapping[str, Any], tensors: Sequence[TensorFacts]) -> ModelFacts:
    architecture = str(metadata.get("general.architecture", ""))

    def count(key: str, default: int) -> int:
        value = metadata.get(f"{architecture}.{key}", default)
        first = value[0] if isinstance(value, list) and value else value
        if not isinstance(first, int):
            raise BadModelFile(f"{architecture}.{key} is not a number")
        return first

    heads, layers = count("attention.head_count", 0), count("block_count", 0)
    kv_heads = count("attention.head_count_kv", heads)
    names = {tensor.name for tensor in tensors}
    return ModelFacts(
        num_layers=layers,
        num_experts=count("expert_count", 0),
        heads_per_kv=heads // kv_heads if kv_heads else 0,
        num_values=sum(_role(name) is _Role.VALUES for name in names),
        is_tied="output.weight" not in names,
        is_70b=_LAYERS_OF_70B.get(architecture) == layers and (architecture != "llama" or heads != kv_heads),
    )


def _gets_more_bits(index: int, count: int) -> bool:
    """The first and the last eighth of the layers, and every third between them."""
    return index < count // 8 or index >= 7 * count // 8 or (index - count // 8) % 3 == 2


class Mixer:
    """Chooses for one tensor after another, in llama.cpp's order: some rules count what has been before."""

    def __init__(self, recipe: Recipe, model: ModelFacts, has_importance: bool) -> None:
        self._recipe = recipe
        self._model = model
        self._has_importance = has_importance
        self._num_values = 0
        self._num_downs = 0

    def mixed(self, tensor: TensorFacts) -> BlockType:
        role = _role(tensor.name)
        if role is _Role.OUTPUT or (role is _Role.EMBEDDING and self._model.is_tied):
            return self._output(tensor)
        if self._recipe.name == "MXFP4_MOE":
            return BlockType.MXFP4 if len(tensor.shape) > 2 and tensor.shape[-3] > 1 else BlockType.Q8_0
        if self._recipe.name == "MXFP4" and role is _Role.EMBEDDING:
            return BlockType.Q8_0
        if role is _Role.VALUES:
            return self._values()
        if role is _Role.KEYS:
            return BlockType.Q8_0 if self._model.num_experts == 8 else self._recipe.base
        if role is _Role.DOWN:
            return self._down(tensor)
        if role is _Role.ATTENTION_OUT:
            return self._attention_out()
        return self._recipe.base

    def _output(self, tensor: TensorFacts) -> BlockType:
        base = self._recipe.base
        is_whole = tensor.shape[-1] % BLOCK_LAYOUTS[base].values_per_block == 0
        if base in (BlockType.Q8_0, BlockType.MXFP4) or not is_whole:
            return BlockType.Q8_0
        return Q6_K

    def _values(self) -> BlockType:
        index, model = self._num_values, self._model
        self._num_values += 1
        kind = self._values_by_recipe(index)
        if model.is_70b and kind in (Q3_K, Q4_K):
            kind = Q5_K  # eight heads share them: a small matrix
        return BlockType.Q8_0 if model.num_experts == 8 else kind

    def _values_by_recipe(self, index: int) -> BlockType:
        shares = self._model.heads_per_kv >= 4
        match self._recipe.name:
            case "Q2_K":
                return Q4_K if shares else Q3_K
            case "Q2_K_S" if shares:
                return Q4_K
            case "Q3_K_M":
                return Q5_K if index < 2 else Q4_K
            case "Q3_K_L":
                return Q5_K
            case "IQ4_NL" | "IQ4_XS" if shares:
                return Q5_K
            case "Q4_K_M" | "Q5_K_M" if _gets_more_bits(index, self._model.num_values):
                return Q6_K
            case "Q4_K_S" if index < 4:
                return Q5_K
        return self._recipe.base

    def _down(self, tensor: TensorFacts) -> BlockType:
        index, count = self._down_place(tensor)
        self._num_downs += 1
        is_early = index < count // 8
        match self._recipe.name:
            case "Q2_K":
                return Q3_K
            case "Q2_K_S" if is_early:
                return Q4_K
            case "Q3_K_M":
                return Q5_K if index < count // 16 else Q4_K
            case "Q3_K_L":
                return Q5_K
            case "Q4_K_M" | "Q5_K_M" if _gets_more_bits(index, count):
                return Q6_K
            case "IQ4_NL" | "IQ4_XS" if is_early and not self._has_importance:
                return Q5_K
            case "Q4_K_S" if is_early:
                return Q5_K
            case "Q4_0" if is_early and self._has_importance:
                return BlockType.Q4_1
            case "Q5_0" if is_early and self._has_importance:
                return BlockType.Q5_1
        return self._recipe.base

    def _down_place(self, tensor: TensorFacts) -> tuple[int, int]:
        """Which layer of how many; models of experts have several such matrices in a layer."""
        count = self._model.num_layers
        if self._model.num_experts <= 1:
            return self._num_downs, count
        layer = layer_of(tensor.name)
        if not 0 <= layer < count:
            raise BadModelFile(f"tensor {tensor.name} is in no layer, or not in one of {count}")
        return layer, count

    def _attention_out(self) -> BlockType:
        name = self._recipe.name
        if self._model.num_experts == 8:
            return Q5_K if name in _ATTENTION_OUT_TO_Q5_K else self._recipe.base
        return {"Q2_K": Q3_K, "Q3_K_M": Q4_K, "Q3_K_L": Q5_K}.get(name, self._recipe.base)
