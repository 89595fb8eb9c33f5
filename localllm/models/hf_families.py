"""What the config.json of single families says in words of its own, or leaves out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from localllm.errors import BadModelFile, UnsupportedModel
from localllm.models.delta_facts import delta_net_facts, qwen35_facts
from localllm.models.facts import Facts
from localllm.models.families import sees_both_ways
from localllm.models.gemma3n_facts import gemma3n
from localllm.models.gemma4_facts import gemma4
from localllm.models.state_space_facts import bamba, falcon_h1, granite_hybrid, mamba2, nemotron_h

Config = Mapping[str, Any]
_AFTER_PADDING = ("roberta", "xlm-roberta", "camembert")
_NO_SUM = 1e-6
SOFTMAX, SIGMOID = 1, 2  # as GGUF files number what scores experts


def adjusted(facts: Facts, config: Config) -> Facts:
    """The same facts, corrected for the checkpoint's `model_type`."""
    adjust = _ADJUST.get(config["model_type"])
    return facts if adjust is None else adjust(facts, config)


def _gpt2(facts: Facts, config: Config) -> Facts:
    """The width is left out where it is the usual one."""
    inner = config.get("n_inner")
    return replace(facts, feed_forward=(inner if isinstance(inner, int) else 4 * facts.hidden_size,))


def _bert(facts: Facts, config: Config) -> Facts:
    """UnsupportedModel for those that write, and for other positions."""
    kind = config.get("position_embedding_type")
    if kind not in (None, "absolute"):
        raise UnsupportedModel(f"this build does not know the positions {kind!r} (position_embedding_type)")
    if config.get("is_decoder"):
        raise UnsupportedModel("this build knows encoders only as encoders, and config.json says is_decoder")
    return replace(
        facts, is_causal=False, rope_dims=None, context_length=facts.context_length - padding_positions(config)
    )


def _gemma(facts: Facts, config: Config) -> Facts:
    """The first checkpoints say gelu and mean the other one; transformers reads them so, too."""
    return replace(facts, activation="gelu_pytorch_tanh") if facts.activation == "gelu" else facts


def _gemma3(facts: Facts, config: Config) -> Facts:
    """EmbeddingGemma is one that sees both ways. Scores have no cap, whatever is said."""
    return replace(facts, attention_softcap=0.0, is_causal=False if sees_both_ways(config) else facts.is_causal)


def _nomic_bert(facts: Facts, config: Config) -> Facts:
    """The first checkpoints have words of their own: swiglu, and the context that they were trained on."""
    if config.get("prenorm"):
        raise UnsupportedModel("this build knows Nomic-BERT only with norms of the sums, and config.json says prenorm")
    trained = config.get("max_trained_positions")
    return replace(
        facts,
        is_causal=False,
        activation="silu" if facts.activation == "swiglu" else facts.activation,
        context_length=trained if isinstance(trained, int) and trained > 0 else facts.context_length,
    )


def _modern_bert(facts: Facts, config: Config) -> Facts:
    """Its windows are said by their whole width, and by the layers that have none."""
    types, every = config.get("layer_types"), config.get("global_attn_every_n_layers")
    windowed: tuple[bool, ...] | int = every if isinstance(every, int) and every > 0 else 3
    if isinstance(types, list):
        windowed = tuple(item == "sliding_attention" for item in types)
    facts = replace(facts, is_causal=False, windowed=windowed, window=_size(config, "local_attention"))
    eps = config.get("norm_eps")
    facts = replace(facts, layer_eps=float(eps) if isinstance(eps, (int, float)) else None)
    if "rope_parameters" in config:
        return facts
    bases = [
        config.get(name, usual) for name, usual in (("global_rope_theta", 160000.0), ("local_rope_theta", 10000.0))
    ]
    if not all(isinstance(base, (int, float)) for base in bases):
        raise BadModelFile(f"global_rope_theta and local_rope_theta must be numbers, not {bases!r:.60}")
    return replace(facts, rope_base=float(bases[0]), window_rope_base=float(bases[1]))


def padding_positions(config: Config) -> int:
    """How many of the positions that a checkpoint counts are before its first token: RoBERTa begins behind the number
    of its padding token."""
    if config.get("model_type") not in _AFTER_PADDING:
        return 0
    padding = config.get("pad_token_id")
    return 1 + (padding if isinstance(padding, int) and 0 <= padding < 1 << 16 else 1)


def _gpt_oss(facts: Facts, config: Config) -> Facts:
    """Checkpoints that do not say it truncate, GGUF files do not."""
    truncates = facts.rope_truncates is not False
    return replace(facts, expert_width=facts.feed_forward[0], rope_truncates=truncates)


def _granite_shared(facts: Facts, config: Config) -> Facts:
    shared = config.get("shared_intermediate_size")
    return replace(facts, shared_expert_width=shared) if isinstance(shared, int) else facts


def _cohere(facts: Facts, config: Config) -> Facts:
    """The first of them were trained on longer contexts than max_position_embeddings says."""
    longest = config.get("model_max_length")
    return replace(facts, context_length=longest) if isinstance(longest, int) else facts


def _cohere2(facts: Facts, config: Config) -> Facts:
    """Only layers with a window turn."""
    return facts if facts.window else replace(facts, has_rope=False)


def _exaone4(facts: Facts, config: Config) -> Facts:
    """Where a window is named only layers that have it turn, be it that none has."""
    if config.get("sliding_window") is None or facts.window:
        return facts
    return replace(facts, rope_layers=(False,) * facts.num_layers)


def _gpt_neox(facts: Facts, config: Config) -> Facts:
    """Every head has keys of its own, whatever else is said."""
    return replace(facts, num_kv_heads=facts.num_heads)


def _falcon(facts: Facts, config: Config) -> Facts:
    """UnsupportedModel for the first ones, which have other positions."""
    if config.get("alibi"):
        raise UnsupportedModel("config.json asks for attention by distance (alibi), which this build does not know")
    if not config.get("parallel_attn", True):
        raise UnsupportedModel("this build knows Falcon only with attention beside the feed-forward (parallel_attn)")
    width, heads = config.get("ffn_hidden_size"), facts.num_heads[0]
    if config.get("new_decoder_architecture"):
        num_kv = config.get("num_kv_heads")
        heads = num_kv if isinstance(num_kv, int) else heads
    elif config.get("multi_query", True):
        heads = 1
    width = width if isinstance(width, int) else 4 * facts.hidden_size
    return replace(facts, num_kv_heads=(heads,), feed_forward=(width,))


def _ernie_experts(facts: Facts, config: Config) -> Facts:
    """UnsupportedModel for a least sum of weights that would be met: published ones only keep from dividing by 0."""
    least = config.get("moe_norm_min", 0.0)
    if not isinstance(least, (int, float)) or least > _NO_SUM:
        raise UnsupportedModel(
            f"this build does not know weights of experts that sum up to {least!r:.60} (moe_norm_min)"
        )
    return replace(facts, shared_expert_width=facts.expert_width * facts.num_shared_experts)


def _sigmoid_experts(facts: Facts, config: Config) -> Facts:
    return replace(facts, expert_gating=SIGMOID)


def _deepseek2(facts: Facts, config: Config) -> Facts:
    """Its experts are chosen by groups only where the method says so."""
    by_groups = config.get("topk_method") == "group_limited_greedy"
    if not by_groups:
        facts = replace(facts, num_expert_groups=0, num_used_groups=0)
    return _latent(replace(facts, expert_gating=SOFTMAX, expert_norm=False), config)


def _deepseek3(facts: Facts, config: Config) -> Facts:
    types = config.get("mlp_layer_types")
    if isinstance(types, list):
        dense = next((index for index, kind in enumerate(types) if kind != "dense"), len(types))
        facts = replace(facts, num_dense_layers=dense)
    return _latent(_sigmoid_experts(facts, config), config)


def _latent(facts: Facts, config: Config) -> Facts:
    """Sizes of the cache, as GGUF files tell them, from those of heads."""
    plain, turned, values = (_size(config, f"{name}_head_dim") for name in ("qk_nope", "qk_rope", "v"))
    return replace(
        facts,
        num_kv_heads=(1,),
        head_dim=facts.kv_rank + turned,
        value_dim=facts.kv_rank,
        latent_key_dim=plain + turned,
        latent_value_dim=values,
        rope_dims=turned,
    )


def _size(config: Config, name: str) -> int:
    value = config.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise BadModelFile(f"{name} must be a whole number above 0, not {value!r:.60}")
    return value


_ADJUST: Mapping[str, Callable[[Facts, Config], Facts]] = MappingProxyType(
    {
        "bert": _bert,
        "gemma": _gemma,
        "gemma3_text": _gemma3,
        "nomic_bert": _nomic_bert,
        "modernbert": _modern_bert,
        **dict.fromkeys(_AFTER_PADDING, _bert),
        "gemma3n_text": gemma3n,
        "gemma4_text": gemma4,
        "gemma4_unified_text": gemma4,
        "gpt2": _gpt2,
        "gpt_oss": _gpt_oss,
        "granitemoehybrid": granite_hybrid,
        "bamba": bamba,
        "falcon_h1": falcon_h1,
        "nemotron_h": nemotron_h,
        "mamba2": mamba2,
        "granitemoeshared": _granite_shared,
        "cohere": _cohere,
        "cohere2": _cohere2,
        "exaone4": _exaone4,
        "gpt_neox": _gpt_neox,
        "falcon": _falcon,
        "ernie4_5_moe": _ernie_experts,
        "glm4_moe": _sigmoid_experts,
        "lfm2_moe": _sigmoid_experts,
        "qwen3_next": delta_net_facts,
        **dict.fromkeys(("qwen3_5_text", "qwen3_5", "qwen3_5_moe_text", "qwen3_5_moe"), qwen35_facts),
        "deepseek_v2": _deepseek2,
        "deepseek_v3": _deepseek3,
        "glm4_moe_lite": _deepseek3,
    }
)
