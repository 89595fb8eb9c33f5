"""Facts of a file about experts to a MoeSpec."""

from __future__ import annotations

from dataclasses import replace

from localllm.errors import BadModelFile
from localllm.models.config import MoeSpec, Scoring
from localllm.models.facts import Facts
from localllm.models.family import Family

MAX_EXPERTS = 1 << 20
_SCORINGS: dict[int, Scoring] = {
    1: "softmax",
    2: "sigmoid",
    3: "softmax_chosen",
}


def moe_spec(facts: Facts, family: Family, choice_bias: bool) -> MoeSpec:
    if not 0 < facts.num_used_experts <= facts.num_experts <= MAX_EXPERTS:
        raise BadModelFile(f"{facts.num_used_experts} of {facts.num_experts} experts cannot be used")
    normalizes = family.normalizes_experts if facts.expert_norm is None else facts.expert_norm
    scoring = _scoring(facts, family, choice_bias)
    groups, used = max(facts.num_expert_groups, 1), max(facts.num_used_groups, 1)
    if groups == 1 or used == groups:
        groups = used = 1
    # the authors of softmax routers count a group's best expert, those of sigmoid routers its best two
    best = min(1 if scoring == "softmax" else 2, facts.num_experts // groups)
    if facts.num_experts % groups or used > groups or facts.num_used_experts > used * (facts.num_experts // groups):
        raise BadModelFile(f"{used} of {groups} groups of {facts.num_experts} experts cannot be used")
    spec = MoeSpec(facts.num_experts, facts.num_used_experts, scoring, normalizes, facts.expert_scale or 1.0)
    return spec if groups == 1 else replace(spec, num_groups=groups, num_used_groups=used, group_best=best)


def _scoring(facts: Facts, family: Family, choice_bias: bool) -> Scoring:
    """As the file numbers it. The first files of GLM-4.7-Flash do not say, but have the bias of sigmoid routers."""
    if facts.expert_gating in _SCORINGS:
        return _SCORINGS[facts.expert_gating]
    return "sigmoid" if facts.kv_rank and choice_bias else family.scoring
