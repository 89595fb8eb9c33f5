"""The verbs a decoder is written in, cut at fusion boundaries. Backends implement them; arrays and weights are opaque.

A step has T tokens, all rows of its plan one after another. An array is (T, width) unless said otherwise. A backend may
compute at once, build a graph, or record instructions to replay: the decoder cannot tell. A verb enters here only with
an implementation in `backends/reference_ops.py` and a contract test that every backend runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol, TypeVar

from localllm.models.config import (
    Activation,
    AttentionSpec,
    DeltaNetSpec,
    MoeSpec,
    RopeSpec,
    ShortConvSpec,
    StateSpaceSpec,
)

A = TypeVar("A")
"""An array handle of the backend."""
W = TypeVar("W")
"""A weight handle; (out, in) as in the file, quantized or not. Vectors are handles, too."""
W_co = TypeVar("W_co", covariant=True)
W_contra = TypeVar("W_contra", contravariant=True)
Indices = Literal["tokens", "positions", "types"]


class Weights(Protocol[W_co]):
    """Weights by canonical (GGUF) name."""

    def get(self, name: str) -> W_co | None:
        """The handle, or None where the model has no such tensor: the decoder's way to ask for biases and norms."""

    def __getitem__(self, name: str) -> W_co:
        """The handle; BadModelFile names the tensor when it is missing."""


class Ops(Protocol[A, W_contra]):
    """Sixteen verbs and some for families at the edge."""

    def embed(self, weight: W_contra, of: Indices = "tokens", scale: float = 1.0) -> A:
        """Rows of `weight` for this step's token ids, for their positions, or for which text of a pair they are of,
        times `scale`. Ids beyond a table that is LOOKED_UP have its first row."""

    def linear(self, x: A, weight: W_contra, bias: W_contra | None = None) -> A:
        """x @ weight.T + bias."""

    def linear_group(self, x: A, weights: Sequence[W_contra], biases: Sequence[W_contra | None]) -> tuple[A, ...]:
        """Several linears of one input in one pass: QKV."""

    def gated(
        self,
        x: A,
        gate: W_contra,
        up: W_contra,
        activation: Activation,
        gate_bias: W_contra | None = None,
        up_bias: W_contra | None = None,
    ) -> A:
        """activation(x @ gate.T) * (x @ up.T), gate and up in one pass."""

    def activate(self, x: A, activation: Activation) -> A:
        """The activation of a feed-forward without a gate."""

    def gate_mul(self, gate: A, up: A, activation: Activation, first: int = 0) -> A:
        """activation(gate) * the values of up from `first` on, as many as gate has."""

    def rms_norm(self, x: A, weight: W_contra | None, eps: float, run: int = 0) -> A:
        """Over each run of len(weight) values: the whole width, or each head. Without weight over each `run` values."""

    def layer_norm(self, x: A, weight: W_contra, bias: W_contra | None, eps: float, run: int = 0) -> A:
        """Mean and variance over each run of `run` values, 0: the whole width; weight and bias are as wide as x."""

    def add(self, x: A, y: A, scale: float = 1.0) -> A:
        """x + y * scale."""

    def add_rms_norm(self, x: A, y: A, weight: W_contra, eps: float, scale: float = 1.0) -> tuple[A, A]:
        """s = x + y * scale, and rms_norm(s); returns (s, norm)."""

    def scale(self, x: A, factor: float) -> A: ...

    def gate_rows(self, x: A, gate: A) -> A:
        """x times the sigmoid of `gate`: of one value for each row (T, 1), or of as many as x has."""

    def columns(self, x: A, first: int, count: int) -> A:
        """Some neighbouring values of each row: (T, count)."""

    def mul_columns(self, x: A, weight: W_contra) -> A:
        """Every row times the weight, value by value."""

    def add_streams(self, x: A, y: A, coefs: A | None, size: int, plus: float = 0.0, first: int = 0) -> A:
        """x (T, N * size) and y (T, M * size) are streams side by side: to stream n of x all m of y are added, each
        times coefs[:, n * M + m] + plus; without `coefs` times plus. Streams before `first` stay as they are."""

    def as_long_as(self, x: A, y: A) -> A:
        """Every run of x as wide as y, made as long as the row of y; its mean square counts as 1e-5 at least."""

    def cut_low(self, x: A, spread: float) -> A:
        """relu(x - border), where a row's border is `spread` standard deviations above its mean."""

    def linear_heads(self, x: A, weight: W_contra) -> A:
        """Head h of x times its own matrix: weight (heads, out, in), x (T, heads * in), to (T, heads * out)."""

    def join(self, x: A, y: A, num_heads: int) -> A:
        """Each head's values of x, then its values of y: (T, width of x + width of y)."""

    def softcap(self, x: A, cap: float) -> A:
        """tanh(x / cap) * cap."""

    def rope(self, x: A, head_dim: int, spec: RopeSpec) -> A:
        """Rotate every head of `head_dim` values by the token's position."""

    def attention(
        self, q: A, k: A | None, v: A | None, spec: AttentionSpec, layer: int, sinks: W_contra | None = None
    ) -> A:
        """Write k and v to the pages of `layer`, then attend over what the row's table names: (T, heads * value_dim).

        Neither k nor v where `spec.kv_from` names another layer: its pages are read, and nothing is written. `sinks`:
        one logit per head that takes part in the softmax and contributes no value.
        """

    def short_conv(
        self, x: A, in_proj: W_contra, kernel: W_contra, out_proj: W_contra, spec: ShortConvSpec, layer: int
    ) -> A:
        """LFM2's mixer: b, c, u = in_proj(x); out_proj(c * conv(b * u)); the conv's past is the row's state slot."""

    def causal_conv(
        self, x: A, kernel: W_contra, bias: W_contra | None, spec: DeltaNetSpec | StateSpaceSpec, layer: int
    ) -> A:
        """silu of a depthwise convolution over the last `spec.kernel` tokens of the row: x (T, channels), kernel
        (channels, spec.kernel), oldest first. The past is the first part of the layer's state."""

    def delta_net(self, x: A, beta: A, decay: A, rate: W_contra, bias: W_contra, spec: DeltaNetSpec, layer: int) -> A:
        """The recurrence of a gated delta net, (T, num_value_heads * value_dim).

        x: (T, channels), the convolved queries, keys and values; beta and decay: (T, num_value_heads), as projected.
        Queries and keys are made as long as 1, queries then divided by sqrt(key_dim). Per value head, with its matrix S
        (key_dim, value_dim) from the second part of the layer's state:
        S *= exp(rate * softplus(decay + bias)); S += outer(k, (v - k @ S) * sigmoid(beta)); out = q @ S.
        """

    def state_space(
        self, x: A, step: A, rate: W_contra, bias: W_contra, skip: W_contra, spec: StateSpaceSpec, layer: int
    ) -> A:
        """The recurrence of Mamba-2, (T, num_heads * head_dim).

        x: (T, channels), the convolved values of all heads, then what groups write and what they read; step: (T,
        num_heads), as projected. Per head, with its matrix S (head_dim, state_dim) from the second part of the layer's
        state: d = softplus(step + bias) within `spec.step_limits`; S *= exp(rate * d); S += outer(v * d, written);
        out = S @ read + skip * v.
        """

    def gated_norm(self, x: A, gate: A, weight: W_contra | None, eps: float, run: int, gate_first: bool) -> A:
        """An RMS norm over each run of `run` values, and times silu(gate): before the norm, or after it.

        `weight` is as wide as x, or as a run; None: the gate alone.
        """

    def route(
        self,
        x: A,
        router: W_contra,
        spec: MoeSpec,
        bias: W_contra | None = None,
        choice_bias: W_contra | None = None,
        expert_scale: W_contra | None = None,
    ) -> A:
        """A handle of chosen experts and their weights, (T, num_used); best first, ties by the lower index.

        `bias` belongs to the router's logits; `choice_bias` is added for the choice only, not to the weights.
        `expert_scale`: a number per expert that its weight is multiplied by at the end.
        """

    def experts(
        self,
        x: A,
        routing: A,
        gate: W_contra | None,
        up: W_contra,
        down: W_contra,
        activation: Activation,
        biases: tuple[W_contra | None, W_contra | None, W_contra | None] = (None, None, None),
    ) -> A:
        """The weighted sum of the chosen experts' feed-forwards, added in the order of expert index. No `gate`: they
        are the activation of what `up` makes, and `down`.

        Weights are (experts, out, in); `biases` of gate, up and down are (experts, out).
        """

    def pool(self, x: A) -> None:
        """Keep the final hidden states for rows that want a pooled vector."""

    def take_rows(self, x: A) -> A:
        """Only the positions whose logits somebody wants: (N, width); N may be 0."""

    def sample(self, logits: A) -> None:
        """The end: answer every row's want from the taken logits (N, vocab)."""
