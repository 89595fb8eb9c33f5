"""A real worker process, spoken to over its socket."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from localllm import wire
from localllm.daemon.process import child_environment
from localllm.daemon.worker import Worker
from tests.daemon.toy import WORKER_COMMAND, expected_text

LOAD = wire.Load(path="toy:")
GREEDY = wire.SamplingParams(temperature=0)


class Talk:
    """Our end of the socket."""

    def __init__(self) -> None:
        self.socket, theirs = socket.socketpair()
        self.socket.settimeout(10)
        with theirs:
            command = [*WORKER_COMMAND, "--fd", str(theirs.fileno())]
            self.process = subprocess.Popen(command, pass_fds=[theirs.fileno()], env=child_environment())
        self._bodies = self._read()

    def _read(self) -> Iterator[bytes | bytearray]:
        splitter = wire.FrameSplitter()
        while received := self.socket.recv(65536):
            yield from splitter.feed(received)

    def send(self, *messages: wire.ToWorker) -> None:
        self.socket.sendall(b"".join(wire.encode_frame(message) for message in messages))

    def hear(self, *kinds: type[wire.FromWorker]) -> wire.FromWorker:
        """The next message of one of these kinds."""
        for body in self._bodies:
            message = wire.decode_from_worker(body)
            if isinstance(message, kinds):
                return message
        raise EOFError("the worker hung up")

    def tokens_of(self, request_id: str) -> list[int]:
        ids: list[int] = []
        while True:
            frame = self.hear(wire.StepFrame)
            assert isinstance(frame, wire.StepFrame)
            for chunk in frame.chunks:
                if chunk.request_id == request_id:
                    ids += chunk.ids
                    if chunk.finish is not None:
                        return ids


@pytest.fixture
def talk() -> Iterator[Talk]:
    talk = Talk()
    yield talk
    talk.socket.close()
    talk.process.wait(10)


@pytest.fixture
def ready(talk: Talk) -> Talk:
    talk.send(LOAD)
    talk.hear(wire.Ready)
    return talk


def test_a_model_loads_with_progress_and_answers(talk: Talk) -> None:
    talk.send(LOAD)
    first = talk.hear(wire.Progress)
    assert isinstance(first, wire.Progress) and first.stage == "loading weights"
    ready = talk.hear(wire.Ready, wire.Failed)
    assert isinstance(ready, wire.Ready) and ready.backend == "fake"
    talk.send(wire.Submit(request_id="r", prompt=[97, 98], sampling=GREEDY, max_tokens=20, stop_ids=[257]))
    assert bytes(talk.tokens_of("r")).decode() == expected_text([97, 98], 20)


def test_a_model_that_does_not_load_says_why_and_exits(talk: Talk) -> None:
    talk.send(wire.Load(path="toy:broken"))
    failed = talk.hear(wire.Failed)
    assert failed == wire.Failed("bad_model_file", "the toy is broken", "pull it again")
    assert talk.process.wait(10) == 1


def test_a_first_frame_that_is_no_load_is_refused(talk: Talk) -> None:
    talk.send(wire.Cancel("x"))
    assert isinstance(talk.hear(wire.Failed), wire.Failed)
    assert talk.process.wait(10) == 1


def test_a_refused_sequence_ends_with_an_error_and_harms_nobody(ready: Talk) -> None:
    ready.send(
        wire.Submit(request_id="long", prompt=[97] * 600, sampling=GREEDY),
        wire.Submit(request_id="good", prompt=[97], sampling=GREEDY, max_tokens=3, stop_ids=[257]),
    )
    frame = ready.hear(wire.StepFrame)
    assert isinstance(frame, wire.StepFrame)
    assert (frame.chunks[0].finish, frame.chunks[0].error_code) == ("error", "context_length_exceeded")
    assert frame.chunks[0].error_hint
    assert bytes(ready.tokens_of("good")).decode() == expected_text([97], 3)


def test_a_cancelled_sequence_frees_its_pages_before_the_next_step(talk: Talk) -> None:
    talk.send(wire.Load(path="toy:slow"))
    talk.hear(wire.Ready)
    talk.send(wire.Submit(request_id="r", prompt=[97] * 100, sampling=GREEDY))
    talk.hear(wire.StepFrame)
    talk.send(wire.Cancel("r"))
    deadline = time.monotonic() + 5
    while True:
        snapshot = talk.hear(wire.Snapshot)
        assert isinstance(snapshot, wire.Snapshot)
        if snapshot.num_running == 0 and snapshot.num_steps > 0:
            break
        assert time.monotonic() < deadline
    assert set(snapshot.pages) <= {0, 1}


def test_a_heartbeat_comes_every_second(ready: Talk) -> None:
    beat = ready.hear(wire.Heartbeat)
    assert isinstance(beat, wire.Heartbeat) and beat.in_step_s == 0


def test_snapshots_come_only_when_something_changed(ready: Talk) -> None:
    ready.hear(wire.Snapshot)
    assert isinstance(ready.hear(wire.Snapshot, wire.Heartbeat), wire.Heartbeat)


def test_stop_ends_the_worker_with_0(ready: Talk) -> None:
    ready.send(wire.Stop())
    assert ready.process.wait(10) == 0


def test_the_end_of_the_socket_is_the_end_of_the_worker(ready: Talk) -> None:
    ready.send(wire.Submit(request_id="r", prompt=[97], sampling=GREEDY))
    ready.socket.close()
    assert ready.process.wait(10) == 0


def test_garbage_on_the_socket_ends_the_worker(ready: Talk) -> None:
    ready.socket.sendall(b"\x04\x00\x00\x00abcd")
    assert ready.process.wait(10) == 0


def test_signals_meant_for_the_daemon_are_ignored(ready: Talk) -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        ready.process.send_signal(number)
    ready.send(wire.Submit(request_id="r", prompt=[97], sampling=GREEDY, max_tokens=2, stop_ids=[257]))
    assert len(ready.tokens_of("r")) == 2


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_an_idle_worker_uses_no_processor(ready: Talk) -> None:
    ready.hear(wire.Heartbeat)
    before = _cpu_ticks(ready.process.pid)
    ready.hear(wire.Heartbeat)
    ready.hear(wire.Heartbeat)
    assert _cpu_ticks(ready.process.pid) - before <= 0.02 * os.sysconf("SC_CLK_TCK")


def _cpu_ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def test_the_worker_module_brings_no_server_and_no_text(tmp_path: Path) -> None:
    script = (
        "import sys; import localllm.daemon.worker;"
        "print([n for n in ('asyncio', 'starlette', 'uvicorn', 'tokenizers', 'jinja2', 'torch') if n in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", script], env=child_environment()).strip() == b"[]"


class Counting:
    """An engine that gives a token a step, `seconds` apart, and tells the worker to stop behind the last."""

    def __init__(self, num_tokens: int, seconds: float) -> None:
        self._ours, self._theirs = socket.socketpair()
        self._left, self._seconds = num_tokens, seconds
        self.worker = Worker(self._theirs, lambda load, report: pytest.fail("it is loaded"))

    @property
    def has_work(self) -> bool:
        return self._left > 0

    def add(self, submit: wire.Submit) -> None: ...

    def abort(self, request_id: str) -> object: ...

    def step(self) -> list[wire.TokenChunk]:
        time.sleep(self._seconds)
        self._left -= 1
        if not self._left:
            self.worker._commands.put(wire.Stop())
        return [wire.TokenChunk("r", ids=[self._left])]

    def snapshot(self, *, detailed: bool = False) -> wire.Snapshot:
        return wire.Snapshot(
            time_s=0.0, pages=b"", num_waiting=0, num_running=0, num_steps=0, num_prompt_tokens=0, num_cached_tokens=0,
            num_generated_tokens=0, num_preemptions=0, last_step_s=0.0, last_step_tokens=0,
        )  # fmt: skip

    def frames(self) -> list[list[int]]:
        """Serve to the end; the token ids of every frame."""
        with self._ours, self._theirs:
            self.worker._serve(self)
            received = self._ours.recv(2**20)
        messages = [wire.decode_from_worker(body) for body in wire.FrameSplitter().feed(received)]
        return [
            [token for chunk in frame.chunks for token in chunk.ids]
            for frame in messages
            if isinstance(frame, wire.StepFrame)
        ]


def test_tokens_that_come_quickly_travel_together_and_in_order() -> None:
    first, *rest = Counting(400, 0.0).frames()
    assert first == [399], "nobody waits for the first"
    assert [token for frame in rest for token in frame] == list(range(398, -1, -1))
    assert len(rest) < 200


def test_tokens_that_come_slowly_travel_alone() -> None:
    assert Counting(5, 0.012).frames() == [[4], [3], [2], [1], [0]]
