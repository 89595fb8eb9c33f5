"""Where chat templates run: in a child process with limits on time and memory, or in this one under a gauge.

Neither raises anything but TemplateFailure. A child that was ended for taking too much is replaced when next needed.
"""

import json
import os
import select
import subprocess
import threading
import weakref
from collections.abc import Mapping
from datetime import datetime
from functools import cache
from typing import Any, Protocol

from localllm.tokens.confined import end_child, start_child
from localllm.tokens.frames import read_frame, write_frame
from localllm.tokens.fuel import Fuel
from localllm.tokens.sandbox import TemplateFailure, compile_template, render_template, template_environment

# in seconds; the CPU times are the child's own, so that a busy machine makes an honest template late but not wrong
_CPU_S, _COMPILE_CPU_S = 0.25, 0.4  # ten times what the longest published template takes
_START_WALL_S, _WALL_S = 30.0, 5.0
_MAX_LINES = 2_000_000


class Renderer(Protocol):
    """Renders templates one at a time; safe to call from several threads."""

    def render(self, source: str, variables: Mapping[str, Any], now: datetime) -> str: ...

    def close(self) -> None: ...


@cache
def _child_of(process_id: int) -> "Child":
    return Child()


def shared_child() -> "Child":
    """One child for all who render now and then; a forked process gets its own."""
    return _child_of(os.getpid())


class Inside:
    """Renders in this process: sandboxed, with a gauge."""

    def __init__(self) -> None:
        self._environment = template_environment()
        self._source: str | None = None
        self._template: Any = None

    def render(self, source: str, variables: Mapping[str, Any], now: datetime) -> str:
        if self._template is None or source != self._source:
            self._template, self._source = compile_template(self._environment, source), source
        try:
            plain = json.loads(json.dumps(variables))  # objects have methods, and a template could call them
        except (TypeError, ValueError, RecursionError) as error:
            raise TemplateFailure(f"the messages cannot be given to the template: {error}") from error
        with Fuel(_MAX_LINES, _COMPILE_CPU_S):
            return render_template(self._template, plain, now)

    def close(self) -> None:
        """Nothing to end."""


class Child:
    """Renders in a child process, started when first needed and again after it was ended for taking too much."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._finalizer: Any = None

    def render(self, source: str, variables: Mapping[str, Any], now: datetime) -> str:
        limits = {"cpu_s": _CPU_S, "compile_cpu_s": _COMPILE_CPU_S}
        with self._lock:
            reply = self._ask({"source": source, "variables": variables, "now": now.isoformat(), **limits})
        if "failure" in reply:
            raise TemplateFailure(reply["failure"], reply["kind"])
        return str(reply["text"])

    def close(self) -> None:
        with self._lock:
            self._end()

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            self._end()
            self._process = start_child("localllm.tokens.render_child")
            self._finalizer = weakref.finalize(self, end_child, self._process)
            if self._receive(self._process, _START_WALL_S) is None:
                self._end()
                raise TemplateFailure("the process that renders chat templates did not start")
        return self._process

    def _ask(self, request: dict[str, Any]) -> Any:
        """The reply. Whatever goes wrong ends the child, so that no later request reads a stale answer."""
        reply = None
        try:
            reply = self._exchange(request)
        except (TypeError, ValueError, RecursionError) as error:
            raise TemplateFailure(f"the messages cannot be given to the template: {error}") from error
        except OSError as error:
            raise TemplateFailure("the process that renders chat templates ended") from error
        finally:
            if reply is None:
                self._end()
        if reply is None:
            raise TemplateFailure("the chat template takes too long or too much memory", "limit")
        return reply

    def _exchange(self, request: dict[str, Any]) -> Any:
        process = self._running()
        assert process.stdin is not None  # opened as a pipe
        write_frame(process.stdin, request)
        return self._receive(process, _WALL_S)

    def _receive(self, process: subprocess.Popen[bytes], wall_s: float) -> Any:
        """The next reply; None if the process ended or is late."""
        assert process.stdout is not None  # opened as a pipe
        ready, _, _ = select.select([process.stdout], [], [], wall_s)
        return read_frame(process.stdout) if ready else None

    def _end(self) -> None:
        if self._finalizer is not None:
            self._finalizer()
        self._process, self._finalizer = None, None
