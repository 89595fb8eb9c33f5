"""A gauge for templates that are rendered in this process."""

import sys
import time
from types import FrameType
from typing import Any

from localllm.tokens.sandbox import TemplateFailure


class Fuel:
    """Stops Python code of this thread after a number of lines or seconds of CPU time; for use in `with`.

    It cannot interrupt one long call into C, which is why sizes are checked above and why untrusted templates are
    rendered in a child.
    """

    def __init__(self, max_lines: int, max_cpu_s: float) -> None:
        self._lines_left = max_lines
        self._max_cpu_s = max_cpu_s

    def __enter__(self) -> None:
        self._deadline = time.thread_time() + self._max_cpu_s
        self._previous = sys.gettrace()
        sys.settrace(self._trace)

    def __exit__(self, *exc_info: object) -> None:
        sys.settrace(self._previous)

    def _trace(self, frame: FrameType, event: str, argument: Any) -> Any:
        self._lines_left -= 1
        if self._lines_left < 0 or (self._lines_left % 1024 == 0 and time.thread_time() > self._deadline):
            raise TemplateFailure("the chat template takes too long", "limit")
        return self._trace
