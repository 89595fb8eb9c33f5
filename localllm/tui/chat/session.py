"""The chat that is open: what it holds, what is asked next, and how answers get into the file. No widgets, no HTTP."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from localllm.errors import ChatsUnusable
from localllm.history import AnswerStats, Attachment, Branch, Chat, History, Message, Preset, SampledToken, Tree
from localllm.tui.chat.answering import Answering
from localllm.tui.chat.parameters import BUILT_IN, preset_name
from localllm.tui.chat.turns import BranchTurns
from localllm.tui.inspector.inspected import InspectedToken

FILE_NAME = "chats.db"
TOP_LOGPROBS = 10
"""Alternatives that are kept for the token inspector."""
WANTS_TOKENS = {"logprobs": True, "top_logprobs": TOP_LOGPROBS, "return_token_ids": True}


def opened_history(home: Path) -> tuple[History, str]:
    """The chats of a home, and a sentence where something is wrong with them. Where they cannot be used, chats are kept
    only until the application ends."""
    try:
        history = History(home / FILE_NAME)
    except ChatsUnusable as error:
        passing = Path(tempfile.mkdtemp(prefix="localllm-")) / FILE_NAME
        return History(passing), f"Chats are not kept: {error.message}."
    return history, history.notice


BodyMaker = Callable[[], dict[str, Any]]
"""Makes the body of a request; for any thread."""


class ChatSession:
    """One chat at a time. A new one is written with its first message. Errors are those of History."""

    def __init__(self, history: History, model: str) -> None:
        self.history = history
        self.chat: Chat | None = None
        self.model, self.system, self.preset = model, "", BUILT_IN[0].name
        self.parameters: dict[str, Any] = {}
        self.branch = nothing()

    # ---- which chat

    @property
    def chat_id(self) -> int:
        """0 for one that has no message yet."""
        return self.chat.id if self.chat else 0

    @property
    def title(self) -> str:
        return self.chat.title if self.chat and self.chat.title else "New chat"

    @property
    def turns(self) -> BranchTurns:
        return BranchTurns(self.branch, self.model)

    def open(self, chat_id: int) -> None:
        self.chat = self.history.chat(chat_id)
        self.branch = self.history.branch(chat_id)
        self.model = self.chat.model or self.model
        self.system, self.parameters = self.chat.system, dict(self.chat.parameters)
        self.preset = preset_name(self.parameters, self.presets())

    def begin_anew(self) -> None:
        """Model, system prompt and parameters stay as they are."""
        self.chat, self.branch = None, nothing()

    def reload(self) -> None:
        """After something was written."""
        if self.chat is not None:
            self.chat = self.history.chat(self.chat.id)
            self.branch = self.history.branch(self.chat.id)

    def presets(self) -> list[Preset]:
        """Those that everybody has, then one's own."""
        own = self.history.presets()
        names = {preset.name for preset in own}
        return [preset for preset in BUILT_IN if preset.name not in names] + own

    def set(
        self, *, model: str | None = None, system: str | None = None, parameters: dict[str, Any] | None = None
    ) -> None:
        """What holds from the next answer on."""
        self.model = self.model if model is None else model
        self.system = self.system if system is None else system
        self.parameters = self.parameters if parameters is None else parameters
        self.preset = preset_name(self.parameters, self.presets())
        if self.chat is not None:
            facts = {"model": self.model, "system": self.system, "parameters": self.parameters, "preset": self.preset}
            self.history.change_chat(self.chat.id, **facts)
            self.chat = self.history.chat(self.chat.id)

    # ---- what is said

    def say(self, text: str, attachments: Iterable[Attachment] = (), *, parent_id: int | None = None) -> Message:
        """A message of the person below `parent_id`; the first one makes the chat."""
        with self.history.together():
            if self.chat is None:
                self.chat = self.history.new_chat(
                    self.model, system=self.system, parameters=self.parameters, preset=self.preset
                )
            message = self.history.add(self.chat.id, parent_id, "user", text, attachments=tuple(attachments))
            if text.strip():
                self.history.remember_prompt(text)
        self.reload()
        return message

    def begin_answer(self, parent_id: int | None, origin: str = "") -> Message:
        """An empty one, that is filled while it comes."""
        assert self.chat is not None
        message = self.history.add(self.chat.id, parent_id, "assistant", "", model=self.model, origin=origin)
        self.reload()
        return message

    def rewrite(self, message: Message, text: str) -> Message:
        """Another version of an answer, beside it, in the person's own words."""
        assert self.chat is not None
        made = self.history.add(
            self.chat.id,
            message.parent_id,
            message.role,
            text,
            model=message.model,
            origin="edited",
            stats=AnswerStats(stop_reason="edited") if message.role == "assistant" else None,
        )
        self.reload()
        return made

    def show_sibling(self, message_id: int, step: int) -> bool:
        """The branch written last through the sibling `step` places further; False when there is none."""
        sibling = self.branch.tree.sibling(message_id, step)
        return sibling is not None and self.show_branch(sibling)

    def show_branch(self, message_id: int) -> bool:
        """The branch written last that goes through a message."""
        assert self.chat is not None
        leaf = self.branch.tree.latest_leaf(message_id)
        self.history.change_chat(self.chat.id, active_leaf=leaf)
        self.reload()
        return True

    # ---- what is asked: as it is now; the messages are read where the request is made, for there may be many

    def body(self, leaf: int | None, **more: Any) -> BodyMaker:
        """A request for what comes behind `leaf`."""
        return self._maker(leaf, WANTS_TOKENS | more)

    def body_from_tokens(self, parent_id: int | None, token_ids: Sequence[int]) -> BodyMaker:
        """A request for an answer that begins with these tokens; all of its text comes back, but only new tokens."""
        return self.body(parent_id, continue_token_ids=list(token_ids), echo=True)

    def body_from_text(self, message: Message) -> BodyMaker:
        """The same where nobody knows the tokens: the text goes on."""
        return self.body(message.id, continue_final_message=True, add_generation_prompt=False, echo=True)

    def preview_body(self, leaf: int | None, draft: str, attachments: Sequence[Attachment]) -> BodyMaker:
        """What a preview is asked with: the conversation up to `leaf`, and the draft."""
        text = Message(0, None, "user", draft, attachments=tuple(attachments)).prompt
        return self._maker(leaf, {"draft": text} if text else {})

    def _maker(self, leaf: int | None, more: dict[str, Any]) -> BodyMaker:
        branch = self.branch.at(leaf)
        opening = [{"role": "system", "content": self.system}] if self.system else []
        fields = {"model": self.model, **self.parameters, **more}
        return lambda: {**fields, "messages": opening + [told(message) for message in branch]}


def nothing() -> Branch:
    return Branch(Tree(), lambda ids: [], None)


def told(message: Message) -> dict[str, str]:
    return {"role": message.role, "content": message.prompt}


def write_answer(history: History, message: Message, answering: Answering, text: str, reasoning: str) -> None:
    """What has come so far; final when it is done. For any thread."""
    stats, tokens = answering.stats(), list(answering.tokens)
    history.update(message.id, content=text, reasoning=reasoning, stats=stats, tokens=tokens)


def shown_token(token: SampledToken) -> InspectedToken:
    return msgspec.convert(msgspec.to_builtins(token, builtin_types=(bytes,)), InspectedToken)
