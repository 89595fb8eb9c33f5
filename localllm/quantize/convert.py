"""A safetensors checkpoint to one GGUF file, tensor by tensor; `stored.py` knows their orders and fusions."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from localllm.errors import UnsupportedModel, UsageError
from localllm.formats.blocks import BlockType, encode, row_bytes
from localllm.formats.gguf_write import Tensor, write_gguf
from localllm.models.config import AttentionSpec, ModelConfig, RopeSpec
from localllm.models.facts import Facts, gguf_from_facts
from localllm.models.families import family_of
from localllm.models.heads import Head
from localllm.models.hf_facts import facts_from_hf
from localllm.models.hf_source import TensorFolder
from localllm.models.mapping import hf_model
from localllm.models.rope import rope_frequencies
from localllm.models.rows import attention_of
from localllm.models.source import WeightSource
from localllm.models.state_space_facts import state_space_of
from localllm.quantize.heads import head_tensors, told_of_head, told_of_types
from localllm.quantize.stored import Bytes, stored_blocks, stored_of

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
    tensors = [*_rope_tensors(config, facts), *_tensors(config, source, target), *head_tensors(head)]
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


def _tensors(config: ModelConfig, source: WeightSource, target: BlockType | None) -> Iterator[Tensor]:
    for stored in sorted(stored_of(config, source), key=lambda item: _place(item.name)):
        infos = [source.info(part) for part in stored.parts]
        first = infos[0]
        assert first is not None, "names() and info() agree"
        rows = sum(info.shape[0] for info in infos if info is not None)
        shape = (rows, *first.shape[1:])
        if stored.of_experts:
            shape = (first.shape[0], len(infos) * first.shape[1], first.shape[2])
        kind = _type(first.name, first.type, len(shape), target)
        yield stored.name, _file_shape(first.name, shape, config), kind, partial(stored_blocks, source, stored, kind)


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
