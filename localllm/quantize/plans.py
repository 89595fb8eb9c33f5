"""What quantizing will do, tensor by tensor: what the recipe says, what the user keeps, and what rows have room for."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from localllm.errors import UsageError
from localllm.formats.blocks import BLOCK_LAYOUTS, BlockType, row_bytes
from localllm.quantize.encode import ENCODABLE
from localllm.quantize.recipes import Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, Mixer, Recipe, TensorFacts, layer_of, model_facts

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
    mixer = Mixer(recipe, model_facts(metadata, tensors), has_importance)
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
    return layer_of(tensor.name), tensor.name


def _chosen(
    tensor: TensorFacts,
    recipe: Recipe,
    pure: bool,
    patterns: Sequence[tuple[re.Pattern[str], BlockType]],
    mixer: Mixer,
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
