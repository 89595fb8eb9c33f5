"""Several sequences in one engine, and whether each of them is the text of the plain transformer."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from localllm.engine.engine import Engine
from localllm.wire import SamplingParams, Submit
from tests.contract.conftest import Host
from tests.contract.worlds import plain

Prompts = Mapping[str, list[int]]
GREEDY = SamplingParams(temperature=0.0)


def texts_of(engine: Engine, prompts: Prompts, num_new: int, sampling: SamplingParams = GREEDY) -> dict[str, list[int]]:
    """What is generated; the engine is checked after every step."""
    for name, prompt in prompts.items():
        engine.add(Submit(request_id=name, prompt=prompt, sampling=sampling, max_tokens=num_new))
    texts: dict[str, list[int]] = {name: [] for name in prompts}
    while engine.has_work:
        for chunk in engine.step():
            assert not chunk.error
            texts[chunk.request_id] += chunk.ids
        engine.check()
    return texts


def assert_greedy(
    host: Host, config: Any, source: Any, prompts: Prompts, texts: Mapping[str, list[int]], num_new: int
) -> None:
    """Every token is as good as the best, as far as the backend can tell."""
    oracle = plain(config, source)
    for request, prompt in prompts.items():
        text = texts[request]
        assert len(text) == num_new
        logits = oracle.logits(prompt + text[:-1])[len(prompt) - 1 :]
        behind = logits.max(axis=1) - logits[np.arange(num_new), text]
        assert behind.max() <= 2 * host.tolerance * np.abs(logits).max()
