"""The Chat screen as text at its sizes, in its ordinary states and its rare ones."""

import time
from pathlib import Path

import pytest

from localllm.client.looking import Preview, PromptParts
from localllm.daemon.feed import Frame, ModelRow
from localllm.errors import DaemonUnreachable
from localllm.history import AnswerStats, Attachment, History
from localllm.tui.chat.answering import Answering
from localllm.tui.chat.screen import ChatScreen
from localllm.tui.conversation.widget import Conversation
from tests.tui.chat_client import ChatClient, Script
from tests.tui.snapshots import held_against
from tests.tui.test_chat_screen import World, talking

NOW = 1_761_487_320.0  # 26 October 2025, 14:02 in UTC
HOUR, DAY = 3600.0, 86400.0
OTHERS = (
    ("What is a KV page?", 50 * DAY), ("Bash arrays", 25.5 * DAY + 6 * DAY), ("Haiku generator", 31 * DAY),
    ("Why is prefill fast?", 21 * DAY), ("Cover letter, second try", 17 * DAY), ("Tokenizers and emoji", 13 * DAY),
    ("Trip to Lisbon", 12 * DAY), ("SQL window functions", 9 * DAY), ("Sourdough timetable", 6 * DAY),
    ("Spanish: ser and estar", 25 * HOUR), ("Release notes 0.4", 24.5 * HOUR),
    ("Compare q4 and q8 on maths", 24 * HOUR), ("Regex for ISO dates", 7 * HOUR), ("Paged attention notes", 5 * HOUR),
    ("Rust ownership, in pictures", 2 * HOUR),
)  # fmt: skip
SYSTEM = (
    "You are a patient systems engineer. Answer with the cause first, then one change, then what to measure. "
    "Prefer short code to long prose."
)
ANSWER = """Your loop gives a **whole prompt** to one step, so seven streams wait for 8,192 tokens. Split the prompt, \
and let every step carry all decodes first:

```python
def plan(self, budget=512):
    step = [r for r in self.running if r.decoding]
    budget -= len(step)
    for r in self.waiting:
        n = min(r.left, budget)        # a chunk, not the prompt
        if n and self.pages.reserve(r, n):
            step.append(r.chunk(n)); budget -= n
    return step
```
"""
PIECES = [
    "A little. It now shares every step with the decodes, so its own first token comes about **9 % later**, while the "
    "gap between tokens stays near 16 ms for everyone",
    *[" "] * 47,
]
CAREFUL = {
    "temperature": 0.6, "top_p": 0.95, "top_k": 20, "min_p": 0.05, "repetition_penalty": 1.05, "max_tokens": 1024,
}  # fmt: skip


@pytest.fixture(autouse=True)
def _still_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    monkeypatch.setattr(ChatScreen, "clock", staticmethod(lambda: NOW))
    monkeypatch.setattr(Answering, "first_token_s", property(lambda each: 0.121 if each.num_tokens else None))
    monkeypatch.setattr(Answering, "tokens_per_s", property(lambda each: 62.4))


def written(home: Path) -> int:
    """Chats of some weeks; the last one is about a scheduler."""
    history = History(home / "chats.db", lambda: NOW - 60)
    for title, age_s in OTHERS:
        chat = history.new_chat("qwen3-4b", created=NOW - age_s)
        history.add(chat.id, None, "user", title, created=NOW - age_s)
    history.save_preset("careful", CAREFUL)
    chat = history.new_chat(
        "qwen3-4b", title="Why does the batch stall?", system=SYSTEM, parameters=CAREFUL, preset="careful"
    )
    text = "Why does one long prompt stall everyone else? My scheduler is attached."
    question = history.add(chat.id, None, "user", text, attachments=(Attachment("scheduler.py", "x", 2104),))
    history.add(chat.id, question.id, "assistant", "The scheduler admits everything at once.", model="qwen3-4b")
    stats = AnswerStats(
        tokens=412, tokens_per_s=62.4, first_token_s=0.184, cached_tokens=2048, prompt_tokens=2311, thought_tokens=214,
        thought_s=3.4, stop_reason="stop",
    )  # fmt: skip
    answer = history.add(chat.id, question.id, "assistant", ANSWER, reasoning="Hm.", model="qwen3-4b", stats=stats)
    history.add(chat.id, question.id, "assistant", "Chunks.", model="qwen3-4b", origin="from “ chunks” (p 0.21)")
    history.add(chat.id, answer.id, "user", "And what does it cost the long prompt itself?")
    history.close()
    return chat.id


def client_of(script: Script) -> ChatClient:
    client = ChatClient(script)
    client.looking.answer = Preview(
        model="qwen3-4b", state="ready", parts=PromptParts(86, 2723, 2135, 0), prompt_tokens=4944, cached_tokens=2809,
        compute_tokens=2135, compute_s=0.7, context_length=32768, max_tokens=1024,
    )  # fmt: skip
    return client


async def asked(world: World, chat_id: int) -> None:
    """The last question is being answered, and the next one is typed."""
    row = ModelRow(name="qwen3-4b", state="ready", pages_total=100, pages_used=55, tokens_per_s=412.0, running=2)
    world.client.frames.put(Frame(at=1.0, time=NOW, models=[row]))
    await world.sees("412")
    world.screen.composer.cursor_blink = False
    world.screen.open_chat(chat_id)
    world.screen.again()
    await world.sees("48 tokens")
    world.screen.composer.write("Show me the same loop with a fairness weight for each caller")
    await world.sees("2,809 cached", "62.4 tok/s", "everyone▍", "esc stop")
    world.app.clear_notifications()
    await all_seen(world)
    await settled(world)


async def all_seen(world: World) -> None:
    """The heights of messages that were never in view are guesses, and the scrollbar shows them."""
    conversation = world.app.screen.query_one(Conversation)
    for index in range(len(conversation.turns)):
        conversation.go_to(index)
        await world.pilot.pause(0.05)
    conversation.action_last()


async def settled(world: World) -> None:
    """Nothing moves any more."""
    before, same = "", 0
    while same < 4:
        await world.pilot.pause(0.1)
        now = world.text
        before, same = now, same + 1 if now == before else 0


@pytest.mark.parametrize("size", [(80, 24), (120, 40), (200, 60)])
async def test_an_answer_that_is_written(
    tmp_path: Path, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("localllm.tui.chat.answering.uuid.uuid4", lambda: type("Id", (), {"hex": "4121" * 8})())
    chat_id = written(tmp_path)
    async with talking(client_of(Script(PIECES, holds_at=48)), tmp_path, size) as world:
        await asked(world, chat_id)
        held_against(world.app, f"chat-{size[0]}x{size[1]}")


async def test_a_new_chat(tmp_path: Path) -> None:
    written(tmp_path)
    async with talking(client_of(Script()), tmp_path) as world:
        world.screen.composer.cursor_blink = False
        await world.sees("0 to compute")
        await settled(world)
        held_against(world.app, "chat-empty-120x40")


async def test_a_daemon_that_went_away(tmp_path: Path) -> None:
    chat_id = written(tmp_path)
    script = Script(PIECES, holds_at=48, error=DaemonUnreachable("gone"))
    async with talking(client_of(script), tmp_path) as world:
        await asked(world, chat_id)
        world.client.go()
        script.gate.set()
        await world.sees("interrupted", "The draft is saved", "f7 try now")
        rows = world.text.splitlines()
        assert "the first 48 tokens are saved" in world.text and rows[2].lstrip().startswith("▲ The daemon at")


@pytest.mark.parametrize("size", [(80, 24), (120, 40)])
async def test_the_panel_over_the_conversation(tmp_path: Path, size: tuple[int, int]) -> None:
    chat_id = written(tmp_path)
    async with talking(client_of(Script()), tmp_path, size) as world:
        world.screen.composer.cursor_blink = False
        world.screen.open_chat(chat_id)
        await world.sees("2,809 cached")
        await world.pilot.press("alt+p")
        await world.sees("System prompt", "Branches", "86 tokens")
        await settled(world)
        held_against(world.app, f"chat-panel-{size[0]}x{size[1]}")
