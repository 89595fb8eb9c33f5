"""A daemon that is not there: what the application asks of a client, answered from tables."""

import queue
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from localllm.client import CatalogModels, Health, InstalledModels, ModelFit, PullJob
from localllm.daemon.feed import Frame
from localllm.errors import DaemonUnreachable, LocalLLMError
from localllm.tui.app import LocalApp


class EmptyLibrary:
    """A daemon without models, whose catalog is empty."""

    def installed(self) -> InstalledModels:
        return InstalledModels()

    def catalog(self) -> CatalogModels:
        return CatalogModels()

    def fit(self, models: Sequence[str], context_length: int = 0) -> tuple[ModelFit, ...]:
        return ()

    def search(self, query: str) -> CatalogModels:
        return CatalogModels()

    def pulls(self) -> tuple[PullJob, ...]:
        return ()


class Refusing:
    """A group of calls that a test has not set: every call is refused with a sentence."""

    def __getattr__(self, name: str) -> Any:
        def refuse(*args: Any, **options: Any) -> Any:
            raise LocalLLMError(f"the fake answers no {name}")

        return refuse


class FakeClient:
    """Streams the frames that a test puts in; None ends the feed. Groups of calls (`library`, `looking`, `tokens`) and
    other methods are set as attributes by the tests that need them."""

    url = "http://127.0.0.1:11435"
    api_key = ""

    def __init__(self, *, is_up: bool = True) -> None:
        self.is_up = is_up
        self.library: Any = EmptyLibrary()
        self.looking: Any = Refusing()
        self.tokens: Any = Refusing()
        self.frames: queue.Queue[Frame | None] = queue.Queue()
        if is_up:
            self.frames.put(Frame(at=0.0, time=0.0))

    def health(self) -> Health:
        self._check()
        return Health("ok", "0.1.0")

    def live(self) -> Iterator[Frame]:
        self._check()
        while (frame := self.frames.get()) is not None:
            yield frame
        raise self._gone()

    def ps(self) -> list[Any]:
        self._check()
        return []

    def model_names(self) -> list[str]:
        self._check()
        return []

    def go(self) -> None:
        """The daemon ends."""
        self.is_up = False
        self.frames.put(None)

    def come_back(self) -> None:
        self.is_up = True
        self.frames.put(Frame(at=1.0, time=1.0))

    def _check(self) -> None:
        if not self.is_up:
            raise self._gone()

    def _gone(self) -> DaemonUnreachable:
        return DaemonUnreachable(f"no daemon answers at {self.url}")


def app_with(client: Any, home: Path, **options: Any) -> LocalApp:
    """The application over a fake, with a home of its own."""
    return LocalApp(client, home=home, **options)
