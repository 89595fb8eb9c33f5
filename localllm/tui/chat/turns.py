"""Kept messages as turns of the conversation. Only those that somebody looks at are made."""

from __future__ import annotations

from collections.abc import Sequence
from typing import overload

from localllm.errors import LocalLLMError
from localllm.history import AnswerStats, Branch, Message
from localllm.tui import words
from localllm.tui.conversation.turns import Siblings, Trouble, Turn

REASONS = {"cancelled": "stopped", "length": "reply limit"}
"""Why an answer ended, where the wire's word says less than ours."""


class BranchTurns(Sequence[Turn]):
    """The turns of a branch; `model` is the name of those that do not say who wrote them."""

    def __init__(self, branch: Branch, model: str = "") -> None:
        self._branch, self._model = branch, model

    def __len__(self) -> int:
        return len(self._branch)

    @overload
    def __getitem__(self, index: int) -> Turn: ...
    @overload
    def __getitem__(self, index: slice) -> list[Turn]: ...
    def __getitem__(self, index: int | slice) -> Turn | list[Turn]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        message = self._branch[index]
        is_last = message.id == self._branch.leaf
        return turn_of(message, self._branch.place(message.id), model=self._model, is_last=is_last)


def turn_of(
    message: Message,
    place: tuple[int, int] = (1, 1),
    *,
    model: str = "",
    is_last: bool = False,
    failure: LocalLLMError | None = None,
) -> Turn:
    """`place`: which of how many siblings. Only the last turn of a branch offers to go on."""
    trouble = failure_trouble(failure) if failure else cut_trouble(message, is_last) if message.is_cut else None
    return Turn(
        id=message.id,
        role="assistant" if message.role == "assistant" else "system" if message.role == "system" else "user",
        text=message.content,
        reasoning=message.reasoning,
        model=message.model or model,
        created=message.created,
        attachments=message.attachments,
        siblings=Siblings(*place),
        stats=_shown_stats(message.stats),
        state="done" if trouble is None else "interrupted" if failure is None else "failed",
        trouble=trouble,
    )


def cut_trouble(message: Message, is_last: bool) -> Trouble:
    tokens = message.stats.tokens if message.stats else 0
    kept = f"the first {words.plural(tokens, 'token')} are saved" if tokens else "what came is saved"
    kept = kept.replace("1 token are", "token is")
    return Trouble("interrupted", kept, *(("ctrl+r", "go on from here") if is_last else ()))


def failure_trouble(error: LocalLLMError) -> Trouble:
    hint = error.hint[:1].upper() + error.hint[1:]
    sentence = f"{error.message}. {hint}".rstrip(". ") if hint else error.message
    return Trouble("no answer", sentence, "ctrl+r", "again", error.code)


def _shown_stats(stats: AnswerStats | None) -> AnswerStats | None:
    if stats is None or stats.stop_reason not in REASONS:
        return stats
    facts = {name: getattr(stats, name) for name in AnswerStats.__struct_fields__}
    return AnswerStats(**facts | {"stop_reason": REASONS[stats.stop_reason]})
