"""The chat part of measure_tui: the application over a scripted daemon, with a long chat in its history."""

from __future__ import annotations

import asyncio
import selectors
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from statistics import quantiles
from tempfile import TemporaryDirectory
from typing import Any, cast

from textual import events
from textual.drivers.headless_driver import HeadlessDriver

from localllm.client import ChatChunk, Client
from localllm.history import AnswerStats, History
from localllm.tui import app
from localllm.tui.app import LocalApp
from localllm.tui.chat.screen import ChatScreen
from localllm.tui.chat.session import FILE_NAME
from tests.tui.chat_client import TIMINGS, ChatClient

TOKENS_PER_S = 60
KEYS_PER_S = 10
ANSWER = """The scheduler gives a **whole prompt** to one step, so `seven` streams wait. Split it:

1. reserve pages for a chunk, not for the prompt
2. let every step carry *all* decodes first

```python
def plan(self, budget=512):
    step = [r for r in self.running if r.decoding]  # decodes first
    for r in self.waiting:
        n = min(r.left, budget)
        if n and self.pages.reserve(r, n):
            step.append(r.chunk(n))
    return step
```

| streams | gap, ms | first token, ms |
|--------:|--------:|----------------:|
| 1 | 15.8 | 121 |
| 8 | 16.4 | 184 |

"""


class Steady(ChatClient):
    """A daemon that says `num_tokens` at an even pace."""

    def __init__(self, num_tokens: int) -> None:
        super().__init__()
        self._num_tokens = num_tokens

    def chat(self, body: dict[str, Any]) -> Iterator[ChatChunk]:
        started = time.perf_counter()
        for number, token in enumerate(_tokens(self._num_tokens), 1):
            yield ChatChunk(content=token)
            time.sleep(max(0.0, started + number / TOKENS_PER_S - time.perf_counter()))
        yield ChatChunk(finish_reason="stop", timings=TIMINGS)


class Screenless(HeadlessDriver):
    """Everything is drawn as for a terminal, and thrown away."""

    painted = 0
    is_headless = False  # type: ignore[assignment]

    def write(self, data: str) -> None:
        type(self).painted += len(data) > 60


class Busy(selectors.DefaultSelector):
    """Adds up the time of the processor that the event loop takes: others on the machine do not count."""

    def __init__(self) -> None:
        super().__init__()
        self.busy_s = 0.0
        self._woke_at = time.thread_time()

    def select(self, timeout: float | None = None) -> Any:
        self.busy_s += time.thread_time() - self._woke_at
        found = super().select(timeout)
        self._woke_at = time.thread_time()
        return found


class World(LocalApp):
    """The application as it is, which does some work and leaves."""

    CSS_PATH = Path(app.__file__).with_name("app.tcss")

    def __init__(self, home: Path, num_tokens: int, work: Callable[[], Coroutine[Any, Any, dict[str, float]]]) -> None:
        super().__init__(cast("Client", Steady(num_tokens)), home=home, default_model="qwen3-4b")
        self.driver_class = Screenless
        self.figures: dict[str, float] = {}
        self._work = work

    @property
    def chat(self) -> ChatScreen:
        return cast("ChatScreen", self.screen)

    def on_ready(self) -> None:
        self.run_worker(self._run())

    async def _run(self) -> None:
        self.figures = await self._work()
        self.exit()


def measure(num_messages: int, num_tokens: int, size: tuple[int, int]) -> dict[str, float]:
    """Milliseconds: of opening, and of the work for each picture while an answer is written and somebody types."""
    busy = Busy()
    loop = asyncio.SelectorEventLoop(busy)
    with TemporaryDirectory() as home:
        chat_id = _fill(Path(home), num_messages)
        world = World(Path(home), num_tokens, lambda: _figures(world, chat_id, num_tokens, busy))
        try:
            loop.run_until_complete(world.run_async(size=size))
        finally:
            loop.close()
    return world.figures


def _fill(home: Path, num_messages: int) -> int:
    """A chat of so many messages, and another one that is opened first."""
    stats = AnswerStats(tokens=412, tokens_per_s=62.4, first_token_s=0.184, stop_reason="stop")
    history = History(home / FILE_NAME)
    with history.together():
        chat_id, parent = history.new_chat(model="qwen3-4b").id, None
        for index in range(num_messages):
            if index % 2 == 0:
                text = f"Question {index}: why does one long prompt stall everyone else?"
                parent = history.add(chat_id, parent, "user", text).id
            else:
                parent = history.add(chat_id, parent, "assistant", ANSWER * (1 + index % 3), stats=stats).id
        history.add(history.new_chat(model="qwen3-4b").id, None, "user", "Hello")
    history.close()
    return chat_id


async def _figures(world: World, chat_id: int, num_tokens: int, busy: Busy) -> dict[str, float]:
    await asyncio.sleep(1.0)
    before = busy.busy_s
    world.chat.open_chat(chat_id)
    await asyncio.sleep(0.5)  # with all that opening brings about
    opened_ms = (busy.busy_s - before) * 1e3
    frames = await _stream(world, num_tokens, busy)
    scrolled = await _scroll(world, busy)
    return {"opened_ms": opened_ms, **_percentiles("frame", frames), **_percentiles("page", scrolled)}


async def _stream(world: World, num_tokens: int, busy: Busy) -> list[float]:
    """Milliseconds of work between one picture and the next."""
    world.chat.composer.text = "Go on"
    world.post_message(events.Key("enter", None))
    await asyncio.sleep(0.5)
    span_s = num_tokens / TOKENS_PER_S - 0.5
    watch = asyncio.create_task(_watch(busy, span_s))
    for _ in range(int(span_s * KEYS_PER_S)):
        world.post_message(events.Key("a", "a"))
        await asyncio.sleep(1 / KEYS_PER_S)
    return await watch


async def _watch(busy: Busy, span_s: float) -> list[float]:
    frames, painted, before = [], Screenless.painted, busy.busy_s
    stop = time.perf_counter() + span_s
    while time.perf_counter() < stop:
        await asyncio.sleep(0.001)
        if Screenless.painted != painted:
            frames.append((busy.busy_s - before) * 1e3)
            painted, before = Screenless.painted, busy.busy_s
    return frames


async def _scroll(world: World, busy: Busy) -> list[float]:
    """Milliseconds for pages up, through messages that nobody has seen yet."""
    pages = []
    for _ in range(60):
        painted, before = Screenless.painted, busy.busy_s
        world.chat.conversation.action_page(-1)
        while Screenless.painted == painted:
            await asyncio.sleep(0.001)
        pages.append((busy.busy_s - before) * 1e3)
    return pages


def _tokens(count: int) -> Iterator[str]:
    """About four characters each."""
    text = ANSWER * (1 + 4 * count // len(ANSWER))
    return (text[4 * number : 4 * number + 4] for number in range(count))


def _percentiles(name: str, values: list[float]) -> dict[str, float]:
    cuts = quantiles(values, n=100)
    found = {"p50_ms": cuts[49], "p95_ms": cuts[94], "max_ms": max(values), "count": len(values)}
    return {f"{name}_{part}": value for part, value in found.items()}
