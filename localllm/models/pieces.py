"""The words that tables of names are written in: which part of a checkpoint's tensor is which canonical weight."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from localllm.models.delta_rows import DeltaCut, GatedCut
from localllm.models.state_space import InCut

Cut = Literal[
    "",
    "q",
    "k",
    "v",
    "first half",
    "second half",
    "even",
    "odd",
    # every key head's queries, keys and values together
    "grouped q",
    "grouped k",
    "grouped v",
    # of latent attention: see models/rows.py
    "plain queries",
    "turned queries",
    "latent",
    "turned keys",
    "head keys",
    "head values",
    # of gated attention and gated delta nets: see models/delta_rows.py
    GatedCut,
    DeltaCut,
    "tiled columns",
    # of state spaces: see models/state_space.py
    InCut,
]


@dataclass(frozen=True, slots=True)
class Piece:
    """One part of a canonical weight: rows of a tensor of the file. `order`: place among stacked experts.

    `transposed`: the file has (in, out). `scales`: the tensor is MXFP4 nibbles, and these are its exponents.
    """

    tensor: str
    cut: Cut = ""
    transposed: bool = False
    order: int = 0
    scales: str = ""


@dataclass(frozen=True, slots=True)
class Target:
    """What a module of the checkpoint holds: `name` lacks the layer's prefix, and `.weight` or `.bias`."""

    name: str
    cut: Cut = ""
    transposed: bool = False


Table = Mapping[str, tuple[Target, ...]]


def whole(name: str, transposed: bool = False) -> tuple[Target, ...]:
    return (Target(name, "", transposed),)


def qkv(transposed: bool = False) -> tuple[Target, ...]:
    return tuple(Target(f"attn_{part}", part, transposed) for part in ("q", "k", "v"))


GROUPED_QKV = (
    Target("attn_q", "grouped q"),
    Target("attn_k", "grouped k"),
    Target("attn_v", "grouped v"),
)
GATE_UP = (Target("ffn_gate", "first half"), Target("ffn_up", "second half"))
