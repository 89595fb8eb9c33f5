"""Inputs of a layer's own: a second table gives every layer some numbers for each token (Gemma 4's small models).

The table is wide, as it has the numbers of all layers: its rows are looked up and never multiplied, so that it can stay
in the file.
"""

from __future__ import annotations

import math

from localllm.models.config import ModelConfig
from localllm.models.ops import A, Ops, W, Weights
from localllm.models.source import LOOKED_UP

(TABLE,) = LOOKED_UP


def all_token_inputs(ops: Ops[A, W], x: A, weights: Weights[W], config: ModelConfig) -> A:
    """(T, layers * config.token_inputs), layer after layer: rows of the tokens, and what their embeddings x say."""
    rows = ops.embed(weights[TABLE], scale=math.sqrt(config.token_inputs))
    made = ops.scale(ops.linear(x, weights["per_layer_model_proj.weight"]), 1 / math.sqrt(config.hidden_size))
    made = ops.rms_norm(made, weights["per_layer_proj_norm.weight"], config.norm_eps)
    return ops.scale(ops.add(rows, made), math.sqrt(0.5))


def take_in(ops: Ops[A, W], x: A, inputs: A, scope: Weights[W], index: int, config: ModelConfig) -> A:
    """The layer's output x, and on top what its own inputs say through the gate that x opens."""
    gate = ops.linear(x, scope["inp_gate.weight"])
    chosen = ops.gate_mul(gate, inputs, config.activation, index * config.token_inputs)
    made = ops.linear(chosen, scope["proj.weight"])
    return ops.add(x, ops.rms_norm(made, scope["post_norm.weight"], config.norm_eps))
