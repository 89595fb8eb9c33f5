"""The engine on tiny real models: chunks, shared prefixes, windows, state and preemption change no stream."""

import numpy as np
import pytest

from localllm.engine.engine import Engine
from localllm.engine.step import Backend
from tests.contract.conftest import PAGE_SIZE, Host
from tests.contract.streams import assert_greedy, texts_of
from tests.contract.worlds import BY_NAME

RNG = np.random.default_rng(12)
SHARED = RNG.integers(0, 80, 13).tolist()
PROMPTS = {f"{n}": [*(SHARED if n % 2 else []), *RNG.integers(0, 80, 3 + 5 * n).tolist()] for n in range(5)}
NUM_NEW = 12


def run(backend: Backend, num_pages: int) -> tuple[dict[str, list[int]], Engine]:
    engine = Engine(
        backend, context_length=128, num_pages=num_pages, page_size=PAGE_SIZE, token_budget=11, max_sequences=4
    )
    return texts_of(engine, PROMPTS, NUM_NEW), engine


@pytest.mark.parametrize("pool", ["wide", "tight"])
@pytest.mark.parametrize(
    "name",
    [
        *("llama", "windows in some layers", "window on every layer", "experts", "hybrid"),
        "keys and values of another layer",
        *("hybrid of state spaces", "state spaces alone"),
    ],
)
def test_every_stream_is_the_greedy_text_of_the_plain_transformer(host: Host, name: str, pool: str) -> None:
    backend, config, source = host.open_world(BY_NAME[name])
    num_groups = len(backend.layout.groups)
    texts, engine = run(backend, 200 * num_groups if pool == "wide" else 16 * num_groups)
    if pool == "tight" and name == "llama":
        assert engine.snapshot().num_preemptions > 0, "the pool is so small that sequences must give way"
    assert_greedy(host, config, source, PROMPTS, texts, NUM_NEW)
