"""From a chat into the tokens of an answer and back with another one, over a running daemon."""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from textual.pilot import Pilot

from localllm.client import Client
from localllm.tui.app import LocalApp
from localllm.tui.inspector.screen import InspectorScreen
from localllm.tui.inspector.token import choices_of
from tests.daemon.toy import ToyLibrary, toy_entry
from tests.server.world import World, daemon
from tests.tui.fakes import app_with
from tests.tui.pictures import screen_text

PATIENCE_S = 30.0


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    library = ToyLibrary(toy_entry("toy:1b"), toy_entry("toy:slow", "toy:slow"))
    with daemon(tmp_path / "daemon", library, default_model="toy:1b") as world:
        yield world
        world.on_loop(world.daemon.live.end)


async def until(pilot: Pilot[None], is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not is_so():
            await pilot.pause(0.02)


def chat_app(world: World, home: Path, model: str) -> LocalApp:
    return app_with(Client(world.url), home, first="chat", default_model=model)


async def ask(app: LocalApp, pilot: Pilot[None], text: str) -> None:
    await until(pilot, lambda: "Message toy" in screen_text(app))
    await pilot.press(*text, "enter")


async def opened(app: LocalApp, pilot: Pilot[None]) -> InspectorScreen:
    await pilot.press("ctrl+t")
    await until(pilot, lambda: isinstance(app.screen, InspectorScreen))
    assert isinstance(app.screen, InspectorScreen)
    return app.screen


async def test_a_finished_answer_is_looked_at_and_another_one_grows_from_it(world: World, tmp_path: Path) -> None:
    app = chat_app(world, tmp_path, "toy:1b")
    async with app.run_test(size=(120, 40)) as pilot:
        await ask(app, pilot, "hello there")
        await until(pilot, lambda: "first token" in screen_text(app) and "esc stop" not in screen_text(app))
        inspector = await opened(app, pilot)
        first = [token.token_id for token in inspector.answer.tokens]
        assert len(first) > 3 and all(token.alternatives for token in inspector.answer.tokens)
        assert (
            inspector.answer.num_prompt == len("<user>hello there\n<assistant>") and inspector.answer.vocab_size == 260
        )
        await pilot.press("home", "right", "right")
        await pilot.press("up" if inspector.chosen else "down")  # another one, whichever was drawn
        other = choices_of(inspector.answer.tokens[2])[inspector.chosen].token_id
        await pilot.press("enter")
        await until(pilot, lambda: "2 of 2" in screen_text(app) and "esc stop" not in screen_text(app))
        inspector = await opened(app, pilot)
        ids = [token.token_id for token in inspector.answer.tokens]
        assert ids[:3] == [*first[:2], other] and ids != first
        assert inspector.answer.num_prompt == len("<user>hello there\n<assistant>")
        assert "Answer 2 of 2" in screen_text(app)


async def test_an_answer_is_looked_at_while_it_is_written(world: World, tmp_path: Path) -> None:
    app = chat_app(world, tmp_path, "toy:slow")
    async with app.run_test(size=(120, 40)) as pilot:
        await ask(app, pilot, "hello")
        await until(pilot, lambda: "writing" in screen_text(app))
        inspector = await opened(app, pilot)
        await until(pilot, lambda: len(inspector.answer.tokens) > 2)
        count = len(inspector.answer.tokens)
        await until(pilot, lambda: len(inspector.answer.tokens) > count or not inspector.answer.is_live)
        await until(pilot, lambda: inspector.cursor == len(inspector.answer.tokens) - 1)
        await pilot.press("escape")
        await until(pilot, lambda: not isinstance(app.screen, InspectorScreen))
