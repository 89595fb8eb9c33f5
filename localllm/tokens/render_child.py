"""The process in which chat templates run: `python -m localllm.tokens.render_child`, frames over pipes.

One request, one reply; the end of the input ends the process. Too much memory or CPU time ends it, too, by the
kernel's hand: the other side sees a closed pipe.
"""

import sys
from datetime import datetime
from typing import Any

import jinja2

from localllm.tokens.frames import read_frame, write_frame
from localllm.tokens.limits import limit_cpu, limit_memory
from localllm.tokens.sandbox import TemplateFailure, compile_template, render_template, template_environment


def main() -> None:
    limit_memory("chat templates are rendered")
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
            limit_cpu(request["compile_cpu_s"])
            template = self._compiled(request["source"])
            limit_cpu(request["cpu_s"])
            return {"text": render_template(template, request["variables"], datetime.fromisoformat(request["now"]))}
        except TemplateFailure as failure:
            return {"failure": str(failure), "kind": failure.kind}
        except MemoryError:
            return {"failure": "the chat template needs too much memory", "kind": "limit"}
        finally:
            limit_cpu(0.0)

    def _compiled(self, source: str) -> jinja2.Template:
        if self._template is None or source != self._source:
            self._template = compile_template(self._environment, source)
            self._source = source
        return self._template


if __name__ == "__main__":
    main()
