"""Drafts on tiny real models: right ones and wrong ones, and the text is the one without."""

from collections.abc import Sequence
from random import Random

import numpy as np
import pytest

from localllm.engine.engine import Engine
from localllm.engine.scheduler import Drafts
from localllm.engine.sequence import Sequence as Running
from localllm.engine.speculative import Drafter
from localllm.engine.step import Backend, StepPlan
from localllm.wire import SamplingParams
from tests.contract.conftest import PAGE_SIZE, Host
from tests.contract.streams import GREEDY, assert_greedy, texts_of
from tests.contract.worlds import BY_NAME

RNG = np.random.default_rng(21)
SHARED = RNG.integers(0, 80, 9).tolist()
PROMPTS = {f"{n}": [*SHARED, *RNG.integers(0, 80, 1 + 4 * n).tolist()] for n in range(3)}
NUM_NEW = 14
STATES = ("hybrid", "hybrid of state spaces", "delta nets")
SAMPLINGS = {
    "penalties": SamplingParams(temperature=0.0, repetition_penalty=1.4, repeat_last_n=6, frequency_penalty=0.3),
    "random": SamplingParams(temperature=1.2, seed=4, top_p=0.9, min_tokens=3),
}


class Hints:
    """Drafts the texts that are to come, with every fourth token wrong."""

    def __init__(self, texts: dict[str, list[int]]) -> None:
        self.texts = texts
        self.random = Random(2)

    def propose(self, running: Sequence[Running]) -> Drafts:
        return {sequence: self.guess(sequence) for sequence in running}

    def guess(self, sequence: Running) -> tuple[int, ...]:
        rest = self.texts[sequence.request_id][sequence.num_generated :][: self.random.randint(0, 5)]
        return tuple((token + 1) % 80 if self.random.random() < 0.25 else token for token in rest)

    def note(self, plan: StepPlan, seconds: float) -> None:
        pass


def run(backend: Backend, sampling: SamplingParams, drafter: Drafter | None) -> tuple[dict[str, list[int]], int]:
    """What is generated, and how many of the drafted tokens stood."""
    engine = Engine(
        backend,
        context_length=128,
        num_pages=60 * len(backend.layout.groups),
        page_size=PAGE_SIZE,
        token_budget=24,
        max_sequences=4,
        drafter=drafter,
    )
    texts = texts_of(engine, PROMPTS, NUM_NEW, sampling)
    return texts, engine.snapshot().num_accepted_tokens


@pytest.mark.parametrize("name", ["llama", "windows in some layers", "window on every layer", "experts", *STATES])
def test_drafts_leave_the_greedy_text_of_the_plain_transformer(host: Host, name: str) -> None:
    backend, config, source = host.open_world(BY_NAME[name])
    expected, _ = run(backend, GREEDY, None)
    texts, num_accepted = run(host.open_world(BY_NAME[name])[0], GREEDY, Hints(expected))
    assert num_accepted > 10
    if backend.info.same_in_any_step:
        assert texts == expected
    assert_greedy(host, config, source, PROMPTS, texts, NUM_NEW)


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("name", ["llama", "windows in some layers", "experts", *STATES])
def test_where_logits_do_not_depend_on_the_step_every_token_is_the_same(host: Host, name: str, sampling: str) -> None:
    backend, _, _ = host.open_world(BY_NAME[name])
    if not backend.info.same_in_any_step:
        pytest.skip(f"{host.name} does not promise this, and is given no drafts unless they are asked for")
    expected, _ = run(backend, SAMPLINGS[sampling], None)
    texts, num_accepted = run(host.open_world(BY_NAME[name])[0], SAMPLINGS[sampling], Hints(expected))
    assert texts == expected
    assert num_accepted > 10
