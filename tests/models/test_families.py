"""Tiny random models of every family: the reference backend's logits are those of transformers."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from localllm.backends.reference import ReferenceBackend
from localllm.engine.step import Want
from localllm.models.facts import facts_from_gguf
from localllm.models.families import ROWS as FAMILY_ROWS
from localllm.models.hf_facts import facts_from_hf
from localllm.models.mapping import gguf_model
from tests.contract.walk import Walk
from tests.oracles.hf import WRITTEN_BY_HAND, Family, as_file, expected_logits, make_model

TOLERANCE = 1e-4  # of a logit; logits are a few units large
ALL = Want(logits="all")
RNG = np.random.default_rng(2)
PROMPTS = {1: RNG.integers(3, 80, 40).tolist(), 2: RNG.integers(3, 80, 21).tolist(), 3: RNG.integers(3, 80, 9).tolist()}


@pytest.fixture(scope="module", params=WRITTEN_BY_HAND, ids=lambda family: family.name)
def pair(request: pytest.FixtureRequest) -> tuple[Family, Any]:
    return request.param, make_model(request.param)


SAME_FACTS = (
    "hidden_size",
    "num_layers",
    "context_length",
    "vocab_size",
    "num_heads",
    "rms_eps",
    "rope_base",
    "rope_factor",
    "num_experts",
    "num_used_experts",
    "attention_softcap",
    "logit_softcap",
    "conv_kernel",
)


def test_config_json_tells_the_same_facts_as_the_file(pair: tuple[Family, Any]) -> None:
    family, model = pair
    file = as_file(family, model)
    ours, theirs = facts_from_gguf(file.metadata, family.architecture), facts_from_hf(model.config.to_dict())
    # a scaling that GGUF keeps as a tensor has no factor in its metadata
    names = [name for name in SAME_FACTS if name != "rope_factor" or "rope_freqs.weight" not in file.tensors]
    assert {name: getattr(ours, name) for name in names} == {name: getattr(theirs, name) for name in names}
    assert family.architecture in {row.architecture for row in FAMILY_ROWS if model.config.model_type in row.hf}


def open_walk(pair: tuple[Family, Any]) -> Walk:
    config, source = gguf_model(as_file(*pair))
    return Walk(ReferenceBackend(config, source, page_size=4))


def largest_difference(ours: list[NDArray[np.float32]], model: Any, tokens: list[int]) -> float:
    expected = expected_logits(model, tokens)
    assert np.abs(expected).max() > 1, "logits of a model that says nothing"
    return float(np.abs(np.concatenate(ours) - expected).max())


def test_a_whole_prompt_gives_the_logits_of_transformers(pair: tuple[Family, Any]) -> None:
    (result,) = open_walk(pair).step((1, PROMPTS[1], ALL))
    assert result.logits is not None
    assert largest_difference([result.logits], pair[1], PROMPTS[1]) <= TOLERANCE


def test_a_prompt_in_chunks_gives_the_logits_of_transformers(pair: tuple[Family, Any]) -> None:
    walk, seen, start = open_walk(pair), [], 0
    for size in (1, 7, 2, 16, 13, 1):
        (result,) = walk.step((1, PROMPTS[1][start : start + size], ALL))
        assert result.logits is not None
        seen.append(result.logits)
        start += size
    assert start == len(PROMPTS[1])
    assert largest_difference(seen, pair[1], PROMPTS[1]) <= TOLERANCE


def test_chunks_and_decoding_of_others_in_scrambled_pages_give_the_logits_of_transformers(
    pair: tuple[Family, Any],
) -> None:
    walk = open_walk(pair)
    seen: dict[int, list[NDArray[np.float32]]] = {1: [], 2: [], 3: []}
    tokens = {seq: iter(ids) for seq, ids in PROMPTS.items()}
    steps = ({2: 5}, {2: 1, 1: 11}, {1: 9, 3: 4, 2: 1}, *({2: 1, 3: 1, 1: 4},) * 5, {2: 9})
    for counts in steps:
        parts = [(seq, [next(tokens[seq]) for _ in range(count)], ALL) for seq, count in counts.items()]
        for result in walk.step(*parts):
            assert result.logits is not None
            seen[result.seq].append(result.logits)
    assert all(next(rest, None) is None for rest in tokens.values())
    for seq, ids in PROMPTS.items():
        assert largest_difference(seen[seq], pair[1], ids) <= TOLERANCE
