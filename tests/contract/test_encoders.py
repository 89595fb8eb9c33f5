"""Every encoder on every backend: tiny random models as transformers saves them, held to transformers' vectors."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from numpy.typing import NDArray

from localllm.engine.engine import Engine
from localllm.errors import InvalidRequest, UnsupportedModel
from localllm.formats.blocks import BlockType
from localllm.formats.gguf_read import GGUFFile
from localllm.models.config import ModelConfig
from localllm.models.mapping import gguf_model, hf_model
from localllm.models.source import WeightSource
from localllm.quantize.convert import convert
from localllm.wire import Submit
from tests.contract.conftest import PAGE_SIZE, Host, KvType, in_groups
from tests.oracles.encoders import ENCODERS, expected_states, make_encoder
from tests.oracles.hf import BY_NAME, Family, as_folder, make_model

RNG = np.random.default_rng(2)
PROMPTS = [RNG.integers(3, 80, size).tolist() for size in (40, 21, 9, 1, 17)]
POOLS: tuple[Literal["mean", "first", "last"], ...] = ("mean", "first", "last")
TOLERANCES: dict[KvType, float] = {"f32": 2e-5, "f16": 2e-3}
"""Largest difference over the largest value."""


@dataclass(frozen=True)
class Pair:
    """An encoder as we open it, and the states that transformers computes of each prompt."""

    config: ModelConfig
    source: WeightSource
    states: list[NDArray[np.float32]]

    def expected(self, kind: str) -> NDArray[np.float32]:
        pools = {"mean": lambda one: one.mean(axis=0), "first": lambda one: one[0], "last": lambda one: one[-1]}
        return np.stack([pools[kind](states) for states in self.states])


@pytest.fixture(scope="module", params=in_groups(ENCODERS), ids=lambda family: family.name)
def opened(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Pair]:
    """The model from safetensors, and from the GGUF file that our converter makes of them, where such files can say
    all of it."""
    family: Family = request.param
    model, folder = make_encoder(family), tmp_path_factory.mktemp("encoder")
    states = [expected_states(model, ids) for ids in PROMPTS]
    checkpoint = as_folder(model, folder)
    pairs = {"safetensors": Pair(*hf_model(checkpoint), states)}
    try:
        convert(checkpoint, folder / "model.gguf", BlockType.F32, {})
    except UnsupportedModel:
        return pairs
    return {**pairs, "gguf": Pair(*gguf_model(GGUFFile.open(folder / "model.gguf")), states)}


@pytest.fixture(scope="module", params=["safetensors", "gguf"])
def pair(opened: dict[str, Pair], request: pytest.FixtureRequest) -> Pair:
    if request.param not in opened:
        pytest.skip("GGUF files of this architecture cannot say what this model is")
    return opened[request.param]


def engine_of(host: Host, pair: Pair, kv_type: KvType = "auto", token_budget: int = 512) -> Engine:
    backend = host.open(pair.config, pair.source, kv_type)
    return Engine(
        backend, context_length=64, num_pages=256, page_size=PAGE_SIZE, token_budget=token_budget, is_encoder=True
    )


@pytest.mark.parametrize("kv_type", ["f32", "f16"])
def test_vectors_are_those_of_transformers_alone_and_together(host: Host, pair: Pair, kv_type: KvType) -> None:
    engine = engine_of(host, pair, kv_type)
    for kind in POOLS:
        expected = pair.expected(kind)
        largest = np.abs(expected).max()
        together = engine.pool(PROMPTS, kind)
        alone = np.concatenate([engine.pool([prompt], kind) for prompt in PROMPTS])
        assert np.abs(together - expected).max() <= TOLERANCES[kv_type] * largest, kind
        assert np.abs(alone - expected).max() <= TOLERANCES[kv_type] * largest, kind
        engine.check()
    engine.close()


def test_a_text_longer_than_a_step_is_still_read_in_both_directions(host: Host, pair: Pair) -> None:
    engine = engine_of(host, pair, "f32", token_budget=8)
    expected = pair.expected("mean")
    assert np.abs(engine.pool(PROMPTS, "mean") - expected).max() <= TOLERANCES["f32"] * np.abs(expected).max()
    engine.close()


def test_the_same_text_twice_shares_nothing_and_gives_the_same_vector(host: Host, pair: Pair) -> None:
    engine = engine_of(host, pair)
    first, longer = engine.pool([PROMPTS[1]], "mean"), [*PROMPTS[1], 5, 6, 7]
    engine.pool([longer], "mean")
    assert np.array_equal(engine.pool([PROMPTS[1]], "mean"), first)
    engine.close()


def test_a_decoder_s_last_token_is_transformers_vector(host: Host, tmp_path: Path) -> None:
    """Qwen3-Embedding is such a model."""
    model = make_model(BY_NAME["qwen3"])
    config, source = hf_model(as_folder(model, tmp_path))
    backend = host.open(config, source, "f32")
    engine = Engine(backend, context_length=64, num_pages=64, page_size=PAGE_SIZE)
    expected = np.stack([expected_states(model.model, ids)[-1] for ids in PROMPTS])
    found = engine.pool(PROMPTS, "last")
    assert np.abs(found - expected).max() <= 2e-4 * np.abs(expected).max()
    engine.close()


def test_an_encoder_that_is_asked_to_write_says_what_it_is(host: Host, pair: Pair) -> None:
    engine = engine_of(host, pair)
    with pytest.raises(InvalidRequest, match="makes vectors of texts and writes none"):
        engine.add(Submit(request_id="one", prompt=[3, 4], max_tokens=4))
    engine.close()
