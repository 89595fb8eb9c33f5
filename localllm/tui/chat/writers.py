"""Answers that are being written, at most one a chat, and how they get into the file while they grow."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from localllm.errors import LocalLLMError
from localllm.history import History, Message
from localllm.tui.chat.answering import Answering
from localllm.tui.chat.session import write_answer

SAVE_EVERY_S = 2.0


@dataclass(slots=True)
class Writing:
    """`text` and `reasoning` are all of the answer so far; of one that goes on, what was there before as long as less
    than that has come back."""

    chat_id: int
    message: Message
    answering: Answering
    text: str = ""
    reasoning: str = ""
    saved_at: float = 0.0
    saving: asyncio.Task[None] | None = None
    failure: LocalLLMError | None = None
    """Of the file, not of the daemon: the answer goes on all the same."""

    @property
    def is_empty(self) -> bool:
        return not (self.text or self.reasoning)


class Writers:
    """`on_end` is called for every answer that is over, after it was written to the file."""

    def __init__(
        self, history: History, on_end: Callable[[Writing], None], clock: Callable[[], float] = time.monotonic
    ):
        self._history, self._on_end, self._clock = history, on_end, clock
        self._by_chat: dict[int, Writing] = {}
        self._heard: dict[int, tuple[str, str]] = {}
        self._ending: dict[int, Writing] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def __bool__(self) -> bool:
        return bool(self._by_chat)

    @property
    def chat_ids(self) -> frozenset[int]:
        return frozenset(self._by_chat)

    def all(self) -> list[Writing]:
        return list(self._by_chat.values())

    def is_ending(self, chat_id: int) -> bool:
        """Whether an answer is over that is not in the file yet."""
        return chat_id in self._ending

    def of(self, chat_id: int) -> Writing | None:
        return self._by_chat.get(chat_id)

    def start(self, chat_id: int, message: Message, answering: Answering) -> Writing:
        writing = Writing(chat_id, message, answering, message.content, message.reasoning, self._clock())
        self._by_chat[chat_id] = writing
        self._heard[chat_id] = ("", "")
        return writing

    def poll(self) -> Iterator[Writing]:
        """Those to which something happened since the last time."""
        for writing in list(self._by_chat.values()):
            is_done = writing.answering.is_done
            news = writing.answering.take()
            if news:
                self._add(writing, news.text, news.reasoning)
            if is_done:
                del self._by_chat[writing.chat_id]
                self._ending[writing.chat_id] = writing
                task = asyncio.get_running_loop().create_task(self._end(writing))
                self._tasks.add(task)  # the loop itself holds tasks but weakly
                task.add_done_callback(self._tasks.discard)
            elif writing.saving is None and self._clock() - writing.saved_at > SAVE_EVERY_S:
                writing.saved_at = self._clock()
                writing.saving = asyncio.get_running_loop().create_task(self._save(writing))
            if news or is_done:
                yield writing

    def stop(self, chat_id: int) -> bool:
        writing = self._by_chat.get(chat_id)
        if writing is None:
            return False
        writing.answering.stop()
        return True

    def close(self) -> None:
        """The application ends: what came is kept, and the daemon need not go on."""
        for writing in self._by_chat.values():
            writing.answering.stop()
            news = writing.answering.take()
            self._add(writing, news.text, news.reasoning)
        for writing in [*self._by_chat.values(), *self._ending.values()]:
            self._write(writing)
        self._by_chat.clear()
        self._ending.clear()

    def _add(self, writing: Writing, text: str, reasoning: str) -> None:
        """What goes on is told again from its beginning: it replaces what was there once it is longer."""
        heard, thought = self._heard[writing.chat_id]
        heard, thought = heard + text, thought + reasoning
        self._heard[writing.chat_id] = (heard, thought)
        if len(heard) >= len(writing.text) or not writing.text.startswith(heard):
            writing.text = heard
        if len(thought) >= len(writing.reasoning) or not writing.reasoning.startswith(thought):
            writing.reasoning = thought

    async def _save(self, writing: Writing) -> None:
        await asyncio.to_thread(self._write, writing)
        writing.saving = None

    async def _end(self, writing: Writing) -> None:
        if writing.saving is not None:  # else an older state could be written last
            await writing.saving
        await asyncio.to_thread(self._write, writing)
        self._ending.pop(writing.chat_id, None)
        self._on_end(writing)

    def _write(self, writing: Writing) -> None:
        """An answer of which nothing came leaves nothing behind."""
        try:
            if writing.is_empty and writing.answering.is_done and _is_vain(writing):
                self._history.take_back(writing.message.id)
            else:
                write_answer(self._history, writing.message, writing.answering, writing.text, writing.reasoning)
        except LocalLLMError as error:
            writing.failure = error


def _is_vain(writing: Writing) -> bool:
    return writing.answering.error is not None or writing.answering.stats().stop_reason == "cancelled"
