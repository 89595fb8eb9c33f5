"""A conversation is written down as it goes. What cannot be written is said once; the conversation goes on."""

import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from localllm.cli.answer import Answer
from localllm.cli.conversation import PARAMETERS, Conversation
from localllm.cli.failures import print_warning
from localllm.errors import LocalLLMError
from localllm.history import AnswerStats, Chat, History

if TYPE_CHECKING:
    from localllm.settings import Settings

# parameters of a kept chat have the names of request fields
_NAMES: Mapping[str, str] = {field: name for name, (field, _) in PARAMETERS.items()}


class Keeper:
    """Writes one chat. It is made with the first question; `chat` None and no question yet: nothing is kept."""

    def __init__(self, history: History, chat: Chat | None = None) -> None:
        self._history, self._chat = history, chat
        self._leaf = chat.active_leaf if chat else None
        self._is_broken = False

    def begin_anew(self) -> None:
        """The next question belongs to a new chat."""
        self._chat, self._leaf = None, None

    def asked(self, conversation: Conversation, text: str) -> None:
        self._guarded(lambda: self._write_question(conversation, text))

    def answered(self, conversation: Conversation, answer: Answer) -> None:
        """Also half an answer; none at all takes the question back, so that it can be asked again."""
        self._guarded(lambda: self._write_answer(conversation, answer))

    def _write_question(self, conversation: Conversation, text: str) -> None:
        facts = facts_of(conversation)
        if self._chat is None:
            self._chat = self._history.new_chat(**facts)
        elif any(getattr(self._chat, name) != value for name, value in facts.items()):
            self._history.change_chat(self._chat.id, **facts)
            self._chat = self._history.chat(self._chat.id)
        self._leaf = self._history.add(self._chat.id, self._leaf, "user", text).id

    def _write_answer(self, conversation: Conversation, answer: Answer) -> None:
        if self._chat is None or self._leaf is None:
            return
        if not (answer.text or answer.reasoning or answer.finish_reason):
            self._leaf = self._history.take_back(self._leaf)
            return
        written = self._history.add(
            self._chat.id,
            self._leaf,
            "assistant",
            answer.text,
            reasoning=answer.reasoning,
            model=conversation.model,
            stats=stats_of(answer),
        )
        self._leaf = written.id

    def _guarded(self, write: Callable[[], None]) -> None:
        if self._is_broken:
            return
        try:
            write()
        except LocalLLMError as error:
            self._is_broken = True
            print_warning(f"this conversation is not kept any more: {error.message}")


def facts_of(conversation: Conversation) -> dict[str, Any]:
    parameters = {PARAMETERS[name][0]: value for name, value in conversation.parameters.items()}
    return {"model": conversation.model, "system": conversation.system, "parameters": parameters}


def stats_of(answer: Answer) -> AnswerStats:
    timings, reason = answer.timings, answer.finish_reason or "interrupted"
    if timings is None:
        return AnswerStats(stop_reason=reason)
    return AnswerStats(
        tokens=timings.predicted_n,
        tokens_per_s=timings.predicted_per_second,
        first_token_s=(timings.queue_ms + timings.prompt_ms) / 1000,
        cached_tokens=timings.cache_n,
        prompt_tokens=timings.cache_n + timings.prompt_n,
        stop_reason=reason,
    )


def opened_history(settings: "Settings") -> History:
    """The chats of this home. What opening had to do about a damaged file is said on stderr."""
    history = History(settings.chats_file)
    if history.notice:
        print_warning(history.notice)
    return history


def conversation_of(history: History, chat: Chat) -> Conversation:
    """What was said on the active branch, ready to go on."""
    messages = [{"role": message.role, "content": message.prompt} for message in history.branch(chat.id)]
    parameters = {_NAMES[name]: value for name, value in chat.parameters.items() if name in _NAMES}
    return Conversation(chat.model, chat.system, messages, parameters)


def greet(chat: Chat, num_messages: int) -> None:
    """Says on stderr which chat goes on."""
    from localllm.safe_text import one_line

    count = "1 message" if num_messages == 1 else f"{num_messages:,} messages"
    sys.stderr.write(f"going on with chat {chat.id}, {one_line(chat.title)!r} ({count})\n")
