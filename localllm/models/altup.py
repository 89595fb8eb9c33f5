"""Several streams of hidden states, of which one goes through the layer and corrects the others (Gemma 3n's AltUp),
beside a detour of low rank around attention (LAuReL).

A row holds the streams of a token side by side; the first is the one that layers compute.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic

from localllm.models.config import ModelConfig
from localllm.models.ops import A, Ops, W, Weights


@dataclass(frozen=True, slots=True)
class Streams(Generic[A, W]):
    """Binds config and verbs; `scope` is always that of a layer."""

    config: ModelConfig
    ops: Ops[A, W]

    def begin(self, x: A, weights: Weights[W]) -> A:
        """The embedding, and what other matrices make of it, as long as it is."""
        others = x
        for _ in range(self.config.streams - 2):
            others = self.ops.join(others, x, 1)
        made = self.ops.linear_heads(others, weights["altup_proj.weight"])
        return self.ops.join(x, self.ops.as_long_as(made, x), 1)

    def end(self, x: A, weights: Weights[W]) -> A:
        """The mean of all streams, each made as long as the first."""
        ops, size, count = self.ops, self.config.hidden_size, self.config.streams
        first = ops.columns(x, 0, size)
        others = ops.linear_heads(ops.columns(x, size, (count - 1) * size), weights["altup_unembd_proj.weight"])
        total = ops.add_streams(first, ops.as_long_as(others, first), None, size, plus=1.0)
        return ops.scale(total, 1 / count)

    def layer(self, x: A, inputs: A, scope: Weights[W], index: int, compute: Callable[[A], A]) -> A:
        """One layer; `compute` is attention and feed-forward."""
        ops, size = self.ops, self.config.hidden_size
        first = ops.columns(x, 0, size)
        guessed = ops.add_streams(x, x, self._coefs(first, scope, "altup_predict_coef"), size)
        active = ops.columns(guessed, 0, size)
        computed = compute(active)
        news = ops.add(computed, active, -1.0)
        corrected = ops.add_streams(guessed, news, self._coefs(computed, scope, "altup_correct_coef"), size, plus=1.0)
        taken = self._own_inputs(ops.columns(corrected, 0, size), inputs, scope, index)
        return ops.add_streams(corrected, taken, None, size, plus=1.0, first=1)

    def around(self, x: A, normed: A, mixed: A, scope: Weights[W]) -> A:
        """The sum behind attention: x, what attention made of it, and the detour."""
        ops = self.ops
        low = ops.linear(ops.linear(normed, scope["laurel_l.weight"]), scope["laurel_r.weight"])
        detour = ops.add(normed, ops.rms_norm(low, scope["laurel_post_norm.weight"], self.config.norm_eps))
        return ops.scale(ops.add(ops.add(x, mixed), detour), math.sqrt(0.5))

    def _coefs(self, x: A, scope: Weights[W], name: str) -> A:
        ops = self.ops
        normed = ops.rms_norm(x, scope["altup_router_norm.weight"], self.config.norm_eps)
        asked = ops.linear(ops.scale(normed, 1 / self.config.hidden_size), scope["altup_router.weight"])
        return ops.linear(ops.softcap(asked, 1.0), scope[f"{name}.weight"])

    def _own_inputs(self, x: A, inputs: A, scope: Weights[W], index: int) -> A:
        ops, config = self.ops, self.config
        gate = ops.linear(ops.mul_columns(x, scope["altup_correct_scale.weight"]), scope["inp_gate.weight"])
        chosen = ops.gate_mul(gate, inputs, config.activation, index * config.token_inputs)
        made = ops.linear(chosen, scope["proj.weight"])
        return ops.rms_norm(made, scope["post_norm.weight"], config.norm_eps)
