"""What the reference backend offers beside the verbs: options, taps, refusals."""

import numpy as np
import pytest

from localllm.backends.reference import ReferenceBackend
from localllm.backends.reference_ops import Tap
from localllm.backends.reference_weights import fits_decoded
from localllm.engine.step import NO_PAGE, PageId, Row, SeqId, StepPlan, Want, run_step
from localllm.errors import BadModelFile, InvalidRequest
from localllm.formats.blocks import BlockType
from tests.contract.walk import Walk
from tests.contract.worlds import BY_NAME, HIDDEN, MemorySource, World, build, draw, plain, routed

ALL = Want(logits="all")
TOKENS = np.random.default_rng(6).integers(0, 80, 18).tolist()


def logits_of(world: World, **options: object) -> np.ndarray:
    config, source = build(world)
    backend = ReferenceBackend(config, source, 4, **options)  # type: ignore[arg-type]  # options differ in type
    logits = Walk(backend).step((1, TOKENS, ALL))[0].logits
    assert logits is not None
    return logits


@pytest.mark.parametrize("world", [BY_NAME["blocks of Q4_0"], World("", routed(), type=BlockType.Q8_0)])
def test_decoding_on_use_and_once_give_the_same(world: World) -> None:
    np.testing.assert_array_equal(logits_of(world, keep_decoded=True), logits_of(world, keep_decoded=False))


def test_weights_are_kept_decoded_where_that_is_little() -> None:
    assert fits_decoded(build(BY_NAME["llama"])[1])


def test_a_float16_cache_rounds_and_takes_half_the_room() -> None:
    config, source = build(BY_NAME["llama"])
    half = ReferenceBackend(config, source, 4, kv_type=np.float16)
    assert half.layout.page_bytes * 2 == ReferenceBackend(config, source, 4).layout.page_bytes
    exact, rounded = logits_of(BY_NAME["llama"]), logits_of(BY_NAME["llama"], kv_type=np.float16)
    difference = np.abs(exact - rounded).max() / np.abs(exact).max()
    assert 1e-6 < difference < 3e-3


def test_a_tap_sees_the_inputs_of_products_and_the_attention_of_each_row() -> None:
    seen: list[tuple[str, str, np.ndarray]] = []
    tap: Tap = lambda verb, name, values: seen.append((verb, name, values))  # noqa: E731
    config, source = build(BY_NAME["llama"])
    Walk(ReferenceBackend(config, source, 4, tap=tap)).step((1, TOKENS, ALL), (2, TOKENS[:5], ALL))
    inputs = {name: values for verb, name, values in seen if verb == "linear"}
    assert inputs["blk.0.attn_q.weight"].shape == (23, HIDDEN)
    assert {"blk.1.ffn_down.weight", "output.weight"} <= inputs.keys()
    maps = [values for verb, name, values in seen if verb == "attention" and name == "blk.1"]
    assert [values.shape for values in maps] == [(4, 18, 18), (4, 5, 5)]
    np.testing.assert_allclose(maps[0].sum(axis=-1), 1, rtol=1e-5)
    assert not np.triu(maps[0][0], 1).any(), "nobody sees ahead"


def test_a_missing_tensor_is_named() -> None:
    config, _ = build(BY_NAME["llama"])
    source = MemorySource({"token_embd.weight": draw(np.random.default_rng(0), "x", (80, HIDDEN))})
    backend = ReferenceBackend(config, source, 4)
    with pytest.raises(BadModelFile, match=r"blk\.0\.attn_q\.weight"):
        Walk(backend).step((1, TOKENS, ALL))


def test_an_adapter_that_is_not_there_is_refused() -> None:
    config, source = build(BY_NAME["llama"])
    backend = ReferenceBackend(config, source, 4)
    backend.allocate(4, 0)
    with pytest.raises(InvalidRequest, match="not loaded"):
        backend.submit(StepPlan(0, (Row(SeqId(1), (5,), 0, ((PageId(0),),), adapter=3),)))


def test_a_page_freed_while_it_is_seen_is_an_error_of_the_plan() -> None:
    config, source = build(BY_NAME["llama"])
    backend = ReferenceBackend(config, source, 4)
    backend.allocate(4, 0)
    with pytest.raises(AssertionError, match="still seen"):
        run_step(backend, StepPlan(0, (Row(SeqId(1), (5,), 4, ((NO_PAGE, PageId(0)),), ALL),)))


def test_logits_do_not_depend_on_the_page_size() -> None:
    config, source = build(BY_NAME["windows in some layers"])
    expected = plain(config, source).logits(TOKENS)
    for page_size in (1, 3, 16):
        walk = Walk(ReferenceBackend(config, source, page_size), num_pages=128)
        logits = walk.step((1, TOKENS, ALL))[0].logits
        assert logits is not None
        assert np.abs(logits - expected).max() <= 1e-4
