"""The promise that typing a command feels like nothing: against the smallest typer application there is."""

import os
import subprocess
import sys
import time

import pytest

from tests.cli.conftest import ROOT

BARE = """
import typer
app = typer.Typer()
@app.command()
def one(): print("one")
@app.command()
def two(): pass
@app.command()
def three(): pass
app()
"""
OURS = "from localllm.cli.app import main; main()"
ALLOWED_S = 0.1
ROUNDS = 5


def seconds(program: str, *args: str) -> float:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", program, *args], stdout=subprocess.DEVNULL, env=environment, check=True)
    return time.perf_counter() - start


@pytest.mark.parametrize(("line", "bare_line"), [("--help", "--help"), ("list", "one")])
def test_a_quick_command_takes_a_tenth_of_a_second_more_than_a_bare_application(line: str, bare_line: str) -> None:
    # interleaved, and the best of each: what else the machine does counts for neither
    pairs = [(seconds(BARE, bare_line), seconds(OURS, line)) for _ in range(ROUNDS)]
    bare_s, ours_s = (min(column) for column in zip(*pairs, strict=True))
    assert ours_s <= bare_s + ALLOWED_S
