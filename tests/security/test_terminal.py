"""Hostile names on a real terminal: whatever the verb says about them, only allowed bytes arrive.

Answers of models are printed through the same function; tests/cli holds run and chat to it.
"""

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COLOURS = re.compile(rb"\x1b\[[0-9;]*m")
ALLOWED = re.compile(rb"[\n\r\t\x20-\x7e]|[\xc3-\xf4][\x80-\xbf]+")
HOSTILE = (
    "\x1b]0;owned\x07",
    "\x1b]52;c;aGk=\x1b\\",
    "\x1b[2J\x1b[H",
    "\x9b31m",
    "\x08\x08\x08",
    "\u202egnp.exe",
    "\x7f\x05",
)
VERBS = (("show",), ("rm",), ("where",), ("cp", "x"), ("config", "get"), ("keys", "revoke"), ("verify",))


def on_terminal(home: Path, *arguments: str) -> bytes:
    ours, theirs = pty.openpty()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "LOCALLLM_HOME": str(home), "TERM": "xterm-256color"}
    command = [sys.executable, "-c", "from localllm.cli.app import main; main()", "--offline", *arguments]
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    shown = b""
    try:
        while part := os.read(ours, 65536):
            shown += part
    except OSError:  # the other side is closed: Linux says so with an error
        pass
    finally:
        os.close(ours)
        process.wait(20)
    return shown


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_a_hostile_name_reaches_the_terminal_as_text_only(tmp_path: Path, verb: tuple[str, ...]) -> None:
    shown = on_terminal(tmp_path, *verb, "model" + "".join(HOSTILE))
    assert shown, "the verb says something about it"
    assert ALLOWED.sub(b"", COLOURS.sub(b"", shown)) == b""
    text = shown.decode()
    assert "\u202e" not in text and "\x9b" not in text
