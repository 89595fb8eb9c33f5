"""A transformer in plain float64, one sequence, no pages, no batch, a head at a time: what every backend must equal."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from localllm.models.config import (
    AttentionSpec,
    DeltaNetSpec,
    LayerSpec,
    ModelConfig,
    MoeSpec,
    RopeSpec,
    ShortConvSpec,
    StateSpaceSpec,
)
from localllm.models.rope import rope_frequencies
from tests.oracles import streams
from tests.oracles.recurrent import delta_net
from tests.oracles.state_space import state_space

Doubles = NDArray[np.float64]


class Plain:
    """`weights` by canonical name, float64. `sees_ahead` is an atomic row: every token sees every other."""

    def __init__(self, config: ModelConfig, weights: Mapping[str, Doubles], sees_ahead: bool = False) -> None:
        self.config, self.weights, self.sees_ahead = config, weights, sees_ahead
        self.kept: dict[str, tuple[Doubles, Doubles]] = {}

    def hidden(self, tokens: Sequence[int]) -> Doubles:
        """Final hidden states (tokens, hidden)."""
        config, weights = self.config, self.weights
        x = weights["token_embd.weight"][list(tokens)] * config.embed_scale
        if config.learned_positions:
            x = x + weights["position_embd.weight"][: len(tokens)]
        own = self.token_inputs(x, tokens) if config.token_inputs else None
        if config.streams and own is not None:
            return self.norm(streams.hidden(self, x, own), "output_norm")
        for index, layer in enumerate(config.layers):
            x = self.layer(x, f"blk.{index}.", layer)
            if own is not None:
                x = self.take_in(x, own[:, index], f"blk.{index}.")
            x = x * layer.scale
        return self.norm(x, "output_norm")

    def token_inputs(self, x: Doubles, tokens: Sequence[int]) -> Doubles:
        """(tokens, layers, config.token_inputs)"""
        config = self.config
        shape = (len(tokens), len(config.layers), config.token_inputs)
        rows = self.weights["per_layer_token_embd.weight"][list(tokens)].reshape(shape) * config.token_inputs**0.5
        made = self.linear(x, "per_layer_model_proj").reshape(shape) / config.hidden_size**0.5
        made = self.rms(made, "per_layer_proj_norm", config.norm_eps)
        return np.asarray((rows + made) / 2**0.5)

    def take_in(self, x: Doubles, own: Doubles, prefix: str) -> Doubles:
        made = self.linear(gated(self.linear(x, prefix + "inp_gate"), own, self.config.activation), prefix + "proj")
        return x + self.rms(made, prefix + "post_norm", self.config.norm_eps)

    def logits(self, tokens: Sequence[int]) -> Doubles:
        """(tokens, vocab)"""
        head = self.weights.get("output.weight", self.weights["token_embd.weight"])
        logits = self.hidden(tokens) @ head.T * self.config.logit_scale
        cap = self.config.logit_softcap
        return np.tanh(logits / cap) * cap if cap else logits

    def layer(self, x: Doubles, prefix: str, layer: LayerSpec) -> Doubles:
        inner = self.norm(x, prefix + "attn_norm")
        if layer.mixer is None or not layer.feeds:
            return x + (self.feed(inner, prefix, layer) if layer.mixer is None else self.mix(inner, prefix, layer))
        mixed = self.mix(inner, prefix, layer)
        before = x
        x = x + self.norm(mixed, prefix + "post_attention_norm") * self.config.residual_scale
        if prefix + "laurel_l.weight" in self.weights:
            x = np.asarray((x + streams.detour(self, inner, prefix)) / 2**0.5)
        if not self.config.parallel:
            inner = self.norm(x, prefix + "ffn_norm")
        elif prefix + "ffn_norm.weight" in self.weights:
            inner = self.norm(before, prefix + "ffn_norm")
        if layer.moe is not None and prefix + "pre_ffw_norm_2.weight" in self.weights:
            fed = self.experts_beside(x, inner, prefix, layer.moe)
        else:
            fed = self.feed(inner, prefix, layer)
        return x + self.norm(fed, prefix + "post_ffw_norm") * self.config.residual_scale

    def mix(self, inner: Doubles, prefix: str, layer: LayerSpec) -> Doubles:
        if isinstance(layer.mixer, ShortConvSpec):
            return self.short_conv(inner, prefix, layer.mixer)
        if isinstance(layer.mixer, DeltaNetSpec):
            return delta_net(inner, self.weights, prefix, layer.mixer, self.config.norm_eps)
        if isinstance(layer.mixer, StateSpaceSpec):
            return state_space(inner, self.weights, prefix, layer.mixer, self.config.norm_eps)
        assert layer.mixer is not None
        if layer.mixer.latent is not None:
            return self.latent_attention(inner, prefix, layer.mixer)
        seen = self.attention(inner, prefix, layer.mixer)
        if layer.beside is not None:
            seen = seen + state_space(inner, self.weights, prefix, layer.beside, self.config.norm_eps)
        return seen

    def feed(self, inner: Doubles, prefix: str, layer: LayerSpec) -> Doubles:
        return self.feed_forward(inner, prefix) if layer.moe is None else self.experts(inner, prefix, layer.moe)

    def experts_beside(self, x: Doubles, inner: Doubles, prefix: str, moe: MoeSpec) -> Doubles:
        dense = self.norm(self.feed_forward(inner, prefix), prefix + "post_ffw_norm_1")
        asked = x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + self.config.norm_eps)
        asked = asked * self.weights[prefix + "ffn_gate_inp.scale"] / self.config.hidden_size**0.5
        mixed = self.experts(self.norm(x, prefix + "pre_ffw_norm_2"), prefix, moe, asked)
        return dense + self.norm(mixed, prefix + "post_ffw_norm_2")

    def norm(self, x: Doubles, name: str) -> Doubles:
        weight = self.weights.get(name + ".weight")
        if weight is None:
            return x
        runs = x.reshape(len(x), -1, len(weight))
        if self.config.norm == "layer":
            runs = runs - runs.mean(axis=-1, keepdims=True)
        runs = runs / np.sqrt((runs**2).mean(axis=-1, keepdims=True) + self.config.norm_eps) * weight
        if self.config.norm == "layer":
            runs = runs + self.weights.get(name + ".bias", np.zeros(1))
        return np.asarray(runs.reshape(x.shape))

    def linear(self, x: Doubles, name: str) -> Doubles:
        return x @ self.weights[name + ".weight"].T + self.weights.get(name + ".bias", np.zeros(1))

    def attention(self, x: Doubles, prefix: str, spec: AttentionSpec) -> Doubles:
        q = self.norm_heads(self.linear(x, f"{prefix}attn_q"), f"{prefix}attn_q_norm", spec.head_dim)
        queries = turned(q.reshape(len(x), -1, spec.head_dim), spec.rope, self.config)
        if spec.kv_from is None:
            self.kept[prefix] = self.keys_and_values(x, prefix, spec)
        keys, values = self.kept[prefix if spec.kv_from is None else f"blk.{spec.kv_from}."]
        if spec.query_growth is not None:
            growth = spec.query_growth
            queries = queries * [[[1 + growth.beta * math.log(1 + t // growth.every)]] for t in range(len(x))]
        sinks = self.weights.get(prefix + "attn_sinks.weight")
        seen = [
            self.head(queries[:, h], keys[:, h * spec.num_kv_heads // spec.num_heads],
                      values[:, h * spec.num_kv_heads // spec.num_heads], spec, None if sinks is None else sinks[h])
            for h in range(spec.num_heads)
        ]  # fmt: skip
        out = np.concatenate(seen, axis=1)
        if spec.gated:
            out = out / (1 + np.exp(-self.linear(x, prefix + "attn_gate")))
        return self.linear(out, prefix + "attn_output")

    def keys_and_values(self, x: Doubles, prefix: str, spec: AttentionSpec) -> tuple[Doubles, Doubles]:
        """(tokens, heads, size of a head) of each."""
        raw = self.linear(x, f"{prefix}attn_k")
        k = self.norm_heads(raw, f"{prefix}attn_k_norm", spec.head_dim)
        values = raw if spec.values_are_keys else self.linear(x, f"{prefix}attn_v")
        values = values.reshape(len(x), -1, spec.value_dim)
        if spec.norms_values:
            values = values / np.sqrt((values**2).mean(axis=-1, keepdims=True) + self.config.norm_eps)
        return turned(k.reshape(len(x), -1, spec.head_dim), spec.rope, self.config), values

    def norm_heads(self, x: Doubles, name: str, head_dim: int) -> Doubles:
        if self.config.norm == "rms" or name + ".weight" not in self.weights:
            return self.norm(x, name)
        heads = x.reshape(len(x), -1, head_dim)
        heads = heads - heads.mean(axis=-1, keepdims=True)
        heads = heads / np.sqrt((heads**2).mean(axis=-1, keepdims=True) + self.config.norm_eps)
        return np.asarray(heads.reshape(x.shape) * self.weights[name + ".weight"])

    def latent_attention(self, x: Doubles, prefix: str, spec: AttentionSpec) -> Doubles:
        """Every head with keys and values of its own, as the models' authors write it."""
        latent = spec.latent
        assert latent is not None
        inner = x
        if latent.query_rank:
            inner = self.rms(self.linear(x, prefix + "attn_q_a"), prefix + "attn_q_a_norm", latent.norm_eps)
        cached = self.rms(self.linear(x, prefix + "attn_kv_a"), prefix + "attn_kv_a_norm", latent.norm_eps)
        plain = self.linear(inner, prefix + "attn_q_plain").reshape(len(x), spec.num_heads, -1)
        turning = self.linear(inner, prefix + "attn_q_turned").reshape(len(x), spec.num_heads, -1)
        key = turned(self.linear(x, prefix + "attn_k_turned")[:, None], spec.rope, self.config)[:, 0]
        queries = np.concatenate([plain, turned(turning, spec.rope, self.config)], axis=-1)
        seen = []
        for h in range(spec.num_heads):
            keys = np.concatenate([cached @ self.weights[prefix + "attn_k_b.weight"][h], key], axis=-1)
            values = cached @ self.weights[prefix + "attn_v_b.weight"][h].T
            seen.append(self.head(queries[:, h], keys, values, spec, None))
        return self.linear(np.concatenate(seen, axis=1), prefix + "attn_output")

    def rms(self, x: Doubles, name: str, eps: float) -> Doubles:
        return np.asarray(x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + eps) * self.weights[name + ".weight"])

    def head(self, q: Doubles, k: Doubles, v: Doubles, spec: AttentionSpec, sink: float | None) -> Doubles:
        out = np.zeros((len(q), v.shape[1]))
        for i in range(len(q)):
            ahead = self.sees_ahead or not spec.causal
            near = [j for j in range(len(k)) if (ahead or j <= i) and (spec.window is None or abs(i - j) < spec.window)]
            scores = k[near] @ q[i] * spec.scale
            if spec.softcap:
                scores = np.tanh(scores / spec.softcap) * spec.softcap
            powers = np.exp(scores)
            out[i] = powers @ v[near] / (powers.sum() + (0.0 if sink is None else math.exp(sink)))
        return out

    def feed_forward(self, x: Doubles, prefix: str) -> Doubles:
        up = self.linear(x, prefix + "ffn_up")
        spread = self.config.layers[int(prefix.split(".")[1])].spread
        if spread is not None:
            gate = streams.cut_low(self.linear(x, prefix + "ffn_gate"), spread)
            return self.linear(gated(gate, up, self.config.activation), prefix + "ffn_down")
        if prefix + "ffn_gate.weight" not in self.weights:
            return self.linear(activated(up, self.config.activation), prefix + "ffn_down")
        return self.linear(gated(self.linear(x, prefix + "ffn_gate"), up, self.config.activation), prefix + "ffn_down")

    def experts(self, x: Doubles, prefix: str, spec: MoeSpec, asked: Doubles | None = None) -> Doubles:
        logits = self.linear(x if asked is None else asked, prefix + "ffn_gate_inp")
        choice_bias = self.weights.get(prefix + "exp_probs_b.bias", np.zeros(spec.num_experts))
        out = np.array(
            [self.expert_mix(line, score, prefix, spec, choice_bias) for line, score in zip(x, logits, strict=True)]
        )
        if prefix + "ffn_up_shexp.weight" in self.weights:
            up = self.linear(x, prefix + "ffn_up_shexp")
            if prefix + "ffn_gate_shexp.weight" in self.weights:
                hidden = gated(self.linear(x, prefix + "ffn_gate_shexp"), up, self.config.activation)
            else:
                hidden = activated(up, self.config.activation)
            shared = self.linear(hidden, prefix + "ffn_down_shexp")
            if prefix + "ffn_gate_inp_shexp.weight" in self.weights:
                shared = shared / (1 + np.exp(-self.linear(x, prefix + "ffn_gate_inp_shexp")))
            out = out + shared
        return out

    def expert_mix(self, x: Doubles, logits: Doubles, prefix: str, spec: MoeSpec, choice_bias: Doubles) -> Doubles:
        scores = {
            "softmax": np.exp(logits) / np.exp(logits).sum(),
            "sigmoid": 1 / (1 + np.exp(-logits)),
            "softmax_chosen": logits,
        }[spec.scoring]
        ranked, size = scores + choice_bias, spec.num_experts // spec.num_groups
        worth = [sum(sorted(ranked[g * size : (g + 1) * size])[-spec.group_best :]) for g in range(spec.num_groups)]
        groups = sorted(range(spec.num_groups), key=lambda g: (-worth[g], g))[: spec.num_used_groups]
        allowed = [e for e in range(spec.num_experts) if e // size in groups]
        chosen = sorted(allowed, key=lambda e: (-ranked[e], e))[: spec.num_used]
        weights = scores[chosen]
        if spec.scoring == "softmax_chosen":
            weights = np.exp(weights) / np.exp(weights).sum()
        elif spec.normalize:
            weights = weights / weights.sum()
        weights = weights * self.weights.get(prefix + "ffn_down_exps.scale", np.ones(spec.num_experts))[chosen]
        parts = [f"{prefix}ffn_{part}_exps" for part in ("gate", "up", "down")]
        gate, up, down = (self.weights.get(f"{part}.weight") for part in parts)
        assert up is not None and down is not None
        none = np.zeros((spec.num_experts, 1))
        of_gate, of_up, of_down = (self.weights.get(f"{part}.bias", none) for part in parts)
        activation, outputs = self.config.activation, []
        for e in chosen:
            hidden = up[e] @ x + of_up[e]
            if gate is None:
                hidden = activated(hidden, activation)
            else:
                hidden = gated(gate[e] @ x + of_gate[e], hidden, activation)
            outputs.append(down[e] @ hidden + of_down[e])
        return sum((w * out for w, out in zip(weights, outputs, strict=True)), np.zeros(down.shape[1])) * spec.scale

    def short_conv(self, x: Doubles, prefix: str, spec: ShortConvSpec) -> Doubles:
        before, after, inner = np.split(self.linear(x, prefix + "shortconv.in_proj"), 3, axis=1)
        inputs = np.concatenate([np.zeros((spec.kernel - 1, spec.channels)), before * inner])
        kernel = self.weights[prefix + "shortconv.conv.weight"]
        mixed = np.array([(inputs[t : t + spec.kernel] * kernel.T).sum(axis=0) for t in range(len(x))])
        return self.linear(after * mixed, prefix + "shortconv.out_proj")


def turned(x: Doubles, spec: RopeSpec | None, config: ModelConfig) -> Doubles:
    """x (tokens, heads, head_dim): the first values as complex numbers, turned by position."""
    if spec is None:
        return x
    frequencies, factor = rope_frequencies(spec, config.context_length)
    half = spec.dims // 2
    numbers = x[..., :half] + 1j * x[..., half : spec.dims]
    numbers = numbers * (factor * np.exp(1j * np.arange(len(x))[:, None, None] * frequencies))
    return np.concatenate([numbers.real, numbers.imag, x[..., spec.dims :]], axis=-1)


def gated(gate: Doubles, up: Doubles, activation: str) -> Doubles:
    if activation == "swiglu_oai":
        gate = np.minimum(gate, 7)
        return np.asarray(gate / (1 + np.exp(-1.702 * gate)) * (np.clip(up, -7, 7) + 1))
    return activated(gate, activation) * up


def activated(x: Doubles, activation: str) -> Doubles:
    if activation == "silu":
        return np.asarray(x / (1 + np.exp(-x)))
    if activation == "gelu":
        return np.asarray([0.5 * v * math.erfc(-v / math.sqrt(2)) for v in x.ravel().tolist()]).reshape(x.shape)
    if activation == "gelu_tanh":
        return np.asarray(0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))))
    return np.asarray(np.maximum(x, 0) ** (2 if activation == "relu2" else 1))
