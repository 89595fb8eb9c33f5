"""Child processes that do one kind of work under limits and answer in frames, seen from outside: begun and ended."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any


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
