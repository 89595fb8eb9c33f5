"""Facts of a file about rotary positions to a RopeSpec: bases, how much of a head turns, and every kind of scaling."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass

from localllm.errors import BadModelFile, UnsupportedModel
from localllm.models.config import RopeScaling, RopeSpec
from localllm.models.facts import Facts
from localllm.models.family import Family


@dataclass(frozen=True, slots=True)
class RopeFactors:
    """Divisors of rotary frequencies that GGUF keeps as tensors: one list for all lengths, or short and long ones."""

    always: tuple[float, ...] = ()
    short: tuple[float, ...] = ()
    long: tuple[float, ...] = ()


NO_FACTORS = RopeFactors()
STILL = struct.unpack("<f", struct.pack("<f", 1e30))[0]
"""The divisor of what does not turn, a number of float32 as in GGUF files."""


def rope_spec(facts: Facts, family: Family, factors: RopeFactors, head_dim: int, windowed: bool) -> RopeSpec:
    dims = head_dim if facts.rope_dims is None else facts.rope_dims
    if windowed and facts.window_rope_dims:
        dims = facts.window_rope_dims
    if dims < 2 or dims % 2 or dims > head_dim:
        raise BadModelFile(f"rope.dimension_count is {dims}, but a head has {head_dim} values")
    base = (facts.window_rope_base or family.window_rope_base or facts.rope_base) if windowed else facts.rope_base
    if base <= 1:
        raise BadModelFile(f"rope.freq_base must be above 1, not {base}")
    if windowed and not family.scales_windowed:
        return RopeSpec(dims, base)
    return RopeSpec(dims, base, _rope_scaling(facts, family, factors, dims))


def _rope_scaling(facts: Facts, family: Family, factors: RopeFactors, dims: int) -> RopeScaling | None:
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
            factor=facts.rope_factor or facts.context_length / max(facts.rope_original_context, 1),
            attention_factor=facts.rope_attention_factor,
            short_factors=factors.short,
            long_factors=factors.long,
        )
    if facts.rope_scaling == "proportional":
        return _proportional(facts, dims)
    return _scaling_by_name(facts, family)


def _proportional(facts: Facts, dims: int) -> RopeScaling:
    """A share of the frequencies that a whole head has; the other values of the head stand still."""
    turning = int(facts.rope_share * dims // 2)
    if not 0 <= turning <= dims // 2:
        raise BadModelFile(f"partial_rotary_factor must be between 0 and 1, not {facts.rope_share}")
    factor = 1.0 if facts.rope_factor is None else facts.rope_factor
    if factor <= 0:
        raise BadModelFile(f"rope.scaling.factor must be above 0, not {factor}")
    return RopeScaling("factors", short_factors=(factor,) * turning + (STILL,) * (dims // 2 - turning))


def _scaling_by_name(facts: Facts, family: Family) -> RopeScaling | None:
    factor = 1.0 if facts.rope_factor is None else facts.rope_factor
    if factor <= 0:
        raise BadModelFile(f"rope.scaling.factor must be above 0, not {factor}")
    if facts.rope_scaling == "linear":
        return RopeScaling("linear", factor)
    if facts.rope_scaling == "llama3":
        return RopeScaling(
            "llama3", factor, facts.rope_original_context, facts.rope_low_frequency, facts.rope_high_frequency
        )
    if facts.rope_scaling == "yarn":
        original = facts.rope_original_context or facts.context_length
        factor = facts.rope_factor or facts.context_length / original
        natural = natural_length(facts, factor)
        return RopeScaling(
            "yarn",
            factor,
            original,
            beta_fast=facts.rope_beta_fast,
            beta_slow=facts.rope_beta_slow,
            attention_factor=natural * (facts.rope_attention_factor or 1.0),
            truncate=family.truncates_yarn if facts.rope_truncates is None else facts.rope_truncates,
        )
    if facts.rope_scaling in ("none", "default", "longrope"):  # longrope without factors: nothing to scale by
        return None
    raise UnsupportedModel(f"this build does not know the rope scaling {facts.rope_scaling!r}")


def natural_length(facts: Facts, factor: float) -> float:
    """Of cos and sin, where a file says nothing else: models with latents lengthen their scores instead."""
    if not facts.rope_log_multiplier:
        return mscale(factor, 1.0)
    own = facts.rope_log_multiplier if facts.kv_rank else 1.0
    return mscale(factor, own) / mscale(factor, facts.rope_log_multiplier)


def mscale(factor: float, multiplier: float) -> float:
    """How much longer yarn makes cos and sin of a context that grows by `factor` (Peng et al. 2023, 3.4)."""
    return 0.1 * multiplier * math.log(factor) + 1.0 if factor > 1 else 1.0
