"""What a `config.json` means in the terms of GGUF: differences of wording between families, undone one by one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from localllm.errors import BadModelFile, UnsupportedModel
from localllm.models.facts import Facts, facts_from_config
from localllm.models.families import FAMILIES, family_of_type, helper_refused, is_helper, sees_both_ways
from localllm.models.family import Family
from localllm.models.hf_families import adjusted
from localllm.models.hf_usual import with_usual
from localllm.models.ready.methods import method_of
from localllm.models.rope_facts import RopeFactors, mscale, natural_length
from localllm.models.state_space_facts import architecture_of, counted, layer_types_of

Config = Mapping[str, Any]

_TURNS_PART = (
    *("phi3", "glm", "glm4", "glm4_moe", "stablelm", "gpt_neox", "bamba"),
    *("qwen3_next", "qwen3_5_text", "qwen3_5", "qwen3_5_moe_text", "qwen3_5_moe"),
)
"""Types of which a part of each head may turn; transformers turns whole heads of the others, or falls over."""
_LAYER_TYPES = ("full_attention", "sliding_attention", "conv", "linear_attention")
_REFUSED_FLAGS = {
    # what changes the arithmetic of a family that is otherwise known
    "scale_attn_by_inverse_layer_idx": "attention scaled by the layer's number",
    "use_bidirectional_attention": "attention in both directions",
    "add_cross_attention": "cross attention",
    "clip_qkv": "clipped queries, keys and values",
}


def text_config(config: Config) -> Config:
    """The part about the language model: multimodal checkpoints keep it apart."""
    inner = config.get("text_config")
    if not isinstance(inner, Mapping):
        return config
    outer = {name: config[name] for name in ("tie_word_embeddings", "quantization_config") if name in config}
    return {**outer, **inner}


def check_config(config: Config) -> Family:
    """The family of a checkpoint. UnsupportedModel by name: unknown types, remote code, quantizations, odd flags."""
    inner = text_config(config)
    model_type = inner.get("model_type")
    if not isinstance(model_type, str):
        raise BadModelFile("config.json lacks model_type", hint="take the folder from the hub as it is there")
    if is_helper(str(config.get("model_type"))):
        raise helper_refused(str(config["model_type"]))
    family = _family_of(inner)
    if family is None:
        reason = f"this build cannot run the architecture {model_type!r}"
        if config.get("auto_map"):
            reason = f"the model {model_type!r} needs code from its own repository, which localllm never runs"
        raise UnsupportedModel(reason, hint="it runs " + ", ".join(sorted(known_types())))
    method_of(config)
    for name, meaning in _REFUSED_FLAGS.items():
        if inner.get(name) and inner[name] != "vision" and not sees_both_ways(inner):  # vision: of pictures only
            raise UnsupportedModel(f"config.json asks for {meaning} ({name}), which this build does not know")
    for name, value in (("swiglu_limit", 7.0), ("swiglu_alpha", 1.702)):
        if inner.get(name) not in (None, value):
            raise UnsupportedModel(f"{name} is {inner[name]}, but this build knows only {value}")
    return family


def _family_of(config: Config) -> Family | None:
    """By its type, and where that is of several families by its layers."""
    architecture = "gemma-embedding" if sees_both_ways(config) else architecture_of(config)
    return family_of_type(str(config["model_type"])) if architecture is None else FAMILIES[architecture]


def known_types() -> set[str]:
    """Every `model_type` that is of some family."""
    return {name for family in FAMILIES.values() for name in family.hf}


def facts_from_hf(config: Config) -> Facts:
    """The facts of a checkpoint, told as a GGUF file would. BadModelFile names a key that is missing or odd."""
    family = check_config(config)
    told = _with_one_rope(text_config(config))
    named = {name: value for name, value in counted(with_usual(told)).items() if value is not None}
    inner = {**dict(family.hf_defaults), **named}
    facts = facts_from_config(inner)
    if family.turns:
        _check_rope(facts, family, inner)
    for adjust in (_layers, _attention, _rope, adjusted):
        facts = adjust(facts, inner)
    return replace(facts, num_guessing_layers=0)  # they are not among the layers that are counted


def _with_one_rope(config: Config) -> Config:
    """The same where rope is said twice: as in transformers, `rope_scaling`, the older word, stands for the newer one,
    or for its part about layers that see everything."""
    scaling, newer = (_object(config, name) for name in ("rope_scaling", "rope_parameters"))
    whole, _ = (_object(newer, name) for name in ("full_attention", "sliding_attention"))
    if not scaling or not newer:
        return config
    if not any(isinstance(part, Mapping) for part in newer.values()):
        return {**config, "rope_parameters": scaling}
    return {
        **config,
        "rope_parameters": {**newer, "full_attention": {**whole, **scaling}},
    }


def _object(table: Config, name: str) -> Config:
    """Empty where it says nothing; BadModelFile where it is something else."""
    value = table.get(name) or {}
    if not isinstance(value, Mapping):
        raise BadModelFile(f"{name} must be an object, not {value!r}"[:500])
    return value


def _check_rope(facts: Facts, family: Family, config: Config) -> None:
    """UnsupportedModel for a part of heads, and for layers with a window, that turn as no row here knows."""
    is_part = facts.rope_share != 1 and facts.rope_scaling != "proportional"
    if is_part and config["model_type"] not in _TURNS_PART:
        raise UnsupportedModel(
            f"config.json says that {facts.rope_share} of each head turns (partial_rotary_factor), "
            f"which this build does not know of {config['model_type']}"
        )
    said = _object(config, "rope_parameters")
    if not isinstance(said.get("sliding_attention"), Mapping):
        return
    if _scaling_of(said["sliding_attention"]) != (
        _scaling_of(_object(said, "full_attention")) if family.scales_windowed else {}
    ):
        raise UnsupportedModel(
            "config.json scales the rope of layers with a window in another way (rope_parameters.sliding_attention), "
            f"which this build does not know of {config['model_type']}"
        )


def _scaling_of(part: Config) -> Config:
    """All but the base and what changes nothing."""
    plain = {"rope_type": "default", "type": "default", "partial_rotary_factor": 1}
    return {name: value for name, value in part.items() if name != "rope_theta" and value != plain.get(name)}


def _layers(facts: Facts, config: Config) -> Facts:
    """Which layers have the window."""
    types = config.get("layer_types")
    if isinstance(types, list):
        known = (*_LAYER_TYPES, *layer_types_of(config))
        unknown = [str(item) for item in types if item not in known]
        if unknown:
            raise UnsupportedModel(f"this build cannot run layers of the type {unknown[0]!r}")
    if config.get("use_sliding_window") is False or not facts.window:
        return replace(facts, window=0, windowed=())
    if isinstance(types, list) and not any(facts.windowed if isinstance(facts.windowed, tuple) else ()):
        return replace(facts, window=0, windowed=())
    first = config.get("max_window_layers")
    if not facts.windowed and isinstance(first, int):
        return replace(facts, windowed=tuple(index >= first for index in range(facts.num_layers)))
    return facts


def _attention(facts: Facts, config: Config) -> Facts:
    if facts.value_dim is None:
        facts = replace(facts, value_dim=facts.head_dim)
    scalar = config.get("query_pre_attn_scalar")
    if isinstance(scalar, (int, float)) and scalar > 0:
        return replace(facts, attention_scale=scalar**-0.5)
    if config.get("scale_attn_weights") is False:
        return replace(facts, attention_scale=1.0)
    return facts


def _rope(facts: Facts, config: Config) -> Facts:
    head_dim = facts.head_dim or facts.hidden_size // max(facts.num_heads[0], 1)
    kind = {"default": "none", "su": "longrope"}.get(facts.rope_scaling, facts.rope_scaling)
    share = 1.0 if kind == "proportional" else facts.rope_share  # a share of the frequencies, not of the head
    facts = replace(facts, rope_scaling=kind, rope_dims=int(head_dim * share))
    if facts.kv_rank and facts.rope_log_multiplier and kind not in ("none", "yarn"):
        raise UnsupportedModel(f"this build knows mscale_all_dim only with yarn, and config.json says {kind}")
    if kind == "none":
        return replace(facts, rope_factor=None)
    if kind in ("llama3", "longrope", "yarn"):
        facts = replace(facts, rope_original_context=facts.rope_original_context or facts.context_length)
    if kind == "dynamic":
        return _plain_up_to_its_context(facts, config)
    if kind != "yarn":
        return facts
    factor = facts.rope_factor or facts.context_length / max(facts.rope_original_context, 1)
    if facts.kv_rank and facts.rope_log_multiplier and facts.rope_mscale is None:
        raise UnsupportedModel("config.json has mscale_all_dim without mscale, which this build does not know")
    multiplier = facts.rope_log_multiplier if facts.rope_mscale is not None else 0.0
    facts = replace(facts, rope_log_multiplier=multiplier)
    natural = natural_length(facts, factor)
    wanted = natural
    if multiplier:
        wanted = mscale(factor, facts.rope_mscale or 1.0) / mscale(factor, multiplier)
    return replace(
        facts,
        rope_factor=factor,
        # here a multiplier of what the other numbers give, there the whole factor
        rope_attention_factor=(facts.rope_attention_factor or wanted) / natural,
    )


def _plain_up_to_its_context(facts: Facts, config: Config) -> Facts:
    """A base that grows with the sequence only where that is longer than max_position_embeddings, which is as far as we
    go: keys that were turned by another base would have to be made anew. llama.cpp's converter does the same; vLLM
    takes the base of the longest sequence for all, which changes the short ones."""
    if any(_object(config, name).get("alpha") for name in ("rope_parameters", "rope_scaling")):
        raise UnsupportedModel("this build does not know rope scaling that is dynamic by alpha")
    return replace(facts, rope_scaling="none", rope_factor=None)


def guessing_layers_from(facts: Facts, config: Config) -> int | None:
    """The number of the first layer that only guesses further tokens, where the checkpoint has such layers."""
    return facts.num_layers if text_config(config).get("num_nextn_predict_layers") else None


def hf_rope_factors(facts: Facts) -> RopeFactors:
    return RopeFactors(short=facts.rope_short_factors, long=facts.rope_long_factors)
