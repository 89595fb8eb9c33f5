"""Scaling that is folded into neighbours: the same function, and less lost when it is rounded."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from numpy.typing import NDArray

from localllm.formats.blocks import BlockType, decode
from localllm.models.config import ModelConfig
from localllm.models.source import WeightInfo, WeightSource
from localllm.quantize.awq import folds, scaled
from localllm.quantize.encode import encode
from localllm.quantize.imatrix import Importance, ImportanceMatrix
from tests.contract.worlds import ATTENTION, VOCAB, MemorySource, World, attending, build, over_latents, plain, routed

Floats = NDArray[np.float32]
DENSE = World("dense", attending())
BIASED = World("biased", attending(), {"norm": "layer"}, extras=("norm_bias", "attn_v_bias"))
ALONE = World("a head for each", attending(num_kv_heads=4))
IDS = np.random.default_rng(9).integers(0, VOCAB, 60).tolist()


def to(kind: BlockType, info: WeightInfo) -> BlockType | None:
    return kind if len(info.shape) == 2 and info.name.startswith("blk.") else None


def weight(source: WeightSource, name: str) -> Floats:
    info = source.info(name)
    assert info is not None
    return decode(info.type, source.raw(name), info.shape)


def arrays(source: WeightSource) -> dict[str, Floats]:
    return {name: weight(source, name) for name in source.names()}


def unlike(source: MemorySource) -> MemorySource:
    """Norms with a few large values, so that a few columns of what follows meet large inputs."""
    found = arrays(source)
    for name in found:
        if name.endswith(("attn_norm.weight", "ffn_norm.weight")):
            found[name][::7] *= 12
    return MemorySource(found)


def importance(config: ModelConfig, source: WeightSource) -> ImportanceMatrix:
    """As norms and rows make inputs likely: enough to tell columns apart."""
    entries: dict[str, Importance] = {}
    for fold in folds(config, source):
        of = weight(source, fold.producers[0])
        sums = np.square(of) if of.ndim == 1 else np.square(of).sum(axis=1)
        if fold.run:
            sums = np.repeat(sums.reshape(-1, 1, fold.run), fold.shared, axis=1).reshape(-1)
        entries |= {name: Importance(sums[None], np.ones(1, np.float32)) for name in fold.consumers}
    return ImportanceMatrix(entries)


@pytest.mark.parametrize("world", [DENSE, BIASED, ALONE], ids=lambda world: world.name)
def test_the_function_stays_the_same_while_the_weights_change(world: World) -> None:
    config, source = build(world)
    source = unlike(source)
    made, _ = scaled(config, source, partial(to, BlockType.Q4_0), importance(config, source))
    changed = {name for name in source.names() if not np.array_equal(weight(made, name), weight(source, name))}
    assert {"blk.0.attn_norm.weight", "blk.0.attn_q.weight", "blk.1.ffn_norm.weight", "blk.1.ffn_up.weight"} <= changed
    exact, found = plain(config, source).logits(IDS), plain(config, MemorySource(arrays(made))).logits(IDS)
    assert np.abs(found - exact).max() < 1e-4 * np.abs(exact).max()


def test_rounded_after_it_the_products_lose_less() -> None:
    """The first layer's queries, keys and values, for the embeddings of all tokens."""
    config, source = build(DENSE)
    source = unlike(source)
    made, _ = scaled(config, source, partial(to, BlockType.Q4_0), importance(config, source))
    x = weight(source, "token_embd.weight")
    normed = x / np.sqrt(np.square(x).mean(axis=1, keepdims=True))
    sources: tuple[WeightSource, ...] = (made, source)
    lost = [0.0, 0.0]
    for part in ("q", "k", "v"):
        name = f"blk.0.attn_{part}.weight"
        exact = normed * weight(source, "blk.0.attn_norm.weight") @ weight(source, name).T
        for i, each in enumerate(sources):
            inputs, values = normed * weight(each, "blk.0.attn_norm.weight"), weight(each, name)
            rows = 1 / _rows(made, source) if part == "v" and each is made else np.float32(1)
            rounded = decode(BlockType.Q4_0, encode(BlockType.Q4_0, values).reshape(-1), values.shape)
            lost[i] += float(np.square(inputs @ rounded.T * rows - exact).sum())
    assert lost[0] < 0.8 * lost[1]


def _rows(made: WeightSource, source: WeightSource) -> Floats:
    """What the rows of the first layer's values were multiplied by."""
    columns = weight(source, "blk.0.attn_norm.weight") / weight(made, "blk.0.attn_norm.weight")
    name = "blk.0.attn_v.weight"
    found: Floats = np.median(weight(made, name) / columns / weight(source, name), axis=1)
    return found


def test_importances_of_stretched_columns_shrink_by_as_much() -> None:
    config, source = build(DENSE)
    source = unlike(source)
    matrix = importance(config, source)
    made, after = scaled(config, source, partial(to, BlockType.Q4_0), matrix)
    name = "blk.0.ffn_gate.weight"
    stretch = (weight(made, name) / weight(source, name)).mean(axis=0)
    assert after.entries[name].sums[0] * stretch**2 == pytest.approx(matrix.entries[name].sums[0], rel=1e-3)
    assert after.entries["blk.1.ffn_down.weight"].sums.shape == matrix.entries["blk.1.ffn_down.weight"].sums.shape


def test_query_heads_of_one_key_head_are_stretched_alike() -> None:
    config, source = build(DENSE)
    source = unlike(source)
    rng = np.random.default_rng(4)
    matrix = importance(config, source)
    uneven = Importance(np.exp(3 * rng.standard_normal((1, 64))).astype(np.float32), np.ones(1, np.float32))
    name = "blk.0.attn_output.weight"
    made, _ = scaled(config, source, partial(to, BlockType.Q4_0), replace(matrix, entries={name: uneven}))
    stretch = (weight(made, name) / weight(source, name)).mean(axis=0).reshape(2, 2, ATTENTION.value_dim)
    assert stretch[:, 0] == pytest.approx(stretch[:, 1], rel=1e-3) and stretch.std() > 0.1


@pytest.mark.parametrize(
    "world",
    [
        World("experts", routed()),
        World("latent", over_latents()),
        World("beside", attending(), {"parallel": True}, without=("ffn_norm.weight",)),
        World("gated", attending(gated=True)),
        World("normed values", attending(norms_values=True)),
    ],
    ids=lambda world: world.name,
)
def test_what_does_not_allow_it_is_left_alone(world: World) -> None:
    config, source = build(world)
    found = {name for fold in folds(config, source) for name in (*fold.producers, *fold.consumers)}
    assert not found & {f"blk.{i}.attn_{part}.weight" for i in range(2) for part in ("v", "output", "q", "k_b")}


def test_a_weight_that_no_table_names_may_have_the_same_input() -> None:
    config, source = build(DENSE)
    found = arrays(source) | {"blk.0.per_layer_gate.weight": np.ones((4, 64), np.float32)}
    layers = {fold.consumers[0].split(".")[1] for fold in folds(config, MemorySource(found))}
    assert layers == {"1"}
