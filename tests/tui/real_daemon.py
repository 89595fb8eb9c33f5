"""A real daemon with the real small model in a process of its own, for pilots that drive the application against it."""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from localllm.settings import load_settings

COMMAND = [sys.executable, "-c", "from localllm.cli.app import main; main()"]
STARTUP_S = 60


@contextlib.contextmanager
def real_daemon(home: Path, **settings: str) -> Iterator[str]:
    """The address of `localllm serve` in this home, offline, on a free port. Settings as `kv_pages="512"`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("LOCALLLM_", "OLLAMA_"))}
    env = {**kept, "LOCALLLM_HOME": str(home), "LOCALLLM_PORT": "0", "LOCALLLM_OFFLINE": "1", "LOCALLLM_BACKEND": "cpu"}
    env |= {f"LOCALLLM_{name.upper()}": value for name, value in settings.items()}
    with open(home / "output.txt", "w") as output:
        process = subprocess.Popen([*COMMAND, "serve"], env=env, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    try:
        yield _url(process, home, load_settings(env).address_file)
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:  # a test that failed left answers under way
            process.kill()
            process.wait(30)


def _url(process: "subprocess.Popen[bytes]", home: Path, address_file: Path) -> str:
    """Where the daemon listens, as soon as it says so."""
    deadline = time.monotonic() + STARTUP_S
    while not address_file.exists():
        assert process.poll() is None and time.monotonic() < deadline, (home / "output.txt").read_text()
        time.sleep(0.05)
    address = json.loads(address_file.read_text())
    return f"http://{address['host']}:{address['port']}"
