"""The engine on tiny real models: chunks, shared prefixes, windows, state and preemption change no stream."""

import numpy as np
import pytest

from localllm.engine.engine import Engine
from localllm.engine.step import Backend
from localllm.wire import SamplingParams, Submit
from tests.contract.conftest import PAGE_SIZE, Host
from tests.contract.worlds import BY_NAME, plain

RNG = np.random.default_rng(12)
SHARED = RNG.integers(0, 80, 13).tolist()
PROMPTS = {f"{n}": [*(SHARED if n % 2 else []), *RNG.integers(0, 80, 3 + 5 * n).tolist()] for n in range(5)}
NUM_NEW = 12


def run(backend: Backend, num_pages: int) -> tuple[dict[str, list[int]], Engine]:
    engine = Engine(
        backend, context_length=128, num_pages=num_pages, page_size=PAGE_SIZE, token_budget=11, max_sequences=4
    )
    for name, prompt in PROMPTS.items():
        engine.add(Submit(request_id=name, prompt=prompt, sampling=SamplingParams(temperature=0.0), max_tokens=NUM_NEW))
    texts: dict[str, list[int]] = {name: [] for name in PROMPTS}
    while engine.has_work:
        for chunk in engine.step():
            assert not chunk.error
            texts[chunk.request_id] += chunk.ids
        engine.check()
    return texts, engine


@pytest.mark.parametrize("pool", ["wide", "tight"])
@pytest.mark.parametrize("name", ["llama", "windows in some layers", "window on every layer", "experts", "hybrid"])
def test_every_stream_is_the_greedy_text_of_the_plain_transformer(host: Host, name: str, pool: str) -> None:
    backend, config, source = host.open_world(BY_NAME[name])
    num_groups = len(backend.layout.groups)
    texts, engine = run(backend, 200 * num_groups if pool == "wide" else 16 * num_groups)
    if pool == "tight" and name == "llama":
        assert engine.snapshot().num_preemptions > 0, "the pool is so small that sequences must give way"
    oracle = plain(config, source)
    for request, prompt in PROMPTS.items():
        text = texts[request]
        assert len(text) == NUM_NEW
        logits = oracle.logits(prompt + text[:-1])[len(prompt) - 1 :]
        behind = logits.max(axis=1) - logits[np.arange(NUM_NEW), text]
        # a token that is as good as the best, as far as the backend can tell
        assert behind.max() <= 2 * host.tolerance * np.abs(logits).max()
