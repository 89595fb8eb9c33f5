"""What a transformer is, as frozen data. Families differ in these fields and in which tensors exist, never by name."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

Scoring = Literal["softmax", "sigmoid", "softmax_chosen"]
HeadActivation = Literal["none", "tanh", "relu", "silu", "gelu", "gelu_tanh"]
Activation = Literal["silu", "gelu", "gelu_tanh", "relu", "relu2", "swiglu_oai"]


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """How rotary frequencies stretch beyond the trained context.

    linear: positions / factor. llama3: by wavelength between the two frequency factors (Llama 3.1 model card). yarn:
    Peng et al. 2023, with `attention_factor` on cos and sin (0: computed from `factor`). longrope: one divisor per
    frequency, the long ones when a sequence may exceed `original_context`. factors: one divisor per frequency, read
    from the file into `short_factors`.
    """

    kind: Literal["linear", "llama3", "yarn", "longrope", "factors"]
    factor: float = 1.0
    original_context: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float = 0.0
    short_factors: tuple[float, ...] = ()
    long_factors: tuple[float, ...] = ()
    truncate: bool = True
    """yarn: the bounds between kept and divided frequencies are whole dimensions (gpt-oss: they are not)."""


@dataclass(frozen=True, slots=True)
class PositionGrowth:
    """A factor that grows with the position: 1 + beta * ln(1 + floor(position / every)) (Llama 4, Ministral 3)."""

    beta: float
    every: int


@dataclass(frozen=True, slots=True)
class RopeSpec:
    """Rotary positions over the first `dims` values of a head, in halves (value i pairs with i + dims / 2).

    Files that pair neighbours are re-ordered at load, so no kernel knows another kind. `growth` is multiplied into
    cos and sin, so it is for heads that turn as a whole.
    """

    dims: int
    base: float
    scaling: RopeScaling | None = None
    growth: PositionGrowth | None = None


@dataclass(frozen=True, slots=True)
class LatentSpec:
    """Keys and values made from one short vector per token (DeepSeek's multi-head latent attention).

    The cache has that vector and the rotated part of the keys, as one head: heads are made of it on the side of the
    queries (see models/latent.py). `plain_dims`: values of a query head that do not turn; `value_dim`: of a head's
    output. `query_rank` 0: queries are made from the whole width. `norm_eps`: of the two inner norms.
    """

    query_rank: int
    kv_rank: int
    plain_dims: int
    value_dim: int
    norm_eps: float = 1e-6


@dataclass(frozen=True, slots=True)
class AttentionSpec:
    """One attention layer. `window`: last tokens a query sees, itself included; None: all. `softcap` 0: none.

    Query heads of one group (num_heads / num_kv_heads neighbours) share a KV head. `rope` None: no positions.
    `query_growth`: queries are multiplied by it, keys are not. `latent`: sizes are those of the cache then. `gated`:
    what comes out of it is multiplied by the sigmoid of a gate as wide. `kv_from`: the layer whose keys and values this
    one reads; it has none of its own, and writes none. `norms_values`: each head's values are normed, without weights.
    `values_are_keys`: they are made by the keys' matrix.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    value_dim: int
    scale: float
    rope: RopeSpec | None
    window: int | None = None
    softcap: float = 0.0
    causal: bool = True
    query_growth: PositionGrowth | None = None
    latent: LatentSpec | None = None
    gated: bool = False
    kv_from: int | None = None
    norms_values: bool = False
    values_are_keys: bool = False

    @property
    def query_rope(self) -> RopeSpec | None:
        """How queries turn: as keys do, and longer the later they are where the spec says so."""
        return self.rope if self.rope is None else replace(self.rope, growth=self.query_growth)


@dataclass(frozen=True, slots=True)
class ShortConvSpec:
    """A gated causal depthwise convolution over `kernel` tokens (LFM2); its state is the last `kernel - 1` inputs."""

    kernel: int
    channels: int

    @property
    def state_shapes(self) -> tuple[tuple[int, ...], ...]:
        return ((self.kernel - 1, self.channels),)


@dataclass(frozen=True, slots=True)
class DeltaNetSpec:
    """A gated delta net (Qwen3-Next, Qwen 3.5): a matrix per value head that each token corrects, behind a convolution.

    Value heads share key heads: neighbours do where `tiled` is False, else those whose numbers are equal modulo
    `num_key_heads`. A token's channels are queries, keys and values of all heads, in this order.
    """

    num_key_heads: int
    num_value_heads: int
    key_dim: int
    value_dim: int
    kernel: int
    tiled: bool = False

    @property
    def channels(self) -> int:
        """Width of what the convolution works on."""
        return 2 * self.num_key_heads * self.key_dim + self.num_value_heads * self.value_dim

    @property
    def state_shapes(self) -> tuple[tuple[int, ...], ...]:
        """The convolution's last inputs, and the matrices."""
        return (self.kernel - 1, self.channels), (self.num_value_heads, self.key_dim, self.value_dim)


@dataclass(frozen=True, slots=True)
class StateSpaceSpec:
    """A selective state space (Mamba-2): a matrix per head that decays and takes tokens in, behind a convolution.

    Heads of one group (num_heads / num_groups neighbours) share what is written and what is read. `step_limits`: the
    least and the most of a token's step.
    """

    num_heads: int
    head_dim: int
    num_groups: int
    state_dim: int
    kernel: int
    step_limits: tuple[float, float] = (0.0, math.inf)

    @property
    def inner(self) -> int:
        """Width of all heads' values together."""
        return self.num_heads * self.head_dim

    @property
    def channels(self) -> int:
        """Width of what the convolution works on: values of all heads, then what is written and what is read."""
        return self.inner + 2 * self.num_groups * self.state_dim

    @property
    def state_shapes(self) -> tuple[tuple[int, ...], ...]:
        """The convolution's last inputs, and the matrices."""
        return (self.kernel - 1, self.channels), (self.num_heads, self.head_dim, self.state_dim)


RecurrentSpec = ShortConvSpec | DeltaNetSpec | StateSpaceSpec
"""A mixer with a state of fixed size, in one or more float32 parts of `state_shapes`."""
Mixer = AttentionSpec | RecurrentSpec


@dataclass(frozen=True, slots=True)
class MoeSpec:
    """Experts of one layer. `scoring`: over all router logits, or softmax over the chosen ones only.

    `normalize`: chosen weights are divided by their sum; then all are multiplied by `scale`. Of `num_groups` equal
    groups of neighbours only the best `num_used_groups` are chosen from; a group is worth its `group_best` best
    experts together.
    """

    num_experts: int
    num_used: int
    scoring: Scoring = "softmax"
    normalize: bool = True
    scale: float = 1.0
    num_groups: int = 1
    num_used_groups: int = 1
    group_best: int = 1


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """One block. `scale`: what comes out of it is multiplied by this. `spread`: the feed-forward's gate is cut so many
    standard deviations above its mean; None: it is not. `mixer` None: it is a feed-forward alone;
    `feeds` False: it has none. `beside`: has the same input as the attention, and is added to it."""

    mixer: Mixer | None
    moe: MoeSpec | None = None
    scale: float = 1.0
    spread: float | None = None
    beside: StateSpaceSpec | None = None
    feeds: bool = True

    @property
    def recurrent(self) -> RecurrentSpec | None:
        """What of the layer keeps a state."""
        return self.beside if isinstance(self.mixer, AttentionSpec) else self.mixer


@dataclass(frozen=True, slots=True)
class HeadSpec:
    """Layers over the pooled vector of a text (models/heads.py). `pooling`: of whose final state. `judges`: they make
    one number of a pair of texts; else another vector. `activation`: of the first layer, before a norm with `norm_eps`.
    `words`: ids of yes and no, whose logits are the judgement of a model that has no such layers.
    """

    pooling: Literal["mean", "last", "first"]
    judges: bool = True
    activation: HeadActivation = "none"
    norm_eps: float = 1e-5
    words: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """A whole decoder or encoder. Norm placement, biases, QK-norms, sinks and tied output are asked of the tensors.

    `is_encoder`: every token sees all others, and there are no logits. `parallel`: attention and feed-forward work on
    the same input, and both are added. `residual_scale` multiplies what a block adds, `logit_scale` multiplies the
    logits, `logit_softcap` 0: none. `context_length` is in tokens. `token_inputs`: how many numbers of its own each
    layer is given for each token (see models/token_inputs.py). `streams`: of hidden states, side by side (see
    models/altup.py); 0: one alone.
    """

    architecture: str
    hidden_size: int
    vocab_size: int
    context_length: int
    layers: tuple[LayerSpec, ...]
    activation: Activation = "silu"
    norm: Literal["rms", "layer"] = "rms"
    norm_eps: float = 1e-5
    embed_scale: float = 1.0
    residual_scale: float = 1.0
    logit_scale: float = 1.0
    logit_softcap: float = 0.0
    learned_positions: bool = False
    parallel: bool = False
    is_encoder: bool = False
    head: HeadSpec | None = None
    token_inputs: int = 0
    streams: int = 0
