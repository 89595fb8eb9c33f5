"""What files say of a model: the table of fields with their GGUF key and their HF keys, required or with a default."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Final

from localllm.errors import BadModelFile

REQUIRED: Final = object()

Kind = Callable[[Any], Any]
"""Gives the checked value; ValueError when it is of another kind."""


@dataclass(frozen=True, slots=True)
class Key:
    """`gguf` lacks its architecture prefix; of the `hf` keys the first that is there counts, dots lead into objects."""

    kind: Kind
    gguf: str
    hf: tuple[str, ...]
    default: Any


def whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError("a whole number")
    return value


def real(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError("a number")
    return float(value)


def text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("a text")
    return value


def flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("true or false")
    return value


def per_layer(value: Any) -> tuple[int, ...]:
    """One number for all layers, or one for each."""
    return tuple(whole(item) for item in value) if isinstance(value, (list, tuple)) else (whole(value),)


def key(kind: Kind, gguf: str, *hf: str, default: Any = REQUIRED) -> Any:
    return field(metadata={"key": Key(kind, gguf, hf, default)})


def rope_keys(name: str) -> tuple[str, ...]:
    """Where files of transformers 5, and those before it, keep what scales rope (of layers that see everything)."""
    return f"rope_parameters.{name}", f"rope_parameters.full_attention.{name}", f"rope_scaling.{name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """The numbers of a file, checked for their kind; what a number means for a family is for mapping.py to know."""

    hidden_size: int = key(whole, "embedding_length", "hidden_size", "n_embd")
    num_layers: int = key(whole, "block_count", "num_hidden_layers", "n_layer")
    context_length: int = key(whole, "context_length", "max_position_embeddings", "n_positions")
    vocab_size: int | None = key(whole, "vocab_size", "vocab_size", default=None)
    feed_forward: tuple[int, ...] = key(per_layer, "feed_forward_length", "intermediate_size", "n_inner", default=(0,))

    num_heads: tuple[int, ...] = key(per_layer, "attention.head_count", "num_attention_heads", "n_head")
    num_kv_heads: tuple[int, ...] | None = key(
        per_layer, "attention.head_count_kv", "num_key_value_heads", default=None
    )
    head_dim: int | None = key(whole, "attention.key_length", "head_dim", default=None)
    value_dim: int | None = key(whole, "attention.value_length", "v_head_dim", default=None)
    window: int = key(whole, "attention.sliding_window", "sliding_window", default=0)
    attention_scale: float = key(real, "attention.scale", "attention_multiplier", default=0.0)
    attention_softcap: float = key(real, "attn_logit_softcapping", "attn_logit_softcapping", default=0.0)

    rms_eps: float | None = key(real, "attention.layer_norm_rms_epsilon", "rms_norm_eps", "norm_eps", default=None)
    layer_eps: float | None = key(real, "attention.layer_norm_epsilon", "layer_norm_epsilon", default=None)
    logit_softcap: float = key(real, "final_logit_softcapping", "final_logit_softcapping", default=0.0)

    rope_base: float = key(
        real,
        "rope.freq_base",
        "rope_parameters.rope_theta",
        "rope_parameters.full_attention.rope_theta",
        "rope_theta",
        default=10000.0,
    )
    rope_dims: int | None = key(whole, "rope.dimension_count", default=None)
    rope_scaling: str = key(text, "rope.scaling.type", *rope_keys("rope_type"), "rope_scaling.type", default="none")
    rope_factor: float = key(real, "rope.scaling.factor", *rope_keys("factor"), default=1.0)
    rope_original_context: int = key(
        whole, "rope.scaling.original_context_length", *rope_keys("original_max_position_embeddings"), default=0
    )
    rope_attention_factor: float = key(real, "rope.scaling.attn_factor", *rope_keys("attention_factor"), default=0.0)
    rope_beta_fast: float = key(real, "rope.scaling.yarn_beta_fast", *rope_keys("beta_fast"), default=32.0)
    rope_beta_slow: float = key(real, "rope.scaling.yarn_beta_slow", *rope_keys("beta_slow"), default=1.0)

    num_experts: int = key(whole, "expert_count", "num_local_experts", "num_experts", default=0)
    num_used_experts: int = key(whole, "expert_used_count", "num_experts_per_tok", default=0)
    num_dense_layers: int = key(whole, "leading_dense_block_count", "first_k_dense_replace", default=0)
    expert_scale: float = key(real, "expert_weights_scale", "routed_scaling_factor", default=1.0)
    expert_norm: bool | None = key(flag, "expert_weights_norm", "norm_topk_prob", default=None)

    conv_kernel: int = key(whole, "shortconv.l_cache", "conv_L_cache", default=0)


def facts_from_gguf(metadata: Mapping[str, Any], architecture: str) -> Facts:
    """BadModelFile names a required key that is missing, or one of another kind."""
    return _read(lambda row: [f"{architecture}.{row.gguf}"], metadata.get)


def facts_from_hf(config: Mapping[str, Any]) -> Facts:
    """The same of a `config.json`, where null is as good as missing."""

    def get(path: str) -> Any:
        value: Any = config
        for part in path.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        return value

    return _read(lambda row: row.hf, get)


def _read(names_of: Callable[[Key], Sequence[str]], get: Callable[[str], Any]) -> Facts:
    found: dict[str, Any] = {}
    for item in fields(Facts):
        row: Key = item.metadata["key"]
        names = names_of(row)
        name = next((name for name in names if get(name) is not None), None)
        if name is not None:
            found[item.name] = _checked(name, row.kind, get(name))
        elif row.default is REQUIRED:
            raise BadModelFile(f"the model file lacks {names[0]}")
        else:
            found[item.name] = row.default
    return Facts(**found)


def _checked(name: str, kind: Kind, value: Any) -> Any:
    try:
        return kind(value)
    except ValueError as error:
        raise BadModelFile(f"{name} must be {error}, not {value!r:.60}") from None
