"""Low-rank adapters (LoRA) of a model: y = W x becomes W x + scale B (A x), read from PEFT folders and from GGUF files.

Whatever the file, weights come out under canonical names and with rows in the decoder's order, checked against the
base: an adapter that changes what no backend can add to is refused by name, and never half applied.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from localllm.errors import BadModelFile, UnsupportedModel
from localllm.models.source import WeightInfo

Floats = NDArray[np.float32]
InfoOf = Callable[[str], WeightInfo | None]
"""What the base has under a canonical name: the `info` of its source."""

ADAPTABLE = frozenset(
    {
        *("attn_q", "attn_k", "attn_v", "attn_output"),
        *("attn_q_a", "attn_q_plain", "attn_q_turned", "attn_kv_a", "attn_k_turned"),
        *("ffn_gate", "ffn_up", "ffn_down", "ffn_gate_inp"),
        *("ffn_gate_shexp", "ffn_up_shexp", "ffn_down_shexp", "ffn_gate_inp_shexp"),
        *("shortconv.in_proj", "shortconv.out_proj"),
        *("attn_qkv", "attn_gate", "ssm_in", "ssm_out", "ssm_alpha", "ssm_beta", "ssm_gate", "ssm_step"),
        *("inp_gate", "proj", "laurel_l", "laurel_r"),
    }
)
"""Matrices of a layer that every backend multiplies by `linear`, `linear_group` or `gated`."""
SCALED = ("falcon-h1",)
"""Architectures whose weights are multiplied at load by numbers that an adapter's matrices lack."""
MAX_RANK = 1024
MAX_SCALE = 1e6
MAX_PARTS = 1 << 16
OTHER_BASE = "an adapter works only with the model it was trained on: `localllm show` names it"
NO_ROOM_FOR = "merge the adapter into the model, or train one without it"


@dataclass(frozen=True, slots=True)
class LowRank:
    """What is added to one matrix (out, in): a (rank, in), b (out, rank), float32 and finite."""

    a: Floats
    b: Floats
    scale: float

    @property
    def rank(self) -> int:
        return len(self.a)


@dataclass(frozen=True, slots=True)
class Adapter:
    """`parts` by canonical name of the weight (`blk.0.attn_q.weight`)."""

    name: str
    parts: Mapping[str, LowRank]

    @property
    def size_bytes(self) -> int:
        return sum(part.a.nbytes + part.b.nbytes for part in self.parts.values())

    @property
    def rank(self) -> int:
        """The largest."""
        return max(part.rank for part in self.parts.values())


@dataclass(frozen=True, slots=True)
class AdapterFacts:
    """What a file says of itself. `targets`: modules as the file names them, without layers; `base` may be empty."""

    path: Path
    kind: Literal["peft", "gguf"]
    base: str
    architecture: str
    ranks: tuple[int, ...]
    alpha: float
    targets: tuple[str, ...]
    num_matrices: int
    size_bytes: int


def check_parts(name: str, parts: Mapping[str, LowRank], info_of: InfoOf) -> Adapter:
    """The adapter, if the base has all of these matrices in these shapes. BadModelFile for numbers that are none and
    for a base of another shape, UnsupportedModel for what cannot be added to."""
    if not parts:
        raise BadModelFile(f"the adapter {name} changes nothing: it holds no lora_A and lora_B")
    for weight, part in parts.items():
        check_adaptable(name, weight)
        _check_part(name, weight, part, info_of)
    return Adapter(name, dict(parts))


def is_adaptable(weight: str) -> bool:
    """Whether backends can add to a weight of this canonical name."""
    return weight.startswith("blk.") and weight.endswith(".weight") and _module(weight) in ADAPTABLE


def _module(weight: str) -> str:
    module = weight.removesuffix(".weight")
    return module.split(".", 2)[-1] if module.startswith("blk.") else module


def check_adaptable(name: str, weight: str) -> None:
    """UnsupportedModel where `weight` (canonical) is none that backends can add to."""
    if is_adaptable(weight):
        return
    module = _module(weight)
    what = f"{module} of layer {weight.split('.')[1]}" if weight.startswith("blk.") else module
    if module.endswith("_exps"):
        what = f"the experts ({weight})"
    raise UnsupportedModel(f"the adapter {name} changes {what}, which this build cannot do", hint=NO_ROOM_FOR)


def _check_part(name: str, weight: str, part: LowRank, info_of: InfoOf) -> None:
    info = info_of(weight)
    if info is None:
        raise BadModelFile(f"the adapter {name} changes {weight}, which this model does not have", hint=OTHER_BASE)
    if not 0 < part.rank <= MAX_RANK:
        raise UnsupportedModel(f"the adapter {name} has the rank {part.rank} in {weight}, the limit is {MAX_RANK}")
    if part.b.shape[1] != part.rank or info.shape != (part.b.shape[0], part.a.shape[1]):
        raise BadModelFile(
            f"the adapter {name} is for another model: in {weight} it has the shapes {part.a.shape} and "
            f"{part.b.shape}, the model has {info.shape}",
            hint=OTHER_BASE,
        )
    if not (np.isfinite(part.a).all() and np.isfinite(part.b).all()):
        raise BadModelFile(f"the adapter {name} has numbers in {weight} that are none (NaN or infinite)")


def checked_scale(name: str, scale: float) -> float:
    """A scale of a file as a float; BadModelFile for one that would make the model's numbers useless."""
    if not -MAX_SCALE <= scale <= MAX_SCALE:  # also false for NaN
        raise BadModelFile(f"the adapter {name} has the scale {scale}, which is out of bounds")
    return float(scale)


def checked_pair(name: str, module: str, a: tuple[int, ...], b: tuple[int, ...]) -> None:
    """BadModelFile unless the shapes are those of two matrices that can be multiplied."""
    if len(a) != 2 or len(b) != 2 or not all((*a, *b)) or a[0] != b[1]:
        raise BadModelFile(f"the adapter {name} has matrices of the shapes {a} and {b} for {module}, which do not fit")


def feed_forward_widths(info_of: InfoOf, num_layers: int) -> tuple[int, ...]:
    """Widths of the base's feed-forwards, which tell fused gates from plain ones."""
    infos = (info_of(f"blk.{index}.ffn_down.weight") for index in range(num_layers))
    return tuple({info.shape[1] for info in infos if info is not None})


def modules_of(names: Iterable[str], layer: str) -> tuple[str, ...]:
    """What is targeted, each once: names without what is before the number of the layer, sorted."""
    found = set()
    for name in names:
        parts = name.split(".")
        start = next((at for at, part in enumerate(parts) if part.isdecimal()), -1) if layer else -1
        found.add(".".join(parts[start + 1 :]))
    return tuple(sorted(found))
