"""A chat as one JSON document, with all branches, and back. Ids are places in the document: they mean nothing else."""

from typing import Any

import msgspec

from localllm.errors import UsageError
from localllm.history.chats import History
from localllm.history.records import AnswerStats, Attachment, Chat, SampledToken

FORMAT = "localllm-chat/1"


class Turn(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A message; `parent` is the place of the one before it, counted from 0."""

    parent: int | None
    role: str
    content: str
    created: float
    reasoning: str = ""
    model: str = ""
    attachments: tuple[Attachment, ...] = ()
    stats: AnswerStats | None = None
    origin: str = ""
    tokens: list[SampledToken] = []


class ChatDocument(msgspec.Struct, frozen=True, kw_only=True):
    """All of a chat. `active` is the place of the last message of the branch that is shown."""

    format: str = FORMAT
    title: str
    created: float
    model: str = ""
    system: str = ""
    parameters: dict[str, Any] = {}
    preset: str = ""
    active: int | None = None
    messages: list[Turn]


def document_of(history: History, chat_id: int) -> ChatDocument:
    chat, branch = history.chat(chat_id), history.branch(chat_id)
    ids = branch.tree.ids()
    places = {message_id: place for place, message_id in enumerate(ids)}
    turns = []
    for message_id in ids:
        message, parent = branch.message(message_id), branch.tree.parent(message_id)
        turns.append(
            Turn(
                parent=None if parent is None else places[parent],
                role=message.role,
                content=message.content,
                created=message.created,
                reasoning=message.reasoning,
                model=message.model,
                attachments=message.attachments,
                stats=message.stats,
                origin=message.origin,
                tokens=history.tokens(message_id),
            )
        )
    active = None if branch.leaf is None else places[branch.leaf]
    facts = {name: getattr(chat, name) for name in ("title", "created", "model", "system", "parameters", "preset")}
    return ChatDocument(**facts, active=active, messages=turns)


def to_json(document: ChatDocument) -> str:
    return msgspec.json.format(msgspec.json.encode(document), indent=2).decode() + "\n"


def from_json(text: str | bytes) -> ChatDocument:
    """UsageError for what is no chat of ours, with the place where it went wrong."""
    try:
        document = msgspec.json.decode(text, type=ChatDocument)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"this is no exported chat: {error}", hint="export one: localllm chats export") from None
    if document.format != FORMAT:
        raise UsageError(f"a chat of the form {document.format!r} is not understood", hint="update localllm")
    for place, turn in enumerate(document.messages):
        if turn.parent is not None and not 0 <= turn.parent < place:
            raise UsageError(f"message {place} of the exported chat stands before the one that it answers")
    if document.active is not None and not 0 <= document.active < len(document.messages):
        raise UsageError(f"the exported chat has no message {document.active}")
    return document


def keep(history: History, document: ChatDocument) -> Chat:
    """A new chat that holds all of the document, in one transaction."""
    with history.together():
        chat = history.new_chat(
            document.model,
            title=document.title,
            system=document.system,
            parameters=document.parameters,
            preset=document.preset,
            created=document.created,
        )
        ids: list[int] = []
        for turn in document.messages:
            fields = {name: getattr(turn, name) for name in Turn.__struct_fields__ if name != "parent"}
            parent_id = None if turn.parent is None else ids[turn.parent]
            ids.append(history.add(chat.id, parent_id, fields.pop("role"), fields.pop("content"), **fields).id)
        if document.active is not None:
            history.change_chat(chat.id, active_leaf=ids[document.active])
    return history.chat(chat.id)
