"""A daemon and its home: found, started once, stopped, drained."""

import contextlib
import fcntl
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from localllm.daemon import lifecycle
from localllm.daemon.home import Address, holder_of, locked, read_address, write_address
from localllm.daemon.lifecycle import (
    FINISHING_S,
    START_TIMEOUT_S,
    STOP_TIMEOUT_S,
    daemon_status,
    ensure_daemon,
    find_daemon,
    silent_daemon,
    stop_daemon,
)
from localllm.errors import DaemonUnreachable, LocalLLMError, PortInUse, UsageError
from localllm.server.serving import DRAIN_S, LAST_EVENTS_S, PREDECESSOR_S
from localllm.settings import Settings, load_settings
from tests.server.toy_daemon import COMMAND

STREAM = {"model": "toy:slow", "prompt": "abc", "max_tokens": 40, "temperature": 0, "stream": True, "ignore_eos": True}


def until(claim: Callable[[], bool], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not claim():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.01)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z" if sys.platform == "linux" else True


@pytest.fixture
def settings(tmp_path: Path) -> Iterator[Settings]:
    settings = load_settings({"LOCALLLM_HOME": str(tmp_path)}, port=0)
    yield settings
    stop_daemon(settings)


def test_without_a_daemon_none_is_found(settings: Settings) -> None:
    assert find_daemon(settings) is None
    assert not stop_daemon(settings)


def test_two_at_once_get_one_daemon(settings: Settings) -> None:
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: ensure_daemon(settings, command=COMMAND), range(2))
    assert first == second
    assert find_daemon(settings) == first


def test_two_processes_at_once_get_one_daemon(settings: Settings) -> None:
    script = (
        "from localllm.daemon.lifecycle import ensure_daemon; from localllm.settings import load_settings;"
        "from tests.server.toy_daemon import COMMAND;"
        "print(ensure_daemon(load_settings(port=0), command=COMMAND).instance)"
    )
    env = {**os.environ, "LOCALLLM_HOME": str(settings.home), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    running = [subprocess.Popen([sys.executable, "-c", script], env=env, stdout=subprocess.PIPE) for _ in range(2)]
    instances = {process.communicate(timeout=30)[0] for process in running}
    assert len(instances) == 1 and instances != {b""}


def test_a_daemon_says_who_and_how_it_is(settings: Settings) -> None:
    address = ensure_daemon(settings, command=COMMAND)
    status = daemon_status(settings)
    assert status is not None and status.address == address
    assert status.health["status"] == "ok" and status.health["instance"] == address.instance
    assert settings.address_file.stat().st_mode & 0o077 == 0


def test_stopping_leaves_no_address_and_frees_the_lock(settings: Settings) -> None:
    address = ensure_daemon(settings, command=COMMAND)
    assert stop_daemon(settings)
    assert not settings.address_file.exists()
    with locked(settings.daemon_lock) as is_free:
        assert is_free
    until(lambda: not is_alive(address.pid))


def test_what_a_killed_daemon_leaves_is_harmless(settings: Settings) -> None:
    killed = ensure_daemon(settings, command=COMMAND)
    os.kill(killed.pid, signal.SIGKILL)
    until(lambda: not is_alive(killed.pid))
    assert settings.address_file.exists()
    assert find_daemon(settings) is None
    assert ensure_daemon(settings, command=COMMAND).instance != killed.instance


def test_workers_die_with_a_killed_daemon(settings: Settings) -> None:
    address = ensure_daemon(settings, command=COMMAND)
    with httpx.Client(base_url=address.url, trust_env=False, timeout=20) as client:
        client.post("/v1/completions", json={"model": "toy:1b", "prompt": "a", "max_tokens": 1})
        pid = client.get("/localllm/v1/ps").json()["models"][0]["pid"]
    os.kill(address.pid, signal.SIGKILL)
    until(lambda: not is_alive(pid))


def test_nonsense_in_the_address_file_counts_as_none(settings: Settings) -> None:
    settings.run_dir.mkdir(parents=True)
    kinds = '{"host": 5, "port": "x", "pid": "y", "version": 1, "started": "z", "instance": 7}'
    for nonsense in ("", "{", "[]", "[" * 100_000, '{"host": 1}', '{"host": "x", "unknown": 1}', kinds):
        settings.address_file.write_text(nonsense)
        assert find_daemon(settings) is None


def test_a_foreign_program_on_the_port_is_never_taken_for_ours(settings: Settings) -> None:
    ours = ensure_daemon(settings, command=COMMAND)
    impostor = Address(ours.host, ours.port, ours.pid, ours.version, ours.started, "another instance")
    write_address(settings.address_file, impostor)
    assert find_daemon(settings) is None
    write_address(settings.address_file, ours)


def test_a_silent_program_on_the_port_is_never_taken_for_ours(settings: Settings) -> None:
    settings.run_dir.mkdir(parents=True)
    with socket.create_server(("127.0.0.1", 0)) as foreign:
        accepting = threading.Thread(target=lambda: foreign.accept()[0].close(), daemon=True)
        accepting.start()
        port = foreign.getsockname()[1]
        write_address(settings.address_file, Address("127.0.0.1", port, 1, "", 0.0, "x"))
        assert find_daemon(settings) is None
        accepting.join(5)


def drip(connection: socket.socket) -> None:
    while True:
        connection.sendall(b" ")
        time.sleep(0.02)


def flood(connection: socket.socket) -> None:
    while True:
        connection.sendall(b"x" * 65536)


def nest(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n" + b"[" * 100_000)


@pytest.mark.parametrize("say", [drip, flood, nest])
def test_a_program_on_the_port_that_talks_without_end_is_never_taken_for_ours(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, say: Callable[[socket.socket], None]
) -> None:
    monkeypatch.setattr(lifecycle, "PROBE_TIMEOUT_S", 0.5)
    settings.run_dir.mkdir(parents=True)

    def serve(listening: socket.socket) -> None:
        with contextlib.suppress(OSError), listening.accept()[0] as connection:
            connection.recv(65536)
            say(connection)

    with socket.create_server(("127.0.0.1", 0)) as foreign:
        talking = threading.Thread(target=serve, args=(foreign,), daemon=True)
        talking.start()
        write_address(settings.address_file, Address("127.0.0.1", foreign.getsockname()[1], 1, "", 0.0, "x"))
        assert find_daemon(settings) is None
        talking.join(20)
        assert not talking.is_alive()


def test_a_port_in_use_is_said_with_a_next_step(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        settings = load_settings({"LOCALLLM_HOME": str(tmp_path)}, port=taken.getsockname()[1])
        with pytest.raises(PortInUse, match=str(settings.port)) as caught:
            ensure_daemon(settings, command=COMMAND)
    assert "config set port" in caught.value.hint


def test_an_open_address_without_a_key_is_refused(tmp_path: Path) -> None:
    settings = load_settings({"LOCALLLM_HOME": str(tmp_path)}, host="0.0.0.0", port=0)
    with pytest.raises(UsageError, match="API key"):
        ensure_daemon(settings, command=COMMAND)


def test_a_second_daemon_of_the_same_home_is_refused(settings: Settings) -> None:
    ensure_daemon(settings, command=COMMAND)
    env = {**os.environ, "LOCALLLM_HOME": str(settings.home), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    second = subprocess.run([*COMMAND], env=env, capture_output=True, timeout=30, check=False)
    assert second.returncode == DaemonUnreachable.exit_code
    assert b"already runs" in second.stderr and b"Traceback" not in second.stderr


def test_finding_a_daemon_takes_a_few_milliseconds(settings: Settings) -> None:
    ensure_daemon(settings, command=COMMAND)
    times_s = []
    for _ in range(10):
        started = time.perf_counter()
        find_daemon(settings)
        times_s.append(time.perf_counter() - started)
    assert min(times_s) < 0.01


def test_looking_for_a_daemon_imports_no_server_and_no_event_loop(settings: Settings) -> None:
    script = (
        "import sys; import localllm.daemon.lifecycle;"
        "print([name for name in ('asyncio', 'starlette', 'uvicorn', 'fastapi', 'msgspec') if name in sys.modules])"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    assert subprocess.check_output([sys.executable, "-c", script], env=env).strip() == b"[]"


def test_sigterm_lets_open_answers_finish(settings: Settings) -> None:
    address = ensure_daemon(settings, command=COMMAND)
    with (
        httpx.Client(base_url=address.url, trust_env=False, timeout=20) as client,
        client.stream("POST", "/v1/completions", json=STREAM) as answer,
    ):
        lines = answer.iter_lines()
        next(lines)
        os.kill(address.pid, signal.SIGTERM)
        rest = list(lines)
    assert rest[-2] == "data: [DONE]" or rest[-1] == "data: [DONE]"
    assert not any('"error"' in line for line in rest)
    until(lambda: not is_alive(address.pid))


def test_a_second_signal_ends_answers_with_an_error_event(settings: Settings) -> None:
    address = ensure_daemon(settings, command=COMMAND)
    with (
        httpx.Client(base_url=address.url, trust_env=False, timeout=20) as client,
        client.stream("POST", "/v1/completions", json={**STREAM, "max_tokens": 400}) as answer,
    ):
        lines = answer.iter_lines()
        next(lines)
        os.kill(address.pid, signal.SIGTERM)
        until(lambda: read_address(settings.address_file) is None)
        os.kill(address.pid, signal.SIGTERM)
        rest = [line for line in lines if line]
    assert '"error"' in rest[-2] and rest[-1] == "data: [DONE]"
    until(lambda: not is_alive(address.pid))


def test_a_clean_drain_exits_with_0(settings: Settings) -> None:
    env = {**os.environ, "LOCALLLM_HOME": str(settings.home), "LOCALLLM_PORT": "0"}
    env["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    daemon = subprocess.Popen([*COMMAND], env=env, stderr=subprocess.DEVNULL)
    until(lambda: find_daemon(settings) is not None)
    daemon.send_signal(signal.SIGTERM)
    assert daemon.wait(20) == 0


def test_shutdown_over_http_drains_too(settings: Settings) -> None:
    address = ensure_daemon(settings, command=COMMAND)
    httpx.post(f"{address.url}/localllm/v1/shutdown", json={}, trust_env=False)
    until(lambda: not is_alive(address.pid))
    assert not settings.address_file.exists()


def test_headers_without_end_are_cut_off(settings: Settings) -> None:
    address = ensure_daemon(settings, command=COMMAND)
    with socket.create_connection((address.host, address.port), timeout=10) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Long: " + b"x" * 2**17)
        assert connection.recv(64).startswith(b"HTTP/1.1 4")


def test_the_log_is_in_the_home(settings: Settings) -> None:
    ensure_daemon(settings, command=COMMAND)
    assert "listens on" in settings.log_file.read_text()


# ---- exit statuses that a supervisor can trust


@contextmanager
def foreground(settings: Settings, **env: str) -> Iterator[tuple["subprocess.Popen[bytes]", httpx.Client]]:
    """A daemon as a supervisor runs it, and a client of it."""
    own = {"LOCALLLM_HOME": str(settings.home), "LOCALLLM_PORT": "0", **env}
    path = os.pathsep.join(filter(None, sys.path))
    process = subprocess.Popen([*COMMAND], env={**os.environ, "PYTHONPATH": path, **own}, stderr=subprocess.DEVNULL)
    try:
        until(lambda: find_daemon(settings) is not None)
        address = read_address(settings.address_file)
        assert address is not None
        with httpx.Client(base_url=address.url, trust_env=False, timeout=30) as client:
            yield process, client
    finally:
        process.kill()
        process.wait()


def test_answers_that_were_cut_make_another_status_than_0(settings: Settings) -> None:
    with (
        foreground(settings) as (process, client),
        client.stream("POST", "/v1/completions", json={**STREAM, "max_tokens": 400}) as answer,
    ):
        lines = answer.iter_lines()
        next(lines)
        for _ in range(2):
            process.send_signal(signal.SIGTERM)
            until(lambda: read_address(settings.address_file) is None)
        assert '"error"' in [line for line in lines if line][-2]
        assert process.wait(20) == 1


def test_a_daemon_that_gave_a_model_up_does_not_end_with_0(settings: Settings) -> None:
    with foreground(settings) as (process, client):
        for _ in range(3):
            answer = client.post("/v1/completions", json={"model": "toy:sick", "prompt": "a"})
            assert answer.status_code == 503
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 1


def test_a_drain_waits_for_requests_whose_model_still_loads(settings: Settings) -> None:
    body = {"model": "toy:heavy", "prompt": "a", "max_tokens": 3}
    with foreground(settings) as (process, client), ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(client.post, "/v1/completions", json=body)
        until(lambda: bool(httpx.get(f"{client.base_url}/localllm/v1/ps", trust_env=False).json()["models"]))
        process.send_signal(signal.SIGTERM)
        assert waiting.result(20).status_code == 200
        assert process.wait(20) == 0


def test_a_second_signal_tells_requests_whose_model_still_loads(settings: Settings) -> None:
    with foreground(settings) as (process, client), ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(client.post, "/v1/completions", json={"model": "toy:endless", "prompt": "a"})
        until(lambda: bool(httpx.get(f"{client.base_url}/localllm/v1/ps", trust_env=False).json()["models"]))
        for _ in range(2):
            process.send_signal(signal.SIGTERM)
            until(lambda: read_address(settings.address_file) is None)
        assert waiting.result(20).status_code == 503
        assert process.wait(20) == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_below_the_log_costs_the_log_and_nothing_else(settings: Settings) -> None:
    settings.log_file.parent.mkdir(parents=True)
    settings.log_file.symlink_to("/dev/full")
    address = ensure_daemon(settings, command=COMMAND)
    with httpx.Client(base_url=address.url, trust_env=False, timeout=20) as client:
        for _ in range(3):
            answer = client.post("/v1/completions", json={"model": "toy:1b", "prompt": "a", "max_tokens": 1})
            assert answer.status_code == 200
    assert stop_daemon(settings)
    until(lambda: not is_alive(address.pid))


@pytest.mark.skipif(os.getuid() == 0, reason="root may write anywhere")
def test_a_home_that_cannot_be_written_is_said_in_a_sentence(settings: Settings) -> None:
    settings.home.chmod(0o500)
    try:
        with pytest.raises(LocalLLMError):
            ensure_daemon(settings, command=COMMAND)
    finally:
        settings.home.chmod(0o700)


def test_a_run_folder_that_is_a_file_is_said_in_a_sentence(settings: Settings) -> None:
    settings.run_dir.write_text("in the way")
    env = {**os.environ, "LOCALLLM_HOME": str(settings.home), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run([*COMMAND], env=env, capture_output=True, timeout=30, check=False)
    settings.run_dir.unlink()
    assert done.returncode == 1 and done.stderr.startswith(b"localllm: ") and b"Traceback" not in done.stderr


# ---- a daemon that is there and answers nobody


def test_a_frozen_daemon_is_named_and_no_second_one_is_started(settings: Settings) -> None:
    address = ensure_daemon(settings, command=COMMAND)
    os.kill(address.pid, signal.SIGSTOP)
    try:
        silent = silent_daemon(settings)
        assert silent is not None and str(address.pid) in silent.message and "daemon stop" in silent.hint
        with pytest.raises(DaemonUnreachable, match=f"process {address.pid}.* does not answer"):
            ensure_daemon(settings, command=COMMAND)
        with pytest.raises(DaemonUnreachable, match="does not end") as caught:
            stop_daemon(settings, timeout_s=0.3)
        assert caught.value.hint == f"kill -9 {address.pid}"
    finally:
        os.kill(address.pid, signal.SIGCONT)
    until(lambda: silent_daemon(settings) is None)  # it was asked to finish while it was frozen


def test_stopping_waits_for_a_daemon_that_is_finishing_already(settings: Settings) -> None:
    address = ensure_daemon(settings, command=COMMAND)
    with (
        httpx.Client(base_url=address.url, trust_env=False, timeout=20) as client,
        client.stream("POST", "/v1/completions", json=STREAM) as answer,
    ):
        lines = answer.iter_lines()
        next(lines)
        os.kill(address.pid, signal.SIGTERM)
        until(lambda: read_address(settings.address_file) is None)
        silent = silent_daemon(settings)
        assert silent is not None and "finishing" in silent.message
        with ThreadPoolExecutor(1) as pool:
            stopped = pool.submit(stop_daemon, settings)
            rest = list(lines)
            assert stopped.result(20)
    assert not any('"error"' in line for line in rest)  # it was waited for, not hurried
    until(lambda: not is_alive(address.pid))
    assert not stop_daemon(settings)


def test_a_daemon_whose_address_file_was_deleted_can_be_stopped(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = ensure_daemon(settings, command=COMMAND)
    settings.address_file.unlink()
    silent = silent_daemon(settings)
    assert silent is not None and "daemon stop" in silent.hint
    monkeypatch.setattr(lifecycle, "FINISHING_S", 0.2)
    assert stop_daemon(settings)
    until(lambda: not is_alive(address.pid))
    assert STOP_TIMEOUT_S > FINISHING_S > DRAIN_S + LAST_EVENTS_S


def test_a_successor_waits_as_long_as_a_daemon_may_take_to_finish() -> None:
    assert START_TIMEOUT_S > PREDECESSOR_S > DRAIN_S + LAST_EVENTS_S


def test_who_holds_a_lock_is_known_only_while_it_is_held(tmp_path: Path) -> None:
    path = tmp_path / "some.lock"
    assert holder_of(path) is None
    with locked(path) as is_ours:
        assert is_ours and holder_of(path) == os.getpid()
        with locked(path) as is_theirs:
            assert not is_theirs
        assert holder_of(path) == os.getpid()
    assert holder_of(path) is None
    with path.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        for nonsense in ("", "nonsense", "-1", "9" * 30):
            path.write_text(nonsense)
            assert holder_of(path) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="limits of other processes can be set on Linux only")
def test_more_connections_than_files_are_said_once_and_others_are_served_afterwards(settings: Settings) -> None:
    import resource

    address = ensure_daemon(settings, command=COMMAND)
    resource.prlimit(address.pid, resource.RLIMIT_NOFILE, (40, 40))
    connections = [socket.create_connection((address.host, address.port)) for _ in range(60)]
    until(lambda: "no more connections" in settings.log_file.read_text())
    for connection in connections:
        connection.close()
    until(lambda: find_daemon(settings) == address)
    assert stop_daemon(settings)
    log = settings.log_file.read_text()
    assert log.count("no more connections") == 1 and "Traceback" not in log and "ulimit -n" in log


def test_of_two_that_start_at_the_same_moment_one_is_refused_while_the_other_serves(settings: Settings) -> None:
    env = {**os.environ, "LOCALLLM_HOME": str(settings.home), "LOCALLLM_PORT": "0"}
    env["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    both = [subprocess.Popen([*COMMAND], env=env, stderr=subprocess.DEVNULL) for _ in range(2)]
    try:
        until(lambda: any(process.poll() is not None for process in both), seconds=20)
        refused, serving = sorted(both, key=lambda process: process.poll() is None)
        assert refused.returncode == DaemonUnreachable.exit_code and serving.poll() is None
        status = daemon_status(settings)
        assert status is not None and status.address.pid == serving.pid
        assert stop_daemon(settings) and serving.wait(10) == 0 and find_daemon(settings) is None
    finally:
        for process in both:
            process.kill()
            process.wait()
