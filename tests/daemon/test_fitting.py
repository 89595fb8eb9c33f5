"""Whether a model fits: what is said before it is loaded agrees with what happens when it is."""

from dataclasses import replace
from pathlib import Path

import pytest

from localllm import wire
from localllm.backends.cpu.sizing import sizes_of
from localllm.backends.select import BackendOptions, open_backend
from localllm.daemon.fitting import Cost, bytes_to_load, cost_of_file, cost_of_size, fit_of, fit_of_loaded
from localllm.daemon.listing import weights_in
from localllm.daemon.memory_plan import LEAST_KV_BYTES, Holder, needed_bytes
from localllm.models.mapping import hf_model
from localllm.runtime.load import load_engine
from localllm.store.details import describe
from localllm.store.entry import Entry
from tests.oracles.hf import BY_NAME, as_folder, make_model
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
    assert abs(found.weight_bytes - ready.weight_bytes) <= 0.02 * ready.weight_bytes
    assert bytes_to_load(entry, order) == found.needed_bytes == found.weight_bytes + found.work_bytes + LEAST_KV_BYTES
    del engine


@pytest.mark.parametrize("name", ["qwen3 moe", "lfm2", "gemma3", "deepseek v2 lite", "phi4"])
def test_weights_of_every_kind_are_counted_as_they_are_packed(tmp_path: Path, name: str) -> None:
    folder = as_folder(make_model(BY_NAME[name]), tmp_path)
    config, source = hf_model(folder)
    counted = sizes_of(config, source, 16, "auto")
    packed = open_backend("cpu", config, source, BackendOptions(page_size=16, threads=2)).info.weight_bytes
    assert packed <= counted.weight_bytes <= 1.1 * packed + 64_000  # the native side counts matrices only
    assert counted.token_bytes > 8 * config.hidden_size


def test_rounded_weights_cost_what_they_take(tmp_path: Path) -> None:
    folder = make_tiny_llama(tmp_path / "tiny")
    entry = describe(Entry(name="tiny", path=str(folder), source="path"))
    plain, rounded = (cost_of_file(entry, load(path=str(folder), quantize=kind)) for kind in ("", "q8_0"))
    assert rounded.weight_bytes < 0.7 * plain.weight_bytes


def test_resident_memory_grows_with_what_is_computed_and_kept() -> None:
    one = replace(cost(GB), base_bytes=50_000_000, token_bytes=1000, longest_step=512, state_bytes=7)
    empty = GB + 50_000_000
    assert one.resident_bytes(16) == empty + 16 * 1000 + 2**20 + 7
    assert one.resident_bytes(1024, 3) == empty + 512 * 1000 + 3 * (64 * 2**20 + 7)
    encoder = replace(one, keeps_no_pages=True)
    assert encoder.resident_bytes(256, 100) == empty + 512 * 1000 + 2 * (16 * 2**20 + 7)


def test_pages_behind_a_window_are_not_held() -> None:
    every = replace(cost(GB, num_groups=2), longest_step=512)
    windowed = replace(every, windows=(1024,))
    assert every.held_pages(8192) == 1024
    assert windowed.held_pages(8192) == 512 + (1024 + 512) // 16
    assert windowed.held_pages(100) == every.held_pages(100) == 14


def test_what_is_not_there_is_estimated() -> None:
    entry = Entry(name="m", path="", source="hub", size_bytes=GB)
    assert bytes_to_load(entry, load()) == needed_bytes(entry, load()) > GB
