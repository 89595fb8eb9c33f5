"""What a kept chat is made of. Times are seconds since the epoch, durations are seconds."""

from typing import Any

import msgspec


class Attachment(msgspec.Struct, frozen=True, omit_defaults=True):
    """A text file that went with a message. `num_tokens` 0: nobody counted."""

    name: str
    text: str
    num_tokens: int = 0


class AnswerStats(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What stands under an answer. `stop_reason` is empty for an answer that was cut off before anybody said why."""

    tokens: int = 0
    tokens_per_s: float = 0.0
    first_token_s: float = 0.0
    cached_tokens: int = 0
    prompt_tokens: int = 0
    thought_tokens: int = 0
    thought_s: float = 0.0
    stop_reason: str = ""
    request_id: str = ""


class Alternative(msgspec.Struct, frozen=True, array_like=True):
    """A token that might have been said instead. `raw` may end in the middle of a character; `logprob` in nats."""

    token_id: int
    raw: bytes
    logprob: float


class SampledToken(msgspec.Struct, frozen=True, array_like=True):
    """A token of an answer as it was sampled. `logprob` None: not known; `alternatives` best first; nats."""

    token_id: int
    raw: bytes
    logprob: float | None = None
    alternatives: tuple[Alternative, ...] = ()
    entropy: float | None = None
    is_reasoning: bool = False


class Message(msgspec.Struct, frozen=True):
    """One turn. `parent_id` None: the first of its branch. `origin` says where a branch came from, in words."""

    id: int
    parent_id: int | None
    role: str
    content: str
    reasoning: str = ""
    model: str = ""
    created: float = 0.0
    attachments: tuple[Attachment, ...] = ()
    stats: AnswerStats | None = None
    origin: str = ""

    @property
    def is_cut(self) -> bool:
        """Whether this is an answer that ended before its model said so."""
        return self.role == "assistant" and (self.stats is None or self.stats.stop_reason in ("", "interrupted"))

    @property
    def prompt(self) -> str:
        """The text as the model reads it: the files, each under its name, and then the words."""
        if not self.attachments:
            return self.content
        files = "\n\n".join(f"{file.name}:\n```\n{file.text}\n```" for file in self.attachments)
        return f"{files}\n\n{self.content}"


class Chat(msgspec.Struct, frozen=True, kw_only=True):
    """A conversation without its messages. `parameters` are fields of a request, by their names there."""

    id: int
    title: str = ""
    model: str = ""
    system: str = ""
    parameters: dict[str, Any] = {}
    preset: str = ""
    created: float = 0.0
    updated: float = 0.0
    active_leaf: int | None = None


class Draft(msgspec.Struct, frozen=True):
    """What was typed and not sent."""

    text: str = ""
    attachments: tuple[Attachment, ...] = ()


class Hit(msgspec.Struct, frozen=True):
    """A chat that holds the words looked for. `message_id` None: they stand in its title."""

    chat_id: int
    title: str
    updated: float
    message_id: int | None
    snippet: str


class Preset(msgspec.Struct, frozen=True):
    """Parameters under a name."""

    name: str
    parameters: dict[str, Any]


class Extra(msgspec.Struct, frozen=True, omit_defaults=True):
    """The part of a message that nobody searches: one JSON column."""

    attachments: tuple[Attachment, ...] = ()
    stats: AnswerStats | None = None
    origin: str = ""
