"""The line on stderr: what the bar says, how the rate is measured, and what a log file gets instead."""

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localllm.cli.human import display_width
from localllm.cli.progress import Meter, Progress, bar_line, eta_text
from localllm.store.entry import PullEvent


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_the_bar_is_ollamas() -> None:
    line = bar_line("pulling 6340dc3229b0", 6_200_000_000, 9_300_000_000, 11_000_000, 79)
    assert line == "pulling 6340dc3229b0:  66% ▕███████████      ▏ 6.2 GB/9.3 GB   11 MB/s   4m41s"


def test_a_finished_bar_shows_the_size_only() -> None:
    line = bar_line("pulling", 92_000_000, 92_000_000, 11_000_000, 60)
    assert "100%" in line and "92 MB" in line and "/" not in line and "m0s" not in line


@given(st.text(max_size=30), st.integers(0, 10**13), st.integers(1, 10**13), st.floats(0, 1e10), st.integers(1, 200))
def test_a_bar_never_breaks_the_line(message: str, done: int, total: int, rate: float, width: int) -> None:
    from localllm.safe_text import one_line

    assert display_width(bar_line(one_line(message), min(done, total), total, rate, width)) <= width


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0, "0m0s"), (268, "4m28s"), (3600, "1h0m"), (7500, "2h5m"), (360_000, "99h+")]
)
def test_time_left(seconds: float, shown: str) -> None:
    assert eta_text(seconds) == shown


def test_the_rate_is_the_slope_over_the_last_ten_seconds() -> None:
    meter = Meter()
    for second in range(30):
        meter.add(second, 0 if second < 20 else (second - 19) * 1000)
    assert meter.rate(29, 10_000) == pytest.approx(1000)


def test_a_log_file_gets_a_line_per_ten_percent() -> None:
    log = io.StringIO()
    with Progress(log, clock=Clock()) as progress:
        for done in range(0, 1001, 10):
            progress.update("pulling x", done * 1000, 1_000_000)
    lines = log.getvalue().splitlines()
    assert len(lines) == 11
    assert lines[0] == "pulling x: 0% of 1 MB" and lines[-1] == "pulling x: 100% of 1 MB"


def test_quiet_says_nothing_but_warnings() -> None:
    log = io.StringIO()
    with Progress(log, is_quiet=True) as progress:
        progress.status("working")
        progress.update("pulling", 1, 2)
        progress.on_pull(PullEvent(kind="done", message="x is ready"))
        progress.on_pull(PullEvent(kind="warning", message="the hub\x1b[2J cannot be reached"))
    assert log.getvalue() == "Warning: the hub cannot be reached\n"


def test_a_short_wait_shows_nothing() -> None:
    screen, clock = Screen(), Clock()
    with Progress(screen, delay_s=0.3, clock=clock) as progress:
        progress.status("loading")
        progress.update("loading", 1, 2)
        progress.update("loading", 2, 2)
    assert screen.getvalue() == ""


def test_a_finished_download_stays_on_the_screen() -> None:
    screen = Screen()
    with Progress(screen, clock=Clock(), width=lambda: 60) as progress:
        progress.on_pull(PullEvent(kind="progress", message="pulling a", completed_bytes=10, total_bytes=10))
        progress.on_pull(PullEvent(kind="done", message="a is ready"))
    shown = screen.getvalue()
    assert shown.count("pulling a: 100%") >= 1 and shown.endswith("a is ready\n")
