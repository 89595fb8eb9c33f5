"""Hostile text in every place of the terminal application: rows of plain text of the width they claim, and no error.

The corpus, some random texts, and the whole application with hostile names and texts everywhere; scripts/fuzz_screens
draws 100,000 texts in each place.
"""

import asyncio
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from textual import events
from textual.pilot import Pilot

from localllm.client import CatalogModels, InspectedModel, MetadataItem
from localllm.client.looking import ChainLink, PageDetails, PageToken
from localllm.errors import LocalLLMError
from localllm.history import History
from localllm.safe_text import sanitize
from localllm.tui.app import LocalApp
from localllm.tui.conversation.turn import TurnView
from localllm.tui.conversation.turns import Turn
from localllm.tui.help import PagedText
from localllm.tui.markdown.rows import Look
from localllm.tui.markdown.tree import parser
from localllm.tui.tokens.screen import TokensScreen
from tests.tui import shown_tokenizers
from tests.tui.chat_client import ChatClient, FakeLooking, Script
from tests.tui.fakes import app_with
from tests.tui.hostile_fields import FIELDS, fill
from tests.tui.hostile_places import INKS, PLACES, WIDTHS
from tests.tui.hostile_texts import CORPUS, NOT_PLAIN, Texts, check, random_text
from tests.tui.live_frames import FakeEngine
from tests.tui.models_world import Library, installed, offer, pulling
from tests.tui.token_fakes import FakeTokens

EVIL = "\x1b[31mred\x1b]0;t\x07\u202e\u200b\U000e0041[bold]x[/bold]\x9b2J\u2028漢字"
SIZES = [(80, 24), (120, 40)]


def draw(place: str, texts: Texts, ink: int = 0, width: int = 76) -> None:
    for drawn, wanted in PLACES[place](texts, INKS[ink], width):
        check(drawn, wanted)


@pytest.mark.parametrize("place", PLACES)
def test_the_corpus_is_plain_text_in_every_place(place: str) -> None:
    texts = Texts(given=CORPUS)
    for number in range(100_000):
        draw(place, texts, number % 3, WIDTHS[number % len(WIDTHS)])
        if texts.count > 3 * len(CORPUS):
            return


@settings(max_examples=500, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(list(PLACES)), st.integers(0, 2**32), st.sampled_from(WIDTHS), st.integers(0, 2), st.text())
def test_random_texts_are_plain_text_in_every_place(place: str, seed: int, width: int, ink: int, text: str) -> None:
    dice = random.Random(seed)
    draw(place, Texts(seed, (text, *(random_text(dice) for _ in range(3)))), ink, width)


@pytest.mark.parametrize("field", FIELDS)
def test_fields_show_the_corpus_as_plain_text(field: str) -> None:
    assert fill(field, Texts(given=CORPUS), len(CORPUS)) >= len(CORPUS)


# ---- the whole application


class Looking(FakeLooking):
    def page(self, model: str, page: int) -> PageDetails:
        tokens = tuple(PageToken(number, EVIL) for number in range(3))
        return PageDetails(
            model=EVIL,
            page=page,
            start=0,
            end=3,
            tokens=tokens,
            chain=(ChainLink(page, EVIL, 1, (EVIL,)),),
            chain_length=1,
        )

    def request(self, request_id: str) -> Any:
        raise LocalLLMError(EVIL, hint=EVIL)


class EvilLibrary(Library):
    def inspect(self, model: str) -> InspectedModel:
        return InspectedModel(name=EVIL, metadata=(MetadataItem(key=EVIL, value=EVIL),), template=EVIL, license=EVIL)

    def catalog(self) -> CatalogModels:
        return CatalogModels(models=tuple(self.offers), notice=EVIL)


def evil_client() -> ChatClient:
    """Everything it tells is hostile."""
    answer = [
        f"?{EVIL}",
        f"# {EVIL}\n",
        f"```{EVIL}\n{EVIL}\n```\n",
        f"| {EVIL} | b |\n|--|--|\n| {EVIL} | c |\n\n",
        *EVIL,
    ]
    client = ChatClient(Script(answer), Script([EVIL], error=LocalLLMError(EVIL, hint=EVIL)))
    client.looking, client.names = Looking(), [EVIL, "b"]
    here = installed(EVIL, 2.0, EVIL, license=EVIL, file=EVIL, parameters=EVIL, capabilities=(EVIL,))
    offers = (offer(f"o{EVIL}", 3.0, EVIL, license=EVIL, refusal=EVIL, repo=EVIL),)
    client.library = EvilLibrary((here,), offers, (pulling(EVIL, 1.0, 2.0, "paused"),))
    tokenizers = shown_tokenizers.all_four()
    client.tokens = FakeTokens(tokenizers, dict.fromkeys(tokenizers, EVIL))
    engine = FakeEngine(EVIL, num_pages=64)
    engine.sources = {1: EVIL, 2: EVIL}
    engine.admit(1, 40)
    engine.wait(2, 30)
    engine.write(1, 3)
    engine.tell(2, "failed", code=EVIL)
    client.frames.put(engine.frame())
    return client


def kept_chats(home: Path) -> None:
    history = History(home / "chats.db")
    for _ in range(2):
        chat = history.new_chat(EVIL, title=EVIL, system=EVIL)
        first = history.add(chat.id, None, "user", EVIL)
        history.add(chat.id, first.id, "assistant", EVIL, reasoning=EVIL, model=EVIL)
        history.add(chat.id, first.id, "assistant", f"**{EVIL}**", model=EVIL)
    history.close()


def looked_at(app: LocalApp) -> str:
    """The screen as the terminal gets it: rows of plain text, as wide as the window."""
    strips = list(app.screen._compositor.render_strips())
    assert {strip.cell_length for strip in strips} == {app.size.width}
    for strip in strips:
        found = NOT_PLAIN.search(strip.text)
        assert found is None, repr(strip.text)
    return "\n".join(strip.text for strip in strips)


async def until(pilot: Pilot[None], is_so: Callable[[], object]) -> None:
    for _ in range(400):
        if is_so():
            return
        await pilot.pause(0.02)
    raise AssertionError("it did not come to that")


@pytest.mark.parametrize("size", SIZES)
async def test_every_screen_of_an_application_that_is_told_nothing_but_harm(
    tmp_path: Path, size: tuple[int, int]
) -> None:
    kept_chats(tmp_path)
    log = tmp_path / "log"
    log.write_bytes(b"\n".join(text.encode("utf-8", "replace") for text in CORPUS) + b"\xff\x9b2J")
    app = app_with(evil_client(), tmp_path, default_model=f"{EVIL}[/nothing]", log_path=log)
    async with app.run_test(size=size, notifications=True) as pilot:
        await until(pilot, lambda: app.link.state == "up")
        await _chat(app, pilot)
        for key, sees in (("f3", ""), ("f4", "Requests"), ("f5", "")):
            await pilot.press("escape", key)
            await pilot.pause(0.1)
            assert sees in looked_at(app)
            if key == "f3":
                await _tokens(app, pilot)
            for more in ("down", "enter", "escape", "i", "escape", "t", "escape", "v", "escape"):
                await pilot.press(more)
                looked_at(app)
        await _around(app, pilot)


async def _chat(app: LocalApp, pilot: Pilot[None]) -> None:
    screen: Any = app.screen
    await until(pilot, lambda: screen.is_mounted)
    looked_at(app)
    for _ in range(2):
        screen.composer.write(EVIL)
        await pilot.press("enter")
        await until(pilot, lambda: not screen.writing and not screen.is_ending)
        await pilot.pause()
        looked_at(app)
    for key in ("ctrl+b", "alt+p", "ctrl+l", "escape", "alt+s", "escape", "ctrl+t", "escape"):
        await pilot.press(key)
        await pilot.pause()
        looked_at(app)


async def _tokens(app: LocalApp, pilot: Pilot[None]) -> None:
    screen = app.screen
    assert isinstance(screen, TokensScreen)
    for text in (EVIL, "\n".join(CORPUS).encode("utf-8", "replace").decode()[:900]):
        screen.show_text(text)
        await until(pilot, lambda: screen.state.explanation is not None)
        await pilot.pause(0.1)
        looked_at(app)


async def _around(app: LocalApp, pilot: Pilot[None]) -> None:
    app.say(EVIL)
    app.complain(LocalLLMError(f"[bold]{EVIL}", hint=EVIL))
    await pilot.pause()
    assert "[bold]" in looked_at(app), "notices hold no markup"
    for key in ("f1", "f9"):
        await pilot.press(key)
        await pilot.pause(0.05)
        assert len(looked_at(app)) > 100
        await pilot.press("escape")
    app.push_screen(PagedText(EVIL, EVIL))
    await pilot.pause(0.05)
    looked_at(app)


@pytest.mark.parametrize("first", ["chat", "tokens"])
async def test_what_is_pasted_is_shown_as_text(tmp_path: Path, first: str) -> None:
    app = app_with(evil_client(), tmp_path, default_model="b", first=first)
    async with app.run_test(size=(100, 30)) as pilot:
        await until(pilot, lambda: app.link.state == "up" and app.screen.focused is not None)
        for text in ("so ", EVIL, *CORPUS[:60]):
            app.post_message(events.Paste(text.encode("utf-8", "replace").decode()))
            await asyncio.sleep(0)
        await pilot.pause(0.1)
        looked_at(app)
        field: Any = app.screen.focused
        assert "so " in field.text, "it did arrive"
        if first == "chat":
            assert sanitize(field.text) == field.text


@pytest.mark.parametrize(
    "text", ["](" + "(a" * 400 + " x y", "](a" * 300 + " x", "[" * 500 + "](", "**_`" * 200, "<a:" * 300]
)
def test_unfinished_markup_that_nests_takes_no_time(text: str) -> None:
    view = TurnView(Turn(1, "assistant", "", text, state="writing"), parser())
    started = time.process_time()
    assert view.rows(Look(INKS[0], 60))
    view.write(text)
    assert view.rows(Look(INKS[0], 60)) and time.process_time() - started < 10  # else it never ends
