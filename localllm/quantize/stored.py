"""Which tensors a GGUF file of a model has, and of which weights each is made: the way back of models/quirks.py."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from localllm.formats.blocks import BlockType, decode, encode
from localllm.models.config import AttentionSpec, ModelConfig
from localllm.models.delta_rows import delta_of, delta_rows, gated_rows
from localllm.models.families import family_of
from localllm.models.family import Family
from localllm.models.rows import LATENT_PARTS, attention_of, latent_rows, turned_order
from localllm.models.source import WeightSource
from localllm.models.state_space import IN
from localllm.models.state_space_facts import state_space_of

Bytes = NDArray[np.uint8]
_FUSED_QKV = ("attn_q", "attn_k", "attn_v")


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor of the file: canonical weights one after another, their rows in `order` (None: as they are)."""

    name: str
    parts: tuple[str, ...]
    order: NDArray[np.intp] | None = None
    of_experts: bool = False
    """The parts follow each other for every expert."""


def stored_tensors(config: ModelConfig, source: WeightSource) -> dict[str, Stored]:
    """What a file of the model has, by the names it gives."""
    return {each.name: each for each in stored_of(config, source)}


def stored_of(config: ModelConfig, source: WeightSource) -> Iterator[Stored]:
    """The same, one after another."""
    family = family_of(config.architecture)
    names = set(source.names())
    kinds = {_split(name)[1] for name in names}
    backwards = {canonical: name for name, canonical in family.renames}
    if not kinds.issuperset(backwards):
        backwards = {}
    joined = {part: module for module, parts in _joined(kinds).items() for part in parts}
    if family.repeats_kv:
        yield from _repeated(config, names)
    for name in sorted(names):
        prefix, rest = _split(name)
        module, _, kind = rest.rpartition(".")
        if module in joined:
            yield from _joined_latent(config, prefix, module, joined[module], kind)
            continue
        if (gates := _with_gates(config, source, prefix, module, kind)) is not None:
            yield from gates
            continue
        if module in IN and state_space_of(name, config) is not None:
            if module == IN[0]:
                yield Stored(f"{prefix}ssm_in.{kind}", tuple(f"{prefix}{part}.{kind}" for part in IN))
            continue
        if family.fuses_qkv and module in _FUSED_QKV:
            if module == _FUSED_QKV[0]:
                parts = tuple(f"{prefix}{part}.{kind}" for part in _FUSED_QKV)
                yield Stored(f"{prefix}attn_qkv.{kind}", parts, _fused_order(config, source, family, parts))
        elif family.fuses_gate_up and module in ("ffn_gate", "ffn_up"):
            if module == "ffn_up":
                yield Stored(name, (f"{prefix}ffn_gate.{kind}", name))
        elif family.fuses_expert_gates and rest in ("ffn_gate_exps.weight", "ffn_up_exps.weight"):
            if module == "ffn_up_exps":
                yield Stored(f"{prefix}ffn_gate_up_exps.{kind}", (f"{prefix}ffn_gate_exps.{kind}", name), None, True)
        else:
            yield Stored(prefix + backwards.get(rest, rest), (name,), _order(config, source, family, name))


def _repeated(config: ModelConfig, names: Collection[str]) -> Iterator[Stored]:
    """What readers want of layers that share keys and values, and use for nothing: that of the layer they read."""
    for index, layer in enumerate(config.layers):
        if not isinstance(layer.mixer, AttentionSpec) or layer.mixer.kv_from is None:
            continue
        for part in ("attn_k", "attn_v", "attn_k_norm"):
            for kind in ("weight", "bias"):
                name = f"blk.{layer.mixer.kv_from}.{part}.{kind}"
                if name in names:
                    yield Stored(f"blk.{index}.{part}.{kind}", (name,))


def _with_gates(
    config: ModelConfig, source: WeightSource, prefix: str, module: str, kind: str
) -> Iterable[Stored] | None:
    """What files have in one matrix with another: queries with their gates, and the two gates of a gated delta net
    whose heads are not tiled. Nothing for the second of the two; None where the module is as it is."""
    spec, delta = attention_of(f"{prefix}{module}.", config), delta_of(f"{prefix}{module}.", config)
    if spec is not None and spec.gated and module in ("attn_q", "attn_gate"):
        rows = np.concatenate([gated_rows("queries", spec), gated_rows("gates", spec)])
        name, pair = "attn_q", ("attn_q", "attn_gate")
    elif delta is not None and not delta.tiled and module in ("ssm_beta", "ssm_alpha"):
        rows = np.concatenate([delta_rows("joined betas", delta), delta_rows("joined decays", delta)])
        name, pair = "ssm_ba", ("ssm_beta", "ssm_alpha")
    else:
        return None
    parts = tuple(f"{prefix}{each}.{kind}" for each in pair)
    return [Stored(f"{prefix}{name}.{kind}", parts, np.argsort(rows))] if module == pair[0] else []


def _split(name: str) -> tuple[str, str]:
    """The layer's prefix, and the rest."""
    if not name.startswith("blk."):
        return "", name
    _, number, rest = name.split(".", 2)
    return f"blk.{number}.", rest


def _order(config: ModelConfig, source: WeightSource, family: Family, name: str) -> NDArray[np.intp] | None:
    """Rows of queries and keys where the family's files pair neighbours: the way back of models/quirks.py."""
    info = source.info(name)
    if not family.pairs_neighbours or info is None:
        return None
    order = turned_order(name, info.shape[0], config)
    return None if order is None else np.argsort(order)


def _fused_order(
    config: ModelConfig, source: WeightSource, family: Family, parts: Sequence[str]
) -> NDArray[np.intp] | None:
    """The orders of parts that lie one after another."""
    orders, first = [], 0
    for part in parts:
        info, order = source.info(part), _order(config, source, family, part)
        count = 0 if info is None else info.shape[0]
        orders.append(first + (np.arange(count, dtype=np.intp) if order is None else order))
        first += count
    return np.concatenate(orders) if family.pairs_neighbours else None


def _joined(kinds: set[str]) -> dict[str, tuple[str, ...]]:
    """Modules of latent attention that files have in one matrix, and what we make of it."""
    found = {
        module: tuple(name for name, _ in parts)
        for module, parts in LATENT_PARTS.items()
        if all(f"{name}.weight" in kinds for name, _ in parts)
    }
    if found:
        del found["attn_q" if "attn_q_a.weight" in kinds else "attn_q_b"]
    return found


def _joined_latent(config: ModelConfig, prefix: str, part: str, module: str, kind: str) -> Iterator[Stored]:
    """The file's matrix, with its first part."""
    parts = LATENT_PARTS[module]
    spec = attention_of(f"{prefix}{module}", config)
    if part != parts[0][0] or spec is None:
        return
    rows = np.concatenate([latent_rows(of, spec, pairs_neighbours=True) for _, of in parts])
    yield Stored(f"{prefix}{module}.{kind}", tuple(f"{prefix}{name}.{kind}" for name, _ in parts), np.argsort(rows))


def stored_blocks(source: WeightSource, stored: Stored, kind: BlockType) -> Bytes:
    """The blocks of one of them, uint8 (bytes,), its rows in the order of files."""
    blocks = np.concatenate([_as_type(source, part, kind) for part in stored.parts], axis=int(stored.of_experts))
    return (blocks if stored.order is None else blocks[stored.order]).reshape(-1)


def _as_type(source: WeightSource, name: str, kind: BlockType) -> Bytes:
    """The rows of a weight, (rows of the first axis, bytes)."""
    info = source.info(name)
    assert info is not None, "the name comes from the source"
    raw = source.raw(name)
    if info.type != kind:
        raw = encode(kind, decode(info.type, raw, info.shape))
    source.release(name)
    return raw.reshape(info.shape[0], -1)
