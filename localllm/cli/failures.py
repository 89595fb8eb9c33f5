"""How a command ends badly: one sentence and a next step on stderr, and the exit code. Never a traceback."""

import errno
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from io import TextIOWrapper

from localllm import errors
from localllm.errors import LocalLLMError
from localllm.safe_text import sanitize

EXIT_INTERRUPTED = 130
NEXT_STEPS: Mapping[type[LocalLLMError], str] = {
    errors.UsageError: "the command with --help behind it says what it takes",
    errors.InvalidRequest: "ask for something else: `localllm run --help` lists what can be asked for",
    errors.ModelNotFound: "`localllm list` names the models that are here, `localllm search` finds others",
    errors.DaemonUnreachable: "`localllm daemon start` starts it, `localllm daemon logs` says how the last one ended",
    errors.WorkerCrashed: "try again; `localllm daemon logs` says how it ended",
    errors.Overloaded: "try again in a moment",
    errors.NetworkError: "try again; what was fetched is kept",
    errors.NotEnoughMemory: "`localllm fit` says how much a model needs, `localllm ps` what is loaded",
    errors.StoreError: "`localllm verify` checks what is in the store",
    errors.DiskFull: "free some space; `localllm list` shows what the models take",
    errors.InvalidApiKey: "LOCALLLM_API_KEYS holds the key to send; `localllm keys` manages those of a daemon",
    errors.PortInUse: "choose another with --port",
    LocalLLMError: "try again; `localllm daemon logs` and `localllm doctor` may say more",
}
"""Where an error names none. Each class inherits that of the nearest one above it."""


def run_guarded(command: Callable[[], object]) -> int:
    """Runs `command` and returns the exit code; everything it raises becomes a sentence on stderr."""
    _open_what_is_closed()
    _forgive_encodings()
    try:
        code = _outcome(command)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        _silence_stdout()
        return 1


@contextmanager
def unwinding() -> Iterator[None]:
    """SIGTERM, and SIGHUP of a terminal that was closed, end what runs below by SystemExit, so that what was said is
    kept. The second one ends at once, and one that is ignored, as by nohup, stays so."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) is signal.SIG_DFL]
    for number in numbers:
        signal.signal(number, _leave)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)


def _leave(number: int, _: object) -> None:
    signal.signal(number, signal.SIG_DFL)
    raise SystemExit(128 + number)


def _outcome(command: Callable[[], object]) -> int:
    try:
        command()
        return 0
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except LocalLLMError as error:
        print_error(error.message, next_step(error))
        return error.exit_code
    except BrokenPipeError:
        raise
    except OSError as error:
        print_error(*system_sentence(error))
        return 1
    except Exception as error:  # a fault of ours: the last place where it can become a sentence
        print_error(*_fault_sentence(error))
        return 1


def next_step(error: LocalLLMError) -> str:
    """What to do now: the error's own hint, or the usual one of its kind."""
    return error.hint or next(NEXT_STEPS[kind] for kind in type(error).__mro__ if kind in NEXT_STEPS)


def print_error(message: str, hint: str = "") -> None:
    with suppress(OSError):  # where nothing can be said, the exit code still tells
        sys.stderr.write(f"Error: {sanitize(message)}\n" + (f"  {sanitize(hint)}\n" if hint else ""))


def print_warning(message: str, hint: str = "") -> None:
    with suppress(OSError):
        sys.stderr.write(f"Warning: {sanitize(message)}\n" + (f"  {sanitize(hint)}\n" if hint else ""))


def system_sentence(error: OSError) -> tuple[str, str]:
    """What the system refused, and a next step where one is known."""
    place = f"{error.filename}: " if error.filename else ""
    if error.errno == errno.ENOSPC:
        return f"{place}the disk is full", "free some space; `localllm list` shows what the models take"
    sentence = f"{place}{(error.strerror or str(error) or type(error).__name__).lower()}"
    return sentence, _next_step(error)


def _next_step(error: OSError) -> str:
    from localllm.settings import home_dir  # this whole path is rare

    if error.filename and str(error.filename).startswith(str(home_dir())):
        return "LOCALLLM_HOME names the folder that everything is kept in: choose one that can be written"
    return "check the path, and that you may read and write there" if error.filename else ""


def _fault_sentence(error: Exception) -> tuple[str, str]:
    place = _write_traceback(error)
    hint = f"this is a fault of localllm; the details are in {place}" if place else "this is a fault of localllm"
    return f"something unexpected happened ({type(error).__name__}: {error})", hint


def _write_traceback(error: Exception) -> str:
    import time  # this whole path is rare
    import traceback

    from localllm.settings import home_dir

    path = home_dir() / "logs" / time.strftime("fault-%Y%m%d-%H%M%S.log")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
    except OSError:
        return ""
    return str(path)


def _open_what_is_closed() -> None:
    """Started with `>&-` or by a supervisor that closes all: nowhere is written to, and no socket becomes stdout."""
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        if getattr(sys, name) is None:
            with suppress(OSError):
                os.close(number)
            os.open(os.devnull, os.O_RDWR)  # the lowest free number: this one
            setattr(sys, name, os.fdopen(number, mode, encoding="utf-8"))


def _forgive_encodings() -> None:
    """A terminal that cannot show a character gets a question mark, not a UnicodeEncodeError."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")


def _silence_stdout() -> None:
    """The reader is gone: what Python flushes at exit has to go nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
