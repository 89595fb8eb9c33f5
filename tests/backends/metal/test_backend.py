"""What the contract does not ask: how exact, what a step may cost, what is refused, what people are told."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

mx = pytest.importorskip("mlx.core")

from localllm.backends.batch import NOT_USABLE  # noqa: E402  # needs MLX
from localllm.backends.metal.answers import usable_argmax  # noqa: E402
from localllm.backends.metal.backend import MetalBackend  # noqa: E402
from localllm.backends.metal.formulas import route  # noqa: E402
from localllm.backends.metal.precision import Precision  # noqa: E402
from localllm.engine.step import (  # noqa: E402
    NO_PAGE,
    CheckpointId,
    CopyPage,
    MemoryOp,
    PageId,
    ResizePool,
    RestoreState,
    Row,
    SampleWant,
    SlotId,
    StepPlan,
    Want,
    ZeroSlot,
    plain_row,
    run_step,
)
from localllm.errors import BadModelFile, InvalidRequest, NotEnoughMemory  # noqa: E402
from localllm.formats.blocks import BLOCK_LAYOUTS, BlockType, decode  # noqa: E402
from localllm.models.config import MoeSpec  # noqa: E402
from localllm.models.source import WeightInfo  # noqa: E402
from localllm.wire import SamplingParams  # noqa: E402
from tests.contract.walk import Walk  # noqa: E402
from tests.contract.worlds import BY_NAME, WORLDS, MemorySource, World, build, plain  # noqa: E402
from tests.oracles.random_blocks import random_blocks  # noqa: E402

ALL, LAST = Want(logits="all"), Want(logits="last")
GREEDY = Want(sample=SampleWant(SamplingParams(temperature=0.0), 0, 0))
TOKENS = np.random.default_rng(5).integers(0, 80, 21).tolist()
LLAMA, HYBRID, WINDOWS = BY_NAME["llama"], BY_NAME["hybrid"], BY_NAME["windows in some layers"]


def opened(world: World = LLAMA, num_pages: int = 8) -> MetalBackend:
    backend = MetalBackend(*build(world), page_size=4)
    backend.allocate(num_pages, 2)
    return backend


@pytest.mark.parametrize("world", WORLDS, ids=lambda world: world.name)
def test_float32_pages_give_the_plain_transformer_s_logits(world: World) -> None:
    config, source = build(world)
    walk = Walk(MetalBackend(config, source, page_size=4, kv_type="f32", precision=Precision(half=False)))
    first, second = walk.step((1, TOKENS[:12], ALL), (2, TOKENS[:5], ALL))
    (third,) = walk.step((1, TOKENS[12:], ALL))
    expected = plain(config, source).logits(TOKENS)
    for ours, theirs in ((first, expected[:12]), (second, expected[:5]), (third, expected[12:])):
        assert ours.logits is not None
        np.testing.assert_allclose(ours.logits, theirs, rtol=0, atol=2e-4)


@pytest.mark.parametrize("name", ["llama", "experts", "hybrid", "sinks", "attention softcap", "blocks of Q4_0"])
def test_half_precision_as_on_a_gpu_is_near(name: str) -> None:
    config, source = build(BY_NAME[name])
    if BY_NAME[name].type == BlockType.F32:
        source = MemorySource({key: each.astype(np.float32) for key, each in source.decoded().items()}, BlockType.F16)
    walk = Walk(MetalBackend(config, source, page_size=4, precision=Precision(half=True)))
    (result,) = walk.step((1, TOKENS, ALL))
    expected = plain(config, source).logits(TOKENS)
    assert result.logits is not None and np.isfinite(result.logits).all()
    assert np.abs(result.logits - expected).max() <= 2e-2 * np.abs(expected).max()


class Blocks(MemorySource):
    """Some matrices of a world replaced by random blocks of a type that nothing here encodes."""

    def __init__(self, source: MemorySource, kind: BlockType, names: tuple[str, ...], shape: tuple[int, int]) -> None:
        self._infos, self._blocks = dict(source._infos), dict(source._blocks)
        for name in names:
            blocks = random_blocks(kind, shape[0] * shape[1] // BLOCK_LAYOUTS[kind].values_per_block, 1)
            values = decode(kind, blocks, shape)
            scales = blocks[:, -2:].copy().view(np.float16) / np.abs(values).max() / 4  # weights of a usual size
            blocks[:, -2:] = scales.astype(np.float16).view(np.uint8)
            self._infos[name] = WeightInfo(name, shape, kind)
            self._blocks[name] = blocks.reshape(-1)


@pytest.mark.parametrize("decodes", [True, False], ids=["at load", "on use"])
def test_types_without_a_layout_in_mlx_run_and_say_how(decodes: bool) -> None:
    config, source = build(World("wide", config={"activation": "relu"}, without=("ffn_gate.weight",)))
    arrays = {name: each.astype(np.float32) for name, each in source.decoded().items()}
    for layer in range(2):
        arrays[f"blk.{layer}.ffn_up.weight"] = np.repeat(arrays[f"blk.{layer}.ffn_up.weight"], 3, axis=0)[:256]
    names = ("blk.0.ffn_down.weight", "blk.1.ffn_down.weight")
    mixed = Blocks(MemorySource(arrays), BlockType.Q6_K, names, (64, 256))
    backend = MetalBackend(config, mixed, page_size=4, kv_type="f32", decodes=decodes)
    (note,) = backend.info.notes
    assert "Q6_K" in note and ("at load" if decodes else "on every use") in note
    (result,) = Walk(backend).step((1, TOKENS, ALL))
    assert result.logits is not None
    np.testing.assert_allclose(result.logits, plain(config, mixed).logits(TOKENS), rtol=0, atol=2e-4)


@pytest.mark.parametrize("world", [LLAMA, WINDOWS, HYBRID], ids=lambda world: world.name)
def test_a_step_copies_no_room_of_the_pool(world: World) -> None:
    backend = opened(world, num_pages=20_000)
    room_bytes = 20_000 * backend.layout.page_bytes // max(len(group.layers) for group in backend.layout.groups)
    slot = SlotId(0 if backend.layout.has_state else -1)
    for step in range(3):
        row = replace(plain_row(1, [1], step, [9], LAST, num_groups=len(backend.layout.groups)), slot=slot)
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        run_step(backend, StepPlan(step, (row,)))
        assert mx.get_peak_memory() - before < room_bytes / 2
    backend.close()


def test_a_resized_pool_takes_what_its_pages_need() -> None:
    backend = opened(num_pages=20_000)
    full = mx.get_active_memory()
    run_step(backend, StepPlan(0, (), (ResizePool(5_000),)))
    assert full - mx.get_active_memory() > 0.7 * 20_000 * backend.layout.page_bytes
    backend.close()


@pytest.mark.parametrize("values_at_once", [1 << 28, 1 << 15])
def test_rows_of_very_different_sizes_share_a_step(monkeypatch: pytest.MonkeyPatch, values_at_once: int) -> None:
    monkeypatch.setattr("localllm.backends.metal.views.VALUES_AT_ONCE", values_at_once)
    config, source = build(LLAMA)
    walk = Walk(MetalBackend(config, source, page_size=4, kv_type="f32"))
    long = np.random.default_rng(9).integers(0, 80, 100).tolist()
    walk.step((7, long[:90], Want()))
    parts = {1: TOKENS[:1], 2: long[:40], 3: TOKENS[:3], 7: long[90:91], 5: long[:33], 6: TOKENS[:2]}
    results = walk.step(*((seq, tokens, LAST) for seq, tokens in parts.items()))
    oracle = plain(config, source)
    for result, (seq, tokens) in zip(results, parts.items(), strict=True):
        expected = oracle.logits(long[:91] if seq == 7 else tokens)[-1:]
        assert result.logits is not None
        np.testing.assert_allclose(result.logits, expected, rtol=0, atol=2e-4)


def test_pages_of_others_with_unusable_numbers_are_never_touched() -> None:
    """A page that is not the row's own may hold anything, infinities too."""
    backend = opened(num_pages=32)
    expected = run_step(backend, StepPlan(0, (plain_row(1, TOKENS[:3], 0, [5], LAST),))).rows[0].logits
    for room in backend._memory._rooms:
        room[:] = mx.inf
    rows = (plain_row(1, TOKENS[:3], 0, [5], LAST), plain_row(2, TOKENS[:18], 0, [0, 1, 2, 3, 4], LAST))
    results = run_step(backend, StepPlan(1, rows)).rows
    assert expected is not None and results[0].logits is not None
    np.testing.assert_allclose(results[0].logits, expected, atol=1e-4)


def test_greedy_and_drawing_rows_share_a_step() -> None:
    backend = opened()
    row = plain_row(1, TOKENS[:6], 0, [0, 1], GREEDY)
    drawing = Want(sample=SampleWant(SamplingParams(temperature=0.7), 3, 0))
    (alone,) = run_step(backend, StepPlan(0, (row,))).rows
    (drawn,) = run_step(backend, StepPlan(1, (plain_row(2, TOKENS[:9], 0, [2, 3, 4], drawing),))).rows
    both = run_step(backend, StepPlan(2, (row, plain_row(2, TOKENS[:9], 0, [2, 3, 4], drawing)))).rows
    assert [each.sampled for each in both] == [alone.sampled, drawn.sampled]


def test_a_step_may_be_submitted_before_the_last_was_collected() -> None:
    backend, other = opened(), opened()
    plans = [StepPlan(n, (plain_row(1, [token], n, [0, 1], GREEDY),)) for n, token in enumerate((4, -1, -1))]
    for plan in plans:
        backend.submit(plan)
    together = [backend.collect().rows[0].sampled for _ in plans]
    assert together == [run_step(other, plan).rows[0].sampled for plan in plans]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (plain_row(1, [80], 0, [0]), "token id is 80"),
        (plain_row(1, [-7], 0, [0]), "token id is -7"),
        (plain_row(1, [1], 0, [8]), "page that a row needs is 8"),
        (plain_row(1, [1], 0, [NO_PAGE]), "page that a row needs is -1"),
        (plain_row(1, [1] * 5, 0, [0]), "last page of a row is 1"),
        (plain_row(1, [1], 6, [NO_PAGE, 1]), "page that a row needs is -1"),
        (plain_row(1, [1], 128, [0] * 40), "a position is 128"),
        (plain_row(1, [], 0, [0]), "no tokens"),
    ],
    ids=lambda part: part if isinstance(part, str) else "",
)
def test_a_step_out_of_bounds_is_refused_by_name_and_changes_nothing(row: Row, words: str) -> None:
    backend = opened()
    good = plain_row(1, [1, 2, 3], 0, [0], LAST)
    before = run_step(backend, StepPlan(0, (good,))).rows[0].logits
    with pytest.raises(InvalidRequest, match=words):
        backend.submit(StepPlan(1, (row,)))
    np.testing.assert_array_equal(run_step(backend, StepPlan(2, (good,))).rows[0].logits, before)


@pytest.mark.parametrize(
    "op", [CopyPage(PageId(0), PageId(8)), ZeroSlot(SlotId(2)), RestoreState(CheckpointId(1), SlotId(0))], ids=str
)
def test_memory_operations_out_of_bounds_are_refused(op: MemoryOp) -> None:
    with pytest.raises(InvalidRequest):
        opened(HYBRID).submit(StepPlan(0, (), (op,)))


def test_a_row_of_a_model_with_state_must_name_its_slot() -> None:
    with pytest.raises(InvalidRequest, match="state slot is -1"):
        opened(HYBRID).submit(StepPlan(0, (plain_row(1, [1], 0, [0]),)))


def test_an_adapter_that_is_not_there_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="not loaded"):
        opened().submit(StepPlan(0, (replace(plain_row(1, [1], 0, [0]), adapter=1),)))


def test_pages_that_do_not_fit_are_refused() -> None:
    with pytest.raises(NotEnoughMemory, match="pages"):
        opened().allocate(10**12, 0)


@pytest.mark.parametrize("name", ["blk.1.ffn_up.weight", "blk.0.attn_k.weight"])
def test_tensors_that_do_not_fit_together_or_are_missing_show_at_load(name: str) -> None:
    config, source = build(LLAMA)
    arrays = {key: each.astype(np.float32) for key, each in source.decoded().items()}
    misfit = arrays | {name: arrays[name][:, :-1]}
    with pytest.raises(BadModelFile, match="do not fit together"):
        MetalBackend(config, MemorySource(misfit), page_size=4)
    del arrays[name]
    with pytest.raises(BadModelFile, match=name):
        MetalBackend(config, MemorySource(arrays), page_size=4)


def test_logits_that_are_no_numbers_fail_their_row_alone() -> None:
    config, source = build(World("one bad token", extras=("tied",)))
    arrays: dict[str, NDArray[np.float32]] = {key: each.astype(np.float32) for key, each in source.decoded().items()}
    arrays["output.weight"] = arrays["token_embd.weight"].copy()
    arrays["token_embd.weight"][3] = np.nan
    backend = MetalBackend(config, MemorySource(arrays), page_size=4)
    backend.allocate(8, 0)
    rows = (plain_row(1, [3], 0, [0], GREEDY), plain_row(2, [4], 0, [1], GREEDY))
    bad, good = run_step(backend, StepPlan(0, rows)).rows
    assert bad.error_code == "bad_logits" and bad.sampled == ()
    assert not good.error and len(good.sampled) == 1


def test_the_index_of_the_largest_logit_is_the_first_of_equals_or_says_not_usable() -> None:
    logits = np.array([[1, 5, 5], [-np.inf, 0, -1], [np.nan, 1, 2], [1, np.inf, 0], [-np.inf] * 3], np.float32)
    assert np.array(usable_argmax(mx.array(logits))).tolist() == [1, 1, NOT_USABLE, NOT_USABLE, NOT_USABLE]


def test_of_experts_with_equal_scores_the_lower_index_is_chosen() -> None:
    logits = np.zeros((3, 64), np.float32)
    logits[1, 40:] = 1
    logits[2, 63] = 1
    chosen, weights = route(mx.array(logits), MoeSpec(num_experts=64, num_used=4), None)
    assert np.array(chosen).tolist() == [[0, 1, 2, 3], [40, 41, 42, 43], [0, 1, 2, 63]]
    np.testing.assert_allclose(np.array(weights).sum(axis=1), 1, atol=1e-6)


def test_people_are_told_the_device_and_the_size() -> None:
    info = opened().info
    assert (info.name, info.device) == ("metal", "gpu" if mx.metal.is_available() else "cpu")
    assert info.weight_bytes > 0 and info.notes == () and not info.overlaps
