"""The native library: a `Program` is recorded once, then replayed a step at a time. -1 stands for "not there".

ValueError: shapes that do not fit while recording, indices out of bounds in a step. Nothing is computed then.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

def has_kernels(name: str) -> bool:
    """Whether this machine runs the set: "avx2", "portable", "auto"."""

class Program:
    def __init__(
        self,
        *,
        threads: int,
        kernels: str,
        max_tokens: int,
        context_length: int,
        vocab_size: int,
        page_size: int,
        kv_type: str,
        page_bytes: int,
        windows: Sequence[int],
        state_floats: int,
    ) -> None:
        """`windows`: per KV group, 0 for all. `max_tokens`: of one step. `kv_type`: "f16", "f32" or "q8_0"."""

    kernels: str
    threads: int
    weight_bytes: int

    # ---- recording: buffers, matrices, vectors and angles answer with their id

    def buffer(self, width: int, quantized: bool, is_private: bool, taken: bool) -> int: ...
    def matrix(self, raw: NDArray[np.uint8], type: int, rows: int, columns: int) -> int: ...
    def gated_matrix(
        self, gate: NDArray[np.uint8], up: NDArray[np.uint8], gate_type: int, up_type: int, rows: int, columns: int
    ) -> int: ...
    def vector(self, values: NDArray[np.float32]) -> int: ...
    def angles(self, frequencies: NDArray[np.float64], factor: float, beta: float = 0.0, every: int = 1) -> int:
        """cos and sin times `factor` and, at a position, times 1 + beta * ln(1 + position // every)."""

    def embed(self, matrix: int, of: int, scale: float, out: int) -> None: ...
    def lookup(self, table: NDArray[np.uint8], type: int, rows: int, columns: int, scale: float, out: int) -> None:
        """Rows of a table for tokens, used where it is and kept alive."""

    def rms_norm(self, x: int, weight: int, length: int, eps: float, values: int, blocks: int) -> None: ...
    def layer_norm(
        self, x: int, weight: int, bias: int, eps: float, length: int = 0, *, values: int, blocks: int
    ) -> None:
        """Over each run of `length` values; 0: the whole row."""

    def activate(self, x: int, activation: int, values: int, blocks: int) -> None: ...
    def gate_mul(self, gate: int, up: int, activation: int, first: int = 0, *, values: int, blocks: int) -> None:
        """Values of up from `first` on, as many as gate has."""

    def add(self, x: int, y: int, scale: float, values: int, blocks: int) -> None: ...
    def scale(self, x: int, factor: float, values: int, blocks: int) -> None: ...
    def softcap(self, x: int, cap: float, values: int, blocks: int) -> None: ...
    def gate_rows(self, x: int, gate: int, values: int, blocks: int) -> None: ...
    def join(self, x: int, y: int, heads: int, values: int, blocks: int) -> None: ...
    def gated_norm(
        self,
        x: int,
        gate: int,
        weight: int,
        run: int,
        is_wide: bool,
        eps: float,
        gate_first: bool,
        values: int,
        blocks: int,
    ) -> None:
        """`is_wide`: the weight is as wide as x, not as a run."""

    def columns(self, x: int, first: int, count: int, values: int, blocks: int) -> None: ...
    def mul_columns(self, x: int, weight: int, values: int, blocks: int) -> None: ...
    def add_streams(
        self, x: int, y: int, coefs: int, size: int, plus: float, first: int, values: int, blocks: int
    ) -> None: ...
    def as_long_as(self, x: int, y: int, values: int, blocks: int) -> None: ...
    def cut_low(self, x: int, spread: float, values: int, blocks: int) -> None: ...
    def linear_heads(self, x: int, matrices: Sequence[int], out: int) -> None: ...
    def quantize(self, x: int, blocks: int) -> None: ...
    def take_rows(self, x: int, values: int, blocks: int) -> None: ...
    def rope(self, x: int, head_dim: int, angles: int, values: int, blocks: int) -> None: ...
    def pool(self, x: int) -> None: ...
    def linear(
        self, x: int, matrix: int, bias: int, residual: int, scale: float, out: int, sync: bool, site: int = -1
    ) -> None: ...
    def gated(
        self,
        x: int,
        matrix: int,
        activation: int,
        gate_bias: int,
        up_bias: int,
        values: int,
        blocks: int,
        gate_site: int = -1,
        up_site: int = -1,
    ) -> None: ...
    def add_site(self, rows: int, columns: int) -> int:
        """A matrix that adapters may add to, for `site` of its products."""

    def head(self, x: int, matrix: int, scale: float, softcap: float) -> None: ...
    def attention(
        self,
        q: int,
        k: int,
        v: int,
        turned_q: int,
        *,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        value_dim: int,
        scale: float,
        softcap: float,
        window: int,
        causal: bool,
        group: int,
        offset: int,
        query_angles: int,
        key_angles: int,
        sinks: int,
        values: int,
        blocks: int,
    ) -> None: ...
    def short_conv(
        self, x: int, weight: int, kernel: int, channels: int, state_offset: int, kept: int, out: int
    ) -> None: ...
    def delta_net(
        self,
        x: int,
        beta: int,
        decay: int,
        rate: int,
        bias: int,
        num_key_heads: int,
        num_value_heads: int,
        key_dim: int,
        value_dim: int,
        tiled: bool,
        state_offset: int,
        kept: int,
        out: int,
    ) -> None: ...
    def causal_conv(
        self, x: int, weight: int, bias: int, kernel: int, channels: int, state_offset: int, kept: int, out: int
    ) -> None: ...
    def state_space(
        self,
        x: int,
        step: int,
        rate: int,
        bias: int,
        skip: int,
        *,
        num_heads: int,
        head_dim: int,
        num_groups: int,
        state_dim: int,
        least: float,
        most: float,
        state_offset: int,
        kept: int,
        out: int,
    ) -> None:
        """`kept`: values, what is written, and steps of each token."""

    def route(
        self,
        logits: int,
        bias: int,
        num_experts: int,
        num_used: int,
        scoring: int,
        normalize: bool,
        scale: float,
        out: int,
        num_groups: int = 1,
        num_used_groups: int = 1,
        group_best: int = 1,
        scales: int = -1,
    ) -> None: ...
    def experts(
        self,
        x: int,
        routing: int,
        gated: Sequence[int],
        down: Sequence[int],
        gate_bias: int,
        up_bias: int,
        down_bias: int,
        activation: int,
        out: int,
    ) -> None: ...
    def plain_experts(
        self,
        x: int,
        routing: int,
        up: Sequence[int],
        down: Sequence[int],
        up_bias: int,
        down_bias: int,
        activation: int,
        out: int,
    ) -> None:
        """No gates: the activation of what `up` makes."""

    # ---- replay

    def allocate(self, num_pages: int, num_slots: int) -> None: ...
    def resize_pages(self, num_pages: int) -> None: ...
    def copy_page(self, source: int, target: int) -> None: ...
    def slot(self, index: int) -> NDArray[np.float32]:
        """A view of one state slot, which may be written."""

    def replay(self, recurrent: int, slot: int, inputs: NDArray[np.float32]) -> None: ...
    def types(self, types: NDArray[np.int32]) -> None: ...
    def add_adapter(self) -> int:
        """Its number, from 1 on; none comes twice."""

    def add_part(self, adapter: int, site: int, a: NDArray[np.float32], b: NDArray[np.float32], scale: float) -> None:
        """a (rank, columns) and b (rows, rank) of the site."""

    def drop_adapter(self, adapter: int) -> None: ...
    def step(
        self,
        token_ids: NDArray[np.int32],
        positions: NDArray[np.int32],
        row_starts: NDArray[np.int32],
        tables: Sequence[NDArray[np.int32]],
        slots: NDArray[np.int32],
        atomic: NDArray[np.bool_],
        taken: NDArray[np.int32],
        needs_logits: NDArray[np.bool_],
        wants_hidden: bool,
        keeps_inputs: bool,
        adapters: NDArray[np.int32] | None = None,
        adapter_scales: NDArray[np.float32] | None = None,
    ) -> list[int]:
        """Run the program without the interpreter's lock; the index of the largest logit of each taken position."""

    def go_alone(self, steps: int) -> None:
        """The next so many steps use one thread, as they do by themselves where threads hold each other up."""

    def values(self, buffer: int, rows: int) -> NDArray[np.float32]:
        """A view of a shared buffer of floats: what the last step left; may be written before a step."""

    def logits(self, rows: int) -> NDArray[np.float32]:
        """A view of the last step's logits; rows that nobody wanted hold anything."""

    def hidden(self, rows: int, width: int) -> NDArray[np.float32]: ...
