"""One model in one process: frames in, one engine, frames out. `python -m localllm.daemon.worker --fd N`.

One thread owns the engine; a second one reads the socket and sends the heartbeat. The daemon decides about our life:
signals meant for it are ignored here, and the end of the socket is the end of the process.
"""

import argparse
import contextlib
import ctypes
import logging
import os
import queue
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from localllm import wire
from localllm.errors import LocalLLMError

logger = logging.getLogger("localllm.worker")

HEARTBEAT_S = 1.0
SNAPSHOT_S = 0.1
PROGRESS_S = 0.1
GATHER_S = 0.008
"""Tokens that come less than this apart travel together: on a small machine every frame wakes the daemon and a client
on a core that the next step needs. Nothing is held back where the next step may take longer."""
RECEIVE_BYTES = 2**16
NICENESS = 5
"""On a machine with few cores the daemon has to get at the sockets while a step uses all of them: it needs little, but
at once. An idle machine gives a nice process everything."""
_PR_SET_PDEATHSIG = 1


class EngineLike(Protocol):
    """What the worker needs of an engine."""

    @property
    def has_work(self) -> bool: ...

    def add(self, submit: wire.Submit) -> None: ...

    def abort(self, request_id: str) -> object: ...

    def step(self) -> list[wire.TokenChunk]: ...

    def snapshot(self, *, detailed: bool = False) -> wire.Snapshot: ...

    def answer(self, question: wire.Question) -> wire.Answer: ...


ReportProgress = Callable[[str, int, int], None]
LoadEngine = Callable[[wire.Load, ReportProgress], tuple[EngineLike, wire.Ready]]


class Worker:
    """The two threads and what they share."""

    def __init__(self, sock: socket.socket, load_engine: LoadEngine) -> None:
        self._socket = sock
        self._load_engine = load_engine
        self._commands: queue.SimpleQueue[wire.ToWorker] = queue.SimpleQueue()
        self._send_lock = threading.Lock()
        self._num_steps = 0
        self._step_started: float | None = None
        self._snapshot_due = 0.0
        self._is_dirty = True
        self._is_watched = False
        self._gathered: list[wire.TokenChunk] = []
        self._send_due = 0.0

    def run(self) -> int:
        """Load, then serve until told to stop; the exit status."""
        threading.Thread(target=self._read_for_ever, daemon=True, name="socket").start()
        load = self._commands.get()
        if not isinstance(load, wire.Load):
            self._send(wire.Failed("internal_error", "the first frame to a worker must be `load`", ""))
            return 1
        try:
            engine, ready = self._load_engine(load, _Throttled(self._send))
            self._send(ready)
            self._serve(engine)
        except Exception as error:
            self._send(_failure(error))
            return 1
        return 0

    # ---- the engine's thread

    def _serve(self, engine: EngineLike) -> None:
        try:
            while self._obey(engine):
                if engine.has_work:
                    self._step(engine)
                self._publish(engine)
        finally:
            self._send_tokens()

    def _obey(self, engine: EngineLike) -> bool:
        """Apply every waiting command, sleeping for the first where there is nothing else to do; False: stop."""
        is_idle = not engine.has_work
        if not is_idle and self._commands.empty():
            return True
        self._send_tokens()  # a step with a new prompt in it is a long one
        with contextlib.suppress(queue.Empty):
            command = self._commands.get(block=is_idle, timeout=self._patience() if is_idle else None)
            while True:
                if isinstance(command, wire.Stop):
                    return False
                self._apply(engine, command)
                command = self._commands.get_nowait()
        return True

    def _patience(self) -> float | None:
        """Seconds an idle engine may sleep: for ever, or until the last change is to be shown."""
        return max(0.0, self._snapshot_due - time.monotonic()) if self._is_dirty else None

    def _apply(self, engine: EngineLike, command: wire.ToWorker) -> None:
        if isinstance(command, wire.Question):
            self._send(engine.answer(command))
            return
        self._is_dirty = True
        if isinstance(command, wire.Submit):
            self._add(engine, command)
        elif isinstance(command, wire.Cancel):
            engine.abort(command.request_id)
        elif isinstance(command, wire.Watch):
            self._is_watched = command.is_on

    def _add(self, engine: EngineLike, submit: wire.Submit) -> None:
        try:
            engine.add(submit)
        except LocalLLMError as error:
            self._send(wire.StepFrame([_refusal(submit.request_id, error)]))

    def _step(self, engine: EngineLike) -> None:
        self._is_dirty = True
        self._step_started = time.monotonic()
        self._gathered += engine.step()
        self._step_started = None
        self._num_steps += 1
        if not engine.has_work or time.monotonic() >= self._send_due:
            self._send_tokens()

    def _send_tokens(self) -> None:
        if self._gathered:
            self._send(wire.StepFrame(self._gathered))
            self._gathered = []
            self._send_due = time.monotonic() + GATHER_S

    def _publish(self, engine: EngineLike) -> None:
        now = time.monotonic()
        if self._is_dirty and now >= self._snapshot_due:
            self._send(engine.snapshot(detailed=self._is_watched))
            self._is_dirty = False
            self._snapshot_due = now + SNAPSHOT_S

    # ---- the socket's thread

    def _read_for_ever(self) -> None:
        splitter = wire.FrameSplitter()
        beat_due = time.monotonic() + HEARTBEAT_S
        poller = select.poll()
        poller.register(self._socket, select.POLLIN)
        while True:
            if poller.poll(max(0.0, beat_due - time.monotonic()) * 1000):
                self._receive(splitter)
            if time.monotonic() >= beat_due:
                self._beat()
                beat_due = time.monotonic() + HEARTBEAT_S

    def _receive(self, splitter: wire.FrameSplitter) -> None:
        try:
            received = self._socket.recv(RECEIVE_BYTES)
            for body in splitter.feed(received):
                self._commands.put(wire.decode_to_worker(body))
        except (OSError, ValueError) as error:  # msgspec's decoding errors are ValueErrors
            logger.error("the socket to the daemon failed: %s", error)
            received = b""
        if not received:
            os._exit(0)  # the daemon is gone: nobody is left to answer, and the engine may be deep in a step

    def _beat(self) -> None:
        started = self._step_started
        self._send(wire.Heartbeat(self._num_steps, 0.0 if started is None else time.monotonic() - started))

    def _send(self, message: wire.FromWorker) -> None:
        frame = wire.encode_frame(message)
        with self._send_lock, contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._socket.sendall(frame)  # a closed socket ends the process through the reading thread


class _Throttled:
    """Progress at most ten times a second; a new stage and a finished one always."""

    def __init__(self, send: Callable[[wire.FromWorker], None]) -> None:
        self._send = send
        self._stage = ""
        self._due = 0.0

    def __call__(self, stage: str, done_bytes: int, total_bytes: int) -> None:
        now = time.monotonic()
        if stage != self._stage or now >= self._due or done_bytes >= total_bytes:
            self._stage, self._due = stage, now + PROGRESS_S
            self._send(wire.Progress(stage, done_bytes, total_bytes))


def _refusal(request_id: str, error: LocalLLMError) -> wire.TokenChunk:
    return wire.TokenChunk(
        request_id, finish="error", error_code=error.code, error=error.message, error_hint=error.hint
    )


def _failure(error: Exception) -> wire.Failed:
    if isinstance(error, LocalLLMError):
        return wire.Failed(error.code, error.message, error.hint)
    logger.error("the engine failed", exc_info=error)
    if isinstance(error, MemoryError):
        return wire.Failed("not_enough_memory", "the model does not fit in memory", "choose a smaller quantization")
    return wire.Failed("internal_error", f"the engine failed: {error!r}", "see `localllm daemon logs`")


def _die_with_parent() -> None:
    """On Linux the kernel ends us with the daemon, even where the socket's end would be noticed late."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def run(sock: socket.socket, load_engine: LoadEngine) -> int:
    """Serve one model over a connected socket; the exit status."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    _die_with_parent()
    os.nice(NICENESS)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s worker[%(process)d] %(levelname)s %(message)s")
    return Worker(sock, load_engine).run()


def socket_from(argv: Sequence[str]) -> socket.socket:
    """The inherited socket named by `--fd N`."""
    parser = argparse.ArgumentParser(prog="localllm.daemon.worker")
    parser.add_argument("--fd", type=int, required=True)
    return socket.socket(fileno=parser.parse_args(argv).fd)


def main(argv: Sequence[str]) -> int:
    sock = socket_from(argv)
    from localllm.runtime.load import load_engine  # deferred: numpy and the backends are for the real worker only

    return run(sock, load_engine)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
