"""Conversations in a form that strict templates take: the system speaks first, then user and assistant by turns."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from localllm.daemon.replies import Ask
from localllm.errors import TemplateRefused
from localllm.server.asks import chat_asks
from localllm.server.desk import MakeAsks
from localllm.server.fields import ChatRequest
from localllm.server.notes import Notes
from localllm.settings import Settings
from localllm.store.entry import Entry

if TYPE_CHECKING:
    from localllm.runtime.load import TextSide

Message = Mapping[str, Any]


def calming(notes: Notes) -> MakeAsks:
    """`chat_asks`, and once more with a calmer conversation where the model's template refuses this one: agents put
    in words of the system everywhere. The client is told."""

    def make(wanted: ChatRequest, entry: Entry, text: "TextSide", settings: Settings, vocab_size: int) -> list[Ask]:
        try:
            return chat_asks(wanted, entry, text, settings, vocab_size, notes=notes)
        except TemplateRefused:
            calmer = calmed(wanted.messages)
            if calmer == wanted.messages:
                raise
            calm = msgspec.structs.replace(wanted, messages=calmer)
            asks = chat_asks(calm, entry, text, settings, vocab_size, notes=notes)
            notes.ignored.append("messages.role")
            return asks

    return make


def calmed(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """What the system says later than at the beginning is said by the user; neighbours of one role are one message."""
    calm: list[dict[str, Any]] = []
    for message in messages:
        has_begun = any(each["role"] != "system" for each in calm)
        role = "user" if message["role"] == "system" and has_begun else message["role"]
        last = calm[-1] if calm else {}
        if role == last.get("role") and role in ("system", "user"):
            last["content"] = f"{last['content']}\n\n{message['content']}"
        else:
            calm.append({**message, "role": role})
    return calm
