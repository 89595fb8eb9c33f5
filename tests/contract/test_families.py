"""Every family on every backend: tiny random models as transformers saves them, held to transformers' logits."""

import os
from dataclasses import dataclass, replace

import numpy as np
import pytest
from numpy.typing import NDArray

from localllm.engine.step import Want
from localllm.formats.blocks import BlockType
from localllm.formats.gguf_read import GGUFFile
from localllm.models.config import ModelConfig
from localllm.models.mapping import gguf_model, hf_model
from localllm.models.source import WeightSource
from localllm.quantize.convert import convert
from tests.contract.conftest import HOSTS, Host, KvType, in_groups
from tests.contract.walk import Walk
from tests.oracles.hf import FAMILIES, Family, as_folder, expected_logits, make_model

ALL = Want(logits="all")
RNG = np.random.default_rng(2)
PROMPTS = {1: RNG.integers(3, 80, 40).tolist(), 2: RNG.integers(3, 80, 21).tolist(), 3: RNG.integers(3, 80, 9).tolist()}
TOLERANCES: dict[KvType, float] = {"f32": 2e-4, "f16": 3e-3}
"""Largest difference over largest logit."""
IS_WHOLE = bool(os.environ.get("LOCALLLM_TEST_WHOLE"))
"""Each test with both kinds of cache, on every host, from both formats. In the short form each test has one kind, and
only `reference` and `cpu` see both formats in each: others see one in the first test and the other in the second."""
ROUGHLY: list[KvType] = ["f32", "f16"] if IS_WHOLE else ["f16"]
EXACTLY: list[KvType] = ["f32", "f16"] if IS_WHOLE else ["f32"]


@dataclass(frozen=True)
class Pair:
    """A family's model as we open it, and what transformers computes with it."""

    config: ModelConfig
    source: WeightSource
    expected: dict[int, NDArray[np.float32]]


def on_hosts(**format_of: str) -> pytest.MarkDecorator:
    """Every host with both formats, or those of `format_of` with the one that is named."""
    places = [
        pytest.param(host, kind, id=f"{host.name}-{kind}")
        for host in HOSTS
        for kind in ("safetensors", "gguf")
        if IS_WHOLE or format_of.get(host.name, kind) == kind
    ]
    return pytest.mark.parametrize(("host", "pair"), places, indirect=True)


@pytest.fixture(scope="module", params=in_groups(FAMILIES), ids=lambda family: family.name)
def opened(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Pair]:
    """The model from safetensors, and from the GGUF file that our converter makes of them."""
    family: Family = request.param
    model, folder = make_model(family), tmp_path_factory.mktemp("family")
    expected = {seq: expected_logits(model, ids) for seq, ids in PROMPTS.items()}
    checkpoint = as_folder(model, folder)
    convert(checkpoint, folder / "model.gguf", BlockType.F32, {})
    pairs = {}
    for name, (config, source) in (
        ("safetensors", hf_model(checkpoint)),
        ("gguf", gguf_model(GGUFFile.open(folder / "model.gguf"))),
    ):
        pairs[name] = Pair(replace(config, context_length=family.context or config.context_length), source, expected)
    return pairs


@pytest.fixture
def pair(opened: dict[str, Pair], request: pytest.FixtureRequest) -> Pair:
    return opened[request.param]


def difference(ours: list[NDArray[np.float32]], expected: NDArray[np.float32]) -> float:
    largest = np.abs(expected).max()
    assert largest > 0.5, "logits of a model that says nothing"
    return float(np.abs(np.concatenate(ours) - expected).max() / largest)


def logits_of(walk: Walk, tokens: list[int], sizes: tuple[int, ...]) -> list[NDArray[np.float32]]:
    seen, start = [], 0
    for size in sizes:
        (result,) = walk.step((1, tokens[start : start + size], ALL))
        assert result.logits is not None
        seen.append(result.logits)
        start += size
    assert start == len(tokens)
    return seen


@on_hosts(torch="gguf", metal="safetensors")
@pytest.mark.parametrize("kv_type", ROUGHLY)
def test_prompts_in_chunks_give_the_logits_of_transformers(host: Host, pair: Pair, kv_type: KvType) -> None:
    for sizes in ((40,), (1, 7, 2, 16, 13, 1)):
        backend = host.open(pair.config, pair.source, kv_type)
        seen = logits_of(Walk(backend), PROMPTS[1], sizes)
        assert difference(seen, pair.expected[1]) <= TOLERANCES[kv_type]
        backend.close()


@on_hosts(torch="safetensors", metal="gguf")
@pytest.mark.parametrize("kv_type", EXACTLY)
def test_chunks_and_decoding_of_others_give_the_logits_of_transformers(host: Host, pair: Pair, kv_type: KvType) -> None:
    backend = host.open(pair.config, pair.source, kv_type)
    walk = Walk(backend)
    seen: dict[int, list[NDArray[np.float32]]] = {1: [], 2: [], 3: []}
    tokens = {seq: iter(ids) for seq, ids in PROMPTS.items()}
    for counts in ({2: 5}, {2: 1, 1: 11}, {1: 9, 3: 4, 2: 1}, *({2: 1, 3: 1, 1: 4},) * 5, {2: 9}):
        parts = [(seq, [next(tokens[seq]) for _ in range(count)], ALL) for seq, count in counts.items()]
        for result in walk.step(*parts):
            assert result.logits is not None
            seen[result.seq].append(result.logits)
    for seq in PROMPTS:
        assert difference(seen[seq], pair.expected[seq]) <= TOLERANCES[kv_type]
    backend.close()
