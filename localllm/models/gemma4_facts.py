"""What the config.json of Gemma 4 says: layers that see everything have heads of another size, and the last layers read
the keys and values of others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from localllm.errors import BadModelFile, UnsupportedModel
from localllm.models.facts import Facts

Config = Mapping[str, Any]
_FULL_EVERY = 6


def gemma4(facts: Facts, config: Config) -> Facts:
    windowed = _windowed(facts)
    head_dim, num_kv = _heads_of_full_layers(config, windowed)
    own_dim, own_kv = facts.head_dim, facts.num_kv_heads
    if not isinstance(own_dim, int) or own_kv is None:
        raise BadModelFile("config.json lacks head_dim or num_key_value_heads")
    has_experts = config.get("enable_moe_block") is True
    return replace(
        facts,
        windowed=windowed,
        head_dim=head_dim,
        value_dim=head_dim,
        window_head_dim=own_dim,
        window_value_dim=own_dim,
        rope_dims=head_dim,
        window_rope_dims=own_dim,
        num_kv_heads=own_kv if num_kv is None else tuple(own_kv[0] if is_near else num_kv for is_near in windowed),
        num_experts=facts.num_experts if has_experts else 0,
        num_used_experts=_whole(config, "top_k_experts") if has_experts else 0,
        token_inputs=facts.token_inputs or 0,
    )


def _windowed(facts: Facts) -> tuple[bool, ...]:
    """Which layers have the window; the last never has."""
    windowed = facts.windowed
    if not isinstance(windowed, tuple) or not windowed:
        windowed = tuple(facts.window > 0 and (index + 1) % _FULL_EVERY != 0 for index in range(facts.num_layers))
    return (*windowed[:-1], False)


def _heads_of_full_layers(config: Config, windowed: tuple[bool, ...]) -> tuple[int, int | None]:
    """Their size and number; None: as many as the others have. Said by keys of their own, or layer by layer."""
    per_layer = _by_number(config.get("per_layer_config"))
    if per_layer is None:
        same = config.get("attention_k_eq_v") is not True or config.get("num_global_key_value_heads") is None
        return _whole(config, "global_head_dim", 512), None if same else _whole(config, "num_global_key_value_heads")
    found = {_of_layer(per_layer, index, config) for index, is_near in enumerate(windowed) if not is_near}
    others = {index for index, is_near in enumerate(windowed) if is_near and index in per_layer}
    if len(found) != 1 or others:
        raise UnsupportedModel("per_layer_config says more than the two kinds of attention that this build knows")
    return found.pop()


def _by_number(per_layer: Any) -> Mapping[int, Any] | None:
    """transformers writes all numbers as wide as the last: "05" of 30 layers, "5" of six."""
    if not isinstance(per_layer, Mapping):
        return None
    if not all(str(name).isdecimal() for name in per_layer):
        raise BadModelFile(f"per_layer_config must have numbers of layers, not {list(per_layer)!r:.60}")
    return {int(name): own for name, own in per_layer.items()}


def _of_layer(per_layer: Mapping[int, Any], index: int, config: Config) -> tuple[int, int | None]:
    own = per_layer.get(index, {})
    if not isinstance(own, Mapping) or not {"head_dim", "num_key_value_heads"}.issuperset(own):
        raise UnsupportedModel(f"per_layer_config says of layer {index} what this build does not know: {own!r:.100}")
    num_kv = _whole(own, "num_key_value_heads") if "num_key_value_heads" in own else None
    return _whole(own if "head_dim" in own else config, "head_dim"), num_kv


def _whole(config: Config, name: str, default: int | None = None) -> int:
    value = config.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise BadModelFile(f"{name} must be a whole number above 0, not {value!r:.60}")
    return value
