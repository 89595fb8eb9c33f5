"""What is drawn by chance for engines: models, sizes, requests; and requests that come and go while it runs."""

from typing import Any

from hypothesis import strategies as st

from localllm.backends.fake import FakeBackend
from localllm.engine.engine import Engine
from localllm.wire import SamplingParams, Submit

from .worlds import SHAPES, VOCAB_SIZE, Answer, ask, finish, oracle, step

shapes = st.sampled_from(sorted(SHAPES))
few_tokens = st.lists(st.integers(0, 2), min_size=1, max_size=30)  # few different ones: prefixes are shared often
samplings = st.sampled_from(
    [
        SamplingParams(temperature=0.0),
        SamplingParams(temperature=0.0, repetition_penalty=1.3, repeat_last_n=-1),
        SamplingParams(temperature=0.0, repetition_penalty=1.7, repeat_last_n=3, logit_bias={1: 4.0, 63: 5.0}),
        SamplingParams(temperature=0.0, repetition_penalty=3.0, repeat_last_n=0, frequency_penalty=-1.0),
        SamplingParams(temperature=1.0, seed=7, top_k=20, top_p=0.9, presence_penalty=0.5),
        SamplingParams(temperature=0.8, seed=-3, min_tokens=4, min_p=0.01),
    ]
)


@st.composite
def requests(draw: st.DrawFn, max_size: int = 6) -> list[Submit]:
    submits: list[Submit] = []
    for number in range(draw(st.integers(1, max_size))):
        earlier = [submit.prompt for submit in submits]
        submits.append(
            ask(
                f"r{number}",
                draw(st.sampled_from(earlier) | few_tokens if earlier else few_tokens),
                draw(st.integers(0, 14)),
                sampling=draw(samplings),
                stop_ids=draw(st.lists(st.integers(0, VOCAB_SIZE - 1), max_size=4, unique=True)),
                priority=draw(st.integers(-1, 1)),
                owner=draw(st.sampled_from(["", "", "alice", "bob"])),
            )
        )
    return submits


engines: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {
        "num_pages": st.sampled_from([26, 40, 256]),  # one longest sequence needs up to 22
        "token_budget": st.integers(1, 24),
        "max_sequences": st.integers(1, 8),
        "prefix_cache": st.booleans(),
        "num_checkpoints": st.sampled_from([0, 1, 2, 16]),
    }
)


def growing() -> list[Submit]:
    """Prompts of growing lengths, whose answers need far more memory than there may be."""
    return [ask(f"r{n}", [n, *range(n, n + 3 * n % 20)], 30) for n in range(8)]


def come_and_go(engine: Engine, backend: FakeBackend, submits: list[Submit], data: st.DataObject) -> None:
    """Each comes after a few steps, some are cancelled; what is said is what each would have been told alone."""
    answers: dict[str, Answer] = {}
    cancelled = set()
    for submit in submits:
        engine.add(submit)
        for _ in range(data.draw(st.integers(0, 3), label="steps")):
            step(engine, answers)
        victim = data.draw(st.sampled_from([None, *submits]), label="cancel")
        if victim is not None and engine.abort(victim.request_id):
            cancelled.add(victim.request_id)
            engine.check()
    finish(engine, answers)
    for submit in submits:
        expected = oracle(backend, submit)
        got = answers.get(submit.request_id, Answer())
        if submit.request_id in cancelled:
            assert got.finish is None and got.ids == expected.ids[: len(got.ids)]
        else:
            assert (got.ids, got.finish) == (expected.ids, expected.finish)
