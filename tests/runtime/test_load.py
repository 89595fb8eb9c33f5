"""From an order to an engine: what of the order reaches the backend, and what a folder's JSON files say."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from localllm import wire
from localllm.backends.select import BackendOptions, open_backend
from localllm.engine.step import CacheLayout, KvGroup, Want
from localllm.errors import BadModelFile
from localllm.formats.gguf_write import write_gguf
from localllm.quantize.source import QuantizedSource, quantize_target
from localllm.runtime import load as load_module
from localllm.runtime.folder_facts import context_length_of, folder_sampling, gguf_sampling
from localllm.runtime.load import (
    StatePlan,
    backend_options,
    load_backend,
    load_text,
    pages_that_fit,
    room_for_sequences,
    states_that_fit,
)
from localllm.runtime.open_model import OpenModel
from localllm.runtime.place import Place, place_of
from localllm.runtime.watched import WatchedSource
from tests.contract.walk import Walk
from tests.contract.worlds import BY_NAME, build
from tests.tokens.worlds import tiny_metadata

LOADING = "loading weights"


def test_everything_an_order_says_of_the_backend_reaches_it() -> None:
    order = wire.Load(
        path="/a", backend="torch", device="mps", kv_type="f32", cache_dir="/c", threads=3, page_size=8,
        token_budget=64, context_length=99,
    )  # fmt: skip
    assert backend_options(order) == BackendOptions(8, 3, 64, 99, "f32", "mps", "/c")


@pytest.mark.parametrize(("asked", "expected"), [(0, 128), (40, 40), (500, 128)])
def test_the_backend_sees_the_context_in_use(monkeypatch: pytest.MonkeyPatch, asked: int, expected: int) -> None:
    config, source = build(BY_NAME["rope longrope"])
    monkeypatch.setattr(load_module, "open_model", lambda path, quantize: OpenModel(config, source, 1))
    loaded = load_backend(Path("x"), "reference", BackendOptions(context_length=asked))
    assert loaded.config == replace(config, context_length=expected)


def test_short_factors_are_for_short_contexts_and_learned_positions_keep_their_rows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def logits(world: str, context_length: int) -> Any:
        config, source = build(BY_NAME[world])
        monkeypatch.setattr(load_module, "open_model", lambda path, quantize: OpenModel(config, source, 1))
        backend = load_backend(Path("x"), "reference", BackendOptions(context_length=context_length)).backend
        (row,) = Walk(backend).step((0, [5, 6, 7, 8, 9], Want(logits="all")))
        return row.logits

    assert not np.allclose(logits("rope longrope", 32), logits("rope longrope", 0), atol=1e-3)
    assert np.array_equal(logits("learned positions", 32), logits("learned positions", 0))


def test_pages_are_counted_by_the_memory_of_the_device() -> None:
    config, source = build(BY_NAME["llama"])
    layout = open_backend("reference", config, source, BackendOptions(page_size=16)).layout
    room = room_for_sequences(100 * layout.page_bytes)
    assert pages_that_fit(layout, 1 << 20, 256, room) == 50


def test_states_take_a_part_of_the_room_and_bound_who_runs() -> None:
    layout = CacheLayout(16, (KvGroup(None, (0,)),), page_bytes=1 << 10, state_bytes=1 << 20)
    plan = states_that_fit(layout, 256, 100 << 20)
    assert plan == StatePlan(num_slots=15, num_kept=15)
    assert plan.num_bytes(layout) <= 0.3 * (100 << 20)
    assert states_that_fit(layout, 4, 100 << 20) == StatePlan(num_slots=4, num_kept=26)
    assert states_that_fit(layout, 256, 0) == StatePlan(num_slots=1, num_kept=4), "somebody runs"
    assert states_that_fit(replace(layout, state_bytes=0), 256, 100 << 20) == StatePlan()


@pytest.mark.parametrize(
    ("has_to_measure", "first"), [(True, ("measuring the backends, this once", 0, 0)), (False, (LOADING, 0, 7))]
)
def test_the_seconds_of_a_self_test_are_told_and_not_passed_off_as_loading(
    monkeypatch: pytest.MonkeyPatch, has_to_measure: bool, first: tuple[str, int, int]
) -> None:
    monkeypatch.setattr(load_module, "open_model", lambda path, quantize: OpenModel(*build(BY_NAME["llama"]), 7))
    monkeypatch.setattr(load_module, "has_to_measure", lambda name, source, options: has_to_measure)
    told: list[tuple[str, int, int]] = []
    load_backend(Path("x"), "reference", BackendOptions(), lambda *stage: told.append(stage))
    assert told[0] == first and told[-1] == (LOADING, 7, 7)
    assert {(stage, total) for stage, _, total in told[1:]} == {(LOADING, 7)}


@pytest.mark.parametrize("quantize", ["", "q8_0"])
def test_loading_is_told_weight_by_weight_and_rounded_weights_are_the_same(
    monkeypatch: pytest.MonkeyPatch, quantize: str
) -> None:
    config, source = build(BY_NAME["llama"])
    rounded = QuantizedSource(source, quantize_target(quantize)) if quantize else source
    monkeypatch.setattr(load_module, "open_model", lambda path, quantize: OpenModel(config, rounded, 1000))
    told: list[int] = []
    load_backend(Path("x"), "reference", BackendOptions(), lambda stage, done, total: told.append(done))
    assert told == sorted(told) and told[0] == 0 and told[-1] == 1000
    assert len(set(told)) > 5, "a bar that moves"
    watched = WatchedSource(rounded, lambda share: None)
    assert [watched.info(name) for name in watched.names()] == [rounded.info(name) for name in rounded.names()]
    assert all(np.array_equal(watched.raw(name), rounded.raw(name)) for name in rounded.names())


# ---- places


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        content = b"GGUF" + bytes(60) if name.endswith(".gguf") else b"\x02\0\0\0\0\0\0\0{}"
        (folder / name).write_bytes(b"{}" if name.endswith(".json") else content)
    return folder


def test_in_a_folder_gguf_goes_first_and_a_named_file_is_taken(tmp_path: Path) -> None:
    touch(tmp_path, "config.json", "model.safetensors", "m-Q4.gguf", "mmproj.gguf")
    assert place_of(tmp_path) == Place("gguf", tmp_path / "m-Q4.gguf")
    named = place_of(tmp_path / "model.safetensors")
    assert (named.kind, named.folder) == ("safetensors", tmp_path)


def test_the_first_part_of_a_split_file_stands_for_all(tmp_path: Path) -> None:
    touch(tmp_path, "m-00001-of-00002.gguf", "m-00002-of-00002.gguf")
    assert place_of(tmp_path).path.name == "m-00001-of-00002.gguf"


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ((), "holds no model file"),
        (("a.gguf", "b.gguf"), r"several models \(a.gguf, b.gguf\)"),
        (("model.safetensors",), "no config.json"),
        (("config.json", "pytorch_model.bin"), "can run code and are never opened"),
        (("config.json", "model.pth"), "can run code and are never opened"),
        (("config.json", "model.pt"), "can run code and are never opened"),
    ],
)
def test_what_is_no_model_is_named_with_a_next_step(tmp_path: Path, names: tuple[str, ...], said: str) -> None:
    with pytest.raises(BadModelFile, match=said) as refused:
        place_of(touch(tmp_path, *names))
    assert refused.value.hint


# ---- generation_config.json and config.json


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({"temperature": 0.6, "top_k": 20, "top_p": 0.95, "eos_token_id": [1]}, (0.6, 20, 0.95)),
        ({"do_sample": False, "temperature": 0.6}, None),
        ({"do_sample": True, "temperature": None, "top_p": "0.9", "top_k": True}, None),
        ({"min_p": 0.1, "repetition_penalty": 1.1}, (0.1, 1.1)),
        ({"top_k": -1}, (0,)),
    ],
)
def test_sampling_defaults_are_taken_as_they_are_meant(tmp_path: Path, said: dict[str, Any], expected: Any) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps(said))
    assert tuple(folder_sampling(tmp_path).values()) == (expected or ())
    assert folder_sampling(tmp_path / "elsewhere") == {}


@pytest.mark.parametrize("said", ['{"temperature": NaN}', '{"top_k": -3}', '{"top_k": 2.5}', '{"top_p": 1e400}'])
def test_sampling_defaults_out_of_bounds_are_the_fault_of_their_file(tmp_path: Path, said: str) -> None:
    (tmp_path / "generation_config.json").write_text(said)
    with pytest.raises(BadModelFile, match=r"generation_config\.json: t") as refused:
        folder_sampling(tmp_path)
    assert refused.value.hint


def test_sampling_defaults_of_a_gguf_file_are_numbers_in_bounds() -> None:
    said = {"general.sampling.temp": 0.6, "general.sampling.top_k": 20, "general.sampling.penalty_repeat": 1}
    assert gguf_sampling(said) == {"temperature": 0.6, "top_k": 20, "repetition_penalty": 1.0}


@pytest.mark.parametrize("said", ["0.6", [0.6], True, -1.0, float("nan"), 2**40])
@pytest.mark.parametrize("key", ["temp", "top_k", "top_p"])
def test_sampling_defaults_of_a_gguf_file_that_make_no_sense_are_its_fault(key: str, said: object) -> None:
    with pytest.raises(BadModelFile, match=rf"general\.sampling\.{key} must be a"):
        gguf_sampling({f"general.sampling.{key}": said})


@pytest.mark.parametrize("said", ["", "x", [1, 2], 1e308 * 10, True])
def test_a_context_length_of_another_kind_is_the_files_fault(tmp_path: Path, said: Any) -> None:
    path = tmp_path / "x.gguf"
    write_gguf(path, {"general.architecture": "llama", "llama.context_length": said} | tiny_metadata(), [])
    with pytest.raises(BadModelFile, match=r"llama\.context_length must be a whole number"):
        load_text(path, isolated=False)


def test_the_context_length_is_found_where_families_keep_it() -> None:
    assert context_length_of({"max_position_embeddings": 64}) == 64
    assert context_length_of({"n_positions": 1024}) == 1024
    assert context_length_of({"max_position_embeddings": 1, "text_config": {"max_position_embeddings": 64}}) == 64
    assert context_length_of({"max_position_embeddings": "many"}) == 0
