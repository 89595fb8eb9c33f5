"""The process in which chat templates run: `python -m localllm.tokens.render_child`, frames over pipes.

One request, one reply; the end of the input ends the process. Too much memory or CPU time ends it, too, by the
kernel's hand: the other side sees a closed pipe.
"""

import resource
import signal
import sys
from datetime import datetime
from typing import Any

import jinja2

from localllm.tokens.frames import read_frame, write_frame
from localllm.tokens.sandbox import TemplateFailure, compile_template, render_template, template_environment

_MAX_MEMORY_BYTES = 1 << 30


def main() -> None:
    _limit_memory()
    requests, replies = sys.stdin.buffer, sys.stdout.buffer
    sys.stdout = sys.stderr  # a stray print must not look like a frame
    renderer = _Renderer()
    write_frame(replies, {"ready": True})
    while (request := read_frame(requests)) is not None:
        write_frame(replies, renderer.reply(request))


class _Renderer:
    """Keeps the last template compiled."""

    def __init__(self) -> None:
        self._environment = template_environment()
        self._source: str | None = None
        self._template: jinja2.Template | None = None

    def reply(self, request: Any) -> dict[str, str]:
        try:
            _limit_cpu(request["compile_cpu_s"])
            template = self._compiled(request["source"])
            _limit_cpu(request["cpu_s"])
            return {"text": render_template(template, request["variables"], datetime.fromisoformat(request["now"]))}
        except TemplateFailure as failure:
            return {"failure": str(failure), "kind": failure.kind}
        except MemoryError:
            return {"failure": "the chat template needs too much memory", "kind": "limit"}
        finally:
            _limit_cpu(0.0)

    def _compiled(self, source: str) -> jinja2.Template:
        if self._template is None or source != self._source:
            self._template = compile_template(self._environment, source)
            self._source = source
        return self._template


def _limit_cpu(seconds: float) -> None:
    """End this process after so much CPU time; 0 takes the limit away."""
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_PROF, seconds)


def _limit_memory() -> None:
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    wanted = _MAX_MEMORY_BYTES if most == resource.RLIM_INFINITY else min(most, _MAX_MEMORY_BYTES)
    try:
        resource.setrlimit(resource.RLIMIT_AS, (wanted, most))
    except (ValueError, OSError):  # macOS refuses; the limit on time still holds
        print("chat templates are rendered without a memory limit on this system", file=sys.stderr)


if __name__ == "__main__":
    main()
