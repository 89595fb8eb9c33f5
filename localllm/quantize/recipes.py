"""Which tensor gets which block type: the mixed recipes that users know by name, tensor by tensor as llama.cpp mixes.

Source: llama_tensor_get_type in llama-quant.cpp. Where rows are not whole blocks of the type, a type of 32 values takes
its place, and F16 where even that does not fit. Rules for architectures that we do not run (Falcon, GLM-5, Bailing 3)
are not here.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from types import MappingProxyType
from typing import Any, NamedTuple

from localllm.errors import BadModelFile, UsageError
from localllm.formats.blocks import BLOCK_LAYOUTS, BlockType, row_bytes
from localllm.quantize.encode import ENCODABLE

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

_IN_PLACE: Mapping[BlockType, BlockType] = MappingProxyType(
    {
        Q2_K: BlockType.Q4_0,
        Q3_K: BlockType.Q4_0,
        Q4_K: BlockType.Q5_0,
        Q5_K: BlockType.Q5_1,
        Q6_K: BlockType.Q8_0,
        BlockType.IQ4_XS: BlockType.IQ4_NL,
    }
)
"""For rows that are not whole blocks of 256."""

_EXACT_PARTS = (
    "_norm.weight",
    "ffn_gate_inp.weight",
    "altup",
    "laurel",
    "per_layer_model_proj",
    "ssm_conv1d",
    "shortconv.conv.weight",
    "indexer.k_proj.weight",
    "indexer.q_proj.weight",
    "attn_rel_b.weight",
    ".position_embd",
    ".rel_pos",
    ".patch_embd",
    ".patch_merger",
)
_EXACT_NAMES = ("position_embd.weight", "token_types.weight")
"""Small, and errors in them reach far: routers, convolutions, positions."""

_EMBEDDINGS = ("token_embd.weight", "per_layer_token_embd.weight")
_ATTENTION_OUT_TO_Q5_K = ("Q2_K", "Q3_K_S", "Q3_K_M", "Q4_K_S", "Q4_K_M", "IQ4_NL", "IQ4_XS")
"""In models of eight experts, where attention is a small part of the whole."""
_LAYERS_OF_70B = {"llama": 80, "qwen2": 80, "deci": 80, "olmo": 80, "jais2": 68}


class TensorFacts(NamedTuple):
    """What a recipe looks at; `shape` in numpy order."""

    name: str
    shape: tuple[int, ...]
    type: BlockType


@dataclass(frozen=True, slots=True)
class PlannedTensor:
    """One line of a plan; `size_bytes` is that of the tensor when it is written."""

    name: str
    shape: tuple[int, ...]
    source_type: BlockType
    target_type: BlockType
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Plan:
    """What quantizing will do, tensor by tensor in file order."""

    recipe: Recipe
    tensors: tuple[PlannedTensor, ...]

    @property
    def size_bytes(self) -> int:
        return sum(tensor.size_bytes for tensor in self.tensors)

    @property
    def source_bytes(self) -> int:
        return sum(_size(tensor.shape, tensor.source_type) for tensor in self.tensors)

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.size_bytes / max(1, sum(math.prod(tensor.shape) for tensor in self.tensors))

    def requantized(self) -> tuple[PlannedTensor, ...]:
        """Tensors that are in blocks already, and would be rounded a second time."""
        return tuple(
            tensor
            for tensor in self.tensors
            if tensor.source_type != tensor.target_type and BLOCK_LAYOUTS[tensor.source_type].values_per_block > 1
        )


def recipe_of(text: str) -> Recipe:
    """The recipe of a name in any case; UsageError, with all names, for another one."""
    name = text.upper().replace("-", "_")
    found = RECIPES.get(_SHORT_NAMES.get(name, name))
    if found is None:
        raise UsageError(f"there is no quantization {text!r}", hint="choose one of " + ", ".join(RECIPES))
    return found


def kept(texts: Iterable[str]) -> tuple[tuple[str, BlockType], ...]:
    """REGEX=TYPE, each, to what `plan` takes; UsageError for what is neither."""
    pairs = []
    for text in texts:
        pattern, sign, kind = text.rpartition("=")
        if not sign or not pattern:
            raise UsageError(f"{text!r} is not REGEX=TYPE", hint="for example attn_v=q8_0")
        try:
            re.compile(pattern)
        except re.error as error:
            raise UsageError(f"{pattern!r} is not a regular expression: {error}") from None
        block_type = BlockType.__members__.get(kind.upper())
        if block_type not in ENCODABLE:
            names = ", ".join(sorted(item.name for item in ENCODABLE))
            raise UsageError(f"weights cannot be written as {kind!r}", hint=f"choose one of {names}")
        pairs.append((pattern, BlockType(block_type)))
    return tuple(pairs)


def plan(
    tensors: Sequence[TensorFacts],
    metadata: Mapping[str, Any],
    recipe: Recipe,
    *,
    pure: bool = False,
    keep: Iterable[tuple[str, BlockType]] = (),
    has_importance: bool = False,
) -> Plan:
    """What each tensor of a file becomes; nothing is read or encoded.

    metadata: of the model, for heads, layers and experts. pure: every matrix gets the base type. keep: (regular
    expression, type), searched in the name; the first that is found decides. has_importance: whether an importance
    matrix is at hand, with which llama.cpp mixes a few tensors otherwise. Raises UsageError for an expression that
    finds nothing, BadModelFile for layers that the metadata does not know.
    """
    patterns = [(re.compile(text), kind) for text, kind in keep]
    mixer = _Mixer(recipe, _model(metadata, tensors), has_importance)
    found: dict[str, BlockType] = {}
    for tensor in sorted(tensors, key=_turn):
        found[tensor.name] = _chosen(tensor, recipe, pure, patterns, mixer)
    for pattern, _ in patterns:
        if not any(pattern.search(tensor.name) for tensor in tensors if may_be_rounded(tensor)):
            raise UsageError(
                f"no weight that may be quantized has {pattern.pattern!r} in its name",
                hint="names are those of GGUF files, for example blk.0.attn_v.weight",
            )
    lines = (PlannedTensor(*tensor, found[tensor.name], _size(tensor.shape, found[tensor.name])) for tensor in tensors)
    return Plan(recipe, tuple(lines))


def may_be_rounded(tensor: TensorFacts) -> bool:
    """Matrices and stacks of them, without norms, routers, convolutions and positions."""
    name = tensor.name
    is_matrix = len(tensor.shape) >= 2 and math.prod(tensor.shape[:-1]) > 1
    is_exact = name in _EXACT_NAMES or any(part in name for part in _EXACT_PARTS)
    return is_matrix and name.endswith("weight") and not is_exact


def _size(shape: tuple[int, ...], kind: BlockType) -> int:
    return row_bytes(kind, shape[-1] if shape else 1) * math.prod(shape[:-1])


def _turn(tensor: TensorFacts) -> tuple[int, str]:
    """llama.cpp counts tensors in the order of layers, then of names."""
    return _layer(tensor.name), tensor.name


def _layer(name: str) -> int:
    match = re.match(r"blk\.(\d+)\.", name)
    return int(match[1]) if match else -1


def _chosen(
    tensor: TensorFacts,
    recipe: Recipe,
    pure: bool,
    patterns: Sequence[tuple[re.Pattern[str], BlockType]],
    mixer: "_Mixer",
) -> BlockType:
    if not may_be_rounded(tensor):
        return tensor.type
    named = next((kind for pattern, kind in patterns if pattern.search(tensor.name)), None)
    if named is not None:
        return fitting(named, tensor.shape[-1])
    if recipe.is_plain or pure:
        return fitting(recipe.base, tensor.shape[-1])
    return fitting(mixer.mixed(tensor), tensor.shape[-1])


def fitting(kind: BlockType, columns: int) -> BlockType:
    """The type itself, or what stands in for it where rows of so many columns are not whole blocks."""
    for candidate in (kind, _IN_PLACE.get(kind, kind)):
        if columns % BLOCK_LAYOUTS[candidate].values_per_block == 0:
            return candidate
    return BlockType.F16


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
class _Model:
    num_layers: int
    num_experts: int
    heads_per_kv: int
    num_values: int  # matrices that make values
    is_tied: bool
    is_70b: bool


def _model(metadata: Mapping[str, Any], tensors: Sequence[TensorFacts]) -> _Model:
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
    return _Model(
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


class _Mixer:
    """Chooses for one tensor after another, in llama.cpp's order: some rules count what has been before."""

    def __init__(self, recipe: Recipe, model: _Model, has_importance: bool) -> None:
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
        layer = _layer(tensor.name)
        if not 0 <= layer < count:
            raise BadModelFile(f"tensor {tensor.name} is in no layer, or not in one of {count}")
        return layer, count

    def _attention_out(self) -> BlockType:
        name = self._recipe.name
        if self._model.num_experts == 8:
            return Q5_K if name in _ATTENTION_OUT_TO_Q5_K else self._recipe.base
        return {"Q2_K": Q3_K, "Q3_K_M": Q4_K, "Q3_K_L": Q5_K}.get(name, self._recipe.base)
