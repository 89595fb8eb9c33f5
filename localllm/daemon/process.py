"""The daemon's end of a worker: start it, talk to it, end it."""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
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


class WorkerProcess:
    """A running worker. `messages` ends when its socket does; then `exit_status` waits for the process itself."""

    def __init__(
        self, process: subprocess.Popen[bytes], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._process = process
        self._reader = reader
        self._writer = writer

    @classmethod
    async def start(cls, load: wire.Load, command: Sequence[str] = WORKER_COMMAND) -> "WorkerProcess":
        """Must run on the event loop's own thread: Linux ends a worker together with the thread that started it."""
        ours, theirs = socket.socketpair()
        with theirs:
            process = subprocess.Popen(
                [*command, "--fd", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env=child_environment(),
            )
        reader, writer = await asyncio.open_connection(sock=ours)
        worker = cls(process, reader, writer)
        worker.send(load)
        return worker

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, message: wire.ToWorker) -> None:
        if not self._writer.is_closing():
            self._writer.write(wire.encode_frame(message))

    async def messages(self) -> AsyncIterator[wire.FromWorker]:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                size = int.from_bytes(await self._reader.readexactly(wire.HEADER_BYTES), "little")
                yield wire.decode_from_worker(await self._reader.readexactly(size))

    def kill(self) -> None:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGKILL)

    async def exit_status(self, grace_s: float = STOP_GRACE_S) -> int:
        """Wait for the end, with SIGKILL after the grace; the status as subprocess gives it."""
        self._writer.close()
        deadline = asyncio.get_running_loop().time() + grace_s
        while (status := self._process.poll()) is None:
            if asyncio.get_running_loop().time() > deadline:
                self.kill()
            await asyncio.sleep(0.01)
        return status
