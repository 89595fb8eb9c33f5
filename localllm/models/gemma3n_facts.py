"""What the config.json of Gemma 3n says of streams, and of gates that are cut."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from statistics import NormalDist
from typing import Any

from localllm.errors import BadModelFile, UnsupportedModel
from localllm.models.facts import Facts

Config = Mapping[str, Any]
NEVER = -math.inf
"""The border of a gate that is not cut."""
_USUAL_SHARE, _USUALLY_CUT = 0.95, 10
"""How much the gates of the first layers are cut, where a checkpoint does not say."""


def gemma3n(facts: Facts, config: Config) -> Facts:
    """UnsupportedModel for streams of which another than the first is computed, or with no scale of their own."""
    if config.get("altup_correct_scale") is False:
        raise UnsupportedModel("config.json has altup_correct_scale false, which this build does not know")
    return replace(facts, spreads=_spreads(config, facts.num_layers), token_inputs=facts.token_inputs or 0)


def _spreads(config: Config, num_layers: int) -> tuple[float, ...]:
    """For each layer how many standard deviations cut so large a share of normal numbers off."""
    shares = config.get("activation_sparsity_pattern")
    if shares is None:  # as transformers fills in
        shares = [
            _USUAL_SHARE if num_layers > _USUALLY_CUT and index < _USUALLY_CUT else 0.0 for index in range(num_layers)
        ]
    if not isinstance(shares, (list, tuple)):
        shares = [shares] * num_layers
    if len(shares) != num_layers or not all(isinstance(s, (int, float)) and 0 <= s < 1 for s in shares):
        raise BadModelFile(f"activation_sparsity_pattern must be a share for each of {num_layers} layers")
    return tuple(NormalDist().inv_cdf(share) if share else NEVER for share in shares)
