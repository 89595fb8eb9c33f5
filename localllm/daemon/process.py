"""The daemon's end of a worker: start it, talk to it, end it."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path

from localllm import wire

WORKER_COMMAND = (sys.executable, "-m", "localllm.daemon.worker")
STOP_GRACE_S = 5.0


def child_environment() -> Mapping[str, str]:
    """Ours, made so that a child finds this package wherever it was started from."""
    root = Path(__file__).resolve().parents[2]
    if root.name in ("site-packages", "dist-packages"):
        return os.environ
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))}


Deliver = Callable[[list[wire.TokenChunk]], None]


class _Frames(asyncio.Protocol):
    """The socket's frames. Tokens go straight to whom they are for, as a task in between would cost as much as all
    else that is done for them; other messages wait to be read, None is the end."""

    def __init__(self, deliver: Deliver) -> None:
        self.waiting: asyncio.Queue[wire.FromWorker | None] = asyncio.Queue()
        self.error: Exception | None = None
        self._deliver = deliver
        self._splitter = wire.FrameSplitter()

    def data_received(self, data: bytes) -> None:
        chunks: list[wire.TokenChunk] = []
        for body in self._splitter.feed(data):
            message = wire.decode_from_worker(body)
            if type(message) is wire.StepFrame:
                chunks += message.chunks
            else:
                self.waiting.put_nowait(message)
        if chunks:  # of several steps, where they come faster than we read
            self._deliver(chunks)

    def connection_lost(self, exc: Exception | None) -> None:
        self.error = exc
        self.waiting.put_nowait(None)


class WorkerProcess:
    """A running worker. `messages` ends when its socket does; then `exit_status` waits for the process itself."""

    def __init__(self, process: subprocess.Popen[bytes], transport: asyncio.WriteTransport, frames: _Frames) -> None:
        self._process = process
        self._transport = transport
        self._frames = frames

    @classmethod
    async def start(
        cls, load: wire.Load, command: Sequence[str] = WORKER_COMMAND, *, deliver: Deliver
    ) -> "WorkerProcess":
        """`deliver` gets every step's tokens as they arrive. Must run on the event loop's own thread: Linux ends a
        worker together with the thread that started it."""
        ours, theirs = socket.socketpair()
        with theirs:
            process = subprocess.Popen(
                [*command, "--fd", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env=child_environment(),
            )
        transport, frames = await asyncio.get_running_loop().create_connection(lambda: _Frames(deliver), sock=ours)
        worker = cls(process, transport, frames)
        worker.send(load)
        return worker

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, message: wire.ToWorker) -> None:
        if not self._transport.is_closing():
            self._transport.write(wire.encode_frame(message))

    async def messages(self) -> AsyncIterator[wire.FromWorker]:
        """All but the steps. Raises where the socket ended otherwise than by its other end."""
        while (message := await self._frames.waiting.get()) is not None:
            yield message
        if self._frames.error is not None and not isinstance(self._frames.error, ConnectionError):
            raise self._frames.error

    def kill(self) -> None:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGKILL)

    async def exit_status(self, grace_s: float = STOP_GRACE_S) -> int:
        """Wait for the end, with SIGKILL after the grace; the status as subprocess gives it."""
        self._transport.close()
        deadline = asyncio.get_running_loop().time() + grace_s
        while (status := self._process.poll()) is None:
            if asyncio.get_running_loop().time() > deadline:
                self.kill()
            await asyncio.sleep(0.01)
        return status
