"""Facts of a file and a row of families.py to one ModelConfig; refuses numbers that make no model."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import replace

from localllm.errors import BadModelFile, UnsupportedModel
from localllm.models.config import (
    Activation,
    AttentionSpec,
    LatentSpec,
    LayerSpec,
    Mixer,
    ModelConfig,
    PositionGrowth,
    RopeSpec,
    ShortConvSpec,
)
from localllm.models.delta_facts import delta_net, is_delta_net
from localllm.models.expert_facts import moe_spec
from localllm.models.facts import Facts
from localllm.models.family import Family
from localllm.models.rope_facts import RopeFactors, mscale, rope_spec
from localllm.models.shared_kv import kv_source
from localllm.models.state_space_facts import has_state_space, state_space_spec

MAX_LAYERS = 1024  # far above any model; a hostile count must not become a long loop
MAX_WIDTH = 1 << 20
MAX_CONTEXT = (1 << 31) - 1  # positions are 32-bit numbers
MAX_STREAMS = 16

_ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "relu2": "relu2",
}


def config_from_facts(
    facts: Facts, family: Family, tensor_names: Collection[str], factors: RopeFactors, vocab_size: int
) -> ModelConfig:
    """`tensor_names` are canonical: they tell convolutions and experts from other layers."""
    facts = without_guessing_layers(facts)
    if facts.is_causal is family.is_encoder:
        raise UnsupportedModel(
            f"this build does not know {family.architecture} with attention.causal = {str(facts.is_causal).lower()}"
        )
    _check(facts)
    eps = facts.rms_eps if family.norm == "rms" else facts.layer_eps
    if eps is None:
        kind = "layer_norm_rms_epsilon" if family.norm == "rms" else "layer_norm_epsilon"
        raise BadModelFile(f"the model file lacks {family.architecture}.attention.{kind}")
    if eps < 0:
        raise BadModelFile(f"the epsilon of norms must not be negative, as {eps} is")
    if facts.logit_scale == 0:
        raise BadModelFile("logit_scale must not be 0")
    return ModelConfig(
        architecture=family.architecture,
        hidden_size=facts.hidden_size,
        vocab_size=vocab_size,
        context_length=facts.context_length,
        layers=_with_values_of_keys(
            [_layer(facts, family, factors, index, tensor_names) for index in range(facts.num_layers)],
            facts,
            family,
            tensor_names,
        ),
        activation=activation(facts, family),
        norm=family.norm,
        norm_eps=eps,
        embed_scale=math.sqrt(facts.hidden_size) if family.embeds_times_sqrt else facts.embed_scale or 1.0,
        residual_scale=facts.residual_scale,
        logit_scale=1 / facts.logit_scale if family.divides_logits else facts.logit_scale,
        logit_softcap=facts.logit_softcap or family.logit_softcap,
        learned_positions=family.learned_positions,
        parallel=_is_parallel(facts, family, tensor_names),
        is_encoder=family.is_encoder,
        token_inputs=facts.token_inputs or 0,
        streams=_streams(facts),
    )


def _spread(facts: Facts, index: int) -> float | None:
    """Where the layer's gate is cut."""
    if not facts.spreads:
        return None
    if len(facts.spreads) != facts.num_layers:
        raise BadModelFile(f"activation_sparsity_scale has {len(facts.spreads)} values for {facts.num_layers} layers")
    return None if facts.spreads[index] == -math.inf else facts.spreads[index]


def _streams(facts: Facts) -> int:
    if facts.streams and (facts.active_stream or not 2 <= facts.streams <= MAX_STREAMS or not facts.token_inputs):
        raise UnsupportedModel(
            f"this build does not know {facts.streams} streams (altup) of which the one with the number "
            f"{facts.active_stream} is computed, and layers take {facts.token_inputs} inputs of their own"
        )
    return facts.streams


def without_guessing_layers(facts: Facts) -> Facts:
    """What is said of each layer is said of those that guess further tokens, too, which are the last."""
    count = facts.num_layers - facts.num_guessing_layers
    if not facts.num_guessing_layers:
        return facts
    kv, windowed = facts.num_kv_heads, facts.windowed
    return replace(
        facts,
        num_layers=count,
        num_heads=facts.num_heads[:count] if len(facts.num_heads) > 1 else facts.num_heads,
        num_kv_heads=kv[:count] if kv is not None and len(kv) > 1 else kv,
        windowed=windowed[:count] if isinstance(windowed, tuple) else windowed,
    )


def _is_parallel(facts: Facts, family: Family, tensor_names: Collection[str]) -> bool:
    """Whether attention and feed-forward take the same input: by rule, as the file says, or for want of a norm."""
    if family.parallel in ("always", "never"):
        return family.parallel == "always"
    if family.parallel == "with one norm":
        return not any(name.endswith(".ffn_norm.weight") for name in tensor_names)
    return facts.parallel is not False


def activation(facts: Facts, family: Family) -> Activation:
    """What the checkpoint names, or the family's own where it names none or the name says less than the family."""
    if not facts.activation or family.activation == "swiglu_oai":  # whatever it is called
        return family.activation
    if facts.activation not in _ACTIVATIONS:
        raise UnsupportedModel(f"this build does not know the activation {facts.activation!r}")
    return _ACTIVATIONS[facts.activation]


def _layer(facts: Facts, family: Family, factors: RopeFactors, index: int, tensor_names: Collection[str]) -> LayerSpec:
    mixer = _mixer(facts, family, factors, index, tensor_names)
    has_router = f"blk.{index}.ffn_gate_inp.weight" in tensor_names
    is_dense = index < facts.num_dense_layers or (f"blk.{index}.ffn_down.weight" in tensor_names and not has_router)
    has_experts = facts.num_experts > 0 and not is_dense
    choice_bias = f"blk.{index}.exp_probs_b.bias" in tensor_names
    experts = moe_spec(facts, family, choice_bias) if has_experts else None
    if family.has_halves and mixer is not None:
        return LayerSpec(mixer, feeds=False)
    stands_beside = isinstance(mixer, AttentionSpec) and has_state_space(index, tensor_names)
    spread = _spread(facts, index)
    return LayerSpec(mixer, experts, spread=spread, beside=state_space_spec(facts) if stands_beside else None)


def _mixer(
    facts: Facts, family: Family, factors: RopeFactors, index: int, tensor_names: Collection[str]
) -> Mixer | None:
    """What tensors of the layer tell it is."""
    attends = f"blk.{index}.attn_q.weight" in tensor_names
    if has_state_space(index, tensor_names) and not attends:
        return state_space_spec(facts)
    if family.has_halves and not attends:
        return None
    if f"blk.{index}.shortconv.conv.weight" in tensor_names:
        return _short_conv(facts)
    if is_delta_net(index, tensor_names):
        return delta_net(facts, family.tiles_delta_heads)
    return _attention(facts, family, factors, index)


def _short_conv(facts: Facts) -> ShortConvSpec:
    if not 1 < facts.conv_kernel <= 64:
        raise BadModelFile(f"shortconv.l_cache must be between 2 and 64, not {facts.conv_kernel}")
    return ShortConvSpec(facts.conv_kernel, facts.hidden_size)


def _attention(facts: Facts, family: Family, factors: RopeFactors, index: int) -> AttentionSpec:
    num_heads = at_layer(facts.num_heads, index)
    num_kv_heads = num_heads if facts.num_kv_heads is None else at_layer(facts.num_kv_heads, index)
    if num_heads < 1 or num_kv_heads < 1 or num_heads % num_kv_heads or num_heads > MAX_WIDTH:
        raise BadModelFile(f"layer {index} has {num_heads} query heads for {num_kv_heads} key heads")
    if facts.kv_rank:
        return _latent_attention(facts, family, factors, num_heads)
    windowed = facts.window > 0 and has_window(facts, family, index)
    head_dim = facts.hidden_size // num_heads if facts.head_dim is None else facts.head_dim
    value_dim = head_dim if facts.value_dim is None else facts.value_dim
    if windowed and facts.window_head_dim:
        head_dim, value_dim = facts.window_head_dim, facts.window_value_dim or facts.window_head_dim
    rope = rope_spec(facts, family, factors, head_dim, windowed) if has_rope(facts, family, index) else None
    return AttentionSpec(
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        value_dim=value_dim,
        scale=_scale(facts, family, num_heads, head_dim),
        rope=rope,
        window=_window(facts, family) if windowed else None,
        softcap=facts.attention_softcap,
        causal=not family.is_encoder,
        query_growth=_query_growth(facts, rope, head_dim),
        gated=family.gates_attention,
        kv_from=kv_source(facts.num_shared_kv, index, _windows(facts, family)),
        norms_values=family.norms_values,
    )


def _windows(facts: Facts, family: Family) -> tuple[bool, ...]:
    """Which layers have the window."""
    return tuple(facts.window > 0 and has_window(facts, family, index) for index in range(facts.num_layers))


def _with_values_of_keys(
    layers: list[LayerSpec], facts: Facts, family: Family, tensor_names: Collection[str]
) -> tuple[LayerSpec, ...]:
    """Layers without a window that all lack a matrix for values make them with the keys' one."""
    owners = [
        index
        for index, layer in enumerate(layers)
        if isinstance(layer.mixer, AttentionSpec) and layer.mixer.window is None and layer.mixer.kv_from is None
    ]
    if not family.norms_values or facts.values_are_keys is False:
        return tuple(layers)
    if any(f"blk.{index}.attn_v.weight" in tensor_names for index in owners):
        return tuple(layers)
    for index in owners:
        mixer = layers[index].mixer
        assert isinstance(mixer, AttentionSpec), "as chosen just now"
        layers[index] = replace(layers[index], mixer=replace(mixer, values_are_keys=True))
    return tuple(layers)


def _window(facts: Facts, family: Family) -> int:
    """Tokens to each side, the token itself included: those who see both ways have half of what files say."""
    return facts.window // 2 + 1 if family.is_encoder else facts.window


def _latent_attention(facts: Facts, family: Family, factors: RopeFactors, num_heads: int) -> AttentionSpec:
    """Old files tell the sizes of heads where new ones tell those of the cache."""
    key_dim = facts.latent_key_dim or facts.head_dim or 0
    value_dim = facts.latent_value_dim or facts.value_dim or 0
    turned = facts.rope_dims or 0
    bounds = (("kv_lora_rank", facts.kv_rank), ("q_lora_rank", facts.query_rank), ("value_length_mla", value_dim))
    for name, value in (*bounds, ("key_length_mla", key_dim)):
        if not 0 <= value <= MAX_WIDTH:
            raise BadModelFile(f"attention.{name} is {value}, but must be between 1 and {MAX_WIDTH}")
    if not 0 < turned < key_dim or value_dim < 1:
        raise BadModelFile(f"heads of {key_dim} values of which {turned} turn, and of {value_dim}, make no attention")
    rope = rope_spec(facts, family, factors, turned, windowed=False)
    longer = 1.0
    if rope.scaling is not None and rope.scaling.kind == "yarn":
        longer = mscale(rope.scaling.factor, facts.rope_log_multiplier)
    return AttentionSpec(
        num_heads=num_heads,
        num_kv_heads=1,
        head_dim=facts.kv_rank + turned,
        value_dim=facts.kv_rank,
        scale=longer * longer / math.sqrt(key_dim),
        rope=rope,
        latent=LatentSpec(facts.query_rank, facts.kv_rank, key_dim - turned, value_dim),
    )


def has_window(facts: Facts, family: Family, index: int) -> bool:
    """What the file says of the layer, or the rule of its family."""
    if isinstance(facts.windowed, int):
        return is_windowed(facts.windowed, index, family.full_first)
    if not facts.windowed:
        return is_windowed(family.full_every, index, family.full_first)
    if len(facts.windowed) != facts.num_layers:
        raise BadModelFile(f"sliding_window_pattern has {len(facts.windowed)} values for {facts.num_layers} layers")
    return facts.windowed[index]


def has_rope(facts: Facts, family: Family, index: int) -> bool:
    if not facts.has_rope or not family.turns or family.learned_positions:
        return False
    if facts.rope_layers:
        if len(facts.rope_layers) != facts.num_layers:
            raise BadModelFile(f"no_rope_layers has {len(facts.rope_layers)} values for {facts.num_layers} layers")
        return facts.rope_layers[index]
    if family.turns_windowed and facts.window > 0:
        return has_window(facts, family, index)
    return not family.rope_pause or (index + 1) % family.rope_pause != 0


def _query_growth(facts: Facts, rope: RopeSpec | None, head_dim: int) -> PositionGrowth | None:
    if not facts.temperature_scale:
        return None
    if rope is None or rope.dims != head_dim or facts.rope_original_context < 1:
        raise UnsupportedModel("attention.temperature_scale needs whole heads that turn, and the original context")
    return PositionGrowth(facts.temperature_scale, facts.rope_original_context)


def is_windowed(full_every: int, index: int, full_first: bool = False) -> bool:
    """Of every `full_every` layers the last, or the first, sees everything; 1: every layer has the window; 0: none."""
    if full_first and full_every > 1:
        return index % full_every != 0
    return full_every == 1 or (full_every > 1 and index % full_every < full_every - 1)


def _scale(facts: Facts, family: Family, num_heads: int, head_dim: int) -> float:
    if facts.attention_scale or family.attention_scale:
        return facts.attention_scale or family.attention_scale
    if family.head_width_scale_at == facts.num_layers:
        return 1 / math.sqrt(facts.hidden_size / num_heads)
    return 1 / math.sqrt(head_dim)


def at_layer(values: tuple[int, ...], index: int) -> int:
    return values[0] if len(values) == 1 else values[index]


def _check(facts: Facts) -> None:
    """Numbers that would make loops endless or shapes senseless; the rest is found out by the tensors' shapes."""
    bounds = (
        ("block_count", facts.num_layers, MAX_LAYERS),
        ("embedding_length", facts.hidden_size, MAX_WIDTH),
        ("context_length", facts.context_length, MAX_CONTEXT),
        ("attention.key_length", 1 if facts.head_dim is None else facts.head_dim, MAX_WIDTH),
        ("attention.value_length", 1 if facts.value_dim is None else facts.value_dim, MAX_WIDTH),
        ("attention.key_length_swa", facts.window_head_dim or 1, MAX_WIDTH),
        ("attention.value_length_swa", facts.window_value_dim or 1, MAX_WIDTH),
        ("embedding_length_per_layer_input", facts.token_inputs or 1, MAX_WIDTH),
        ("attention.sliding_window", facts.window or 1, MAX_CONTEXT),
        ("attention.shared_kv_layers", facts.num_shared_kv + 1, facts.num_layers),
    )
    for name, value, most in bounds:
        if not 1 <= value <= most:
            raise BadModelFile(f"{name} is {value}, but must be between 1 and {most}")
    for name, values in (
        ("head_count", facts.num_heads),
        ("head_count_kv", (1,) if facts.num_kv_heads is None else facts.num_kv_heads),
    ):
        if len(values) not in (1, facts.num_layers):
            raise BadModelFile(f"attention.{name} has {len(values)} values for {facts.num_layers} layers")
