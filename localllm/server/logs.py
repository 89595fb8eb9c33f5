"""The daemon's log: one file in the home, rotated by size, with nothing in it that a terminal would obey, no line that
a request made up, and no keys."""

import asyncio
import errno
import logging
import os
import re
import time
from collections.abc import Callable
from logging.handlers import RotatingFileHandler

from localllm.settings import Settings

logger = logging.getLogger("localllm.server")

MAX_LOG_BYTES = 10 * 2**20
KEPT_LOGS = 3
FULL_EVERY_S = 60.0
"""How often it is said that no connection can be taken."""
_NO_MORE = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
FORMAT = "%(asctime)s %(levelname)s %(message)s"
_HIDDEN = {code: f"\\x{code:02x}" for code in [*range(0x20), *range(0x7F, 0xA0)] if code not in (0x09, 0x0A)}
_HIDDEN |= {code: f"\\u{code:04x}" for code in [0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)]}


_SECRETS = re.compile(r"(?i)\b(bearer\s+|x-api-key\W+|llm-|sk-|hf_)[A-Za-z0-9_\-.~+/]{8,}=*")
"""What looks like a key: no line of ours holds one, but the message of a library's exception might."""


class Sanitized(logging.Formatter):
    """Control characters, escapes and text-direction overrides are written out instead of sent. Only a traceback has
    lines of its own: a newline in a message, from a path for example, would look like another message."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return super().formatMessage(record).replace("\n", "\\n")

    def format(self, record: logging.LogRecord) -> str:
        return _SECRETS.sub(r"\1[hidden]", super().format(record).translate(_HIDDEN))


class _Rotating(RotatingFileHandler):
    """In the background stderr is the log too: tracebacks and workers' words move on with it to the new file."""

    def __init__(self, settings: Settings, *, owns_stderr: bool) -> None:
        super().__init__(settings.log_file, maxBytes=MAX_LOG_BYTES, backupCount=KEPT_LOGS, encoding="utf-8")
        self._owns_stderr = owns_stderr

    def doRollover(self) -> None:
        super().doRollover()
        if self._owns_stderr and self.stream is not None:
            os.dup2(self.stream.fileno(), 1)
            os.dup2(self.stream.fileno(), 2)


def start_logging(settings: Settings, *, is_foreground: bool) -> None:
    """To the log file, and in the foreground to stderr as well."""
    settings.log_file.parent.mkdir(parents=True, exist_ok=True)
    handlers: list[logging.Handler] = [_Rotating(settings, owns_stderr=not is_foreground)]
    if is_foreground:
        handlers.append(logging.StreamHandler())
    for handler in handlers:
        handler.setFormatter(Sanitized(FORMAT))
    root = logging.getLogger()
    root.handlers = handlers
    root.setLevel(settings.log_level.upper())
    logging.getLogger("uvicorn").setLevel(logging.WARNING)  # its words about starting and ending double ours


class LoopFaults:
    """What goes wrong in the event loop itself, for its `set_exception_handler`. When there are no descriptors left it
    would write a thousand tracebacks a second."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._said_s = -FULL_EVERY_S

    def __call__(self, loop: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
        error = context.get("exception")
        if isinstance(error, OSError) and error.errno in _NO_MORE and "accept" in str(context.get("message")):
            self._say_full(error)
        elif not (isinstance(error, ValueError) and "_start_serving" in str(context.get("message"))):
            loop.default_exception_handler(context)
        # else: it would listen again, as it does after it was full, on a door that has been closed meanwhile

    def _say_full(self, error: OSError) -> None:
        now = self._clock()
        if now - self._said_s >= FULL_EVERY_S:
            self._said_s = now
            reason = (error.strerror or str(error)).lower()
            logger.warning("no more connections can be taken for now (%s): raise the limit (`ulimit -n`)", reason)
