"""The Chat screen against a scripted daemon: talking, stopping, branching, searching, and what goes wrong."""

import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot

from localllm.client import ChatChunk
from localllm.client.looking import Preview, PreviewSampling, PromptParts
from localllm.client.said import Alternative, SaidToken
from localllm.daemon.feed import Frame, ModelRow
from localllm.daemon.feed import Progress as LoadProgress
from localllm.errors import ContextExceeded, DaemonUnreachable, ModelNotFound, NotEnoughMemory
from localllm.history import AnswerStats, History
from localllm.tui.app import LocalApp
from localllm.tui.chat.screen import ChatScreen
from localllm.tui.chat.sheets import AskSheet, ConfirmSheet, TextSheet
from localllm.tui.inspector.screen import InspectorScreen
from tests.tui.chat_client import ChatClient, Script
from tests.tui.fakes import app_with
from tests.tui.pictures import screen_text


@dataclass
class World:
    """A running application with its chat screen."""

    app: LocalApp
    pilot: Pilot[None]
    client: ChatClient

    @property
    def screen(self) -> ChatScreen:
        found = self.app.screen_stack[0]
        assert isinstance(found, ChatScreen)
        return found

    @property
    def text(self) -> str:
        return screen_text(self.app)

    async def until(self, is_so: Callable[[], bool]) -> None:
        for _ in range(400):
            if is_so():
                return
            await self.pilot.pause(0.02)
        raise AssertionError(f"it did not come to that:\n{self.text}")

    async def sees(self, *texts: str) -> None:
        await self.until(lambda: all(text in self.text for text in texts))

    async def ask(self, text: str) -> None:
        self.screen.composer.write(text)
        await self.pilot.press("enter")

    async def ask_and_wait(self, text: str) -> None:
        """Until the answer is in the file and on the screen."""
        before = len(self.said())
        await self.ask(text)
        await self.until(
            lambda: len(self.said()) >= before + 2 and not self.screen.writing and not self.screen.is_ending
        )

    def said(self) -> list[str]:
        return [message.content for message in self.screen.session.branch]

    def turns(self) -> list[str]:
        return [turn.text for turn in self.screen.conversation.turns]

    async def sheet(self, kind: type[Any]) -> Any:
        await self.until(lambda: isinstance(self.app.screen, kind) and self.app.screen.is_mounted)
        return self.app.screen


@asynccontextmanager
async def talking(
    client: ChatClient, home: Path, size: tuple[int, int] = (120, 40), model: str = "qwen3-4b"
) -> AsyncIterator[World]:
    app = app_with(client, home, default_model=model)
    async with app.run_test(size=size, notifications=True) as pilot:
        world = World(app, pilot, client)
        await world.until(lambda: app.link.state == ("up" if client.is_up else "down"))
        await world.until(lambda: isinstance(app.screen, ChatScreen) and app.screen.is_mounted)
        try:
            yield world
        finally:
            for script in client.seen:
                script.gate.set()


async def test_nobody_types_into_the_search_who_did_not_go_there(tmp_path: Path) -> None:
    async with talking(ChatClient(), tmp_path) as world:
        world.app.screen.set_focus(None)  # as where a page in a browser lost the focus while it was opened
        await world.pilot.press("f1", "escape", "h", "i")
        await world.until(lambda: world.screen.composer.text == "hi")


async def test_who_has_no_model_is_led_to_one(tmp_path: Path) -> None:
    client = ChatClient()
    client.looking.answer = ModelNotFound("smollm2:135m is not here", hint="get it with: localllm pull smollm2:135m")
    client.names = []
    async with talking(client, tmp_path, model="smollm2:135m") as world:
        await world.sees("smollm2:135m is not on this machine yet. Get it first", "1   Get a model    f5 shows those")
        assert "is loaded with the first message" not in world.text
        await world.pilot.press("ctrl+l")
        await world.sees("no model is on this machine yet: f5 shows those to pull")
        await world.pilot.press("escape", "escape", "1")
        await world.until(lambda: world.app.current_mode == "models")
        client.looking.answer = None  # pulled
        await world.pilot.press("f2")
        await world.sees("smollm2:135m is loaded with the first message", "1   Explain a file")


async def test_a_model_that_is_a_file_is_called_by_its_name(tmp_path: Path) -> None:
    async with talking(ChatClient(), tmp_path, model="/somewhere/deep/in/a/home/tiny.gguf") as world:
        await world.sees("tiny.gguf is loaded with the first message", "Message tiny.gguf")
        await world.ask_and_wait("hello")
        assert any(line.rstrip().endswith("  tiny.gguf") for line in world.text.splitlines())


async def test_what_to_do_about_a_failure_is_a_sentence_of_its_own(tmp_path: Path) -> None:
    error = ModelNotFound("x is not here", hint="get it with: localllm pull x")
    async with talking(ChatClient(Script([], error)), tmp_path) as world:
        await world.ask("hello")
        await world.sees("x is not here. Get it with: localllm pull x")


def chat_of(home: Path, *texts: str, **facts: Any) -> int:
    """A kept chat in which these were said in turn, the person first."""
    history = History(home / "chats.db")
    chat = history.new_chat("qwen3-4b", **facts)
    parent = None
    stats = AnswerStats(tokens=3, stop_reason="stop")
    with history.together():
        for place, text in enumerate(texts):
            is_answer = place % 2 == 1
            role = "assistant" if is_answer else "user"
            parent = history.add(chat.id, parent, role, text, stats=stats if is_answer else None).id
    history.close()
    return chat.id


# ---- talking


async def test_a_question_is_answered_and_kept(tmp_path: Path) -> None:
    async with talking(ChatClient(), tmp_path) as world:
        await world.sees("What would you like to ask?", "Message qwen3-4b")
        await world.ask_and_wait("Why is the sky blue?")
        await world.sees("Why is the sky blue?", "Hello there.", "62.4 tok/s", "2,048 of 2,311 cached", "2 messages")
        body = world.client.bodies[0]
        assert body["model"] == "qwen3-4b" and body["messages"] == [{"role": "user", "content": "Why is the sky blue?"}]
        assert body["logprobs"] and body["return_token_ids"]
        assert world.screen.composer.text == ""
        assert "▌ Why is the sky bl" in world.text  # the side bar
    kept = History(tmp_path / "chats.db")
    assert [message.content for message in kept.branch(kept.latest().id)] == ["Why is the sky blue?", "Hello there."]
    kept.close()


async def test_an_answer_is_shown_while_it_is_written(tmp_path: Path) -> None:
    script = Script(["?Let me", "? see", "One ", "two ", "three"], holds_at=3)
    async with talking(ChatClient(script), tmp_path) as world:
        await world.ask("Count")
        await world.sees("One", "▶ writing", "esc stop", "▸ thought")
        assert "three" not in world.text
        assert "esc stop" in world.text.splitlines()[-1] and "ctrl+r again" not in world.text
        script.gate.set()
        await world.sees("One two three", "412 tokens", "ctrl+r again")
        assert "▶ writing" not in world.text
        assert world.screen.session.branch[-1].reasoning == "Let me see"


async def test_escape_stops_an_answer_and_keeps_what_was_said(tmp_path: Path) -> None:
    script = Script(["One ", "two ", "three"], holds_at=2)
    async with talking(ChatClient(script), tmp_path) as world:
        await world.ask("Count")
        await world.sees("One two")
        await world.pilot.press("escape")
        await world.sees("stopped")
        assert world.said() == ["Count", "One two "]
        await world.until(lambda: world.client.cancelled == [world.screen.session.branch[-1].stats.request_id])
        script.gate.set()
        await world.pilot.pause(0.1)
        assert world.turns()[-1] == "One two "


async def test_a_stop_before_the_first_token_leaves_only_the_question(tmp_path: Path) -> None:
    script = Script(holds_at=0)
    async with talking(ChatClient(script), tmp_path) as world:
        await world.ask("Count")
        await world.sees("▶ waiting")
        await world.pilot.press("escape")
        await world.until(lambda: world.said() == ["Count"] and world.turns() == ["Count"])
        await world.pilot.press("ctrl+r")
        await world.until(lambda: world.said() == ["Count", "Hello there."])


async def test_a_stream_that_dies_keeps_its_tokens_and_can_go_on(tmp_path: Path) -> None:
    script = Script(["One ", "two "], error=DaemonUnreachable("it closed the connection"))
    client = ChatClient(script, Script(["One ", "two ", "three"]))
    async with talking(client, tmp_path) as world:
        await world.ask("Count")
        await world.sees("▪ interrupted", "the first 2 tokens are saved", "ctrl+r go on from here")
        assert world.said() == ["Count", "One two "]
        await world.pilot.press("ctrl+r")
        await world.until(lambda: world.said() == ["Count", "One two three"] and not world.screen.is_ending)
        assert client.bodies[1]["continue_final_message"] is True
        await world.sees("One two three", "stop")  # on one line: it is one paragraph
        assert "interrupted" not in world.text


def said_token(token_id: int, text: str, *others: tuple[int, str, float]) -> SaidToken:
    best = tuple(Alternative(each, raw.encode(), logprob) for each, raw, logprob in others)
    return SaidToken(token_id, text.encode(), -0.5, (Alternative(token_id, text.encode(), -0.5), *best), 0.7)


class TokenClient(ChatClient):
    """Says which tokens its answers are made of."""

    def chat(self, body: dict[str, Any]) -> Any:
        self.bodies.append(body)
        given = body.get("continue_token_ids", [])
        if len(self.bodies) == 1:
            yield ChatChunk(content="One ", tokens=(said_token(11, "One ", (99, "Uno ", -1.6)),))
            yield ChatChunk(content="two", tokens=(said_token(12, "two", (98, "dos", -2.0)),))
            raise DaemonUnreachable("it closed the connection")
        start = {(11, 12): "One two", (99,): "Uno ", (11, 98): "One dos"}[tuple(given)]
        yield ChatChunk(content=start + " three", tokens=(said_token(13, " three"),))
        yield ChatChunk(finish_reason="stop")


async def test_a_cut_answer_goes_on_from_its_very_tokens(tmp_path: Path) -> None:
    async with talking(TokenClient(), tmp_path) as world:
        await world.ask("Count")
        await world.sees("▪ interrupted")
        await world.pilot.press("ctrl+r")
        await world.until(lambda: world.said() == ["Count", "One two three"] and not world.screen.is_ending)
        assert world.client.bodies[1]["continue_token_ids"] == [11, 12] and world.client.bodies[1]["echo"] is True
        kept = world.screen.history.tokens(world.screen.leaf or 0)
        assert [token.token_id for token in kept] == [11, 12, 13]
        assert world.turns() == ["Count", "One two three"]


async def test_a_branch_from_another_token_is_a_sibling(tmp_path: Path) -> None:
    async with talking(TokenClient(), tmp_path, (200, 60)) as world:
        await world.ask("Count")
        await world.sees("▪ interrupted")
        await world.pilot.press("ctrl+t")
        await world.until(lambda: isinstance(world.app.screen, InspectorScreen) and world.app.screen.is_mounted)
        await world.pilot.press("home", "down", "enter")
        await world.until(lambda: world.said() == ["Count", "Uno  three"] and not world.screen.is_ending)
        assert world.client.bodies[1]["continue_token_ids"] == [99]
        await world.sees("‹ 2 of 2 ›", "from “Uno ”")


async def test_a_refusal_stands_where_the_answer_would(tmp_path: Path) -> None:
    error = NotEnoughMemory("out of pages: needs 312, 288 are free", hint="stop another model")
    async with talking(ChatClient(Script([], error=error)), tmp_path) as world:
        await world.ask("Hi")
        await world.sees("▪ no answer", "out of pages: needs 312, 288 are free. Stop another model")
        assert world.said() == ["Hi"]
        await world.pilot.press("ctrl+r")
        await world.until(lambda: world.said() == ["Hi", "Hello there."])


async def test_again_is_a_sibling_and_siblings_can_be_browsed(tmp_path: Path) -> None:
    async with talking(ChatClient(Script(["first"]), Script(["second"])), tmp_path) as world:
        await world.ask_and_wait("Hi")
        await world.pilot.press("ctrl+r")
        await world.sees("second", "‹ 2 of 2 ›")
        await world.until(lambda: not world.screen.is_ending and world.screen.writing is None)
        await world.pilot.press("alt+left")
        await world.sees("first", "‹ 1 of 2 ›")
        await world.pilot.press("alt+left")
        assert world.said() == ["Hi", "first"]
        await world.pilot.press("alt+right")
        await world.sees("second")


async def test_an_edit_begins_a_branch(tmp_path: Path) -> None:
    async with talking(ChatClient(Script(["first"]), Script(["second"])), tmp_path) as world:
        await world.ask_and_wait("Hi")
        world.screen.composer.write("half a thought")
        await world.pilot.press("alt+e")
        assert world.screen.composer.text == "Hi"
        await world.sees("a new branch begins here")
        await world.pilot.press("escape")
        assert world.screen.composer.text == "half a thought"
        await world.pilot.press("alt+e")
        world.screen.composer.write("Hi!")
        await world.pilot.press("enter")
        await world.until(lambda: world.said() == ["Hi!", "second"] and not world.screen.is_ending)
        await world.sees("‹ 2 of 2 ›")
        assert world.client.bodies[1]["messages"] == [{"role": "user", "content": "Hi!"}]


async def test_an_answer_can_be_rewritten_in_ones_own_words(tmp_path: Path) -> None:
    async with talking(ChatClient(Script(["wrong"])), tmp_path) as world:
        await world.ask_and_wait("Hi")
        await world.pilot.press("escape", "k", "e")
        assert world.screen.composer.text == "wrong"
        world.screen.composer.write("right")
        await world.pilot.press("enter")
        await world.until(lambda: world.said() == ["Hi", "right"])
        assert len(world.client.bodies) == 1


async def test_two_chats_are_written_at_the_same_time(tmp_path: Path) -> None:
    first, second = Script(["aaa ", "bbb"], holds_at=1), Script(["ccc ", "ddd"], holds_at=1)
    async with talking(ChatClient(first, second), tmp_path) as world:
        await world.ask("One")
        await world.sees("aaa")
        await world.pilot.press("ctrl+n")
        await world.ask("Two")
        await world.sees("ccc")
        assert world.text.count("▶ writing") == 1 and len(world.screen.writers.chat_ids) == 2
        first.gate.set()
        await world.until(lambda: len(world.screen.writers.chat_ids) == 1)
        assert world.turns() == ["Two", "ccc "]
        second.gate.set()
        await world.until(lambda: not world.screen.writers)
        world.screen.open_chat(1)
        await world.sees("aaa bbb")


async def test_keys_that_come_in_one_burst_are_taken_in_their_order(tmp_path: Path) -> None:
    from textual import events

    async with talking(ChatClient(Script(holds_at=0)), tmp_path) as world:
        for key in (*"Hi you", "enter", *"next"):
            world.app.post_message(events.Key(key, None if key == "enter" else key))
        await world.until(lambda: world.said()[:1] == ["Hi you"] and world.screen.composer.text == "next")


async def test_keys_with_alt_are_no_letters(tmp_path: Path) -> None:
    from textual import events

    async with talking(ChatClient(), tmp_path) as world:
        world.app.post_message(events.Key("alt+p", "p"))  # as terminals of the old kind send it
        await world.until(lambda: world.screen.panel.has_focus)
        assert world.screen.composer.text == ""


async def test_nothing_is_sent_twice_at_a_time(tmp_path: Path) -> None:
    script = Script(holds_at=0)
    async with talking(ChatClient(script), tmp_path) as world:
        await world.ask("One")
        await world.sees("▶ waiting")
        await world.ask("Two")
        await world.sees("An answer is being written: esc stops it.")
        assert world.screen.composer.text == "Two" and world.said()[0] == "One"
        await world.ask("   ")
        assert len(world.client.bodies) == 1


async def test_what_the_daemon_does_before_the_first_token_is_said(tmp_path: Path) -> None:
    script = Script(holds_at=0)
    async with talking(ChatClient(script), tmp_path) as world:
        await world.ask("Hi")
        await world.sees("▶ waiting")
        loading = ModelRow(name="qwen3-4b", state="loading", progress=LoadProgress("weights", 61, 100))
        world.client.frames.put(Frame(at=1.0, time=1.0, models=[loading]))
        await world.sees("▶ reading weights 61 %")


# ---- drafts, prompts, files


async def test_the_draft_is_kept_over_a_restart_and_belongs_to_its_chat(tmp_path: Path) -> None:
    chat_id = chat_of(tmp_path, "Hello", "World")
    async with talking(ChatClient(), tmp_path) as world:
        world.screen.composer.write("for a new chat")
        world.screen.open_chat(chat_id)
        assert world.screen.composer.text == ""
        world.screen.composer.write("for the old one")
    async with talking(ChatClient(), tmp_path) as world:
        assert world.screen.composer.text == "for a new chat"
        world.screen.open_chat(chat_id)
        assert world.screen.composer.text == "for the old one"


async def test_what_was_sent_is_no_draft_any_more(tmp_path: Path) -> None:
    async with talking(ChatClient(), tmp_path) as world:
        world.screen.composer.write("Hello")
        world.screen._save_draft()
        assert world.screen.history.draft().text == "Hello"
        await world.ask_and_wait("Hello")
        await world.pilot.press("ctrl+n")
        assert world.screen.composer.text == ""


async def test_the_arrow_up_brings_back_what_was_asked_before(tmp_path: Path) -> None:
    async with talking(ChatClient(), tmp_path) as world:
        await world.ask_and_wait("first")
        await world.ask_and_wait("second")
        world.screen.composer.write("half")
        seen = []
        for key in ("up", "up", "up", "down", "down"):
            await world.pilot.press(key)
            seen.append(world.screen.composer.text)
        assert seen == ["second", "first", "first", "second", "half"]


async def test_control_j_makes_a_line_and_the_field_grows_to_ten_rows(tmp_path: Path) -> None:
    async with talking(ChatClient(), tmp_path) as world:
        assert world.screen.composer.size.height == 2
        await world.pilot.press("a", "ctrl+j", "b", "ctrl+j", "c", "ctrl+j", "d")
        assert world.screen.composer.text == "a\nb\nc\nd"
        await world.until(lambda: world.screen.composer.size.height == 4)
        world.screen.composer.write("x\n" * 40)
        await world.until(lambda: world.screen.composer.size.height == 10)
        await world.pilot.press("up", "up")
        assert world.screen.composer.text == "x\n" * 40


async def test_a_large_paste_becomes_a_file_and_a_small_one_is_cleaned(tmp_path: Path) -> None:
    from textual import events

    async with talking(ChatClient(), tmp_path) as world:
        world.screen.composer.post_message(events.Paste("word " * 60_000))
        await world.until(lambda: len(world.screen.files) == 1)
        assert world.screen.composer.text == ""
        await world.sees("pasted-")
        world.screen.composer.post_message(events.Paste("a\x1b[31mb\r\nc"))
        await world.until(lambda: world.screen.composer.text == "ab\nc")
        await world.pilot.press("enter")
        await world.until(lambda: len(world.client.bodies) == 1)
        assert world.client.bodies[0]["messages"][0]["content"].endswith("```\n\nab\nc")


async def test_a_text_file_goes_with_the_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "loop.py").write_text("while True: pass\n")
    monkeypatch.chdir(tmp_path)
    async with talking(ChatClient(), tmp_path) as world:
        await world.pilot.press("alt+a")
        sheet = await world.sheet(AskSheet)
        await world.sees("Attach a text file", "folder/")
        await world.pilot.press("f", "tab")
        await world.sees("folder/loop.py")
        await world.pilot.press("down", "enter")
        await world.until(lambda: world.app.screen is not sheet)
        await world.sees("loop.py", "3 tokens")
        await world.ask("What does it do?")
        await world.until(lambda: bool(world.client.bodies))
        content = world.client.bodies[0]["messages"][0]["content"]
        assert content == "loop.py:\n```\nwhile True: pass\n\n```\n\nWhat does it do?"
        await world.until(lambda: world.screen.session.branch[0].attachments[0].name == "loop.py")
        assert world.screen.files == ()


async def test_a_file_that_is_no_text_is_refused_in_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.bin").write_bytes(b"\x00\x01")
    monkeypatch.chdir(tmp_path)
    async with talking(ChatClient(), tmp_path) as world:
        await world.pilot.press("alt+a")
        sheet = await world.sheet(AskSheet)
        for typed, sentence in (("x.bin", "x.bin is no text file"), ("nothing", "there is no file nothing")):
            sheet._put(typed)
            await world.pilot.press("enter")
            await world.sees(sentence)
        await world.pilot.press("escape")
        assert world.screen.files == ()


# ---- the context bar


async def test_the_bar_says_what_a_message_would_cost(tmp_path: Path) -> None:
    async with talking(ChatClient(), tmp_path) as world:
        await world.ask_and_wait("one two three")
        world.screen.composer.write("four five")
        await world.sees("5 cached", "2 to compute", "≈ 0.7 s", "1,031 of 32,768")
        assert world.client.looking.bodies[-1]["draft"] == "four five"


async def test_typing_does_not_ask_for_every_key(tmp_path: Path) -> None:
    async with talking(ChatClient(), tmp_path) as world:
        await world.until(lambda: len(world.client.looking.bodies) == 1)
        await world.pilot.press(*"thirty keys and then some more")
        await world.until(lambda: any("draft" in body for body in world.client.looking.bodies))
        assert len(world.client.looking.bodies) < 6


async def test_too_much_is_said_before_it_is_sent(tmp_path: Path) -> None:
    chat_id = chat_of(tmp_path, "a " * 400, "b " * 400, "c", "d")
    client = ChatClient()
    client.looking.answer = ContextExceeded(1000, 900)
    async with talking(client, tmp_path) as world:
        world.screen.open_chat(chat_id)
        await world.sees("1 message will not fit: alt+o shows which")
        await world.pilot.press("alt+o")
        assert world.screen.focused is world.screen.conversation and world.screen.conversation.cursor == 1


async def test_a_preview_that_fails_is_a_sentence(tmp_path: Path) -> None:
    client = ChatClient()
    client.looking.answer = NotEnoughMemory("no model of this name")
    async with talking(client, tmp_path) as world:
        await world.sees("no model of this name")
        client.looking.answer = Preview(parts=PromptParts(5, 0, 1, 0), prompt_tokens=6, cached_tokens=5)
        world.screen.composer.write("x")
        await world.sees("5 cached", "6 tokens")


async def test_the_models_own_sampling_is_shown_until_it_is_changed(tmp_path: Path) -> None:
    client = ChatClient()
    client.looking.answer = Preview(sampling=PreviewSampling(0.6, 20, 0.95, 0.0), context_length=1000, max_tokens=100)
    async with talking(client, tmp_path, (200, 60)) as world:
        await world.sees("0.60", "0.95", "reply ≤ 100", "of 1,000")
        await world.pilot.press("alt+p")
        await world.until(lambda: world.screen.panel.has_focus)
        await world.pilot.press("down", "right")
        assert world.screen.session.parameters == {"temperature": 0.65}


# ---- the daemon goes


async def test_without_a_daemon_everything_stored_can_be_used(tmp_path: Path) -> None:
    chat_id = chat_of(tmp_path, "Hello", "World")
    async with talking(ChatClient(), tmp_path) as world:
        world.screen.open_chat(chat_id)
        world.screen.composer.write("a draft")
        await world.sees("World")
        world.client.go()
        await world.sees("no daemon", "The draft is saved. It can be sent when the daemon is back.", "f7 try now")
        await world.pilot.press("enter")
        assert world.screen.composer.text == "a draft" and world.said() == ["Hello", "World"]
        await world.pilot.press("ctrl+n")
        await world.sees("qwen3-4b answers when the daemon is there.")
        world.client.come_back()
        await world.pilot.press("f7")
        await world.until(lambda: world.app.link.state == "up")
        world.screen.open_chat(chat_id)
        assert world.screen.composer.text == "a draft"
        await world.pilot.press("enter")
        await world.until(lambda: world.said()[-1] == "Hello there.")


async def test_leaving_in_the_middle_of_an_answer_loses_nothing(tmp_path: Path) -> None:
    script = Script(["One ", "two"], holds_at=1)
    async with talking(ChatClient(script), tmp_path) as world:
        await world.ask("Count")
        await world.sees("One")
        world.client.seen.clear()  # it never comes to its end
    async with talking(ChatClient(), tmp_path) as world:
        world.screen.open_chat(1)
        assert world.said() == ["Count", "One "]


# ---- chats


async def test_chats_are_listed_by_day_opened_renamed_and_removed(tmp_path: Path) -> None:
    now = time.time()
    for title, age_days in (("Old one", 60), ("Some days ago", 5), ("Just now", 0)):
        history = History(tmp_path / "chats.db", lambda age_days=age_days: now - age_days * 86400)  # type: ignore[misc]
        chat = history.new_chat("qwen3-4b")
        history.add(chat.id, None, "user", title)
        history.close()
    async with talking(ChatClient(), tmp_path) as world:
        await world.sees("search 3 chats", "Today", "This month", "Earlier", "Old one")
        await world.pilot.press("ctrl+o", "down", "enter")
        await world.until(lambda: world.screen.session.title == "Some days ago")
        assert world.screen.focused is world.screen.composer
        await world.pilot.press("ctrl+o", "f")
        sheet = await world.sheet(AskSheet)
        sheet._put("Another name")
        await world.pilot.press("enter")
        await world.until(lambda: world.screen.session.title == "Another name")
        await world.until(lambda: world.app.screen is world.screen)
        world.screen.side.chats.focus()
        await world.pilot.press("x")
        await world.sheet(ConfirmSheet)
        await world.sees("“Another name” and its 1 message will be gone for good.")
        await world.pilot.press("escape")
        await world.until(lambda: world.app.screen is world.screen)
        assert world.screen.history.num_chats() == 3
        await world.pilot.press("x")
        await world.sheet(ConfirmSheet)
        await world.pilot.press("x")
        await world.until(lambda: world.screen.history.num_chats() == 2)
        await world.sees("New chat", "search 2 chats")


async def test_a_chat_can_be_removed_while_its_answer_is_written(tmp_path: Path) -> None:
    script = Script(["One ", "two"], holds_at=1)
    async with talking(ChatClient(script), tmp_path) as world:
        await world.ask("Count")
        await world.sees("One")
        world.screen._remove(1)
        await world.until(lambda: not world.screen.writers and not world.screen.is_ending)
        await world.sees("What would you like to ask?", "no chats yet")
        assert "there is no" not in world.text
        await world.ask_and_wait("Hi")


async def test_everything_that_was_said_can_be_searched(tmp_path: Path) -> None:
    chat_of(tmp_path, "Sourdough", "Feed the starter twice.")
    chat_of(tmp_path, "Trains", "They run on time.")
    async with talking(ChatClient(), tmp_path) as world:
        await world.pilot.press("alt+f", *"starter")
        await world.sees("1 chat found")
        assert [entry.title for entry in world.screen.side.chats.entries[1:]] == ["Sourdough"]
        await world.pilot.press("down", "enter")
        await world.until(lambda: world.said() == ["Sourdough", "Feed the starter twice."])
        assert world.screen.conversation.cursor == 1
        world.screen.side.search.value = '"*('
        await world.sees("nothing found")
        world.screen.side.search.value = ""
        await world.sees("search 2 chats", "Trains")


async def test_in_a_small_window_the_chats_come_over_the_conversation(tmp_path: Path) -> None:
    chat_of(tmp_path, "Hello", "World")
    async with talking(ChatClient(), tmp_path, (80, 24)) as world:
        assert not world.screen.side.display
        await world.pilot.press("ctrl+o")
        await world.sees("search 1 chat", "Today")
        await world.pilot.press("escape")
        await world.until(lambda: not world.screen.side.display)
        await world.pilot.press("ctrl+o", "enter")
        await world.sees("World")
        assert not world.screen.side.display


async def test_a_chat_of_ten_thousand_messages_opens_at_its_end(tmp_path: Path) -> None:
    chat_id = chat_of(tmp_path, *(f"message {place} with some more words in it" for place in range(10_000)))
    async with talking(ChatClient(), tmp_path) as world:
        for _ in range(3):
            world.screen.open_chat(0)
            world.screen.open_chat(chat_id)
            await world.sees("message 9999")


# ---- what can be set


async def test_parameters_are_set_with_keys_and_sent(tmp_path: Path) -> None:
    async with talking(ChatClient(), tmp_path) as world:
        await world.pilot.press("alt+p")
        await world.sees("Parameters", "temperature", "default")
        await world.until(lambda: world.screen.sampling is not None)
        await world.pilot.press("down", "right", "right")
        assert world.screen.session.parameters == {"temperature": 1.1}
        await world.sees("1.10", "own ▾")
        await world.pilot.press("end", "up")
        world.screen.panel.move_to(
            next(i for i, row in enumerate(world.screen.panel._rows) if row.parameter and row.parameter.field == "seed")
        )
        await world.pilot.press("enter")
        sheet = await world.sheet(AskSheet)
        sheet._put("many")
        await world.pilot.press("enter")
        await world.sees("seed is a number, not 'many'")
        sheet._put("7")
        await world.pilot.press("enter")
        await world.until(lambda: world.screen.session.parameters == {"temperature": 1.1, "seed": 7})
        await world.pilot.press("backspace")
        assert world.screen.session.parameters == {"temperature": 1.1}
        await world.pilot.press("s")
        sheet = await world.sheet(AskSheet)
        sheet._put("mine")
        await world.pilot.press("enter")
        await world.sees("mine ▾")
        await world.pilot.press("home", "right")
        assert world.screen.session.preset != "mine"
        await world.pilot.press("left")
        await world.sees("mine ▾")
        await world.pilot.press("escape")
        await world.ask_and_wait("Hi")
        assert world.client.bodies[0]["temperature"] == 1.1
        assert world.screen.history.latest().parameters == {"temperature": 1.1}


async def test_thinking_is_a_switch(tmp_path: Path) -> None:
    async with talking(ChatClient(), tmp_path, (200, 60)) as world:
        await world.pilot.press("alt+p")
        panel = world.screen.panel
        await world.until(lambda: panel.has_focus)
        panel.move_to(
            next(i for i, row in enumerate(panel._rows) if row.parameter and row.parameter.label == "thinking")
        )
        await world.pilot.press("enter")
        assert world.screen.session.parameters == {"reasoning_effort": "none"}
        await world.pilot.press("right")
        assert world.screen.session.parameters == {}


async def test_the_system_prompt_is_written_in_a_sheet(tmp_path: Path) -> None:
    async with talking(ChatClient(), tmp_path, (200, 60)) as world:
        await world.pilot.press("alt+s")
        await world.sheet(TextSheet)
        await world.pilot.press(*"Be brief")
        await world.pilot.press("escape")
        await world.until(lambda: world.screen.session.system == "Be brief")
        await world.sees("System prompt", "Be brief")
        await world.ask_and_wait("Hi")
        assert world.client.bodies[0]["messages"][0] == {"role": "system", "content": "Be brief"}
        assert world.screen.history.latest().system == "Be brief"


async def test_another_model_is_chosen_by_typing_a_part_of_its_name(tmp_path: Path) -> None:
    async with talking(ChatClient(), tmp_path) as world:
        await world.pilot.press("ctrl+l")
        await world.sheet(AskSheet)
        await world.sees("qwen3-4b", "smollm2:135m")
        await world.pilot.press(*"smol", "enter")
        await world.sees("Message smollm2:135m")
        await world.ask_and_wait("Hi")
        assert world.client.bodies[0]["model"] == "smollm2:135m"


async def test_branches_are_listed_and_gone_to(tmp_path: Path) -> None:
    async with talking(ChatClient(Script(["first"]), Script(["second"])), tmp_path, (200, 60)) as world:
        await world.ask_and_wait("Hi")
        await world.pilot.press("ctrl+r")
        await world.sees("● 2  second", "○ 1  first")
        await world.until(lambda: not world.screen.is_ending and world.screen.writing is None)
        panel = world.screen.panel
        panel.focus()
        panel.move_to(next(i for i, row in enumerate(panel._rows) if row.what == "branch" and row.message_id == 2))
        await world.pilot.press("enter")
        await world.sees("● 1  first", "○ 2  second")
        assert world.said() == ["Hi", "first"]


# ---- leaving with something


async def test_a_chat_is_exported_to_a_new_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chat_id = chat_of(tmp_path, "Hello", "World")
    monkeypatch.chdir(tmp_path)
    async with talking(ChatClient(), tmp_path) as world:
        await world.pilot.press("alt+x")
        await world.sees("there is nothing to export yet")
        world.screen.open_chat(chat_id)
        await world.pilot.press("alt+x")
        await world.sheet(AskSheet)
        await world.sees("hello.md", "hello.json", "hello.html")
        await world.pilot.press("down", "enter")
        await world.until(lambda: (tmp_path / "hello.md").exists())
        await world.sees("wrote hello.md")
        assert "World" in (tmp_path / "hello.md").read_text()
        await world.pilot.press("alt+x")
        sheet = await world.sheet(AskSheet)
        for typed, sentence in (("hello.md", "is there already"), ("hello.pdf", "must end in .md, .json or .html")):
            sheet._put(typed)
            await world.pilot.press("enter")
            await world.sees(sentence)
        sheet._put("out.json")
        await world.pilot.press("enter")
        await world.until(lambda: (tmp_path / "out.json").exists() and (tmp_path / "out.json").read_text() != "")
        assert json.loads((tmp_path / "out.json").read_text())["messages"][1]["content"] == "World"


async def test_code_is_copied_with_one_key(tmp_path: Path) -> None:
    chat_id = chat_of(tmp_path, "Code", "Here:\n\n```python\nprint(1)\nprint(2)\n```\n")
    async with talking(ChatClient(), tmp_path) as world:
        world.screen.open_chat(chat_id)
        await world.sees("alt+1 copy")
        await world.pilot.press("alt+1")
        assert world.app.clipboard == "print(1)\nprint(2)"
        await world.sees("copied 2 lines")


# ---- rare states


async def test_chats_that_cannot_be_kept_are_no_reason_not_to_talk(tmp_path: Path) -> None:
    (tmp_path / "chats.db").mkdir()
    async with talking(ChatClient(), tmp_path) as world:
        await world.sees("Chats are not kept")
        await world.ask_and_wait("Hi")
        await world.sees("Hello there.")


async def test_a_full_disk_is_said_and_the_answer_stays_on_the_screen(tmp_path: Path) -> None:
    script = Script(["word "] * 4000)
    async with talking(ChatClient(Script(["ok"]), script), tmp_path) as world:
        await world.ask_and_wait("Hi")
        database = world.screen.history._database
        pages = database.rows("PRAGMA page_count")[0][0]
        database.rows(f"PRAGMA max_page_count = {pages + 1}")
        await world.ask("More")
        await world.sees("the disk is full")


@pytest.mark.parametrize("size", [(80, 24), (120, 40), (200, 60), (60, 16), (300, 80)])
async def test_nothing_others_wrote_reaches_the_terminal_as_more_than_text(
    tmp_path: Path, size: tuple[int, int]
) -> None:
    evil = "\x1b]0;owned\x07\x1b[2J[bold red]x[/] \u202eabc\u200b <b> \x9b31m"
    history = History(tmp_path / "chats.db")
    chat = history.new_chat(evil, title=evil, system=evil, parameters={"stop": [evil]})
    question = history.add(chat.id, None, "user", evil)
    history.add(chat.id, question.id, "assistant", "x", origin=f"from {evil}")
    history.add(chat.id, question.id, "assistant", evil, reasoning=evil, model=evil)
    history.close()
    async with talking(ChatClient(), tmp_path, size, model=evil) as world:
        world.screen.open_chat(chat.id)
        await world.pilot.press("alt+p")
        await world.pilot.pause(0.05)
        world.screen.composer.write(evil)
        await world.pilot.pause(0.05)
        assert not any(sign in world.text for sign in ("\x1b", "\x9b", "\u202e", "\x07"))


async def test_keys_are_taken_while_an_answer_streams(tmp_path: Path) -> None:
    script = Script(["some words "] * 400 + ["\n\n"], holds_at=None)
    async with talking(ChatClient(script), tmp_path) as world:
        await world.ask("Go")
        await world.pilot.press(*"typing")
        assert world.screen.composer.text == "typing"
        await world.until(lambda: world.screen.writing is None)
