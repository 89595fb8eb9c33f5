"""A safetensors checkpoint to one GGUF file, tensor by tensor, with the orders and fusions that its readers expect."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from localllm.errors import UnsupportedModel, UsageError
from localllm.formats.blocks import BlockType, decode, encode, row_bytes
from localllm.formats.gguf_write import Tensor, write_gguf
from localllm.models.config import AttentionSpec, ModelConfig, RopeSpec
from localllm.models.delta_rows import delta_of, delta_rows, gated_rows
from localllm.models.facts import Facts, gguf_from_facts
from localllm.models.families import Family, family_of
from localllm.models.heads import Head
from localllm.models.hf_facts import facts_from_hf
from localllm.models.hf_source import TensorFolder
from localllm.models.mapping import hf_model
from localllm.models.rope import rope_frequencies
from localllm.models.rows import LATENT_PARTS, attention_of, latent_rows, turned_order
from localllm.models.source import WeightSource
from localllm.models.state_space import IN
from localllm.models.state_space_facts import state_space_of
from localllm.quantize.heads import head_tensors, told_of_head, told_of_types

Bytes = NDArray[np.uint8]
Progress = Callable[[str, int, int], None]


def tell_nobody(name: str, done_bytes: int, total_bytes: int) -> None:
    """For callers that show nothing."""


FLOATS: Mapping[str, BlockType] = {"f32": BlockType.F32, "f16": BlockType.F16, "bf16": BlockType.BF16}
_READY = (BlockType.Q4_0, BlockType.Q4_1, BlockType.Q5_0, BlockType.Q5_1, BlockType.Q8_0)
"""Blocks that a quantized checkpoint is read as."""
_FILE_TYPES = {
    BlockType.F32: 0,
    BlockType.F16: 1,
    BlockType.Q4_0: 2,
    BlockType.Q4_1: 3,
    BlockType.Q8_0: 7,
    BlockType.Q5_0: 8,
    BlockType.Q5_1: 9,
    BlockType.BF16: 32,
    BlockType.MXFP4: 38,
}
_KEPT_EXACT = (
    *("ffn_gate_inp.weight", "ffn_gate_inp_shexp.weight", "position_embd.weight"),
    *("shortconv.conv.weight", "ssm_conv1d.weight"),
)
"""Small matrices that readers expect as float32."""
_FUSED_QKV = ("attn_q", "attn_k", "attn_v")


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor of the file: canonical weights one after another, their rows in `order` (None: as they are)."""

    name: str
    parts: tuple[str, ...]
    order: NDArray[np.intp] | None = None
    of_experts: bool = False
    """The parts follow each other for every expert."""


def float_type(text: str) -> BlockType | None:
    """`f32`, `f16`, `bf16` in any case; None for `auto`, which keeps what the checkpoint has."""
    if text.lower() == "auto":
        return None
    if text.lower() not in FLOATS:
        raise UsageError(f"there is no float type {text!r}", hint="choose one of auto, " + ", ".join(FLOATS))
    return FLOATS[text.lower()]


def convert(
    folder: TensorFolder,
    path: Path,
    target: BlockType | None,
    extra: Mapping[str, Any],
    progress: Progress = tell_nobody,
    head: Head | None = None,
) -> None:
    """Write `path`, whole or not at all. Matrices become `target` (None: stay as they are; MXFP4 always does), vectors
    float32.

    `extra`: metadata beside the model's own: name, tokenizer, chat template, sampling. `progress` gets the tensor's
    name, and bytes done and in all. `head`: layers over pooled vectors that are not in the checkpoint's own file.
    Raises UnsupportedModel or BadModelFile before anything is written, DiskFull.
    """
    metadata, tensors = converted(folder, target, extra, head)
    write_gguf(path, metadata, _counted(tensors, progress))


def converted(
    folder: TensorFolder, target: BlockType | None, extra: Mapping[str, Any], head: Head | None = None
) -> tuple[dict[str, Any], list[Tensor]]:
    """What `convert` writes: the metadata, and the tensors in file order, each read when its blocks are asked for."""
    config, source = hf_model(folder)
    family = family_of(config.architecture)
    if config.activation != family.activation:
        raise UnsupportedModel(
            f"GGUF files of {family.architecture} cannot say that the activation is {config.activation}",
            hint="run the folder as it is",
        )
    facts = facts_from_hf(folder.config)
    if facts.ssm_step_limits:
        raise UnsupportedModel(
            f"GGUF files cannot say that steps are between {facts.ssm_step_limits[0]} and {facts.ssm_step_limits[1]}",
            hint="run the folder as it is",
        )
    tensors = [*_rope_tensors(config, facts), *_tensors(config, source, family, target), *head_tensors(head)]
    types = {tensor[2] for tensor in tensors if len(tensor[1]) > 1}
    blocks = next((kind for kind in (BlockType.MXFP4, *_READY) if kind in types), None)
    kind = blocks or target or max(types, default=BlockType.F32)
    metadata = {
        "general.architecture": family.architecture,
        "general.type": "model",
        "general.file_type": _FILE_TYPES.get(kind, 0),
        "general.quantization_version": 2,
        **told_of_head(config, head),
        **told_of_types(config, source),
        **gguf_from_facts(_as_files_say(facts, config, source), family.architecture),
        **extra,
    }
    return metadata, tensors


def _as_files_say(facts: Facts, config: ModelConfig, source: WeightSource) -> Facts:
    """Llama 3's scaling is a tensor in GGUF files, longrope's factor is always named, widths are the real ones."""
    unit = family_of(config.architecture).log_multiplier_unit
    facts = replace(
        facts,
        vocab_size=config.vocab_size,
        feed_forward=_widths(config, source) or facts.feed_forward,
        rope_log_multiplier=facts.rope_log_multiplier * unit,
    )
    heads = tuple(layer.mixer.num_kv_heads if isinstance(layer.mixer, AttentionSpec) else 0 for layer in config.layers)
    if 0 in heads and not facts.full_interval and not facts.recurrent_layers:
        facts = replace(facts, num_kv_heads=heads)  # how files tell layers without attention
    if facts.rope_scaling in ("llama3", "proportional"):
        return replace(facts, rope_scaling="none", rope_factor=None, rope_original_context=0)
    if facts.rope_scaling == "longrope" and (rope := _scaled_rope(config)) is not None:
        _, factor = rope_frequencies(rope, config.context_length)
        return replace(facts, rope_attention_factor=factor, rope_factor=None)
    return facts


def _widths(config: ModelConfig, source: WeightSource) -> tuple[int, ...]:
    """Of the feed-forwards without experts: one number where all agree; empty where there are none."""
    infos = [source.info(f"blk.{index}.ffn_up.weight") for index in range(len(config.layers))]
    widths = [info.shape[0] for info in infos if info is not None]
    if family_of(config.architecture).has_halves:
        return tuple(_width_of_half(source, index) for index in range(len(config.layers)))
    return tuple(widths) if len(set(widths)) > 1 and len(widths) == len(infos) else tuple(widths[:1])


def _width_of_half(source: WeightSource, index: int) -> int:
    """0: the block is a mixer."""
    dense, experts = (source.info(f"blk.{index}.ffn_up{kind}.weight") for kind in ("", "_exps"))
    if dense is not None:
        return dense.shape[0]
    return 0 if experts is None else experts.shape[1]


def _attention(config: ModelConfig) -> Iterator[AttentionSpec]:
    for layer in config.layers:
        if isinstance(layer.mixer, AttentionSpec):
            yield layer.mixer


def _scaled_rope(config: ModelConfig) -> RopeSpec | None:
    """That of the first layer whose rope is scaled: windowed layers may keep the plain one."""
    ropes = (spec.rope for spec in _attention(config))
    return next((rope for rope in ropes if rope is not None and rope.scaling is not None), None)


def _rope_tensors(config: ModelConfig, facts: Facts) -> Iterator[Tensor]:
    """Divisors of the rotary frequencies, where the checkpoint scales them."""
    rope = _scaled_rope(config)
    if facts.rope_scaling in ("llama3", "proportional") and rope is not None:
        scaled, _ = rope_frequencies(rope, config.context_length)
        plain, _ = rope_frequencies(replace(rope, scaling=None), config.context_length)
        yield _vector("rope_freqs.weight", plain / scaled)
    if facts.rope_scaling == "longrope" and facts.rope_long_factors:
        yield _vector("rope_factors_long.weight", np.array(facts.rope_long_factors))
        yield _vector("rope_factors_short.weight", np.array(facts.rope_short_factors))


def _vector(name: str, values: NDArray[np.float64]) -> Tensor:
    return name, values.shape, BlockType.F32, encode(BlockType.F32, values.astype(np.float32))


def _tensors(config: ModelConfig, source: WeightSource, family: Family, target: BlockType | None) -> Iterator[Tensor]:
    for stored in sorted(_stored(config, source, family), key=lambda item: _place(item.name)):
        infos = [source.info(part) for part in stored.parts]
        first = infos[0]
        assert first is not None, "names() and info() agree"
        rows = sum(info.shape[0] for info in infos if info is not None)
        shape = (rows, *first.shape[1:])
        if stored.of_experts:
            shape = (first.shape[0], len(infos) * first.shape[1], first.shape[2])
        kind = _type(first.name, first.type, len(shape), target)
        yield stored.name, _file_shape(first.name, shape, config), kind, _reader(source, stored, kind)


def _file_shape(name: str, shape: tuple[int, ...], config: ModelConfig) -> tuple[int, ...]:
    """Layer norms of heads are (heads, values of a head) in files, vectors of state spaces are matrices."""
    spec, state_space = attention_of(name, config), state_space_of(name, config)
    if state_space is not None and name.endswith((".ssm_a", ".ssm_d")):
        return (*shape, 1)
    if state_space is not None and name.endswith(".ssm_norm.weight"):
        return (state_space.num_groups, shape[0] // state_space.num_groups)
    if config.norm == "layer" and spec is not None and name.endswith(("attn_q_norm.weight", "attn_k_norm.weight")):
        return (shape[0] // spec.head_dim, spec.head_dim)
    return shape


def _type(name: str, has: BlockType, num_dims: int, target: BlockType | None) -> BlockType:
    if has not in (*FLOATS.values(), *_READY):
        return has
    if num_dims == 1 or name.endswith((".bias", *_KEPT_EXACT)):
        return BlockType.F32
    return has if target is None else target


def _stored(config: ModelConfig, source: WeightSource, family: Family) -> Iterator[Stored]:
    names = set(source.names())
    kinds = {_split(name)[1] for name in names}
    backwards = {canonical: name for name, canonical in family.renames}
    if not kinds.issuperset(backwards):
        backwards = {}
    joined = {part: module for module, parts in _joined(kinds).items() for part in parts}
    if family.repeats_kv:
        yield from _repeated(config, names)
    for name in sorted(names):
        prefix, rest = _split(name)
        module, _, kind = rest.rpartition(".")
        if module in joined:
            yield from _joined_latent(config, prefix, module, joined[module], kind)
            continue
        if (gates := _with_gates(config, source, prefix, module, kind)) is not None:
            yield from gates
            continue
        if module in IN and state_space_of(name, config) is not None:
            if module == IN[0]:
                yield Stored(f"{prefix}ssm_in.{kind}", tuple(f"{prefix}{part}.{kind}" for part in IN))
            continue
        if family.fuses_qkv and module in _FUSED_QKV:
            if module == _FUSED_QKV[0]:
                parts = tuple(f"{prefix}{part}.{kind}" for part in _FUSED_QKV)
                yield Stored(f"{prefix}attn_qkv.{kind}", parts, _fused_order(config, source, family, parts))
        elif family.fuses_gate_up and module in ("ffn_gate", "ffn_up"):
            if module == "ffn_up":
                yield Stored(name, (f"{prefix}ffn_gate.{kind}", name))
        elif family.fuses_expert_gates and rest in ("ffn_gate_exps.weight", "ffn_up_exps.weight"):
            if module == "ffn_up_exps":
                yield Stored(f"{prefix}ffn_gate_up_exps.{kind}", (f"{prefix}ffn_gate_exps.{kind}", name), None, True)
        else:
            yield Stored(prefix + backwards.get(rest, rest), (name,), _order(config, source, family, name))


def _repeated(config: ModelConfig, names: Collection[str]) -> Iterator[Stored]:
    """What readers want of layers that share keys and values, and use for nothing: that of the layer they read."""
    for index, layer in enumerate(config.layers):
        if not isinstance(layer.mixer, AttentionSpec) or layer.mixer.kv_from is None:
            continue
        for part in ("attn_k", "attn_v", "attn_k_norm"):
            for kind in ("weight", "bias"):
                name = f"blk.{layer.mixer.kv_from}.{part}.{kind}"
                if name in names:
                    yield Stored(f"blk.{index}.{part}.{kind}", (name,))


def _with_gates(
    config: ModelConfig, source: WeightSource, prefix: str, module: str, kind: str
) -> Iterable[Stored] | None:
    """What files have in one matrix with another: queries with their gates, and the two gates of a gated delta net
    whose heads are not tiled. Nothing for the second of the two; None where the module is as it is."""
    spec, delta = attention_of(f"{prefix}{module}.", config), delta_of(f"{prefix}{module}.", config)
    if spec is not None and spec.gated and module in ("attn_q", "attn_gate"):
        rows = np.concatenate([gated_rows("queries", spec), gated_rows("gates", spec)])
        name, pair = "attn_q", ("attn_q", "attn_gate")
    elif delta is not None and not delta.tiled and module in ("ssm_beta", "ssm_alpha"):
        rows = np.concatenate([delta_rows("joined betas", delta), delta_rows("joined decays", delta)])
        name, pair = "ssm_ba", ("ssm_beta", "ssm_alpha")
    else:
        return None
    parts = tuple(f"{prefix}{each}.{kind}" for each in pair)
    return [Stored(f"{prefix}{name}.{kind}", parts, np.argsort(rows))] if module == pair[0] else []


def _split(name: str) -> tuple[str, str]:
    """The layer's prefix, and the rest."""
    if not name.startswith("blk."):
        return "", name
    _, number, rest = name.split(".", 2)
    return f"blk.{number}.", rest


def _order(config: ModelConfig, source: WeightSource, family: Family, name: str) -> NDArray[np.intp] | None:
    """Rows of queries and keys where the family's files pair neighbours: the way back of models/quirks.py."""
    info = source.info(name)
    if not family.pairs_neighbours or info is None:
        return None
    order = turned_order(name, info.shape[0], config)
    return None if order is None else np.argsort(order)


def _fused_order(
    config: ModelConfig, source: WeightSource, family: Family, parts: Sequence[str]
) -> NDArray[np.intp] | None:
    """The orders of parts that lie one after another."""
    orders, first = [], 0
    for part in parts:
        info, order = source.info(part), _order(config, source, family, part)
        count = 0 if info is None else info.shape[0]
        orders.append(first + (np.arange(count, dtype=np.intp) if order is None else order))
        first += count
    return np.concatenate(orders) if family.pairs_neighbours else None


def _joined(kinds: set[str]) -> dict[str, tuple[str, ...]]:
    """Modules of latent attention that files have in one matrix, and what we make of it."""
    found = {
        module: tuple(name for name, _ in parts)
        for module, parts in LATENT_PARTS.items()
        if all(f"{name}.weight" in kinds for name, _ in parts)
    }
    if found:
        del found["attn_q" if "attn_q_a.weight" in kinds else "attn_q_b"]
    return found


def _joined_latent(config: ModelConfig, prefix: str, part: str, module: str, kind: str) -> Iterator[Stored]:
    """The file's matrix, with its first part."""
    parts = LATENT_PARTS[module]
    spec = attention_of(f"{prefix}{module}", config)
    if part != parts[0][0] or spec is None:
        return
    rows = np.concatenate([latent_rows(of, spec, pairs_neighbours=True) for _, of in parts])
    yield Stored(f"{prefix}{module}.{kind}", tuple(f"{prefix}{name}.{kind}" for name, _ in parts), np.argsort(rows))


def stored_tensors(config: ModelConfig, source: WeightSource) -> dict[str, Stored]:
    """What a file of the model has, by the names it gives."""
    return {each.name: each for each in _stored(config, source, family_of(config.architecture))}


def stored_blocks(source: WeightSource, stored: Stored, kind: BlockType) -> Bytes:
    """The blocks of one of them, uint8 (bytes,), its rows in the order of files."""
    return _reader(source, stored, kind)()


def _reader(source: WeightSource, stored: Stored, kind: BlockType) -> Callable[[], Bytes]:
    def read() -> Bytes:
        blocks = np.concatenate([_as_type(source, part, kind) for part in stored.parts], axis=int(stored.of_experts))
        return (blocks if stored.order is None else blocks[stored.order]).reshape(-1)

    return read


def _as_type(source: WeightSource, name: str, kind: BlockType) -> Bytes:
    """The rows of a weight, (rows of the first axis, bytes)."""
    info = source.info(name)
    assert info is not None, "the name comes from the source"
    raw = source.raw(name)
    if info.type != kind:
        raw = encode(kind, decode(info.type, raw, info.shape))
    source.release(name)
    return raw.reshape(info.shape[0], -1)


def _place(name: str) -> tuple[int, int, str]:
    """Embeddings first, layers in their order, the output last."""
    if name.startswith("blk."):
        return 1, int(name.split(".")[1]), name
    return (2 if name.startswith("output") else 0), 0, name


def _counted(tensors: Sequence[Tensor], progress: Progress) -> Iterator[Tensor]:
    """The same tensors, telling how far the writing is."""
    sizes = [row_bytes(kind, shape[-1]) * math.prod(shape[:-1]) for _, shape, kind, _ in tensors]
    total, done = sum(sizes), 0
    for (name, shape, kind, raw), size in zip(tensors, sizes, strict=True):
        yield name, shape, kind, _told(raw, partial(progress, name, done, total))
        done += size


def _told(raw: Bytes | Callable[[], Bytes], tell: Callable[[], None]) -> Callable[[], Bytes]:
    def read() -> Bytes:
        tell()
        return raw() if callable(raw) else raw

    return read
