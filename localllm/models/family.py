"""What a row of a family may say: only what neither the metadata nor the tensors of a file say."""

from dataclasses import dataclass
from typing import Any, Literal

from localllm.models.config import Activation, Scoring


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """`architecture` is the GGUF name, `hf` the `model_type`s of Hugging Face that are of this family.

    `pairs_neighbours`: the file orders query and key rows for rope on neighbours; `hf_pairs_neighbours`: checkpoints
    do. `is_encoder`: its tokens see each other in both directions, and it writes none. `parallel`: attention and
    feed-forward take the same input. `turns_windowed`: in models with windows only the windowed layers have rope.
    `log_multiplier_unit`: of yarn's multiplier in the file. `full_every`: of so many layers all but the last have the
    window; 1: all have it; 0: none; `full_first`: all but the first. `window_rope_base`: rope of windowed layers; 0: as
    the others. `scales_windowed` False: rope of windowed layers is not scaled. `rope_pause`: of so many layers the last
    has no rope. `truncates_yarn`: see RopeScaling. `head_width_scale_at`: with so many layers attention is scaled by
    hidden size / heads, not by the head's size. `divides_logits`: the file's logit scale is a divisor.
    `adds_one_to_norms`: safetensors keep norms less one. `fuses_qkv`, `fuses_gate_up`, `fuses_expert_gates`: as GGUF
    files of the family have them. `attention_scale` 0: by the head's size. `norms_values`: see AttentionSpec; layers
    without a matrix for values make them with the keys' one then. `repeats_kv`: GGUF files of the family have keys'
    and values' matrices for layers that read those of others, too. `logit_softcap`: where a file names none.
    `gates_attention`: the matrix of queries has their gates, too. `tiles_delta_heads`: see models/delta_rows.py.
    `has_halves`: a block is a mixer or a feed-forward, not both. `turns` False: no layer has rope.
    """

    architecture: str
    title: str
    hf: tuple[str, ...]
    pairs_neighbours: bool = False
    hf_pairs_neighbours: bool = False
    parallel: Literal["never", "always", "as told", "with one norm"] = "never"
    turns_windowed: bool = False
    log_multiplier_unit: float = 1.0
    activation: Activation = "silu"
    norm: Literal["rms", "layer"] = "rms"
    learned_positions: bool = False
    is_encoder: bool = False
    embeds_times_sqrt: bool = False
    full_every: int = 0
    full_first: bool = False
    window_rope_base: float = 0.0
    scales_windowed: bool = True
    rope_pause: int = 0
    truncates_yarn: bool = True
    head_width_scale_at: int = 0
    divides_logits: bool = False
    scoring: Scoring = "softmax"
    normalizes_experts: bool = True
    adds_one_to_norms: bool = False
    fuses_qkv: bool = False
    fuses_gate_up: bool = False
    fuses_expert_gates: bool = False
    attention_scale: float = 0.0
    norms_values: bool = False
    repeats_kv: bool = False
    logit_softcap: float = 0.0
    gates_attention: bool = False
    tiles_delta_heads: bool = False
    has_halves: bool = False
    turns: bool = True
    renames: tuple[tuple[str, str], ...] = ()
    """Names of tensors in a GGUF file (of a layer: without `blk.N.`), and the canonical names of what they are; they
    hold where the file has all of them."""
    hf_defaults: tuple[tuple[str, Any], ...] = ()
    """What checkpoints of the family leave out of their config.json."""
