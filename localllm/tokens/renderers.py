"""Where chat templates run: in a child process with limits on time and memory, or in this one under a gauge.

Neither raises anything but TemplateFailure. A child that was ended for taking too much is replaced when next needed.
"""

import json
import os
from collections.abc import Mapping
from datetime import datetime
from functools import cache
from typing import Any, Protocol

from localllm.tokens.confined import Confined, DidNotStart
from localllm.tokens.fuel import Fuel
from localllm.tokens.sandbox import TemplateFailure, compile_template, render_template, template_environment

# in seconds; the CPU times are the child's own, so that a busy machine makes an honest template late but not wrong
_CPU_S, _COMPILE_CPU_S = 0.25, 0.4  # ten times what the longest published template takes
_WALL_S = 5.0
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
    """Renders in a child process, which is replaced when it was ended for taking too much."""

    def __init__(self) -> None:
        self._process = Confined("localllm.tokens.render_child")

    def render(self, source: str, variables: Mapping[str, Any], now: datetime) -> str:
        limits = {"cpu_s": _CPU_S, "compile_cpu_s": _COMPILE_CPU_S}
        reply = self._ask({"source": source, "variables": variables, "now": now.isoformat(), **limits})
        if reply is None:
            raise TemplateFailure("the chat template takes too long or too much memory", "limit")
        if "failure" in reply:
            raise TemplateFailure(reply["failure"], reply["kind"])
        return str(reply["text"])

    def close(self) -> None:
        self._process.close()

    def _ask(self, request: dict[str, Any]) -> Any:
        """The reply; None where the process was ended over the request."""
        try:
            return self._process.ask(request, _WALL_S)
        except TimeoutError:
            return None
        except DidNotStart:
            raise TemplateFailure("the process that renders chat templates did not start") from None
        except (TypeError, ValueError, RecursionError) as error:
            raise TemplateFailure(f"the messages cannot be given to the template: {error}") from error
