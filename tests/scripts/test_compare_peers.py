"""What is compared, how it is counted, and which rounds count. Speed itself is not tested."""

import argparse
import json
import os
import time
from itertools import chain
from typing import Any

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.scripts.loading import script

peers = script("compare_peers")


def options(**given: Any) -> argparse.Namespace:
    plain = {"prompt": 0, "decode": 0, "depth": [], "depth_decode": 32, "parallel": [], "batch": [128, 64], "busy": []}
    return argparse.Namespace(**{**plain, **given})


def test_a_zero_leaves_a_test_out_and_names_are_those_of_llama_bench() -> None:
    every = peers.tests_of(options(prompt=512, decode=128, depth=[2048], parallel=[8, 16], busy=[1]))
    names = [test.name for test in every]
    assert names == ["pp512", "tg128", "tg32 @ d2048", "tg64 x8", "tg64 x16", "tg128 beside 1 busy"]
    assert peers.tests_of(options(depth=[0], parallel=[0], busy=[0])) == []


def test_rates_are_counted_as_llama_bench_and_batched_bench_count_them() -> None:
    assert peers.Test(512).rates(2.0, 0.0) == {"pp512": 256.0}
    assert peers.Test(2048, 32).rates(9.0, 4.0) == {"tg32 @ d2048": 8.0}, "what lies before is not timed"
    assert peers.Test(128, 64, 8).rates(1.0, 2.0) == {"tg64 x8": 256.0, "pp128+tg64 x8": 512.0}


@given(st.lists(st.integers(1, 40), min_size=1, max_size=6), st.integers(1, 50))
def test_steps_are_full_and_cover_every_token_once_in_order(lengths: list[int], limit: int) -> None:
    tokens = [list(range(length)) for length in lengths]
    found = list(peers.steps(tokens, limit))
    covered = [(index, place) for index, start, end in chain(*found) for place in range(start, end)]
    assert covered == [(index, place) for index, length in enumerate(lengths) for place in range(length)]
    sizes = [sum(end - start for _, start, end in parts) for parts in found]
    assert all(size == limit for size in sizes[:-1]) and 0 < sizes[-1] <= limit


class Counting:
    """A program that says 1, 2, 3, ... and keeps what it was fed."""

    about = "counting"

    def __init__(self) -> None:
        self.fed: list[tuple[int, int, int]] = []

    def reset(self, num_sequences: int) -> None:
        self.fed.clear()

    def feed(self, tokens: Any, position: int) -> list[int]:
        self.fed.append((len(tokens), len(tokens[0]), position))
        return [len(self.fed)] * len(tokens)


def test_each_generated_token_is_one_step_of_all_sequences_behind_the_prompt() -> None:
    program = Counting()
    found = peers.measure(program, peers.Test(128, 3, 8))
    assert program.fed == [(8, 128, 0), (8, 1, 128), (8, 1, 129), (8, 1, 130)]
    assert set(found) == {"tg3 x8", "pp128+tg3 x8"}
    peers.measure(program, peers.Test(0, 2))
    assert program.fed == [(1, 1, 0), (1, 1, 1)], "without a prompt everything is generated"


class Told:
    """A process that answers with what it was given: (tokens a second, cores of others)."""

    def __init__(self, program: str, answers: list[tuple[float, float]], asked: list[str]) -> None:
        self.program, self._answers, self._asked = program, iter(answers), asked

    def ask(self, test: Any) -> tuple[dict[str, float], float]:
        self._asked.append(self.program)
        rate, others = next(self._answers)
        return {test.name: rate}, others


def test_who_goes_first_changes_with_the_round() -> None:
    asked: list[str] = []
    processes = [Told(program, [(1.0, 0.0)] * 3, asked) for program in peers.PROGRAMS]
    peers.rounds(peers.Test(512), processes, 3, None)
    assert asked == ["localllm", "llama_cpp", "llama_cpp", "localllm", "localllm", "llama_cpp"]


def test_noisy_rounds_are_repeated_and_left_out_until_there_were_twice_as_many() -> None:
    ours = Told("localllm", [(10, 0.0), (20, 0.5), (30, 0.0), (40, 0.0)], [])
    theirs = Told("llama_cpp", [(1, 0.0), (2, 0.0), (3, 0.3), (4, 0.0)], [])
    found = peers.rounds(peers.Test(512), [ours, theirs], 2, 0.1)
    assert [one["localllm"]["pp512"] for one in found] == [10, 40]
    loud = [Told(program, [(1.0, 1.0)] * 4, []) for program in peers.PROGRAMS]
    assert len(peers.rounds(peers.Test(512), loud, 2, 0.1)) == 4, "all of them, where none was quiet"


def test_the_ratio_is_that_of_the_medians_and_its_spread_that_within_rounds() -> None:
    pairs = [(30.0, 10.0), (40.0, 20.0), (100.0, 25.0)]
    found = [{"localllm": {"pp512": ours}, "llama_cpp": {"pp512": theirs}, "others": 0.0} for ours, theirs in pairs]
    row = peers.summary("pp512", found)
    assert (row["ratio"], row["ratio_min"], row["ratio_max"]) == (2.0, 2.0, 4.0)
    cells = peers.table_row({**row, "model": "a.gguf", "test": "pp512"}).split(" | ")
    assert cells[:6] == ["| a", "pp512", "3", "40.0", "20.0", "2.00"]
    assert len(cells) == len(peers.COLUMNS)


def test_busy_processes_compute_and_are_gone_afterwards() -> None:
    with peers.busy_processes(1) as busy:
        started = psutil.Process(busy[0]).cpu_times().user
        until = time.monotonic() + 20
        while psutil.Process(busy[0]).cpu_times().user <= started and time.monotonic() < until:
            os.sched_yield() if hasattr(os, "sched_yield") else None
        assert psutil.Process(busy[0]).cpu_times().user > started
    assert not psutil.pid_exists(busy[0])


def test_a_peer_of_another_folder_is_found_first_and_thread_limits_are_not_handed_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    wishes = argparse.Namespace(peer_path="/other", peer_env=["OMP_WAIT_POLICY=passive"])
    theirs, ours = (peers.environment(program, wishes) for program in ("llama_cpp", "localllm"))
    assert theirs["PYTHONPATH"].split(os.pathsep)[0] == "/other" and "/other" not in ours["PYTHONPATH"]
    assert "OMP_NUM_THREADS" not in theirs | ours and theirs["OMP_WAIT_POLICY"] == "passive"
    assert "OMP_WAIT_POLICY" not in ours


def test_a_question_survives_its_way_to_the_other_process() -> None:
    test = peers.Test(128, 64, 8, 1)
    assert peers.Test(**json.loads(json.dumps(peers.asdict(test)))) == test
