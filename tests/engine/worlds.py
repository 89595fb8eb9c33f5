"""Two calls build a world: a fake model with an engine on it, and the answer that an engine must give.

The oracle knows no pages, no batches and no chunks: it hashes the whole history for every token.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from localllm.backends.fake import FakeBackend, State, fake_logits
from localllm.engine.engine import Engine
from localllm.engine.sampling import sample_logits
from localllm.engine.step import LogitEdit, SampleWant
from localllm.wire import SamplingParams, Submit, TokenChunk, TokenLogprobs

GREEDY = SamplingParams(temperature=0.0)
PAGE_SIZE = 4
VOCAB_SIZE = 64
SHAPES: dict[str, dict[str, Any]] = {
    "full": {},
    "windowed": {"windows": (None, 6)},
    "windows only": {"windows": (5, 9)},
    "hybrid": {"has_state": True},
    "windowed hybrid": {"windows": (None, 6), "has_state": True},
    "state only": {"windows": (), "has_state": True},
}
"""Models whose sequences own different kinds of memory."""


def fake(shape: str = "full", **changes: Any) -> FakeBackend:
    return FakeBackend(**{"vocab_size": VOCAB_SIZE, "page_size": PAGE_SIZE, **SHAPES[shape], **changes})


def engine_on(backend: FakeBackend, **changes: Any) -> Engine:
    settings: dict[str, Any] = {
        "context_length": 128,
        "num_pages": 256,
        "page_size": backend.layout.page_size,
        "token_budget": 16,
        "max_sequences": 8,
        "clock": lambda: 0.0,
    }
    return Engine(backend, **(settings | changes))


def ask(request_id: str, prompt: Iterable[int], max_tokens: int | None = 8, **fields: Any) -> Submit:
    fields.setdefault("sampling", GREEDY)
    return Submit(request_id=request_id, prompt=list(prompt), max_tokens=max_tokens, **fields)


@dataclass(slots=True)
class Answer:
    """All chunks of one request, joined."""

    ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)
    num_cached: int = 0
    num_started: int = 0
    finish: str | None = None
    stop_id: int | None = None
    error_code: str = ""

    def take(self, chunk: TokenChunk) -> None:
        assert self.finish is None, "a chunk after the end"
        self.ids += chunk.ids
        self.logprobs += chunk.logprobs
        self.prompt_logprobs += chunk.prompt_logprobs
        self.num_cached += chunk.num_cached
        self.num_started += chunk.started
        assert self.num_started == 1, "the first chunk, and no other, says that it started"
        self.finish, self.stop_id, self.error_code = chunk.finish, chunk.stop_id, chunk.error_code


def step(engine: Engine, answers: dict[str, Answer]) -> None:
    """One step with every invariant checked after it."""
    for chunk in engine.step():
        answers.setdefault(chunk.request_id, Answer()).take(chunk)
    engine.check()


def finish(engine: Engine, answers: dict[str, Answer] | None = None, *, max_steps: int = 5000) -> dict[str, Answer]:
    """Step until nothing is left to do; too many steps are starvation."""
    answers = {} if answers is None else answers
    for _ in range(max_steps):
        if not engine.has_work:
            assert_all_free(engine)
            return answers
        step(engine, answers)
    raise AssertionError(f"work is left after {max_steps} steps")


def drain(engine: Engine) -> None:
    """Finish what a test began with its own steps."""
    for _ in range(5000):
        if not engine.has_work:
            break
        engine.step()
        engine.check()
    assert not engine.has_work
    assert_all_free(engine)


def answers_of(engine: Engine, submits: Sequence[Submit]) -> dict[str, Answer]:
    for submit in submits:
        engine.add(submit)
    return finish(engine)


def assert_all_free(engine: Engine) -> None:
    pages = engine.snapshot().pages
    assert not set(pages) & {2, 3}, "a page is still held"


def oracle(backend: FakeBackend, submit: Submit, context_length: int = 128) -> Answer:
    """What the fake model answers, computed from the plain history."""
    answer, ids = Answer(num_started=1), list(submit.prompt)
    seed = submit.sampling.seed or 0
    limit = context_length if submit.max_tokens is None else min(context_length, len(ids) + submit.max_tokens)
    while len(ids) < limit:
        edits = plain_edits(submit, answer.ids)
        want = SampleWant(submit.sampling, seed, len(answer.ids), edits=edits)
        token, scored = sample_logits(true_logits(backend, ids), want, top_logprobs=submit.top_logprobs)
        if token in submit.stop_ids:
            answer.finish, answer.stop_id = "stop", token
            return answer
        ids.append(token)
        answer.ids.append(token)
        answer.logprobs += [scored] if scored else []
    answer.finish = "length"
    return answer


def assert_as_alone(backend: FakeBackend, submits: Iterable[Submit], answers: Mapping[str, Answer]) -> None:
    """Each was told what the oracle says."""
    for submit in submits:
        expected, actual = oracle(backend, submit), answers[submit.request_id]
        assert (actual.ids, actual.finish, actual.stop_id) == (expected.ids, expected.finish, expected.stop_id)


def plain_edits(submit: Submit, generated: Sequence[int]) -> tuple[LogitEdit, ...]:
    """Bias, penalties and bans, counted anew from all tokens so far."""
    params, ids = submit.sampling, [*submit.prompt, *generated]
    window = ids if params.repeat_last_n < 0 else ids[len(ids) - params.repeat_last_n :][: params.repeat_last_n]
    window = ids if params.repeat_last_n > len(ids) else window
    edits = []
    for token in {*ids, *params.logit_bias, *submit.stop_ids}:
        count = generated.count(token)
        add = params.logit_bias.get(token, 0.0) - count * params.frequency_penalty
        add -= params.presence_penalty if count else 0.0
        if len(generated) < params.min_tokens and token in submit.stop_ids:
            add = -math.inf
        edits.append(LogitEdit(token, add, params.repetition_penalty if token in window else 1.0))
    return tuple(edits)


def true_logits(backend: FakeBackend, ids: Sequence[int]) -> np.ndarray[Any, np.dtype[np.float32]]:
    """The fake model's logits after `ids`."""
    state = None
    if backend.layout.has_state:
        state = State()
        for token in ids:
            state = state.after(token)
    windows = [group.window for group in backend.layout.groups]
    visible = [np.asarray(ids if window is None else ids[-window:], np.int64) for window in windows]
    return fake_logits(visible, state, backend.vocab_size)


PROMPT = [3, 1, 4, 1, 5, 9, 2, 6, 5]


def alone(shape: str = "full", overlaps: bool = False, **fields: Any) -> Answer:
    """The answer to `PROMPT`, or to `prompt`, with nobody else on the engine."""
    prompt = fields.pop("prompt", PROMPT)
    return answers_of(engine_on(fake(shape, overlaps=overlaps)), [ask("a", prompt, **fields)])["a"]
