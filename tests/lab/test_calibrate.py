"""What weights meet while a model reads a text, and weights that are rounded by it."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from localllm.errors import UsageError
from localllm.formats.blocks import BlockType, decode
from localllm.lab import calibrate
from localllm.lab.calibrate import (
    Reading,
    collect_importance,
    compensate,
    default_text,
    hessians,
    importance,
    read,
    reading_of,
)
from localllm.models.config import ModelConfig
from localllm.models.source import WeightInfo, WeightSource
from localllm.quantize.encode import encode
from tests.contract.worlds import (
    ATTENTION,
    MOE,
    VOCAB,
    MemorySource,
    World,
    attending,
    build,
    over_latents,
    plain,
    routed,
)
from tests.lab.small_files import TEXT, random_model

DENSE = World("dense", attending())
EXPERTS = World("experts", routed())
LATENT = World("latent", over_latents())
LENGTHS = (40, 40, 17)
Floats = NDArray[np.float32]


def reading(*lengths: int) -> Reading:
    rng = np.random.default_rng(3)
    return Reading(tuple(tuple(rng.integers(0, VOCAB, length).tolist()) for length in lengths), "dice", max(lengths))


def weight(source: WeightSource, name: str) -> Floats:
    info = source.info(name)
    assert info is not None
    return decode(info.type, source.raw(name), info.shape)


def test_every_matrix_of_the_layers_meets_every_token_once() -> None:
    config, source = build(DENSE)
    found = importance(config, source, reading(*LENGTHS))
    matrices = {name for name in source.names() if name.startswith("blk.") and weight(source, name).ndim == 2}
    assert set(found.entries) == matrices
    assert {float(entry.counts[0]) for entry in found.entries.values()} == {sum(LENGTHS)}
    assert (found.num_chunks, found.datasets) == (3, ("dice",))


def test_the_first_inputs_are_the_normed_embeddings() -> None:
    config, source = build(DENSE)
    text = reading(*LENGTHS)
    x = weight(source, "token_embd.weight")[[token for chunk in text.chunks for token in chunk]].astype(np.float64)
    normed = x / np.sqrt(np.square(x).mean(axis=1, keepdims=True) + config.norm_eps)
    expected = np.square(normed * weight(source, "blk.0.attn_norm.weight")).mean(axis=0)
    assert importance(config, source, text).importance_of("blk.0.attn_q.weight") == pytest.approx(expected, rel=1e-4)


def test_experts_are_counted_by_the_tokens_that_chose_them() -> None:
    config, source = build(EXPERTS)
    found = importance(config, source, reading(*LENGTHS))
    for part in ("gate", "up", "down"):
        entry = found.entries[f"blk.0.ffn_{part}_exps.weight"]
        assert entry.counts.sum() == MOE.num_used * sum(LENGTHS) and len(entry.sums) == MOE.num_experts
    assert np.array_equal(
        found.entries["blk.1.ffn_gate_exps.weight"].sums, found.entries["blk.1.ffn_up_exps.weight"].sums
    )


def test_heads_with_matrices_of_their_own_are_told_apart() -> None:
    config, source = build(LATENT)
    found = importance(config, source, reading(*LENGTHS)).entries["blk.0.attn_k_b.weight"]
    assert found.sums.shape == (ATTENTION.num_heads, weight(source, "blk.0.attn_k_b.weight").shape[2])
    assert found.counts.tolist() == [sum(LENGTHS)] * ATTENTION.num_heads


def test_chunks_are_read_from_an_empty_context_in_however_many_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    config, source = build(World("hybrid", DENSE.layers))
    at_once = importance(config, source, reading(*LENGTHS))
    monkeypatch.setattr(calibrate, "FLOATS_AT_ONCE", 1)
    told: list[tuple[int, int]] = []
    apart = importance(config, source, reading(*LENGTHS), lambda done, total: told.append((done, total)))
    for name, entry in at_once.entries.items():
        assert apart.entries[name].sums == pytest.approx(entry.sums, rel=1e-4)
    assert told[-1] == (3 * len(at_once.entries), 3 * len(at_once.entries))


def test_hessians_have_the_importances_on_their_diagonals_one_at_a_time() -> None:
    config, source = build(DENSE)
    text, found = reading(*LENGTHS), dict[str, Floats]()
    hessians(config, source, text, lambda name, matrix, hessian: found.update({name: hessian}))
    sums = importance(config, source, text).entries
    assert list(found)[:4] == [f"blk.0.attn_{part}.weight" for part in ("q", "k", "v", "output")]
    for name, hessian in found.items():
        assert hessian.diagonal() == pytest.approx(sums[name].sums[0], rel=1e-4)
    assert found["blk.0.attn_q.weight"] is found["blk.0.attn_k.weight"]


def to(kind: BlockType) -> Callable[[WeightInfo], BlockType | None]:
    return lambda info: (
        kind if len(info.shape) > 1 and info.name.startswith("blk.") and info.shape[-1] % 32 == 0 else None
    )


def error(config: ModelConfig, exact: MemorySource, rounded: WeightSource) -> float:
    """Of the logits after other tokens than those that were read."""
    ids = np.random.default_rng(9).integers(0, VOCAB, 60).tolist()
    arrays = {name: weight(rounded, name) for name in exact.names()}
    wanted, found = plain(config, exact).logits(ids), plain(config, MemorySource(arrays)).logits(ids)
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


@pytest.mark.parametrize("world", [DENSE, EXPERTS], ids=lambda world: world.name)
def test_weights_rounded_by_their_inputs_change_the_logits_less(world: World) -> None:
    config, source = build(world)
    text = Reading(reading(*[60] * 30).chunks, "dice", 60)
    kept = compensate(config, source, text, to(BlockType.Q4_0))
    expected = {name for name in source.names() if to(BlockType.Q4_0)(source.info(name))}  # type: ignore[arg-type]
    assert set(kept.kept) == expected
    assert error(config, source, kept) < 0.95 * error(config, source, _plainly(source, BlockType.Q4_0))


def _plainly(source: MemorySource, kind: BlockType) -> WeightSource:
    """The same weights rounded, each by itself."""
    arrays = {name: weight(source, name) for name in source.names()}
    for name, values in arrays.items():
        if to(kind)(WeightInfo(name, values.shape, BlockType.F32)) is not None:
            arrays[name] = decode(kind, encode(kind, values).reshape(-1), values.shape)
    return MemorySource(arrays)


def test_a_weight_is_rounded_for_inputs_that_come_out_of_rounded_weights() -> None:
    """With the first layers all but destroyed, the last one meets other inputs than in the model as it was."""
    config, source = build(DENSE)
    text = reading(60, 60)
    inputs: list[Floats] = []

    def visit(name: str, matrix: int, seen: Floats) -> None:
        if name == "blk.1.ffn_down.weight":
            inputs.append(seen)

    read(config, source, text.chunks, visit)
    made = compensate(config, source, text, to(BlockType.Q4_0))
    read(config, made, text.chunks, visit)
    before, after = inputs
    assert np.linalg.norm(after - before) > 0.01 * np.linalg.norm(before)
    target = weight(source, "blk.1.ffn_down.weight")
    alone = compensate(config, source, text, lambda info: BlockType.Q4_0 if "blk.1.ffn_down" in info.name else None)
    losses = [
        float(np.linalg.norm(after @ (weight(each, "blk.1.ffn_down.weight") - target).T)) for each in (made, alone)
    ]
    assert losses[0] < losses[1]


def test_types_without_gptq_are_rounded_by_importance() -> None:
    config, source = build(DENSE)
    name = "blk.0.attn_q.weight"
    text = reading(60)
    made = compensate(config, source, text, lambda info: BlockType.Q5_1 if info.name == name else None)
    means = importance(config, source, text).importance_of(name)
    losses = [
        float((np.square(weight(each, name) - weight(source, name)) * means).sum())
        for each in (made, _plainly(source, BlockType.Q5_1))
    ]
    assert made.info(name) == WeightInfo(name, (64, 64), BlockType.Q5_1) and losses[0] < 0.9 * losses[1]


def test_the_text_that_comes_along_is_of_many_kinds() -> None:
    text = default_text()
    assert 10_000 < len(text.encode()) < 20_000
    assert all(sample in text for sample in ("def ", "SELECT", "Der ", "日", "| Year |", "User:"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_model(tmp_path_factory.mktemp("model") / "random.gguf")


def test_a_file_and_a_text_make_an_importance_matrix(model: Path) -> None:
    text = reading_of(model, TEXT, "clocks", 128)
    assert {len(chunk) for chunk in text.chunks[:-1]} == {128} and len(text.chunks[-1]) <= 128
    found = collect_importance(model, text)
    assert len(found.entries) == 14 and found.datasets == ("clocks",) and found.chunk_size == 128


def test_a_text_that_says_too_little_is_refused(model: Path) -> None:
    with pytest.raises(UsageError, match="a calibration needs 64"):
        reading_of(model, "Hello", "greeting")
