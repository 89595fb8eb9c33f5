"""The families we know: one row each. A row says only what neither the metadata nor the tensors of a file say."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from localllm.errors import UnsupportedModel
from localllm.models.config import Activation


@dataclass(frozen=True, slots=True)
class Family:
    """`architecture` is the GGUF name, `hf` the `model_type`s of Hugging Face that are of this family.

    `pairs_neighbours`: the file orders query and key rows for rope on neighbours. `full_every`: of so many layers all
    but the last have the window; 1: all have it; 0: none. `window_rope_base`: rope of windowed layers, without scaling;
    0: as the others. `head_width_scale_at`: with so many layers attention is scaled by hidden size / heads, not by the
    head's size.
    """

    architecture: str
    hf: tuple[str, ...]
    pairs_neighbours: bool = False
    activation: Activation = "silu"
    norm: Literal["rms", "layer"] = "rms"
    embeds_times_sqrt: bool = False
    full_every: int = 0
    window_rope_base: float = 0.0
    head_width_scale_at: int = 0
    scoring: Literal["softmax", "sigmoid", "softmax_chosen"] = "softmax"
    normalizes_experts: bool = True
    renames: tuple[tuple[str, str], ...] = ()
    """Names of tensors in the file, and the canonical names of what they are."""


ROWS = (
    # Mistral and Mixtral files say "llama", too; a window, where one is named, is on every layer
    Family("llama", ("llama", "mistral", "mixtral"), pairs_neighbours=True, full_every=1),
    Family("qwen2", ("qwen2",)),
    Family("qwen3", ("qwen3",)),
    Family("qwen3moe", ("qwen3_moe",)),
    Family(
        "gemma2",
        ("gemma2",),
        activation="gelu_tanh",
        embeds_times_sqrt=True,
        full_every=2,
        head_width_scale_at=46,  # Gemma 2 27B
    ),
    Family(
        "gemma3",
        ("gemma3_text", "gemma3"),
        activation="gelu_tanh",
        embeds_times_sqrt=True,
        full_every=6,
        window_rope_base=10000.0,
        head_width_scale_at=62,  # Gemma 3 27B
    ),
    # LFM2 names its last norm after the embedding
    Family("lfm2", ("lfm2",), renames=(("token_embd_norm.weight", "output_norm.weight"),)),
)

FAMILIES: Mapping[str, Family] = MappingProxyType({row.architecture: row for row in ROWS})


def family_of(architecture: str) -> Family:
    """The row of a GGUF architecture; UnsupportedModel names it and those we know."""
    family = FAMILIES.get(architecture)
    if family is None:
        raise UnsupportedModel(
            f"this build cannot run the architecture {architecture!r}", hint="it runs " + ", ".join(sorted(FAMILIES))
        )
    return family
