"""Find this home's daemon, start one if none runs, stop it. Standard library only: the CLI imports this every time.

A daemon counts only if /health at its address tells the instance that its address file names: whatever else listens on
the port is never used.
"""

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from localllm.daemon.home import Address, holder_of, locked, read_address
from localllm.errors import DaemonUnreachable, LocalLLMError, PortInUse, UsageError
from localllm.settings import BY_NAME, OF_LOADING, Settings

DAEMON_COMMAND = (sys.executable, "-m", "localllm.server")
START_TIMEOUT_S = 60.0
"""Longer than a daemon waits for its predecessor to finish."""
STOP_TIMEOUT_S = 45.0
FINISHING_S = 35.0
"""A daemon that finishes its last answers is gone by then; one without an address that is not has lost the file."""
PROBE_TIMEOUT_S = 2.0
MAX_HEALTH_BYTES = 1 << 20
LOOK_EVERY_S = 0.2


@dataclass(frozen=True, slots=True)
class Status:
    """What `localllm daemon status` shows. `health` is the body of /health."""

    address: Address
    health: dict[str, Any]


def find_daemon(settings: Settings) -> Address | None:
    """The running daemon of this home, verified; None when there is none. Takes a few milliseconds."""
    status = daemon_status(settings)
    return None if status is None or status.health.get("status") == "draining" else status.address


def daemon_status(settings: Settings) -> Status | None:
    """As `find_daemon`, with what it says of its health; a draining daemon counts."""
    address = read_address(settings.address_file)
    health = _health_of(address) if address else None
    if address is None or health is None or health.get("instance") != address.instance:
        return None
    return Status(address, health)


def _health_of(address: Address) -> dict[str, Any] | None:
    """The body of /health, by hand: http.client alone would take longer to import than this takes to run."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address.host, address.host)
    shown = f"[{host}]" if ":" in host else host
    request = f"GET /health HTTP/1.1\r\nHost: {shown}:{address.port}\r\nConnection: close\r\n\r\n"
    deadline = time.monotonic() + PROBE_TIMEOUT_S
    try:
        with socket.create_connection((host, address.port), timeout=PROBE_TIMEOUT_S) as connection:
            connection.sendall(request.encode())
            answer = _received(connection, deadline)
        health = json.loads(answer.partition(b"\r\n\r\n")[2])
    except (OSError, ValueError, RecursionError):
        return None
    return health if isinstance(health, dict) else None


def _received(connection: socket.socket, deadline: float) -> bytes:
    """All that comes; OSError where that has no end: another program may have the port."""
    answer = b""
    while len(answer) < MAX_HEALTH_BYTES:
        connection.settimeout(max(0.001, deadline - time.monotonic()))
        part = connection.recv(65536)
        if not part:
            return answer
        answer += part
    raise OSError("no daemon says as much")


def ensure_daemon(settings: Settings, *, command: Sequence[str] = DAEMON_COMMAND) -> Address:
    """The daemon of this home, started in the background if none runs. However many ask at once, one is started.
    PortInUse, UsageError and DaemonUnreachable say why none could be."""
    address = find_daemon(settings)
    if address is not None:
        return address
    with locked(settings.run_dir / "start.lock", wait_s=START_TIMEOUT_S) as is_ours:
        if not is_ours:
            raise DaemonUnreachable("another process is starting the daemon and does not finish", hint=_LOGS)
        return find_daemon(settings) or _start_unless_stuck(settings, command)


_LOGS = "see `localllm daemon logs`"


def _start_unless_stuck(settings: Settings, command: Sequence[str]) -> Address:
    if settings.address_file.exists() and (silent := silent_daemon(settings)):
        raise silent
    return _start(settings, command)


def _start(settings: Settings, command: Sequence[str]) -> Address:
    """Start it detached; it tells over a pipe whether it listens or why it cannot."""
    settings.log_file.parent.mkdir(parents=True, exist_ok=True)
    reading, writing = os.pipe()
    try:
        process = _detached([*command, "--ready-fd", str(writing)], writing, settings)
    finally:
        os.close(writing)
    try:
        _raise_what_it_told(_read_all(reading, time.monotonic() + START_TIMEOUT_S))
        address = find_daemon(settings)
        if address is None:
            raise DaemonUnreachable("the daemon was started but does not answer", hint=_LOGS)
    except LocalLLMError:
        _end(process)
        raise
    finally:
        os.close(reading)
    process.returncode = 0  # it outlives us on purpose: no warning that it still runs
    return address


def _detached(command: Sequence[str], descriptor: int, settings: Settings) -> "subprocess.Popen[bytes]":
    with open(settings.log_file, "ab") as log:
        return subprocess.Popen(
            command,
            pass_fds=[descriptor],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env=_environment(settings),
        )


def _end(process: "subprocess.Popen[bytes]") -> None:
    try:
        process.wait(2)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _environment(settings: Settings) -> dict[str, str]:
    """Flags of this process that the daemon must know."""
    from localllm.daemon.process import child_environment  # deferred: asyncio is not needed to find a daemon

    own = {"LOCALLLM_HOME": str(settings.home), "LOCALLLM_HOST": settings.host, "LOCALLLM_PORT": str(settings.port)}
    passed = (*OF_LOADING, "lora")
    flags = {BY_NAME[name].env: str(getattr(settings, name)) for name in passed if settings.origin[name] == "flag"}
    return {**child_environment(), **own, **flags}


def _read_all(descriptor: int, deadline: float) -> bytes:
    told = b""
    while select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))[0]:
        part = os.read(descriptor, 65536)
        if not part:
            return told
        told += part
    raise DaemonUnreachable(f"the daemon did not start within {START_TIMEOUT_S:.0f} s", hint=_LOGS)


def _raise_what_it_told(told: bytes) -> None:
    if not told:
        raise DaemonUnreachable("the daemon ended before it could listen", hint=_LOGS)
    report = json.loads(told)
    if "error" in report:
        kinds = {kind.code: kind for kind in (PortInUse, UsageError, DaemonUnreachable)}
        raise kinds.get(report["error"]["code"], LocalLLMError)(
            report["error"]["message"], hint=report["error"]["hint"]
        )


def stop_daemon(settings: Settings, *, timeout_s: float = STOP_TIMEOUT_S) -> bool:
    """Ask the daemon to finish and wait until it is gone, also one that is finishing already, or that answers nobody;
    False when none runs. DaemonUnreachable after the timeout."""
    status = daemon_status(settings)
    pid = status.address.pid if status else holder_of(settings.daemon_lock)
    if pid is None:
        return False
    begun, is_asked = time.monotonic(), False
    while time.monotonic() < begun + timeout_s:
        is_up = settings.address_file.exists()  # without one it is finishing, or not up yet
        if not is_asked and (is_up or time.monotonic() >= begun + FINISHING_S):
            is_asked = True
            _ask_to_finish(pid)
        with locked(settings.daemon_lock, wait_s=LOOK_EVERY_S) as is_gone:
            if is_gone:
                return True
    raise DaemonUnreachable(f"the daemon{_named(pid)} does not end", hint=_how_to_kill(settings, pid))


def silent_daemon(settings: Settings) -> DaemonUnreachable | None:
    """What to say of a daemon that has this home and cannot be found: it is stuck, or about to end. None: there is no
    daemon."""
    pid = holder_of(settings.daemon_lock)
    if pid is None:
        return None
    if settings.address_file.exists():
        return DaemonUnreachable(f"the daemon{_named(pid)} does not answer", hint="`localllm daemon stop` ends it")
    return DaemonUnreachable(
        f"a daemon{_named(pid)} is starting or finishing its last answers",
        hint="try again in a few seconds, or wait for its end with `localllm daemon stop`",
    )


def _ask_to_finish(pid: int) -> None:
    if pid:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)


def _named(pid: int) -> str:
    return f" (process {pid})" if pid else ""


def _how_to_kill(settings: Settings, pid: int) -> str:
    return f"kill -9 {pid}" if pid else f"end the process that holds {settings.daemon_lock}"
