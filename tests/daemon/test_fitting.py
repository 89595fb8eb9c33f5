"""Whether a model fits: what is said before it is loaded agrees with what happens when it is."""

from pathlib import Path

import pytest

from localllm import wire
from localllm.daemon.fitting import Cost, cost_of_file, cost_of_size, fit_of, fit_of_loaded
from localllm.daemon.listing import weights_in
from localllm.daemon.memory_plan import LEAST_KV_BYTES, Holder
from localllm.runtime.load import load_engine
from localllm.store.details import describe
from localllm.store.entry import Entry
from tests.road.tiny_llama import make_tiny_llama

GB = 10**9
MEMORY = 16 * GB


def load(**fields: object) -> wire.Load:
    return wire.Load(**{"path": "", "page_size": 16, "max_sequences": 4, **fields})  # type: ignore[arg-type]


def cost(weight_bytes: int, page_bytes: int = 2**20, num_groups: int = 1, context_length: int = 8192) -> Cost:
    needed = int(weight_bytes * 1.15) + LEAST_KV_BYTES
    return Cost(weight_bytes, needed, page_bytes, 16, num_groups, 32, context_length)


def test_what_has_room_says_for_how_many_tokens() -> None:
    fit = fit_of("m", cost(4 * GB), load(), 12 * GB, [], MEMORY)
    # half of what is free beside weights and work, in pages of 16 tokens, but no more than four chats ever hold
    assert fit.verdict == "fits" and fit.tokens == 4 * 8192
    assert fit.sentence == "It fits with 32,768 tokens for all chats." and fit.room_bytes == 12 * GB
    assert (fit.longest_chat, fit.context_bytes) == (8192, 8192 // 16 * 2**20)


def test_pages_are_bounded_by_memory_where_that_is_short() -> None:
    fit = fit_of("m", cost(4 * GB, page_bytes=16 * 2**20), load(), 6 * GB, [], MEMORY)
    free = 6 * GB - 4 * GB - int(4 * GB * 1.15) + 4 * GB
    assert fit.kv_bytes <= free // 2 and fit.tokens == fit.kv_bytes // (16 * 2**20) * 16


def test_less_than_a_tenth_to_spare_is_tight() -> None:
    fit = fit_of("m", cost(4 * GB), load(), 5 * GB, [], MEMORY)
    assert fit.verdict == "tight" and fit.sentence.startswith("It is tight: ") and "to spare" in fit.sentence
    assert fit_of("m", cost(4 * GB), load(), 6 * GB, [], MEMORY).verdict == "fits"


def test_what_is_too_large_says_by_how_much() -> None:
    fit = fit_of("m", cost(40 * GB), load(), 12 * GB, [Holder("other", 2 * GB, True, 0.0)], MEMORY)
    assert (fit.verdict, fit.tokens) == ("too large", 0)
    assert fit.sentence == "It needs 46.0 GB, and 14.0 GB can be had here."


def test_idle_models_that_would_go_are_named() -> None:
    holders = [Holder("a", 3 * GB, True, 1.0), Holder("b", 3 * GB, True, 2.0)]
    fit = fit_of("m", cost(5 * GB), load(), 4 * GB, holders, MEMORY)
    assert fit.unload == ("a",) and fit.sentence.endswith(", after a is unloaded.")
    fit = fit_of("m", cost(7 * GB), load(), 4 * GB, holders, MEMORY)
    assert fit.unload == ("a", "b") and fit.sentence.endswith(", after a and b are unloaded.")


def test_busy_models_are_waited_for() -> None:
    fit = fit_of("m", cost(5 * GB), load(), 4 * GB, [Holder("a", 4 * GB, False, 1.0)], MEMORY)
    assert fit.sentence.endswith(", once the answers of a are done.") and fit.verdict == "fits"


def test_one_chat_may_ask_for_more_than_the_least() -> None:
    small = fit_of("m", cost(4 * GB), load(), 5 * GB, [], MEMORY, context_length=16)
    large = fit_of("m", cost(4 * GB, page_bytes=8 * 2**20), load(), 5 * GB, [], MEMORY, context_length=8192)
    assert small.verdict == "tight" and large.verdict == "too large"


def test_a_sequence_holds_a_page_in_each_group() -> None:
    one, two = (fit_of("m", cost(1 * GB, 2**24, groups), load(), 3 * GB, [], MEMORY) for groups in (1, 2))
    assert one.kv_bytes == two.kv_bytes and two.tokens == one.tokens // 16 // 2 * 16


def test_a_loaded_model_is_told_as_it_is() -> None:
    ready = wire.Ready(
        backend="cpu", device="cpu", native=True, context_length=4096, vocab_size=1, num_pages=100, page_size=16,
        weight_bytes=GB, kv_bytes=100 * 2**20, load_s=1.0, threads=2,
    )  # fmt: skip
    fit = fit_of_loaded("m", cost(2 * GB), ready, MEMORY)
    assert fit.is_loaded and fit.sentence == "It is loaded, with 1,600 tokens for all chats."
    assert (fit.weight_bytes, fit.page_bytes) == (GB, 2**20)


@pytest.mark.parametrize(
    ("num_weights", "real_bytes"),
    [(0.596e9, 114_688), (1.236e9, 32_768 * 2), (4.02e9, 147_456), (8.03e9, 131_072), (70.6e9, 327_680)],
)
def test_the_estimate_of_a_token_is_within_a_factor_of_two_and_a_half(num_weights: float, real_bytes: int) -> None:
    """Qwen3 0.6B, Llama 3.2 1B, Qwen3 4B, Llama 3.1 8B and 70B: layers x heads x dimensions x 2 x 2 bytes."""
    entry = Entry(name="m", path="", source="hub", size_bytes=GB, context_length=4096)
    estimated = cost_of_size(entry, load(), num_weights)
    assert 0.4 < estimated.page_bytes / 16 / real_bytes < 2.5 and estimated.is_estimate
    assert "about " in fit_of("m", estimated, load(), 8 * GB, [], MEMORY).sentence


@pytest.mark.parametrize(
    ("text", "number"),
    [("8.03B", 8.03e9), ("494M", 494e6), ("8x7B", 56e9), ("1T", 1e12), ("", 0.0), ("many", 0.0), ("B", 0.0)],
)
def test_the_catalogs_numbers_of_weights_are_read(text: str, number: float) -> None:
    assert weights_in(text) == pytest.approx(number)


@pytest.mark.parametrize("kv_type", ["auto", "f32", "q8_0"])
def test_the_cost_of_a_file_is_what_its_engine_takes(tmp_path: Path, kv_type: str) -> None:
    folder = make_tiny_llama(tmp_path / "tiny")
    entry = describe(Entry(name="tiny", path=str(folder), source="path"))
    order = load(path=str(folder), backend="cpu", kv_type=kv_type, kv_pages=64)
    found = cost_of_file(entry, order)
    engine, ready = load_engine(order)
    assert found.page_bytes == ready.kv_bytes // ready.num_pages
    assert (found.context_length, found.num_layers, found.page_size) == (ready.context_length, 2, ready.page_size)
    assert fit_of("tiny", found, order, 4 * GB, [], MEMORY).tokens == 64 * 16
    del engine
