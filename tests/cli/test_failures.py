"""How things end: exit codes, one sentence and a next step, and never a traceback."""

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from localllm import errors
from localllm.cli.failures import next_step, run_guarded
from tests.cli.conftest import ROOT, Cli


def raising(error: BaseException) -> Callable[[], None]:
    def command() -> None:
        raise error

    return command


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.UsageError("x"), 2),
        (errors.InvalidRequest("x"), 2),
        (errors.DaemonUnreachable("x"), 3),
        (errors.ModelNotFound("x"), 4),
        (errors.NotEnoughMemory("x"), 5),
        (errors.ContextExceeded(9, 4), 6),
        (errors.NetworkError("x"), 7),
        (errors.DownloadError("x"), 7),
        (errors.StoreError("x"), 1),
        (KeyboardInterrupt(), 130),
        (SystemExit(9), 9),
        (SystemExit(), 0),
        (SystemExit("said"), 1),
        (OSError(errno.ENOSPC, "No space left on device", "/m"), 1),
        (ZeroDivisionError("oh"), 1),
    ],
)
def test_every_end_has_its_exit_code(error: BaseException, code: int) -> None:
    assert run_guarded(raising(error)) == code


def test_an_error_is_a_sentence_and_a_next_step(capsys: pytest.CaptureFixture[str]) -> None:
    run_guarded(raising(errors.StoreError("it is \x1b[31mlocked", hint="try again")))
    assert capsys.readouterr().err == "Error: it is locked\n  try again\n"


KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.LocalLLMError)]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_an_error_without_a_next_step_gets_that_of_its_kind(kind: type[errors.LocalLLMError]) -> None:
    error = kind(9, 4) if kind is errors.ContextExceeded else kind("x")  # type: ignore[arg-type]
    assert next_step(error)


def test_a_full_disk_is_said_in_plain_words(capsys: pytest.CaptureFixture[str]) -> None:
    run_guarded(raising(OSError(errno.ENOSPC, "No space left on device", "/models/a")))
    assert capsys.readouterr().err.startswith("Error: /models/a: the disk is full\n")


def test_a_fault_of_ours_writes_its_traceback_to_a_file_and_names_it(capsys: pytest.CaptureFixture[str]) -> None:
    run_guarded(raising(ZeroDivisionError("oh")))
    shown = capsys.readouterr().err
    assert "Traceback" not in shown and "ZeroDivisionError: oh" in shown
    (log,) = (Path(os.environ["LOCALLLM_HOME"]) / "logs").iterdir()
    assert str(log) in shown and "Traceback" in log.read_text()


def test_an_unknown_command_is_answered_with_the_nearest_one(cli: Cli) -> None:
    outcome = cli("lst")
    assert outcome.code == 2 and "Did you mean 'list'" in outcome.err and outcome.out == ""


def test_a_config_file_that_cannot_be_read_is_named(cli: Cli) -> None:
    path = Path(os.environ["LOCALLLM_HOME"]) / "config.toml"
    path.write_text("port = ")
    outcome = cli("list")
    assert outcome.code == 2 and str(path) in outcome.err


def test_a_reader_that_left_is_no_error() -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    program = [sys.executable, "-c", "from localllm.cli.app import main; main()", "config", "list"]
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(program, stdout=writing, stderr=subprocess.PIPE, env=environment, timeout=60)
    os.close(writing)
    assert done.stderr == b""


def test_a_terminal_without_unicode_gets_question_marks() -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii", "LOCALLLM_DEFAULT_MODEL": "é"}
    program = [sys.executable, "-c", "from localllm.cli.app import main; main()", "config", "get", "default_model"]
    done = subprocess.run(program, capture_output=True, env=environment, timeout=60)
    assert (done.returncode, done.stdout) == (0, b"?\n")


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_closed_stream_is_written_to_nowhere(closed: str) -> None:
    code = "from localllm.cli.app import main; main()"
    shell = f'"{sys.executable}" -c "{code}" config get default_model {closed}'
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["/bin/sh", "-c", shell], capture_output=True, env=environment, timeout=30)
    assert (done.returncode, done.stderr) == (0, b"")


def test_an_interrupt_while_the_commands_are_imported_is_no_traceback() -> None:
    """Typer and the rest take a quarter of a second, in which an impatient person presses Ctrl-C."""
    waits = (
        "import sys; from localllm.cli.app import main\n"
        "class Pressed:\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Pressed())\n"
        "main()"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", waits, "list"], capture_output=True, env=environment, timeout=30)
    assert (done.returncode, done.stderr) == (130, b"")
