"""`scripts/soak`, short: its promises hold against toys, and it would notice when they did not."""

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from scripts.targets import Answer
from tests.scripts.loading import script

ROOT = Path(__file__).parents[2]
MB = 2**20

soak = script("soak")


def test_a_minute_of_everything_breaks_no_promise(tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    command = [sys.executable, str(ROOT / "scripts" / "soak"), "--toy", "--minutes", "1", "--json", str(figures)]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(figures.read_text())
    assert told["pages_used at the end"] == 0 and told["change of models: 200"] >= 2
    assert sum(number for name, number in told.items() if name.startswith("chat, ")) > 5


@pytest.mark.parametrize("slope", [0.0, 5.0, -3.0])
def test_a_slope_is_found_through_noise_with_its_error(slope: float) -> None:
    noise = random.Random(1)
    points = [(place / 60, 100 + slope * place / 60 + noise.gauss(0, 0.1)) for place in range(60)]
    found = soak.slope_of([points])
    assert abs(found.mb_per_h - slope) < 3 * found.error < 0.5
    assert found.grown_mb == pytest.approx(slope, abs=0.3)


def test_one_step_is_no_slope() -> None:
    points = [(place / 60, 100.0 + 7.0 * (place > 2)) for place in range(12)]
    assert soak.slope_of([points]).mb_per_h == 0.0


def test_workers_that_came_one_after_the_other_are_each_seen_alone() -> None:
    lives = [[(hours + place / 60, size + 2 * place / 60) for place in range(5)] for hours, size in ((0, 50), (1, 90))]
    assert soak.slope_of(lives).mb_per_h == pytest.approx(2.0)


def test_too_few_points_have_no_slope() -> None:
    assert soak.slope_of([[(0.0, 1.0), (1.0, 2.0)]]) is None
    assert soak.slope_of([[(0.0, 1.0)], []]) is None


def judged(**last: int) -> list[str]:
    """What is broken after an hour of which every pause but the first ones looked like this."""
    first = soak.Sample(0.0, 80 * MB, {7: 90 * MB}, 12, 7, 2)
    late = [
        soak.Sample(60.0 * minute, 80 * MB + last.get("growth", 0) * minute, {7: 90 * MB}, last.get("descriptors", 12),
                    7, last.get("processes", 2))
        for minute in range(20, 60)
    ]  # fmt: skip
    run = soak.Soak(None, soak.Report(), "", 1, 0.0, samples=[first] * 20 + late)
    soak.judge(run, 3600.0)
    return list(run.report.broken)


def test_what_grows_is_told() -> None:
    assert judged() == []
    assert judged(descriptors=40) == ["descriptors grew from 12 to 40"]
    assert judged(processes=3) == ["processes grew from 2 to 3"]
    assert judged(growth=MB // 10) == ["the memory of the daemon grows by 6.00 MB/h"]
    assert judged(growth=MB // 100) == [], "0.6 MB an hour"


class Unwell:
    """A target whose answers are what the test says."""

    def __init__(self, received: bytes) -> None:
        self.received = received

    async def answer(self, body: object, path: str) -> object:
        if not self.received:
            raise TimeoutError
        return Answer(self.received, 0.1)


@pytest.mark.parametrize(
    ("received", "told"),
    [
        (b"HTTP/1.1 500 Internal Server Error\r\n\r\noh", "chat: 500"),
        (b"", "chat: no end of the answer"),
        (b"HTTP/1.1 200 OK\r\n\r\ndata: half", "chat: a stream did not end as it should"),
        (b'HTTP/1.1 200 OK\r\n\r\ndata: {"error": 1}\n\ndata: [DONE]', "chat: a stream did not end as it should"),
        (b"HTTP/1.1 200 OK\r\n\r\ndata: {}\n\ndata: [DONE]", None),
    ],
)
async def test_an_answer_that_is_none_is_told(received: bytes, told: str | None) -> None:
    run = soak.Soak(Unwell(received), soak.Report(), "", 1, time.monotonic())
    await run.expect("chat", {}, "/v1/chat/completions", end=b"data: [DONE]")
    assert [sentence.startswith(told) for sentence in run.report.broken] == ([True] if told else [])
