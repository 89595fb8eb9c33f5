"""A daemon's life around its application: lock, socket, address file, signals, drain.

The first SIGTERM or SIGINT closes the door and lets answers finish; the second ends at once. Exit status 0 means that
every answer was finished and no model was given up; a supervisor may go by it.
"""

import argparse
import asyncio
import contextlib
import dataclasses
import errno
import json
import logging
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence

import uvicorn

from localllm.daemon.heap import hold_together
from localllm.daemon.home import Address, holder_of, locked, remove_address, write_address
from localllm.daemon.sources import Sources
from localllm.errors import DaemonUnreachable, DiskFull, LocalLLMError, PortInUse, UsageError, WorkerCrashed
from localllm.server.app import Daemon
from localllm.server.guard import MAX_HEADER_BYTES
from localllm.server.logs import LoopFaults, start_logging
from localllm.server.outlet import HttpProtocol
from localllm.settings import Settings, load_settings

logger = logging.getLogger("localllm.server")

DRAIN_S = 30.0
LAST_EVENTS_S = 3.0
PREDECESSOR_S = 40.0
"""How long to wait for a daemon of this home that is just finishing."""
LOOK_EVERY_S = 0.5
BACKLOG = 1024
SWITCH_S = 0.0005
"""How long a thread that reads a prompt may go on while the event loop wants Python's lock, which it does after every
system call. By default it is ten times as long: a refusal would wait 40 ms behind one long prompt."""
MAX_FILES = 8192
_LISTEN_HINT = "127.0.0.1 is for this machine alone, 0.0.0.0 for all that can reach it"


def main(argv: Sequence[str], sources_of: Callable[[Settings], Sources]) -> int:
    """`[--ready-fd N]`: run a daemon by the settings of this environment; the exit status. The descriptor is where to
    report the start to whoever waits for it."""
    parser = argparse.ArgumentParser(prog="localllm.server")
    parser.add_argument("--ready-fd", type=int)
    report = _Report(parser.parse_args(argv).ready_fd)
    hold_together()
    sys.setswitchinterval(SWITCH_S)
    try:
        settings = load_settings()
        return run(settings, sources_of(settings), report)
    except LocalLLMError as error:
        return _refused(error, report)
    except OSError as error:  # of the home or the log: what the system says is what there is to say
        return _refused(_system_error(error), report)


def _refused(error: LocalLLMError, report: "_Report") -> int:
    report.error(error)
    with contextlib.suppress(OSError):  # where the disk is full stderr may be, too
        print(f"localllm: {error.message}" + (f"\n  {error.hint}" if error.hint else ""), file=sys.stderr)
    return error.exit_code


def _system_error(error: OSError) -> LocalLLMError:
    place = f"{error.filename}: " if error.filename else ""
    if error.errno == errno.ENOSPC:
        return DiskFull(f"{place}the disk is full", hint="free some space, or choose another LOCALLLM_HOME")
    return LocalLLMError(f"{place}{(error.strerror or str(error)).lower()}", hint="choose another LOCALLLM_HOME")


def run(settings: Settings, sources: Sources, report: "_Report | None" = None) -> int:
    """Serve until stopped; the exit status. Raises DaemonUnreachable, PortInUse and UsageError before that."""
    _allow_many_files()
    with _only_daemon_of(settings), _listening(settings) as listener:
        return _Serving(settings, sources, listener, report or _Report(None)).run()


def _allow_many_files() -> None:
    """Every connection is a file. Shells on macOS allow 256: a few idle clients would lock everybody out."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):  # a system may know a lower limit than it tells
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


class _Report:
    """The pipe to the starting process: one JSON object, then closed."""

    def __init__(self, descriptor: int | None) -> None:
        self._descriptor = descriptor

    @property
    def is_wanted(self) -> bool:
        """Somebody started us in the background and waits."""
        return self._descriptor is not None

    def listening(self, address: Address) -> None:
        self._write({"url": address.url})

    def error(self, error: LocalLLMError) -> None:
        self._write({"error": {"code": error.code, "message": error.message, "hint": error.hint}})

    def _write(self, report: object) -> None:
        if self._descriptor is not None:
            with contextlib.suppress(BrokenPipeError):
                os.write(self._descriptor, json.dumps(report).encode())
            os.close(self._descriptor)
            self._descriptor = None


@contextlib.contextmanager
def _only_daemon_of(settings: Settings) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        deadline, is_up = time.monotonic() + PREDECESSOR_S, False
        while not stack.enter_context(locked(settings.daemon_lock, wait_s=LOOK_EVERY_S)):
            stack.close()
            if is_up or time.monotonic() >= deadline:
                raise _already_runs(settings)
            is_up = settings.address_file.exists()  # seen twice: whoever holds the lock is not finishing
        settings.address_file.unlink(missing_ok=True)  # left by one that was killed
        yield


def _already_runs(settings: Settings) -> DaemonUnreachable:
    pid = holder_of(settings.daemon_lock)
    return DaemonUnreachable(
        f"a daemon of {settings.home} already runs" + (f", as process {pid}" if pid else ""),
        hint="`localllm daemon status` shows it, `localllm daemon stop` ends it",
    )


@contextlib.contextmanager
def _listening(settings: Settings) -> Iterator[socket.socket]:
    """A socket on the configured address. PortInUse or UsageError when there can be none."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, OverflowError) as error:
        raise UsageError(
            f"{settings.host}:{settings.port} is no address to listen on: {error}", hint=_LISTEN_HINT
        ) from None
    with socket.socket(family, kind, protocol) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
            listener.listen(BACKLOG)
        except OSError as error:
            raise _cannot_bind(settings, error) from None
        listener.setblocking(False)
        yield listener


@contextlib.contextmanager
def _second_door(settings: Settings) -> Iterator[list[socket.socket]]:
    """Where programs look for Ollama, if wanted; nowhere, with a warning, while another program has the port."""
    with contextlib.ExitStack() as stack:
        listeners: list[socket.socket] = []
        if settings.ollama_port not in (0, settings.port):
            try:
                there = dataclasses.replace(settings, port=settings.ollama_port)
                listeners.append(stack.enter_context(_listening(there)))
                logger.info("programs that look for Ollama find localllm at port %d", settings.ollama_port)
            except LocalLLMError as error:
                logger.warning("%s: programs that look for Ollama there do not find localllm", error.message)
        yield listeners


def _cannot_bind(settings: Settings, error: OSError) -> LocalLLMError:
    where = f"{settings.host}:{settings.port}"
    if isinstance(error, PermissionError):
        return UsageError(f"this user may not listen on {where}", hint="choose a port above 1023")
    if error.errno == errno.EADDRNOTAVAIL:
        return UsageError(f"{settings.host} is no address of this machine", hint=_LISTEN_HINT)
    return PortInUse(
        f"{where} is in use by another program ({error.strerror})",
        hint="choose another port: `localllm config set port 11436`, or `localllm serve --port 11436`",
    )


class _Serving(uvicorn.Server):
    """Uvicorn with our signals, and without its ten wake-ups a second."""

    def __init__(self, settings: Settings, sources: Sources, listener: socket.socket, report: _Report) -> None:
        self._settings = settings
        self._listener = listener
        self._report = report
        self._stop = asyncio.Event()
        self._num_signals = 0
        self._is_clean = False
        self._daemon = Daemon(settings, sources, request_stop=self._stop.set)
        super().__init__(
            uvicorn.Config(
                self._daemon.application(),
                lifespan="on",
                log_config=None,
                access_log=False,
                proxy_headers=False,  # nobody is who a header says
                server_header=False,
                date_header=False,
                http=HttpProtocol,  # of h11, which bounds headers
                ws="none",
                h11_max_incomplete_event_size=MAX_HEADER_BYTES,
                timeout_graceful_shutdown=int(LAST_EVENTS_S),
                timeout_keep_alive=30,
            )
        )

    def run(self, sockets: list[socket.socket] | None = None) -> int:  # type: ignore[override]  # a status, not None
        start_logging(self._settings, is_foreground=not self._report.is_wanted)
        with _second_door(self._settings) as others:
            asyncio.run(self.serve(sockets=[self._listener, *others]))
        return 0 if self._is_clean else 1

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        asyncio.get_running_loop().set_exception_handler(LoopFaults())
        await super().startup(sockets)
        host, port = self._listener.getsockname()[:2]
        daemon = self._daemon
        token = daemon.callers.token
        address = Address(host, port, os.getpid(), daemon.version, time.time(), daemon.instance, token)
        write_address(self._settings.address_file, address)
        logger.info("localllm %s listens on %s", daemon.version, address.url)
        self._report.listening(address)

    async def main_loop(self) -> None:
        await self._stop.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._daemon.desk.is_draining = True
        remove_address(self._settings.address_file, self._daemon.instance)
        for server in self.servers:
            server.close()
        self._daemon.live.end()
        await self._drain()
        await super().shutdown(sockets)
        logger.info("the daemon has ended")

    async def _drain(self) -> None:
        """Let requests finish, also those that still wait for their model; those that do not in time get an error."""
        leashes = self._daemon.desk.leashes
        if leashes:
            logger.info("finishing %d requests", len(leashes))
        deadline = time.monotonic() + DRAIN_S
        while leashes and time.monotonic() < deadline and self._num_signals < 2:
            await asyncio.sleep(0.02)
        given_up = self._daemon.residency.crashes.given_up()
        self._is_clean = not (leashes or given_up)
        for leash in list(leashes):
            leash.pull(WorkerCrashed("the daemon was shut down before the answer was complete", hint="ask again"))
        if given_up:
            logger.error("these models crashed too often and were given up: %s", ", ".join(given_up))

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # the daemon survives the terminal that started it
        yield

    def _on_signal(self) -> None:
        self._num_signals += 1
        self._stop.set()
        if self._num_signals > 1:
            self.force_exit = True
