"""The daemon's log: bounded, and harmless to show in a terminal."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from localllm.server import logs
from localllm.settings import load_settings


@pytest.fixture(autouse=True)
def root_logger() -> Iterator[logging.Logger]:
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    yield root
    for handler in root.handlers:
        if handler not in handlers:
            handler.close()
    root.handlers = handlers
    root.setLevel(level)


def test_escapes_and_overrides_are_written_out(tmp_path: Path) -> None:
    settings = load_settings({"LOCALLLM_HOME": str(tmp_path)})
    logs.start_logging(settings, is_foreground=True)
    logging.getLogger("localllm.test").info("a\x1b[31mred\x9b2J\u202egnp.exe\tend")
    text = settings.log_file.read_text()
    assert "a\\x1b[31mred\\x9b2J\\u202egnp.exe\tend" in text


def test_the_log_is_rotated_by_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "MAX_LOG_BYTES", 1000)
    settings = load_settings({"LOCALLLM_HOME": str(tmp_path)})
    logs.start_logging(settings, is_foreground=True)
    for number in range(200):
        logging.getLogger("localllm.test").info("line %d", number)
    files = sorted(path.name for path in settings.log_file.parent.iterdir())
    assert files == ["daemon.log", "daemon.log.1", "daemon.log.2", "daemon.log.3"]
    assert all(path.stat().st_size <= 1000 for path in settings.log_file.parent.iterdir())
