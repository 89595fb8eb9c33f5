"""`localllm doctor`: what this machine has, what would run on it and why. Ends with 1 when something is broken."""

import os
import platform
import shutil
import socket
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer

from localllm import __version__
from localllm.cli.connect import is_this_machine, running_client
from localllm.cli.human import size_text, with_sentences
from localllm.cli.invocation import Invocation
from localllm.cli.library import AsJson, open_library
from localllm.cli.output import print_json, print_text, terminal_columns
from localllm.errors import LocalLLMError
from localllm.settings import Settings

LOW_DISK_BYTES = 2 * 10**9
State = Literal["ok", "note", "broken"]
_MARKS: dict[State, str] = {"ok": "ok", "note": "note", "broken": "BROKEN"}


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the report. `note` is worth reading, `broken` makes the command fail."""

    name: str
    state: State
    detail: str


def doctor(
    ctx: typer.Context,
    measure: Annotated[bool, typer.Option("--measure", help="Measure the backends again; takes some seconds.")] = False,
    as_json: AsJson = False,
) -> None:
    """Check this machine and say what would run, and why."""
    invocation = Invocation.of(ctx)
    settings = invocation.settings()
    if measure:
        with invocation.progress() as progress:
            progress.status("measuring the backends")
            measure_backends(settings)
    checks = list(run_checks(settings))
    if as_json:
        print_json([asdict(check) for check in checks])
    else:
        rows = [[_MARKS[check.state], check.name, check.detail] for check in checks]
        print_text(with_sentences(rows, terminal_columns()))
    if any(check.state == "broken" for check in checks):
        raise typer.Exit(1)


def run_checks(settings: Settings) -> Iterator[Check]:
    """All checks; one that fails itself becomes a broken line and the others go on."""
    sections: list[Callable[[Settings], Iterator[Check]]] = [
        check_program,
        check_backends,
        check_encoders,
        check_memory,
        check_disk,
        check_stores,
        check_daemon,
    ]
    for section in sections:
        try:
            yield from section(settings)
        except Exception as error:  # whatever it is, finding it is this command's work
            detail = str(error) if isinstance(error, LocalLLMError) else f"{type(error).__name__}: {error}"
            yield Check(section.__name__.removeprefix("check_"), "broken", detail)


def check_program(_: Settings) -> Iterator[Check]:
    yield Check("localllm", "ok", f"{__version__} in {Path(__file__).parents[1]}")
    yield Check("python", "ok", f"{platform.python_version()} at {sys.executable}")
    yield Check("system", "ok", f"{platform.system()} {platform.release()}, {platform.machine()}")


def measure_backends(settings: Settings) -> None:
    from localllm.backends.report import describe  # numpy and the native library

    describe(settings.cache_dir, settings.threads, measure=True)


def check_backends(settings: Settings) -> Iterator[Check]:
    from localllm.backends.report import describe  # numpy and the native library

    report = describe(settings.cache_dir, settings.threads)
    for row in report.rows:
        is_missing = row.name == settings.backend and not row.available
        state: State = "broken" if is_missing else "ok" if row.is_sound else "note"
        yield Check(f"backend {row.name}", state, row.detail)
    chosen = (
        report.chosen if settings.backend == "auto" else f"{settings.backend}, as {settings.origin['backend']} says"
    )
    yield Check("backend used", "ok", chosen + (f"; device {settings.device}" if settings.device else ""))


def check_encoders(_: Settings) -> Iterator[Check]:
    from localllm.quantize.native import is_built  # numpy

    if is_built():
        yield Check("encoders", "ok", "native: `quantize` uses every core")
        return
    detail = "the native ones were not built, so `quantize` rounds with numpy: the same bytes, many times slower"
    yield Check("encoders", "note", f"{detail}; install a C++17 compiler and install localllm again")


def check_memory(_: Settings) -> Iterator[Check]:
    import psutil  # 20 ms

    memory = psutil.virtual_memory()
    cores = f"{psutil.cpu_count(logical=False) or '?'} cores, {os.cpu_count()} threads"
    yield Check("cpu", "ok", cores)
    yield Check("memory", "ok", f"{size_text(memory.available)} of {size_text(memory.total)} available")


def check_disk(settings: Settings) -> Iterator[Check]:
    place = settings.home
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    yield Check("disk", "ok" if free > LOW_DISK_BYTES else "note", f"{size_text(free)} free at {place}")
    if not os.access(place, os.W_OK):
        yield Check("home", "broken", f"{place} cannot be written")
    else:
        yield Check("home", "ok", f"{settings.home}" + ("" if settings.home.exists() else " (made when needed)"))


def check_stores(settings: Settings) -> Iterator[Check]:
    library = open_library(settings)
    entries = library.entries()
    for source, count in sorted(Counter(entry.source for entry in entries).items()):
        size = sum(entry.size_bytes for entry in entries if entry.source == source)
        yield Check(f"models, {source}", "ok", f"{count}, {size_text(size)}")
    if not entries:
        yield Check("models", "note", f"none yet; try `localllm pull {settings.default_model}`")
    for problem in library.damaged():
        yield Check("store", "broken", problem.message)
    for entry in entries:
        if not Path(entry.path).exists():
            yield Check("store", "broken", f"the file of {entry.name} is gone: {entry.path}")


def check_daemon(settings: Settings) -> Iterator[Check]:
    client = running_client(settings)
    if client is None:
        yield Check("daemon", "ok", "does not run; `run` and `chat` start it")
        yield check_port(settings)
        return
    health = client.health()
    state: State = "ok" if health.version in ("", __version__) else "note"
    yield Check("daemon", state, f"{health.status or 'answers'} at {client.url}, version {health.version or 'unknown'}")


def check_port(settings: Settings) -> Check:
    """Whether a daemon could listen where the settings say."""
    where = f"{settings.host}:{settings.port}"
    if not is_this_machine(settings.host):
        return Check("port", "note", f"{where} is another machine")
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.host, settings.port))
        except OSError as error:
            hint = "set another with `localllm config set port N`"
            return Check("port", "note", f"{where} cannot be used ({(error.strerror or str(error)).lower()}); {hint}")
    return Check("port", "ok", f"{where} is free")
