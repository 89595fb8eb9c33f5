"""The process that checks grammars, from the outside: asked one at a time, and ended when it takes too long."""

from __future__ import annotations

import select
import subprocess
import threading
import weakref
from typing import IO, Any

from localllm.errors import LocalLLMError
from localllm.tokens.confined import end_child, start_child
from localllm.tokens.frames import read_frame, write_frame

CHECK_S = 0.9
"""By the clock. The process has a limit of its own on the CPU's time, which comes first unless the machine is busy."""
START_S = 10.0
TOO_MUCH = "it takes too much time or memory to follow"


class GrammarProcess:
    """Started when first asked, and again after it was ended. Safe to call from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._finalizer: Any = None
        self._is_ready = False

    def ask(self, request: dict[str, str]) -> dict[str, str] | None:
        """`{"grammar": ...}` or `{"failure": a sentence}`; None when there was no answer in time.
        LocalLLMError when it does not start."""
        with self._lock:
            process = self._running()
            try:
                write_frame(_pipe(process.stdin), request)
                reply: dict[str, str] | None = _receive(process, CHECK_S)
            except TimeoutError:
                self._start()  # so that no later request reads a stale answer; and the next one finds it running
                return None
            except (OSError, ValueError):
                reply = None
            if reply is None:
                self._start()
        return {"failure": TOO_MUCH} if reply is None else reply

    def close(self) -> None:
        with self._lock:
            self._end()

    def _running(self) -> subprocess.Popen[bytes]:
        process = self._process
        if process is None or process.poll() is not None:
            process = self._start()
        if not self._is_ready and not _has_started(process):
            self._end()
            raise LocalLLMError("the process that checks grammars did not start")
        self._is_ready = True
        return process

    def _start(self) -> subprocess.Popen[bytes]:
        self._end()
        self._process = start_child("localllm.daemon.grammar_child")
        self._finalizer = weakref.finalize(self, end_child, self._process)
        return self._process

    def _end(self) -> None:
        if self._finalizer is not None:
            self._finalizer()
        self._process, self._finalizer, self._is_ready = None, None, False


def _receive(process: subprocess.Popen[bytes], wall_s: float) -> Any:
    """The next reply; None if the process ended. TimeoutError when it is late."""
    pipe = _pipe(process.stdout)
    ready, _, _ = select.select([pipe], [], [], wall_s)
    if not ready:
        raise TimeoutError
    return read_frame(pipe)


def _has_started(process: subprocess.Popen[bytes]) -> bool:
    try:
        return _receive(process, START_S) is not None
    except TimeoutError:
        return False


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    assert pipe is not None  # opened as one
    return pipe
