"""Every verb of models/ops.py on every backend: tiny worlds, each held against the plain float64 transformer."""

from functools import cache

import numpy as np
import pytest
from numpy.typing import NDArray

from localllm.engine.step import NOTHING, Want
from tests.contract.conftest import Host, in_groups
from tests.contract.walk import Walk
from tests.contract.worlds import BY_NAME, WORLDS, World, build, plain

ALL = Want(logits="all")
RNG = np.random.default_rng(11)
PROMPT = RNG.integers(0, 80, 26).tolist()
OTHER = RNG.integers(0, 80, 19).tolist()
THIRD = RNG.integers(0, 80, 7).tolist()
IN_WORLDS = pytest.mark.parametrize("world", in_groups(WORLDS), ids=lambda world: world.name)


@cache
def plain_logits(name: str) -> dict[int, NDArray[np.float64]]:
    """Of the three texts, by the number of the sequence: what every host has to say."""
    oracle = plain(*build(BY_NAME[name]))
    return {seq: oracle.logits(ids) for seq, ids in ((1, PROMPT), (2, OTHER), (3, THIRD))}


@IN_WORLDS
def test_a_whole_prompt_equals_the_plain_transformer(host: Host, world: World) -> None:
    backend, _, _ = host.open_world(world)
    (result,) = Walk(backend).step((1, PROMPT, ALL))
    host.check(result.logits, plain_logits(world.name)[1], world)
    backend.close()


@IN_WORLDS
def test_chunks_among_the_rows_of_others_equal_the_plain_transformer(host: Host, world: World) -> None:
    backend, _, _ = host.open_world(world)
    walk = Walk(backend)
    seen: dict[int, list[np.ndarray]] = {1: [], 2: [], 3: []}
    tokens = {1: iter(PROMPT), 2: iter(OTHER), 3: iter(THIRD)}
    for counts in ({1: 9}, {1: 1, 2: 5}, {2: 1, 1: 3, 3: 4}, {3: 1, 1: 1, 2: 1}, {1: 8, 3: 2}, {2: 12, 1: 4}):
        parts = [(seq, [next(tokens[seq]) for _ in range(count)], ALL) for seq, count in counts.items()]
        for result in walk.step(*parts):
            assert result.logits is not None
            seen[result.seq].append(result.logits)
    for seq, expected in plain_logits(world.name).items():
        host.check(np.concatenate(seen[seq]), expected, world)
    backend.close()


@pytest.mark.parametrize("name", ["llama", "hybrid", "windows in some layers", "experts"])
def test_an_unfinished_chunk_answers_nothing(host: Host, name: str) -> None:
    backend, _, _ = host.open_world(BY_NAME[name])
    (result,) = Walk(backend).step((1, PROMPT, NOTHING))
    assert (result.sampled, result.logprobs, result.targets, result.logits, result.pooled) == ((), (), (), None, None)
    backend.close()
