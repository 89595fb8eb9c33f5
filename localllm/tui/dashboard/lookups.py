"""What the feed does not tell is asked for: the content of the page that is looked at, the beginning of a request that
was under way before anybody looked, and which requests run when events were lost."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from localllm.client import Client
from localllm.errors import LocalLLMError
from localllm.tui.dashboard.asking import ask_events, ask_page, ask_running
from localllm.tui.dashboard.page_line import PageText
from localllm.tui.link import Link
from localllm.tui.live.requests import Request
from localllm.tui.live.state import LiveState, ModelState

ASK_AGAIN_S = 3.0
LOOK_UP_S = 0.3
SOON_S = 0.1

T = TypeVar("T")
Run = Callable[[Coroutine[Any, Any, None], str], object]
"""Runs something on the event loop in place of what runs under the same name."""


class Lookups:
    """`told` gets the text of a page. Where there is no answer, what is shown stands without it."""

    def __init__(self, link: Link, live: LiveState, run: Run, told: Callable[[PageText], None]) -> None:
        self._link, self._live, self._run, self._told = link, live, run, told
        self._asked: tuple[object, float] = (None, 0.0)
        self._learned: set[str] = set()

    def ask(self, now: float, model: ModelState | None, page: int, shown: Request | None) -> None:
        """Whatever is missing at this moment; `now` in seconds of any clock."""
        if self._link.state != "up":
            return
        if self._live.needs_requests:
            self._live.needs_requests = False
            self._run(self._learn_running(), "running")
        if shown is not None and not shown.is_known and shown.id not in self._learned:
            self._learned.add(shown.id)
            self._run(self._learn_events(shown.id), "events")
        if model is not None and page < len(model.board) and model.board.state(page):
            self._look_up(now, model.row.name, page)

    def hurry(self, now: float) -> None:
        """Another page is looked at."""
        self._asked = (self._asked[0], min(self._asked[1], now - LOOK_UP_S + SOON_S))

    def _look_up(self, now: float, model: str, page: int) -> None:
        asked, then = self._asked
        if (asked != (model, page) and now - then > LOOK_UP_S) or now - then > ASK_AGAIN_S:
            self._asked = ((model, page), now)
            self._run(self._learn_page(model, page), "page")

    async def _learn_page(self, model: str, page: int) -> None:
        told = await self._answer(lambda client: ask_page(client, model, page))
        if told is not None:
            self._told(told)

    async def _learn_events(self, request_id: str) -> None:
        self._live.learn(await self._answer(lambda client: ask_events(client, request_id)) or ())

    async def _learn_running(self) -> None:
        running = await self._answer(ask_running)
        if running is not None:
            self._live.reconcile(running)

    async def _answer(self, call: Callable[[Client], T]) -> T | None:
        try:
            return await self._link.ask(call)
        except LocalLLMError:
            return None
