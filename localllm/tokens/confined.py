"""Child processes that do one kind of work under limits and answer in frames, seen from outside."""

import os
import select
import subprocess
import sys
import threading
import weakref
from pathlib import Path
from typing import IO, Any

from localllm.tokens.frames import read_frame, write_frame

START_S = 30.0


class DidNotStart(Exception):
    """The process ended, or said nothing for long, before it could be asked anything."""


class Confined:
    """`python -m module` in a process that answers one request at a time: started when first asked, and again after it
    was ended, by its limits or because it was late. Safe to call from several threads."""

    def __init__(self, module: str) -> None:
        self._module = module
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._finalizer: Any = None
        self._is_ready = False

    def ask(self, request: Any, wall_s: float) -> Any:
        """The reply; None where the process ended over the request. TimeoutError where none came in time; DidNotStart;
        TypeError, ValueError and RecursionError for what no frame can hold."""
        with self._lock:
            process, reply = self._running(), None
            try:
                write_frame(_pipe(process.stdin), request)
            except OSError:
                self._start()
                return None
            try:
                reply = _receive(process, wall_s)
            except ValueError:
                return None
            finally:
                if reply is None:
                    self._start()  # no later request reads a stale answer, and the next one finds it running
            return reply

    def close(self) -> None:
        with self._lock:
            self._end()

    def _running(self) -> "subprocess.Popen[bytes]":
        process = self._process
        if process is None or process.poll() is not None:
            process = self._start()
        if not self._is_ready and not _has_started(process):
            self._end()
            raise DidNotStart
        self._is_ready = True
        return process

    def _start(self) -> "subprocess.Popen[bytes]":
        self._end()
        self._process = start_child(self._module)
        self._finalizer = weakref.finalize(self, end_child, self._process)
        return self._process

    def _end(self) -> None:
        if self._finalizer is not None:
            self._finalizer()
        self._process, self._finalizer, self._is_ready = None, None, False


def _receive(process: "subprocess.Popen[bytes]", wall_s: float) -> Any:
    """The next reply; None if the process ended. TimeoutError when it is late."""
    pipe = _pipe(process.stdout)
    ready, _, _ = select.select([pipe], [], [], wall_s)
    if not ready:
        raise TimeoutError
    return read_frame(pipe)


def _has_started(process: "subprocess.Popen[bytes]") -> bool:
    try:
        return _receive(process, START_S) is not None
    except TimeoutError:
        return False


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    assert pipe is not None  # opened as one
    return pipe


def start_child(module: str) -> "subprocess.Popen[bytes]":
    """`python -m module`, with the modules of this process, but not with the folder it happens to stand in."""
    here = Path(__file__).resolve().parents[2]
    others = [entry for entry in sys.path if os.path.isabs(entry) and Path(entry) != Path.cwd()]
    paths = dict.fromkeys([str(here), *others])
    inherited = {name: os.environ[name] for name in ("PATH", "TZ", "LANG", "LD_LIBRARY_PATH") if name in os.environ}
    return subprocess.Popen(
        [sys.executable, "-P", "-m", module],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**inherited, "PYTHONPATH": os.pathsep.join(paths), "PYTHONUTF8": "1"},
        start_new_session=True,  # Ctrl-C in the terminal is for us, not for the child
    )


def end_child(process: "subprocess.Popen[bytes]") -> None:
    """Kill it, wait for it, close its pipes."""
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            _close_quietly(pipe)


def _close_quietly(pipe: Any) -> None:
    try:
        pipe.close()
    except OSError:  # what was still in the buffer has no reader any more
        return
