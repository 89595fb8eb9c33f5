"""A file of chats, and a clock that moves when it is told to."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from localllm.history import History


class Clock:
    """Seconds since the epoch; every look at it is a second later."""

    def __init__(self) -> None:
        self.now = 1_760_000_000.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


@pytest.fixture
def history(tmp_path: Path) -> Iterator[History]:
    opened = History(tmp_path / "chats.db", Clock())
    yield opened
    opened.close()
