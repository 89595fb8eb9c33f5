"""A program on a pseudo terminal: type, and wait for what must appear."""

import os
import pty
import re
import select
import subprocess
import sys
import termios
import time
from types import TracebackType
from typing import Self

from tests.cli.conftest import ROOT

PATIENCE_S = 20.0
# the command line as installed, but for the daemon it finds
DRIVER = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # Ctrl-C comes through the terminal
import localllm.cli.connect as connect
from localllm.client import Client
urls = [os.environ.get("NEXT_URL", sys.argv[-1]), sys.argv.pop()]
connect.started_client = lambda settings: Client(urls.pop() if len(urls) > 1 else urls[0])
from localllm.cli.app import main
main()
"""


class Terminal:
    """`localllm ARGUMENTS` with a terminal of 80 columns; ended when the block is left."""

    def __init__(self, url: str, *arguments: str, **environment: str) -> None:
        self._ours, theirs = pty.openpty()
        termios.tcsetwinsize(theirs, (24, 80))
        own = {"PYTHONPATH": str(ROOT), "TERM": "xterm-256color", "INPUTRC": "/dev/null", **environment}
        self.process = subprocess.Popen(
            [sys.executable, "-c", DRIVER, *arguments, url],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env={**os.environ, **own},
            start_new_session=True,
        )
        os.close(theirs)
        self._seen = ""

    def press(self, text: str) -> None:
        os.write(self._ours, text.encode())

    def line(self, text: str) -> None:
        self.press(text + "\r")

    def wait_for(self, text: str, insisting: str = "") -> str:
        """Everything up to and with `text`, escape sequences taken out. `insisting` is pressed again while we wait."""
        deadline = time.monotonic() + PATIENCE_S
        while text not in self._seen:
            if select.select([self._ours], [], [], 0.5)[0]:
                self._seen += self._read()
            elif time.monotonic() > deadline:
                raise AssertionError(f"{text!r} did not appear in {self._seen!r}")
            else:
                self.press(insisting)
        head, _, self._seen = self._seen.partition(text)
        return head + text

    def finish(self) -> int:
        return self.process.wait(timeout=PATIENCE_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._ours)

    def _read(self) -> str:
        try:
            raw = os.read(self._ours, 65536)
        except OSError:
            raise AssertionError(f"the program ended; the screen held {self._seen!r}") from None
        return re.sub(r"\x1b\[[0-?]*[ -/]*[@-~]|\r", "", raw.decode())
