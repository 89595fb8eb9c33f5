"""What a kill leaves behind: pulls are shot at random moments, and the store must always open, verify and go on."""

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.store.worlds import FakeHub, Listener, library_of, tiny_gguf

NUM_KILLS = 24
PULL = """
import sys
sys.stdout.write("started\\n"); sys.stdout.flush()
from tests.store.worlds import library_of
from pathlib import Path
library_of(Path(sys.argv[1]), hub_endpoint=sys.argv[2]).pull("org/x")
"""


def kill_after(home: Path, hub: FakeHub, delay_s: float) -> int:
    """Starts a pull in a process of its own and kills it after `delay_s`; returns its exit status."""
    command = [sys.executable, "-c", PULL, str(home), hub.endpoint]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            process.wait(timeout=delay_s)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
        return process.wait()


@pytest.mark.parametrize("starts_over", [False, True])
def test_killed_pulls_leave_a_store_that_opens_verifies_and_goes_on(
    tmp_path: Path, hub: FakeHub, starts_over: bool
) -> None:
    content = tiny_gguf(tmp_path / "made.gguf", kilobytes=12_000).read_bytes()
    hub.repos["org/x"] = {"Tiny-F32.gguf": content}
    home = tmp_path / "home"
    chance = random.Random(7)
    statuses = set()
    for _ in range(NUM_KILLS // 2):
        status = kill_after(home, hub, 0.25 + 0.35 * chance.random())
        statuses.add(status)
        library = library_of(home, hub_endpoint=hub.endpoint)
        assert library.damaged() == []
        assert all(result.is_good for result in library.verify())
        if status == 0 and starts_over:
            library.remove("org/x")
    assert -signal.SIGKILL in statuses
    entry = library_of(home, hub_endpoint=hub.endpoint).pull("org/x")
    assert Path(entry.path).read_bytes() == content
    assert [result.is_good for result in library_of(home).verify("org/x")] == [True]


def test_a_kill_costs_at_most_the_bytes_since_the_last_checkpoint(
    tmp_path: Path, hub: FakeHub, listener: Listener
) -> None:
    content = tiny_gguf(tmp_path / "made.gguf", kilobytes=20_000).read_bytes()
    hub.repos["org/x"] = {"Tiny-F32.gguf": content}
    script = PULL.replace('.pull("org/x")', '.pull("org/x", stop)').replace(
        "library_of(Path",
        "import os, signal\ndef stop(event):\n    if event.completed_bytes > 17 << 20:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\nlibrary_of(Path",
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run(
        [sys.executable, "-c", script, tmp_path / "home", hub.endpoint], env=environment, stdout=subprocess.DEVNULL
    )
    assert run.returncode == -signal.SIGKILL
    entry = library_of(tmp_path / "home", hub_endpoint=hub.endpoint).pull("org/x", listener)
    assert Path(entry.path).read_bytes() == content
    assert listener.resumed_bytes >= 16 << 20


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_command_that_is_told_to_end_keeps_all_that_came(
    tmp_path: Path, hub: FakeHub, listener: Listener, number: signal.Signals
) -> None:
    """As by a terminal that is closed, or a machine that shuts down: fewer bytes than between two checkpoints."""
    content = tiny_gguf(tmp_path / "made.gguf", kilobytes=6_000).read_bytes()
    hub.repos["org/x"] = {"Tiny-F32.gguf": content}
    script = f"""
import os
from localllm.cli.app import main
from localllm.store.library import Library
pull = Library.pull
def until_told(self, name, say):
    def stop(event):
        say(event)
        if event.completed_bytes > 3 << 20:
            os.kill(os.getpid(), {number.value})
    return pull(self, name, stop)
Library.pull = until_told
main(["pull", "org/x"])
"""
    home = tmp_path / "home"
    own = {"LOCALLLM_HOME": str(home), "LOCALLLM_HUB_ENDPOINT": hub.endpoint, "PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run([sys.executable, "-c", script], env={**os.environ, **own}, capture_output=True, text=True)
    assert run.returncode == 128 + number and "Traceback" not in run.stderr
    entry = library_of(home, hub_endpoint=hub.endpoint).pull("org/x", listener)
    assert Path(entry.path).read_bytes() == content
    assert listener.resumed_bytes >= 3 << 20
