"""`localllm convert` leaves nothing half-written, however it ends."""

import os
import signal
from pathlib import Path

import pytest

from localllm.cli.convert import leaving_tidily
from localllm.errors import UsageError
from localllm.formats.gguf_write import atomic_file
from localllm.runtime.convert import convert_model


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_no_part_of_a_file(number: signal.Signals, tmp_path: Path) -> None:
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as left, leaving_tidily(), atomic_file(tmp_path / "a.gguf") as file:
        file.write(b"half")
        os.kill(os.getpid(), number)
        file.write(b"the other half")
    assert left.value.code == 128 + number
    assert not list(tmp_path.iterdir()) and signal.getsignal(number) is before


@pytest.mark.parametrize("replaces", [False, True])
def test_a_folder_is_no_file_to_write(replaces: bool, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(UsageError, match="is a folder") as refused:
        convert_model(tmp_path, tmp_path, None, replaces=replaces)
    assert "-o" in refused.value.hint
