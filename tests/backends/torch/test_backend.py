"""The whole backend on every device torch sees: exact in float32, near in 16 bits, the same alone and in a crowd."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

torch = pytest.importorskip("torch")

from localllm.backends.torch import formulas, memory, model, reach, weights  # noqa: E402  # needs torch
from localllm.backends.torch.backend import TorchBackend  # noqa: E402
from localllm.backends.torch.experts import Experts  # noqa: E402
from localllm.engine.step import (  # noqa: E402
    NO_PAGE,
    NOTHING,
    CheckpointId,
    CopyPage,
    CopySlot,
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
from localllm.errors import BadModelFile, InvalidRequest, LocalLLMError, NotEnoughMemory, UsageError  # noqa: E402
from localllm.formats.blocks import BlockType  # noqa: E402
from localllm.wire import SamplingParams  # noqa: E402
from tests.contract.walk import Walk  # noqa: E402
from tests.contract.worlds import BY_NAME, HYBRID, WORLDS, MemorySource, World, build, plain, routed  # noqa: E402

ALL, LAST = Want(logits="all"), Want(logits="last")
GREEDY = Want(sample=SampleWant(SamplingParams(temperature=0.0), seed=0, counter=0))
RNG = np.random.default_rng(21)
TOKENS = RNG.integers(0, 80, 40).tolist()
FLOAT_WORLDS = [world for world in WORLDS if world.type is BlockType.F32]
# one of each kind of verb, for what is not about a verb
FEW = [BY_NAME[name] for name in ("llama", "windows in some layers", "sinks", "hybrid", "experts with biases")]


def open_world(world: World, device: str, **options: Any) -> TorchBackend:
    config, source = build(world)
    return TorchBackend(config, source, page_size=4, device=device, **options)


def in_chunks(backend: TorchBackend) -> NDArray[np.float32]:
    """Logits of TOKENS[:26], in chunks among those of another sequence."""
    walk, seen = Walk(backend), []
    for first, end in ((0, 9), (9, 10), (10, 24), (24, 26)):
        own, _ = walk.step((1, TOKENS[first:end], ALL), (2, TOKENS[first : first + 2], GREEDY))
        assert own.logits is not None
        seen.append(own.logits)
    return np.concatenate(seen)


def near(ours: NDArray[np.float32], world: World, tolerance: float) -> None:
    config, source = build(world)
    expected = plain(config, source).logits(TOKENS[:26])
    assert np.abs(ours - expected).max() <= tolerance * max(1.0, np.abs(expected).max())


@pytest.mark.parametrize("world", FLOAT_WORLDS, ids=lambda world: world.name)
def test_float32_weights_and_pages_are_exact(device: str, world: World) -> None:
    backend = open_world(world, device, kv_type="f32", compute="float32")
    config, source = build(world)
    difference = in_chunks(backend) - plain(config, source).logits(TOKENS[:26])
    assert np.abs(difference).max() <= 2e-4


@pytest.mark.parametrize("compute", ["float16", "bfloat16"])
@pytest.mark.parametrize("world", FEW, ids=lambda world: world.name)
def test_products_in_16_bits_are_near(device: str, world: World, compute: str) -> None:
    near(in_chunks(open_world(world, device, compute=compute)), world, 5e-3 if compute == "float16" else 4e-2)


@pytest.mark.parametrize("kind", [BlockType.F16, BlockType.BF16, BlockType.Q8_0, BlockType.Q4_0, BlockType.Q4_1])
def test_a_model_in_its_blocks_computes_what_the_decoded_one_does(device: str, kind: BlockType) -> None:
    world = World("blocks", routed(num_used=6), type=kind)
    decoded, kept = (open_world(world, device, keep_decoded=keep, compute="float32") for keep in (True, False))
    assert kept.info.weight_bytes < decoded.info.weight_bytes
    assert any("at every use" in note for note in kept.info.notes)
    np.testing.assert_allclose(in_chunks(kept), in_chunks(decoded), atol=1e-5)


@pytest.mark.parametrize("name", ["experts", "experts with biases", "experts by sigmoid and bias"])
@pytest.mark.parametrize("keep_decoded", [True, False])
def test_experts_may_be_computed_several_at_once(
    monkeypatch: pytest.MonkeyPatch, device: str, name: str, keep_decoded: bool
) -> None:
    monkeypatch.setattr(Experts, "_limit", lambda self, device: 4)
    near(in_chunks(open_world(BY_NAME[name], device, kv_type="f32", keep_decoded=keep_decoded)), BY_NAME[name], 1e-4)


@pytest.mark.parametrize("world", FEW, ids=lambda world: world.name)
def test_what_does_not_fit_at_once_is_computed_in_parts(
    monkeypatch: pytest.MonkeyPatch, device: str, world: World
) -> None:
    monkeypatch.setattr(formulas, "SCORES_AT_ONCE", 300)
    monkeypatch.setattr(reach, "VALUES_AT_ONCE", 1)
    monkeypatch.setattr(weights, "VALUES_AT_ONCE", 1000)
    near(in_chunks(open_world(world, device, kv_type="f32", keep_decoded=False)), world, 1e-4)


@pytest.mark.parametrize("world", FEW, ids=lambda world: world.name)
def test_64_streams_of_unequal_length_say_what_each_says_alone(device: str, world: World) -> None:
    lengths = [1 + (7 * n) % 37 for n in range(64)]
    prompts = [RNG.integers(0, 80, length).tolist() for length in lengths]
    crowd, alone = (Walk(open_world(world, device), num_pages=2000, num_slots=64) for _ in range(2))
    together = [crowd.step(*((n, prompt, ALL) for n, prompt in enumerate(prompts)))]
    together += [crowd.step(*((n, [n % 80], ALL) for n in range(64))) for _ in range(2)]
    for n in range(0, 64, 9):
        own = [alone.step((n, tokens, ALL))[0].logits for tokens in (prompts[n], [n % 80], [n % 80])]
        for step, logits in zip(together, own, strict=True):
            assert logits is not None and step[n].logits is not None
            np.testing.assert_allclose(step[n].logits, logits, atol=2e-2 if device == "mps" else 2e-3)


def test_rows_of_one_token_attend_together(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    """Short rows are not padded to long ones, and 64 rows take as many products as four."""
    walk = Walk(open_world(BY_NAME["llama"], device), num_pages=2000)
    for n in range(64):
        walk.step((n, TOKENS[:30] if n == 0 else TOKENS[:4], GREEDY))
    shapes: list[tuple[int, ...]] = []
    attend = formulas._attend

    def watched(q: Any, k: Any, *rest: Any) -> Any:
        shapes.append(tuple(k.shape))
        return attend(q, k, *rest)

    monkeypatch.setattr(formulas, "_attend", watched)
    walk.step(*((n, [5], GREEDY) for n in range(64)))
    assert sorted(set(shapes)) == [(1, 2, 32, 16), (63, 2, 8, 16)]
    assert len(shapes) == 2 * 2  # of two layers


def test_greedy_choices_need_no_logits_on_the_host(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("logits came to the host")

    walk = Walk(open_world(BY_NAME["llama"], device))
    (first,) = walk.step((1, TOKENS, LAST))
    monkeypatch.setattr(model, "on_host", refuse)
    (second,) = walk.step((2, TOKENS, GREEDY))
    assert first.logits is not None and second.sampled == (int(first.logits.argmax()),)


def test_an_unfinished_chunk_does_not_decode_the_head(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    used: list[str] = []
    parts = weights.Weight.parts

    def watched(self: weights.Weight) -> Any:
        used.append(self.name)
        return parts(self)

    monkeypatch.setattr(weights.Weight, "parts", watched)
    walk = Walk(open_world(BY_NAME["blocks of Q8_0"], device, keep_decoded=False))
    walk.step((1, TOKENS[:5], NOTHING))
    assert "blk.1.ffn_down.weight" in used and "output.weight" not in used
    walk.step((1, TOKENS[5:6], GREEDY))
    assert "output.weight" in used


def test_only_the_logits_that_are_needed_come_to_the_host(device: str) -> None:
    logits = torch.arange(12.0, device=device).view(4, 3)
    lines = model.on_host(logits, np.array([False, True, False, True]))
    assert lines.shape == (4, 3)
    np.testing.assert_array_equal(lines[[1, 3]], [[3, 4, 5], [9, 10, 11]])


def test_the_first_of_equal_logits_is_chosen_and_no_number_is_not_usable(device: str) -> None:
    nan, inf = float("nan"), float("inf")
    lines = [[1, 3, 3, 3], [nan, 1, 2, 3], [-inf, -inf, 5, 5], [inf, 0, 0, 0], [-inf] * 4]
    assert model.largest(torch.tensor(lines, device=device)).tolist() == [1, -1, 2, -1, -1]
    wide = torch.zeros((2, 151936), device=device)
    wide[1, [70000, 151000]] = 1
    assert model.largest(wide).tolist() == [0, 70000]


def test_a_model_that_computes_no_numbers_fails_row_by_row(device: str) -> None:
    config, source = build(BY_NAME["llama"])
    arrays = {name: array.astype(np.float32) for name, array in source.decoded().items()}
    arrays["token_embd.weight"][7] = np.nan
    walk = Walk(TorchBackend(config, MemorySource(arrays), page_size=4, device=device))
    broken, sound = walk.step((1, [3, 7, 7, 7], GREEDY), (2, [3, 4], GREEDY))
    assert broken.error_code == "bad_logits" and broken.sampled == ()
    assert not sound.error and len(sound.sampled) == 1
    # the pages that hold no numbers become another's: nothing of them may be seen
    walk.free_pages += [page for table in walk.held.pop(1).tables for page in table]
    (heir,) = walk.step((3, [3, 4], GREEDY))
    assert heir.sampled == sound.sampled


HYBRID_WORLD = World("hybrid", HYBRID)
GOOD = plain_row(1, [1, 2, 3], 0, [0], LAST)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (plain_row(1, [80], 0, [0]), "token id is 80"),
        (plain_row(1, [-7], 0, [0]), "token id is -7"),
        (plain_row(1, [1], 0, [8]), "page that a row needs is 8"),
        (plain_row(1, [1], 0, [NO_PAGE]), "page that a row needs is -1"),
        (plain_row(1, [1] * 5, 0, [0]), "last page of a row is 1"),
        (plain_row(1, [1], 0, []), "last page of a row is 0"),
        (plain_row(1, [1], 6, [NO_PAGE, 1]), "page that a row needs is -1"),
        (plain_row(1, [1], -1, [0]), "a position is -1"),
        (plain_row(1, [], 0, [0]), "no tokens"),
    ],
    ids=lambda part: part if isinstance(part, str) else "",
)
def test_a_step_out_of_bounds_is_refused_by_name(device: str, row: Row, words: str) -> None:
    backend = open_world(BY_NAME["llama"], device)
    backend.allocate(8, 0)
    before = run_step(backend, StepPlan(0, (GOOD,))).rows[0].logits
    with pytest.raises(InvalidRequest, match=words):
        backend.submit(StepPlan(1, (row,)))
    after = run_step(backend, StepPlan(2, (GOOD,))).rows[0].logits
    assert before is not None and after is not None
    np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize(
    "op",
    [
        CopyPage(PageId(0), PageId(8)),
        CopyPage(PageId(-1), PageId(0)),
        ZeroSlot(SlotId(2)),
        CopySlot(SlotId(-1), SlotId(0)),
        RestoreState(CheckpointId(1), SlotId(0)),
    ],
    ids=str,
)
def test_memory_operations_out_of_bounds_are_refused(device: str, op: MemoryOp) -> None:
    backend = open_world(HYBRID_WORLD, device)
    backend.allocate(8, 2)
    with pytest.raises(InvalidRequest):
        backend.submit(StepPlan(0, (), (op,)))


def test_a_row_of_a_model_with_state_must_name_its_slot(device: str) -> None:
    backend = open_world(HYBRID_WORLD, device)
    backend.allocate(8, 2)
    with pytest.raises(InvalidRequest, match="state slot is -1"):
        backend.submit(StepPlan(0, (GOOD,)))


def test_positions_beyond_the_learned_ones_are_refused(device: str) -> None:
    backend = open_world(BY_NAME["learned positions"], device)
    backend.allocate(64, 0)
    with pytest.raises(InvalidRequest, match=r"positions reach 128, the tensor position_embd\.weight has 128"):
        backend.submit(StepPlan(0, (plain_row(1, [1], 128, range(40)),)))


def test_tensors_that_do_not_fit_together_are_named(device: str) -> None:
    config, source = build(BY_NAME["llama"])
    arrays = {name: array.astype(np.float32) for name, array in source.decoded().items()}
    arrays["blk.1.ffn_down.weight"] = arrays["blk.1.ffn_down.weight"][:, :64]
    backend = TorchBackend(config, MemorySource(arrays), page_size=4, device=device)
    backend.allocate(8, 0)
    with pytest.raises(BadModelFile, match=r"blk\.1\.ffn_down\.weight is 64 wide, the model needs 96"):
        backend.submit(StepPlan(0, (GOOD,)))


def test_pools_that_do_not_fit_are_refused_and_smaller_ones_still_work(device: str) -> None:
    backend = open_world(BY_NAME["llama"], device)
    with pytest.raises(NotEnoughMemory, match="no memory for 1000000000000 pages") as caught:
        backend.allocate(10**12, 0)
    assert caught.value.hint
    backend.allocate(8, 0)
    with pytest.raises(NotEnoughMemory):
        backend.submit(StepPlan(0, (), (ResizePool(10**12),)))
    assert run_step(backend, StepPlan(1, (GOOD,))).rows[0].logits is not None


def fail(error: Exception) -> Any:
    def failing(*_: object, **__: object) -> None:
        raise error

    return failing


def test_weights_that_do_not_fit_are_refused_with_a_next_step(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    monkeypatch.setattr(weights, "decode_rows", fail(torch.OutOfMemoryError("CUDA out of memory.")))
    with pytest.raises(NotEnoughMemory, match="no memory for the weights") as caught:
        open_world(BY_NAME["llama"], device)
    assert "smaller model" in caught.value.hint


def test_a_step_that_does_not_fit_is_refused_with_a_next_step(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    backend = open_world(BY_NAME["llama"], device)
    backend.allocate(8, 0)
    with monkeypatch.context() as patched:
        patched.setattr(memory.DeviceMemory, "read", fail(torch.OutOfMemoryError("CUDA out of memory.")))
        with pytest.raises(NotEnoughMemory, match="no memory for this step") as caught:
            backend.submit(StepPlan(0, (GOOD,)))
    assert caught.value.hint
    assert run_step(backend, StepPlan(1, (GOOD,))).rows[0].logits is not None


def test_whatever_else_torch_raises_has_a_type_and_one_line(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    backend = open_world(BY_NAME["llama"], device)
    backend.allocate(8, 0)
    monkeypatch.setattr(memory.DeviceMemory, "read", fail(RuntimeError("CUDA error: unspecified\nCompile with")))
    with pytest.raises(LocalLLMError, match=r"torch failed in this step: CUDA error: unspecified$"):
        backend.submit(StepPlan(0, (GOOD,)))


def test_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(UsageError, match="cuda:99"):
        open_world(BY_NAME["llama"], "cuda:99")


def test_info_says_where_and_how(device: str) -> None:
    info = open_world(BY_NAME["llama"], device, notes=("cpu was passed over",)).info
    assert info.name == "torch" and info.device.startswith(device) and not info.native
    assert info.notes == ("cpu was passed over",)
