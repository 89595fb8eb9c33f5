"""Facts of a file about gated delta nets to their spec, and what a config.json says of them in words of its own."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from localllm.errors import BadModelFile, UnsupportedModel
from localllm.models.config import DeltaNetSpec
from localllm.models.facts import Facts

MAX_HEADS, MAX_HEAD_DIM, MAX_KERNEL = 1 << 16, 1 << 12, 64
USUAL_INTERVAL = 4
"""Of so many layers the last attends, where a file does not say."""
_MARKS = ("ssm_beta.weight", "ssm_ba.weight")


def is_delta_net(index: int, tensor_names: Collection[str]) -> bool:
    return any(f"blk.{index}.{mark}" in tensor_names for mark in _MARKS)


def delta_net(facts: Facts, tiled: bool) -> DeltaNetSpec:
    """BadModelFile for numbers that make no heads."""
    heads, groups = facts.ssm_heads, facts.ssm_groups
    if not 1 < facts.ssm_kernel <= MAX_KERNEL:
        raise BadModelFile(f"ssm.conv_kernel must be between 2 and {MAX_KERNEL}, not {facts.ssm_kernel}")
    if not 0 < groups <= heads <= MAX_HEADS or heads % groups:
        raise BadModelFile(f"{heads} value heads (ssm.time_step_rank) cannot share {groups} key heads (group_count)")
    has_values = 0 < facts.ssm_inner <= heads * MAX_HEAD_DIM and facts.ssm_inner % heads == 0
    if not 0 < facts.ssm_state <= MAX_HEAD_DIM or not has_values:
        raise BadModelFile(f"heads of {facts.ssm_state} keys make no values of {facts.ssm_inner} (ssm.inner_size)")
    return DeltaNetSpec(groups, heads, facts.ssm_state, facts.ssm_inner // heads, facts.ssm_kernel, tiled)


def delta_net_facts(facts: Facts, config: Mapping[str, Any]) -> Facts:
    """Qwen3-Next: the size of all values together, and which layers attend. UnsupportedModel for activations that no
    model of these has: they would be those of convolutions and gates, too."""
    if facts.activation not in ("", "silu", "swish"):
        raise UnsupportedModel(f"this build does not know gated delta nets with {facts.activation} (hidden_act)")
    value_dim = config.get("linear_value_head_dim")
    if not isinstance(value_dim, int) or isinstance(value_dim, bool) or value_dim < 1:
        raise BadModelFile(f"linear_value_head_dim must be a whole number above 0, not {value_dim!r:.60}")
    facts = replace(facts, ssm_inner=value_dim * facts.ssm_heads, windowed=())
    types = config.get("layer_types")
    if not isinstance(types, list):
        return replace(facts, full_interval=facts.full_interval or USUAL_INTERVAL)
    recurrent = tuple(kind == "linear_attention" for kind in types)
    interval = recurrent.index(False) + 1 if False in recurrent else len(recurrent) + 1
    if recurrent == tuple((index + 1) % interval != 0 for index in range(len(recurrent))):
        return replace(facts, full_interval=interval)
    return replace(facts, full_interval=0, recurrent_layers=recurrent)


def qwen35_facts(facts: Facts, config: Mapping[str, Any]) -> Facts:
    """Positions of pictures have three axes, of texts one: only files of llama.cpp must be told."""
    facts = delta_net_facts(facts, config)
    rope = config.get("rope_parameters")
    sections = rope.get("mrope_section") if isinstance(rope, Mapping) else None
    if not isinstance(sections, list) or not all(isinstance(item, int) for item in sections):
        sections = [11, 11, 10]
    return replace(facts, rope_sections=tuple([*sections, 0, 0, 0, 0][:4]))
