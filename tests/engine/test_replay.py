"""A recorded run gives the same results again, on another backend, plan for plan."""

import io

import numpy as np
import pytest

from localllm.engine.engine import Engine
from localllm.engine.replay import Recorder, replay
from localllm.engine.step import LogitEdit, SampleWant, StepPlan, Want, plain_row
from localllm.errors import BadModelFile
from localllm.wire import SamplingParams

from .worlds import GREEDY, SHAPES, ask, fake, finish


@pytest.mark.parametrize("shape", sorted(SHAPES))
def test_a_recorded_run_repeats_itself(shape: str) -> None:
    log, original = io.BytesIO(), fake(shape, keep_plans=1000)
    engine = Engine(Recorder(original, log), context_length=64, num_pages=20, page_size=4, token_budget=8)
    for number in range(4):
        sampling = SamplingParams(seed=number, repetition_penalty=1.2, min_tokens=3)
        engine.add(ask(f"r{number}", [number, *range(9)], 9, sampling=sampling, stop_ids=[5]))
    answers = finish(engine)
    again = fake(shape, keep_plans=1000)
    results = list(replay(io.BytesIO(log.getvalue()), again))
    assert again.plans == original.plans
    sampled = [token for result in results for row in result.rows for token in row.sampled]
    assert len(sampled) >= sum(len(answer.ids) for answer in answers.values())


def test_infinite_edits_and_masks_survive_the_log() -> None:
    log, mask = io.BytesIO(), np.full(8, 255, np.uint8).tobytes()
    recorder = Recorder(fake(), log)
    recorder.allocate(1, 0)
    want = Want(sample=SampleWant(GREEDY, -7, 0, 1, (LogitEdit(3, add=float("-inf")),), (mask,)))
    plan = StepPlan(1, (plain_row(1, [1, 2], 0, [0], want),))
    recorder.submit(plan)
    again = fake()
    assert [result.rows for result in replay(io.BytesIO(log.getvalue()), again)] == [recorder.collect().rows]
    assert list(again.plans) == [plan]


def test_a_log_that_was_cut_says_so() -> None:
    log = io.BytesIO()
    recorder = Recorder(fake(), log)
    recorder.allocate(1, 0)
    recorder.submit(StepPlan(1, (plain_row(1, [1], 0, [0]),)))
    with pytest.raises(BadModelFile, match="middle of a step"):
        list(replay(io.BytesIO(log.getvalue()[:-1]), fake()))
