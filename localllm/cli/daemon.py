"""`localllm serve` and `localllm daemon ...`: the daemon in the foreground, and the one in the background."""

import sys
import time
from collections import deque
from pathlib import Path
from typing import Annotated

import typer

from localllm.cli.invocation import Invocation
from localllm.cli.library import AsJson
from localllm.cli.loading import Backend, Device, KvType, Loras, Threads, loras_of
from localllm.cli.output import print_json, print_text
from localllm.errors import StoreError
from localllm.safe_text import sanitize

POLL_S = 0.25


def serve(
    ctx: typer.Context,
    host: Annotated[str | None, typer.Option(help="Address to listen on, also as host:port.")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = None,
    backend: Backend = None,
    device: Device = None,
    kv_type: KvType = None,
    threads: Threads = None,
    lora: Loras = None,
) -> None:
    """Run the daemon in the foreground. Ctrl-C or SIGTERM lets answers under way finish, then it ends."""
    from localllm.server.app import library_of  # the web framework is loaded by this command only
    from localllm.server.serving import run

    settings = Invocation.of(ctx).settings(
        host=host, port=port, backend=backend, device=device, kv_type=kv_type, threads=threads, lora=loras_of(lora)
    )
    raise typer.Exit(run(settings, library_of(settings)))


def start(
    ctx: typer.Context,
    backend: Backend = None,
    device: Device = None,
    kv_type: KvType = None,
    threads: Threads = None,
    lora: Loras = None,
) -> None:
    """Start the daemon if none runs."""
    from localllm.daemon.lifecycle import ensure_daemon, find_daemon  # see `connect.py`

    invocation = Invocation.of(ctx)
    settings = invocation.settings(
        backend=backend, device=device, kv_type=kv_type, threads=threads, lora=loras_of(lora)
    )
    if running := find_daemon(settings):
        print_text(f"the daemon runs already, at {running.url}")
        return
    with invocation.progress() as progress:
        progress.status("starting the daemon")
        address = ensure_daemon(settings)
    print_text(f"the daemon answers at {address.url}")


def stop(ctx: typer.Context) -> None:
    """Stop the daemon; answers under way may finish. Fine when none runs."""
    from localllm.daemon.lifecycle import stop_daemon  # see `connect.py`

    was_running = stop_daemon(Invocation.of(ctx).settings())
    print_text("the daemon has stopped" if was_running else "no daemon runs")


def restart(
    ctx: typer.Context,
    backend: Backend = None,
    device: Device = None,
    kv_type: KvType = None,
    threads: Threads = None,
    lora: Loras = None,
) -> None:
    """Stop the daemon and start a new one."""
    stop(ctx)
    start(ctx, backend, device, kv_type, threads, lora)


def status(ctx: typer.Context, as_json: AsJson = False) -> None:
    """Say whether the daemon runs, and where. Ends with 3 when none runs."""
    from localllm.daemon.lifecycle import find_daemon, silent_daemon  # see `connect.py`

    settings = Invocation.of(ctx).settings()
    found = find_daemon(settings)
    silent = None if found else silent_daemon(settings)
    if as_json:
        fields = {"url": found.url, "pid": found.pid} if found else {"url": None, "pid": None}
        print_json({"running": found is not None, **fields, "home": str(settings.home), "log": str(settings.log_file)})
    elif silent:
        raise silent
    else:
        print_text(f"the daemon runs at {found.url}, process {found.pid}" if found else "no daemon runs")
    if found is None:
        raise typer.Exit(3)


def logs(
    ctx: typer.Context,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, help="Lines from the end.")] = 50,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Keep printing as lines come.")] = False,
) -> None:
    """Print the end of the daemon's log."""
    path = Invocation.of(ctx).settings().log_file
    if not path.exists():
        raise StoreError(f"there is no log at {path}", hint="the daemon has not run in the background yet")
    end = print_tail(path, lines)
    while follow:
        time.sleep(POLL_S)
        end = print_new(path, end)


def print_tail(path: Path, num_lines: int) -> int:
    """Prints the last lines and returns the file's size in bytes at that moment."""
    with path.open("rb") as file:
        last = deque(file, maxlen=num_lines)
        end = file.tell()
    sys.stdout.write(sanitize(b"".join(last).decode("utf-8", "replace")))
    sys.stdout.flush()
    return end


def print_new(path: Path, start: int) -> int:
    """Prints what came after `start`; a shorter file is a new one and is printed from its beginning."""
    with path.open("rb") as file:
        file.seek(start if path.stat().st_size >= start else 0)
        sys.stdout.write(sanitize(file.read().decode("utf-8", "replace")))
        sys.stdout.flush()
        return file.tell()
