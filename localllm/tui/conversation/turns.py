"""What the conversation shows: turns, and what is known of one that is being written. Plain frozen data.

Texts are as they were written; whoever draws them sanitizes them, whoever copies them does not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from localllm.history import AnswerStats, Attachment

TurnId = int | str
Role = Literal["user", "assistant", "system", "tool"]
State = Literal["writing", "done", "interrupted", "failed"]


@dataclass(frozen=True, slots=True)
class Siblings:
    """Which of how many versions of a turn is shown, counted from 1."""

    index: int = 1
    count: int = 1


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why an answer ended badly: `interrupted`, and `the first 48 tokens are saved`; then the key that helps and what
    it does. `code` is the stable name of an error."""

    title: str
    sentence: str = ""
    key: str = ""
    action: str = ""
    code: str = ""


@dataclass(frozen=True, slots=True)
class Turn:
    """One message. `created` is in seconds since the epoch, 0 when unknown."""

    id: TurnId
    role: Role
    text: str = ""
    reasoning: str = ""
    model: str = ""
    created: float = 0.0
    attachments: tuple[Attachment, ...] = ()
    siblings: Siblings = Siblings()
    stats: AnswerStats | None = None
    state: State = "done"
    trouble: Trouble | None = None

    @property
    def is_answer(self) -> bool:
        return self.role == "assistant"


@dataclass(frozen=True, slots=True)
class Live:
    """What the line under an answer says while it is written. `doing` is a word: writing, thinking, waiting, reading
    the prompt. What is None is not shown."""

    doing: str = "writing"
    tokens: int | None = None
    tokens_per_s: float | None = None
    first_token_s: float | None = None
    note: str = ""
