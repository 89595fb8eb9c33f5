"""GGUF metadata to one ModelConfig. What differs between families is a row of families.py and a fact of the file.

Refuses by name: architectures without a row, missing keys, numbers that make no model.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from localllm.errors import BadModelFile, UnsupportedModel
from localllm.formats.blocks import DECODABLE, BlockType, decode
from localllm.models.config import AttentionSpec, LayerSpec, ModelConfig, MoeSpec, RopeScaling, RopeSpec, ShortConvSpec
from localllm.models.facts import Facts, facts_from_gguf
from localllm.models.families import FAMILIES, Family, family_of
from localllm.models.quirks import BlockFile, GGUFSource
from localllm.models.shapes import check_tensors
from localllm.models.source import WeightSource

MAX_LAYERS = 1024  # far above any model; a hostile count must not become a long loop
MAX_WIDTH = 1 << 20


@dataclass(frozen=True, slots=True)
class RopeFactors:
    """Divisors of rotary frequencies that GGUF keeps as tensors: one list for all lengths, or short and long ones."""

    always: tuple[float, ...] = ()
    short: tuple[float, ...] = ()
    long: tuple[float, ...] = ()


NO_FACTORS = RopeFactors()


def runnable(architecture: str, types: Iterable[BlockType | str]) -> str | None:
    """Why this build cannot run such a file, in a sentence; None when it can. `types` are those of its tensors, or
    their names."""
    if architecture not in FAMILIES:
        return f"this build cannot run the architecture {architecture!r}; it runs {', '.join(sorted(FAMILIES))}"
    known = {block_type.name for block_type in DECODABLE}
    unknown = sorted({item if isinstance(item, str) else item.name for item in types} - known)
    return f"this build cannot read weights of the type {', '.join(unknown)}" if unknown else None


def gguf_model(file: BlockFile) -> tuple[ModelConfig, WeightSource]:
    """Config and weights of an open file; UnsupportedModel or BadModelFile when it is not for us."""
    reason = runnable(file.architecture, {tensor.type for tensor in file.tensors.values()})
    if reason is not None:
        raise UnsupportedModel(reason, hint="choose another model or quantization")
    embedding = file.tensors.get("token_embd.weight")
    vocab_size = embedding.shape[0] if embedding is not None and embedding.shape else None
    config = config_from_gguf(file.metadata, file.tensors, rope_factors(file), vocab_size)
    source = _source(file, config)
    check_tensors(config, source)
    return config, source


def gguf_source(file: BlockFile) -> WeightSource:
    """The file's weights under canonical names, with its quirks undone; shapes are as the file has them."""
    return _source(file, config_from_gguf(file.metadata, file.tensors))


def _source(file: BlockFile, config: ModelConfig) -> WeightSource:
    facts = facts_from_gguf(file.metadata, file.architecture)
    return GGUFSource(file, config, family_of(file.architecture), facts.feed_forward)


def rope_factors(file: BlockFile) -> RopeFactors:
    def read(name: str) -> tuple[float, ...]:
        tensor = file.tensors.get(name)
        return () if tensor is None else tuple(decode(tensor.type, file.raw(name), tensor.shape).reshape(-1).tolist())

    names = ("rope_freqs.weight", "rope_factors_short.weight", "rope_factors_long.weight")
    return RopeFactors(*map(read, names))


def config_from_gguf(
    metadata: Mapping[str, Any],
    tensor_names: Collection[str],
    factors: RopeFactors = NO_FACTORS,
    vocab_size: int | None = None,
) -> ModelConfig:
    """What the metadata describe. UnsupportedModel for an unknown architecture, BadModelFile for a missing key.

    `factors` come from tensors (see `rope_factors`); a file that has such tensors needs them for right positions.
    `vocab_size` is the number of rows of the embedding, which is right where the metadata count other tokens.
    """
    architecture = metadata.get("general.architecture")
    if not isinstance(architecture, str):
        raise BadModelFile("the model file lacks general.architecture")
    family = family_of(architecture)
    facts = facts_from_gguf(metadata, architecture)
    _check(facts)
    eps = facts.rms_eps if family.norm == "rms" else facts.layer_eps
    if eps is None:
        kind = "layer_norm_rms_epsilon" if family.norm == "rms" else "layer_norm_epsilon"
        raise BadModelFile(f"the model file lacks {architecture}.attention.{kind}")
    return ModelConfig(
        architecture=architecture,
        hidden_size=facts.hidden_size,
        vocab_size=_checked_vocab_size(facts.vocab_size if vocab_size is None else vocab_size, metadata),
        context_length=facts.context_length,
        layers=tuple(_layer(facts, family, factors, index, tensor_names) for index in range(facts.num_layers)),
        activation=family.activation,
        norm=family.norm,
        norm_eps=eps,
        embed_scale=math.sqrt(facts.hidden_size) if family.embeds_times_sqrt else 1.0,
        logit_softcap=facts.logit_softcap,
    )


def _layer(facts: Facts, family: Family, factors: RopeFactors, index: int, tensor_names: Collection[str]) -> LayerSpec:
    is_conv = f"blk.{index}.shortconv.conv.weight" in tensor_names
    mixer = _short_conv(facts) if is_conv else _attention(facts, family, factors, index)
    has_experts = facts.num_experts > 0 and index >= facts.num_dense_layers
    return LayerSpec(mixer, _moe(facts, family) if has_experts else None)


def _short_conv(facts: Facts) -> ShortConvSpec:
    if not 1 < facts.conv_kernel <= 64:
        raise BadModelFile(f"shortconv.l_cache must be between 2 and 64, not {facts.conv_kernel}")
    return ShortConvSpec(facts.conv_kernel, facts.hidden_size)


def _attention(facts: Facts, family: Family, factors: RopeFactors, index: int) -> AttentionSpec:
    num_heads = at_layer(facts.num_heads, index)
    num_kv_heads = num_heads if facts.num_kv_heads is None else at_layer(facts.num_kv_heads, index)
    if num_heads < 1 or num_kv_heads < 1 or num_heads % num_kv_heads or num_heads > MAX_WIDTH:
        raise BadModelFile(f"layer {index} has {num_heads} query heads for {num_kv_heads} key heads")
    head_dim = facts.hidden_size // num_heads if facts.head_dim is None else facts.head_dim
    windowed = facts.window > 0 and is_windowed(family.full_every, index)
    return AttentionSpec(
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        value_dim=head_dim if facts.value_dim is None else facts.value_dim,
        scale=_scale(facts, family, num_heads, head_dim),
        rope=_rope(facts, family, factors, head_dim, windowed),
        window=facts.window if windowed else None,
        softcap=facts.attention_softcap,
    )


def is_windowed(full_every: int, index: int) -> bool:
    """Of every `full_every` layers the last sees everything; 1: every layer has the window; 0: none."""
    return full_every == 1 or (full_every > 1 and index % full_every < full_every - 1)


def _scale(facts: Facts, family: Family, num_heads: int, head_dim: int) -> float:
    if facts.attention_scale:
        return facts.attention_scale
    if family.head_width_scale_at == facts.num_layers:
        return 1 / math.sqrt(facts.hidden_size / num_heads)
    return 1 / math.sqrt(head_dim)


def _rope(facts: Facts, family: Family, factors: RopeFactors, head_dim: int, windowed: bool) -> RopeSpec:
    dims = head_dim if facts.rope_dims is None else facts.rope_dims
    if dims < 2 or dims % 2 or dims > head_dim:
        raise BadModelFile(f"rope.dimension_count is {dims}, but a head has {head_dim} values")
    if windowed and family.window_rope_base:
        return RopeSpec(dims, family.window_rope_base)
    return RopeSpec(dims, facts.rope_base, _rope_scaling(facts, factors, dims))


def _rope_scaling(facts: Facts, factors: RopeFactors, dims: int) -> RopeScaling | None:
    for name in ("always", "short", "long"):
        found = getattr(factors, name)
        if found and (len(found) != dims // 2 or min(found) <= 0):
            raise BadModelFile(f"the file's rope factors are not {dims // 2} positive numbers")
    if factors.always:
        return RopeScaling("factors", short_factors=factors.always)
    if factors.short and factors.long:
        return RopeScaling(
            "longrope",
            original_context=facts.rope_original_context,
            factor=facts.context_length / max(facts.rope_original_context, 1),
            attention_factor=facts.rope_attention_factor,
            short_factors=factors.short,
            long_factors=factors.long,
        )
    return _scaling_by_name(facts)


def _scaling_by_name(facts: Facts) -> RopeScaling | None:
    if facts.rope_factor <= 0:
        raise BadModelFile(f"rope.scaling.factor must be above 0, not {facts.rope_factor}")
    if facts.rope_scaling == "linear":
        return RopeScaling("linear", facts.rope_factor)
    if facts.rope_scaling == "yarn":
        return RopeScaling(
            "yarn",
            facts.rope_factor,
            facts.rope_original_context or facts.context_length,
            beta_fast=facts.rope_beta_fast,
            beta_slow=facts.rope_beta_slow,
            attention_factor=facts.rope_attention_factor,
        )
    if facts.rope_scaling in ("none", "default", "longrope"):  # longrope without factors: nothing to scale by
        return None
    raise UnsupportedModel(f"this build does not know the rope scaling {facts.rope_scaling!r}")


def _moe(facts: Facts, family: Family) -> MoeSpec:
    if not 0 < facts.num_used_experts <= facts.num_experts <= MAX_WIDTH:
        raise BadModelFile(f"{facts.num_used_experts} of {facts.num_experts} experts cannot be used")
    normalizes = family.normalizes_experts if facts.expert_norm is None else facts.expert_norm
    return MoeSpec(facts.num_experts, facts.num_used_experts, family.scoring, normalizes, facts.expert_scale or 1.0)


def at_layer(values: tuple[int, ...], index: int) -> int:
    return values[0] if len(values) == 1 else values[index]


def _checked_vocab_size(size: int | None, metadata: Mapping[str, Any]) -> int:
    if size is None:
        tokens = metadata.get("tokenizer.ggml.tokens")
        size = len(tokens) if isinstance(tokens, (list, tuple)) else 0
    if not 0 < size <= 1 << 24:
        raise BadModelFile(f"the model file says neither vocab_size nor the tokens, or absurd ones ({size})")
    return size


def _check(facts: Facts) -> None:
    """Numbers that would make loops endless or shapes senseless; the rest is found out by the tensors' shapes."""
    bounds = (
        ("block_count", facts.num_layers, MAX_LAYERS),
        ("embedding_length", facts.hidden_size, MAX_WIDTH),
        ("context_length", facts.context_length, 1 << 31),
        ("attention.key_length", 1 if facts.head_dim is None else facts.head_dim, MAX_WIDTH),
        ("attention.value_length", 1 if facts.value_dim is None else facts.value_dim, MAX_WIDTH),
    )
    for name, value, most in bounds:
        if not 1 <= value <= most:
            raise BadModelFile(f"{name} is {value}, but must be between 1 and {most}")
    for name, values in (("head_count", facts.num_heads), ("head_count_kv", facts.num_kv_heads or (1,))):
        if len(values) not in (1, facts.num_layers):
            raise BadModelFile(f"attention.{name} has {len(values)} values for {facts.num_layers} layers")
