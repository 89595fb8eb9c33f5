"""The chat part of measure_tui: a conversation of many messages that is opened, grows and is typed under."""

from __future__ import annotations

import asyncio
import selectors
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from statistics import quantiles
from typing import Any

from textual import events
from textual.app import App, ComposeResult
from textual.drivers.headless_driver import HeadlessDriver
from textual.widgets import TextArea

from localllm.history import AnswerStats
from localllm.tui.conversation import Conversation
from localllm.tui.palette import DARK, Ink
from localllm.tui.turns import Live, Turn

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


class Many(Sequence[Turn]):
    """Messages that are made when somebody looks."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[each] for each in range(*index.indices(self._count))]
        if index % 2 == 0:
            return Turn(index, "user", f"Question {index}: why does one long prompt stall everyone else?", created=1e9)
        stats = AnswerStats(tokens=412, tokens_per_s=62.4, first_token_s=0.184, stop_reason="stop")
        return Turn(index, "assistant", ANSWER * (1 + index % 3), model="qwen3-4b", stats=stats)


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


class World(App[None]):
    CSS = """
    Conversation { margin: 0 1; background: #0f1318; }
    TextArea { height: 2; border: none; }
    """

    def __init__(self, work: Callable[[], Coroutine[Any, Any, dict[str, float]]]) -> None:
        self.ink = Ink(DARK)
        self.conversation = Conversation()
        self.figures: dict[str, float] = {}
        self._work = work
        super().__init__(driver_class=Screenless)
        self.register_theme(DARK.theme())
        self.theme = DARK.theme().name

    def compose(self) -> ComposeResult:
        yield self.conversation
        yield TextArea()

    def on_mount(self) -> None:
        self.query_one(TextArea).focus()
        self.run_worker(self._run())

    async def _run(self) -> None:
        self.figures = await self._work()
        self.exit()


def measure(num_messages: int, num_tokens: int, size: tuple[int, int]) -> dict[str, float]:
    """Milliseconds: of opening, and of the work for each picture while an answer is written and somebody types."""
    busy = Busy()
    loop = asyncio.SelectorEventLoop(busy)
    try:
        return loop.run_until_complete(_measure(num_messages, num_tokens, size, busy))
    finally:
        loop.close()


async def _measure(num_messages: int, num_tokens: int, size: tuple[int, int], busy: Busy) -> dict[str, float]:
    app = World(lambda: _figures(app, num_messages, num_tokens, busy))
    await app.run_async(size=size)
    return app.figures


async def _figures(app: World, num_messages: int, num_tokens: int, busy: Busy) -> dict[str, float]:
    await asyncio.sleep(0.5)
    painted, before = Screenless.painted, busy.busy_s
    app.conversation.show(Many(num_messages))
    while Screenless.painted == painted:
        await asyncio.sleep(0.001)
    opened_ms = (busy.busy_s - before) * 1e3
    frames = await _stream(app, num_tokens, busy)
    scrolled = await _scroll(app, busy)
    return {"opened_ms": opened_ms, **_percentiles("frame", frames), **_percentiles("page", scrolled)}


async def _stream(app: World, num_tokens: int, busy: Busy) -> list[float]:
    """Milliseconds of work between one picture and the next."""
    app.conversation.append(Turn("new", "assistant", model="qwen3-4b", state="writing"))
    await asyncio.sleep(0.3)
    watch = asyncio.create_task(_watch(busy, num_tokens / TOKENS_PER_S))
    started = time.perf_counter()
    for number, token in enumerate(_tokens(num_tokens), 1):
        app.conversation.stream(token)
        app.conversation.tell(Live("writing", number, 62.4, 0.121))
        if number % (TOKENS_PER_S // KEYS_PER_S) == 0:
            app.post_message(events.Key("a", "a"))
        await asyncio.sleep(max(0.0, started + number / TOKENS_PER_S - time.perf_counter()))
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


async def _scroll(app: World, busy: Busy) -> list[float]:
    """Milliseconds for pages up, through messages that nobody has seen yet."""
    pages = []
    for _ in range(60):
        painted, before = Screenless.painted, busy.busy_s
        app.conversation.action_page(-1)
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
