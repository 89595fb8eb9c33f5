"""The one decoder and encoder: every family is this function over the verbs of `ops`, steered by config and tensors."""

from __future__ import annotations

import math
from functools import partial
from typing import Generic

from localllm.models.altup import Streams
from localllm.models.config import (
    AttentionSpec,
    DeltaNetSpec,
    LayerSpec,
    ModelConfig,
    MoeSpec,
    ShortConvSpec,
    StateSpaceSpec,
)
from localllm.models.delta_net import mix_delta_net
from localllm.models.latent import attend_latent
from localllm.models.ops import A, Ops, W, Weights
from localllm.models.state_space import mix_state_space
from localllm.models.token_inputs import all_token_inputs, take_in


class Scope(Generic[W]):
    """The weights of one layer: names without their `blk.N.` prefix."""

    def __init__(self, weights: Weights[W], index: int) -> None:
        self._weights = weights
        self._prefix = f"blk.{index}."

    def get(self, name: str) -> W | None:
        return self._weights.get(self._prefix + name)

    def __getitem__(self, name: str) -> W:
        return self._weights[self._prefix + name]


class Decoder(Generic[A, W]):
    """Binds config, verbs and weights; `run()` issues the verbs of one step."""

    def __init__(self, config: ModelConfig, ops: Ops[A, W], weights: Weights[W]) -> None:
        self.config = config
        self.ops = ops
        self.weights = weights

    def run(self) -> None:
        """Embed, every layer, final norm, logits of the wanted positions, answers; an encoder ends with its vectors."""
        x = self.norm(self.embed(), self.weights, "token_embd_norm")
        inputs = all_token_inputs(self.ops, x, self.weights, self.config) if self.config.token_inputs else None
        x = self.layers(x, inputs) if not self.config.streams or inputs is None else self.streamed(x, inputs)
        x = self.norm(x, self.weights, "output_norm")
        self.ops.pool(x)
        if not self.config.is_encoder:
            self.ops.sample(self.head(self.ops.take_rows(x)))

    def layers(self, x: A, inputs: A | None) -> A:
        for index, layer in enumerate(self.config.layers):
            x = self.block(x, index, layer)
            if inputs is not None:
                x = take_in(self.ops, x, inputs, Scope(self.weights, index), index, self.config)
            if layer.scale != 1.0:
                x = self.ops.scale(x, layer.scale)
        return x

    def streamed(self, x: A, inputs: A) -> A:
        """All layers of a model with several streams."""
        streams = Streams(self.config, self.ops)
        x = streams.begin(x, self.weights)
        for index, layer in enumerate(self.config.layers):
            compute = partial(self.block, index=index, layer=layer)
            x = streams.layer(x, inputs, Scope(self.weights, index), index, compute)
        return streams.end(x, self.weights)

    def embed(self) -> A:
        config, ops, weights = self.config, self.ops, self.weights
        x = ops.embed(weights["token_embd.weight"], scale=config.embed_scale)
        positions = weights.get("position_embd.weight")
        if positions is not None:
            x = ops.add(x, ops.embed(positions, of="positions"))
        types = weights.get("token_types.weight")
        if types is not None:
            x = ops.add(x, ops.embed(types, of="types"))
        return x

    def block(self, x: A, index: int, layer: LayerSpec) -> A:
        """Mixer and feed-forward, each between its norms (before, after, or both: whichever tensors exist)."""
        scope = Scope(self.weights, index)
        if scope.get("attn_output_norm.weight") is not None:
            return self.normed_sums(x, scope, index, layer)
        if layer.mixer is None or not layer.feeds:
            return self.half(x, scope, index, layer)
        normed = self.norm(x, scope, "attn_norm")
        mixed = self.norm(self.mix(normed, scope, index, layer), scope, "post_attention_norm")
        if self.config.parallel:
            return self.beside(x, normed, mixed, scope, layer)
        if scope.get("laurel_l.weight") is not None:
            x = Streams(self.config, self.ops).around(x, normed, mixed, scope)
            normed = self.norm(x, scope, "ffn_norm")
        elif scope.get("ffn_norm.weight") is not None and self.config.norm == "rms":
            x, normed = self.ops.add_rms_norm(
                x, mixed, scope["ffn_norm.weight"], self.config.norm_eps, self.config.residual_scale
            )
        else:
            x = self.ops.add(x, mixed, self.config.residual_scale)
            normed = self.norm(x, scope, "ffn_norm")
        if layer.spread is not None:
            fed = self.norm(self.feed_sparsely(normed, scope, layer.spread), scope, "post_ffw_norm")
        else:
            fed = self.norm(self.feed(x, normed, scope, layer.moe), scope, "post_ffw_norm")
        return self.ops.add(x, fed, self.config.residual_scale)

    def half(self, x: A, scope: Scope[W], index: int, layer: LayerSpec) -> A:
        """A block that is a mixer or a feed-forward alone."""
        normed = self.norm(x, scope, "attn_norm")
        if layer.mixer is None:
            made = self.feed_forward(normed, scope, layer.moe)
        else:
            made = self.mix(normed, scope, index, layer)
        return self.ops.add(x, made, self.config.residual_scale)

    def normed_sums(self, x: A, scope: Scope[W], index: int, layer: LayerSpec) -> A:
        """A block as in the first transformers: its norms are of the sums, and there are none before."""
        x = self.norm(self.ops.add(x, self.mix(x, scope, index, layer)), scope, "attn_output_norm")
        return self.norm(self.ops.add(x, self.feed_forward(x, scope, layer.moe)), scope, "layer_output_norm")

    def beside(self, x: A, normed: A, mixed: A, scope: Scope[W], layer: LayerSpec) -> A:
        """The feed-forward of a block whose attention has the same input, with one norm for both or one for each."""
        if scope.get("ffn_norm.weight") is not None:
            normed = self.norm(x, scope, "ffn_norm")
        x = self.ops.add(x, mixed, self.config.residual_scale)
        return self.ops.add(x, self.feed_forward(normed, scope, layer.moe), self.config.residual_scale)

    def norm(self, x: A, scope: Weights[W], name: str) -> A:
        """The named norm, or x itself where the model has none."""
        weight = scope.get(f"{name}.weight")
        if weight is None:
            return x
        if self.config.norm == "rms":
            return self.ops.rms_norm(x, weight, self.config.norm_eps)
        return self.ops.layer_norm(x, weight, scope.get(f"{name}.bias"), self.config.norm_eps)

    def mix(self, x: A, scope: Scope[W], index: int, layer: LayerSpec) -> A:
        if isinstance(layer.mixer, ShortConvSpec):
            names = ("shortconv.in_proj.weight", "shortconv.conv.weight", "shortconv.out_proj.weight")
            in_proj, kernel, out_proj = (scope[name] for name in names)
            return self.ops.short_conv(x, in_proj, kernel, out_proj, layer.mixer, index)
        if isinstance(layer.mixer, DeltaNetSpec):
            return mix_delta_net(self.ops, x, scope, layer.mixer, index, self.config.norm_eps)
        if isinstance(layer.mixer, StateSpaceSpec):
            return mix_state_space(self.ops, x, scope, layer.mixer, index, self.config.norm_eps)
        assert layer.mixer is not None, "such a block does not mix"
        if layer.mixer.latent is not None:
            return attend_latent(self.ops, x, scope, layer.mixer, index)
        seen = self.attend(x, scope, index, layer.mixer)
        if layer.beside is None:
            return seen
        return self.ops.add(seen, mix_state_space(self.ops, x, scope, layer.beside, index, self.config.norm_eps))

    def attend(self, x: A, scope: Scope[W], index: int, spec: AttentionSpec) -> A:
        if spec.kv_from is not None:
            return self.attend_to_others(x, scope, index, spec)
        ops = self.ops
        names = ["attn_q", "attn_k"] if spec.values_are_keys else ["attn_q", "attn_k", "attn_v"]
        names += ["attn_gate"] if spec.gated else []
        q, k, *rest = ops.linear_group(
            x, [scope[f"{name}.weight"] for name in names], [scope.get(f"{name}.bias") for name in names]
        )
        gate = rest.pop() if spec.gated else None
        v = rest[0] if rest else k
        if spec.norms_values:
            v = ops.rms_norm(v, None, self.config.norm_eps, spec.value_dim)
        q = self.norm_heads(q, scope, "attn_q_norm", spec.head_dim)
        k = self.norm_heads(k, scope, "attn_k_norm", spec.head_dim)
        if spec.rope is not None and spec.query_rope is not None:
            q, k = ops.rope(q, spec.head_dim, spec.query_rope), ops.rope(k, spec.head_dim, spec.rope)
        seen = ops.attention(q, k, v, spec, index, scope.get("attn_sinks.weight"))
        if gate is not None:
            seen = ops.gate_rows(seen, gate)
        return ops.linear(seen, scope["attn_output.weight"], scope.get("attn_output.bias"))

    def attend_to_others(self, x: A, scope: Scope[W], index: int, spec: AttentionSpec) -> A:
        """Queries alone: keys and values are those of an earlier layer."""
        q = self.ops.linear(x, scope["attn_q.weight"], scope.get("attn_q.bias"))
        q = self.norm_heads(q, scope, "attn_q_norm", spec.head_dim)
        if spec.query_rope is not None:
            q = self.ops.rope(q, spec.head_dim, spec.query_rope)
        seen = self.ops.attention(q, None, None, spec, index, scope.get("attn_sinks.weight"))
        return self.ops.linear(seen, scope["attn_output.weight"], scope.get("attn_output.bias"))

    def norm_heads(self, x: A, scope: Scope[W], name: str, head_dim: int) -> A:
        """Layer norms of queries and keys are over each head, with weights of its own; the others see the weight."""
        weight = scope.get(f"{name}.weight")
        if weight is None or self.config.norm == "rms":
            return self.norm(x, scope, name)
        return self.ops.layer_norm(x, weight, scope.get(f"{name}.bias"), self.config.norm_eps, head_dim)

    def feed_sparsely(self, x: A, scope: Scope[W], spread: float) -> A:
        """A feed-forward whose gate is cut below a border before its activation."""
        gate, up = self.ops.linear_group(x, [scope["ffn_gate.weight"], scope["ffn_up.weight"]], [None, None])
        hidden = self.ops.gate_mul(self.ops.cut_low(gate, spread), up, self.config.activation)
        return self.ops.linear(hidden, scope["ffn_down.weight"])

    def feed(self, x: A, normed: A, scope: Scope[W], moe: MoeSpec | None) -> A:
        """The feed-forward of x; experts beside a dense one have norms of their own, and so has their router."""
        if moe is None or scope.get("pre_ffw_norm_2.weight") is None:
            return self.feed_forward(normed, scope, moe)
        dense = self.norm(self.feed_forward(normed, scope, None), scope, "post_ffw_norm_1")
        asked = self.ops.rms_norm(x, scope["ffn_gate_inp.scale"], self.config.norm_eps)
        asked = self.ops.scale(asked, 1 / math.sqrt(self.config.hidden_size))
        mixed = self.experts(self.norm(x, scope, "pre_ffw_norm_2"), scope, moe, asked)
        return self.ops.add(dense, self.norm(mixed, scope, "post_ffw_norm_2"))

    def feed_forward(self, x: A, scope: Scope[W], moe: MoeSpec | None) -> A:
        if moe is not None:
            return self.experts(x, scope, moe)
        return self.ops.linear(self.widened(x, scope), scope["ffn_down.weight"], scope.get("ffn_down.bias"))

    def widened(self, x: A, scope: Scope[W], kind: str = "") -> A:
        """What a feed-forward, or that of a shared expert, makes of x before its last product."""
        ops, activation = self.ops, self.config.activation
        gate = scope.get(f"ffn_gate{kind}.weight")
        up, up_bias = scope[f"ffn_up{kind}.weight"], scope.get(f"ffn_up{kind}.bias")
        if gate is None:
            return ops.activate(ops.linear(x, up, up_bias), activation)
        return ops.gated(x, gate, up, activation, scope.get(f"ffn_gate{kind}.bias"), up_bias)

    def experts(self, x: A, scope: Scope[W], moe: MoeSpec, asked: A | None = None) -> A:
        """`asked`: what the router sees, where that is not x."""
        ops, activation = self.ops, self.config.activation
        routing = ops.route(
            x if asked is None else asked,
            scope["ffn_gate_inp.weight"],
            moe,
            scope.get("ffn_gate_inp.bias"),
            scope.get("exp_probs_b.bias"),
            scope.get("ffn_down_exps.scale"),
        )
        names = ("ffn_gate_exps", "ffn_up_exps", "ffn_down_exps")
        gate, up, down = scope.get(f"{names[0]}.weight"), *(scope[f"{name}.weight"] for name in names[1:])
        gate_bias, up_bias, down_bias = (scope.get(f"{name}.bias") for name in names)
        narrow, wide = scope.get("ffn_latent_down.weight"), scope.get("ffn_latent_up.weight")
        inner = x if narrow is None else ops.linear(x, narrow, scope.get("ffn_latent_down.bias"))
        total = ops.experts(inner, routing, gate, up, down, activation, (gate_bias, up_bias, down_bias))
        if wide is not None:
            total = ops.linear(total, wide, scope.get("ffn_latent_up.bias"))
        shared_up = scope.get("ffn_up_shexp.weight")
        if shared_up is None:
            return total
        hidden = self.widened(x, scope, "_shexp")
        shared = ops.linear(hidden, scope["ffn_down_shexp.weight"], scope.get("ffn_down_shexp.bias"))
        opening = scope.get("ffn_gate_inp_shexp.weight")
        if opening is not None:
            shared = ops.gate_rows(shared, ops.linear(x, opening))
        return ops.add(total, shared)

    def head(self, x: A) -> A:
        """Logits; a model without `output.weight` ties them to the embedding."""
        config, ops = self.config, self.ops
        output = self.weights.get("output.weight")
        logits = ops.linear(x, self.weights["token_embd.weight"] if output is None else output)
        if config.logit_scale != 1.0:
            logits = ops.scale(logits, config.logit_scale)
        return ops.softcap(logits, config.logit_softcap) if config.logit_softcap else logits
