"""Mamba-2 between attention layers, beside them or alone, out of the verbs: convolved values into a decaying matrix."""

from __future__ import annotations

from typing import Literal

from localllm.models.config import StateSpaceSpec
from localllm.models.ops import A, Ops, W, Weights

InCut = Literal["ssm gate", "ssm input", "ssm steps"]
IN_CUTS: tuple[InCut, ...] = ("ssm gate", "ssm input", "ssm steps")
IN = ("ssm_gate", "ssm_in", "ssm_step")
"""What the input is projected to: the gate, what the convolution takes in, and each head's step. Files have one matrix
of these rows, one after another."""


def mix_state_space(ops: Ops[A, W], x: A, scope: Weights[W], spec: StateSpaceSpec, layer: int, eps: float) -> A:
    """`scope` has the weights of the layer. Without `ssm_norm.weight` the gate is all that follows the recurrence."""
    gate, line, step = ops.linear_group(
        x, [scope[f"{name}.weight"] for name in IN], [scope.get(f"{name}.bias") for name in IN]
    )
    mixed = ops.causal_conv(line, scope["ssm_conv1d.weight"], scope.get("ssm_conv1d.bias"), spec, layer)
    seen = ops.state_space(mixed, step, scope["ssm_a"], scope["ssm_dt.bias"], scope["ssm_d"], spec, layer)
    run = spec.inner // spec.num_groups
    normed = ops.gated_norm(seen, gate, scope.get("ssm_norm.weight"), eps, run, gate_first=True)
    return ops.linear(normed, scope["ssm_out.weight"], scope.get("ssm_out.bias"))


def in_widths(spec: StateSpaceSpec) -> tuple[int, ...]:
    """Rows of each of `IN`."""
    return spec.inner, spec.channels, spec.num_heads


def in_rows(index: int, spec: StateSpaceSpec) -> tuple[int, int]:
    """Where the rows of one of `IN` begin and end in the matrix that files have."""
    widths = in_widths(spec)
    return sum(widths[:index]), sum(widths[: index + 1])
