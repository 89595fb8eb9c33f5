"""The Chat screen against a real daemon with the real small model: its main path, end to end."""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from textual.pilot import Pilot

from localllm.client import Client
from localllm.tui.app import LocalApp
from localllm.tui.chat.screen import ChatScreen
from localllm.tui.inspector.screen import InspectorScreen
from tests.tui.fakes import app_with
from tests.tui.pictures import screen_text
from tests.tui.real_daemon import real_daemon

PATIENCE_S = 60.0


@pytest.fixture(scope="module")
def url(small_model_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    pytest.importorskip("localllm.backends.cpu._native", reason="the native kernels have not been built")
    with real_daemon(tmp_path_factory.mktemp("chat-daemon")) as url:
        yield url


class Talk:
    """A person at the application."""

    def __init__(self, app: LocalApp, pilot: Pilot[None]) -> None:
        self.app, self.pilot = app, pilot

    @property
    def screen(self) -> ChatScreen:
        found = self.app.screen_stack[0]
        assert isinstance(found, ChatScreen)
        return found

    async def until(self, is_so: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not is_so():
                await self.pilot.pause(0.05)

    async def ask(self, text: str) -> None:
        self.screen.composer.write(text)
        await self.pilot.press("enter")

    async def rest(self) -> None:
        """Until nothing is written any more."""
        await self.until(lambda: self.screen.writing is None and not self.screen.is_ending)

    def said(self) -> list[str]:
        return [message.content for message in self.screen.session.branch]


async def test_the_main_path(url: str, small_model_file: Path, tmp_path: Path) -> None:
    app = app_with(Client(url), tmp_path, default_model=str(small_model_file))
    async with app.run_test(size=(120, 40)) as pilot:
        talk = Talk(app, pilot)
        await talk.until(lambda: app.link.state == "up" and isinstance(app.screen, ChatScreen))
        talk.screen.set_parameters({"temperature": 0.0, "max_tokens": 24})

        await talk.ask("Name three colours.")
        await talk.until(lambda: len(talk.said()) == 2 and bool(talk.said()[1]))
        await talk.rest()
        first = talk.screen.session.branch[1]
        assert first.stats is not None and first.stats.tokens > 3 and first.stats.prompt_tokens > 3
        assert first.stats.stop_reason in ("stop", "length")
        tokens = talk.screen.history.tokens(first.id)
        assert len(tokens) == first.stats.tokens and all(len(token.alternatives) == 10 for token in tokens)

        talk.screen.composer.write("And three more.")
        await talk.until(lambda: bool(talk.screen.bar.budget and talk.screen.bar.budget.cached))
        assert "to compute" in screen_text(app)
        talk.screen.set_parameters({"temperature": 0.0, "max_tokens": 2000, "stop": ["never said"]})

        await pilot.press("enter")
        await talk.until(lambda: len(talk.said()) == 4 and talk.screen.conversation.turns[-1].text.count(" ") > 3)
        await pilot.press("escape")
        await talk.rest()
        stopped = talk.screen.session.branch[-1]
        assert stopped.stats is not None and stopped.stats.stop_reason in ("cancelled", "stop")

        talk.screen.set_parameters({"temperature": 0.0, "max_tokens": 4})
        await pilot.press("alt+g")
        await talk.until(lambda: len(talk.said()[-1]) > len(stopped.content) or talk.screen.writing is None)
        await talk.rest()
        assert talk.said()[-1].startswith(stopped.content)

        await pilot.press("ctrl+t")
        await talk.until(lambda: isinstance(app.screen, InspectorScreen))
        await pilot.press("home", "down", "enter")
        await talk.until(lambda: talk.screen.session.branch.place(talk.screen.leaf or 0) == (2, 2))
        await talk.rest()
        branched = talk.screen.session.branch[-1]
        assert branched.content and branched.content != stopped.content and branched.origin.startswith("from “")
        await talk.until(lambda: "‹ 2 of 2 ›" in screen_text(app))
