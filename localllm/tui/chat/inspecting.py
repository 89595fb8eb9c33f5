"""From an answer to its tokens, and back with another way to go on."""

from __future__ import annotations

from localllm.history import Message
from localllm.safe_text import one_line
from localllm.tui.chat.session import shown_token
from localllm.tui.chat.wishes import Wishes
from localllm.tui.chat.writers import Writing
from localllm.tui.inspector.inspected import BranchWish, InspectedAnswer, InspectedToken, SamplerCuts
from localllm.tui.inspector.screen import InspectorScreen

SMALLEST_WAIT_S = 0.02


class Inspecting(Wishes):
    """Opens the token inspector on an answer that is written or being written."""

    def __init__(self) -> None:
        super().__init__()
        self._live_answer: InspectedAnswer | None = None

    def inspect(self, message_id: object) -> None:
        branch = self.session.branch
        if not isinstance(message_id, int) or message_id not in branch.tree:
            return
        with self.guarded():
            message = branch.message(message_id)
            writing = self.writing
            if writing is None or writing.message.id != message_id:
                writing = None
            answer = self._answer_of(message, writing)
            if not answer.tokens and writing is None:
                self.notify(
                    "The tokens of this message are not known: only answers that were written here have them.",
                    timeout=5.0,
                    markup=False,
                )
                return
            self._live_answer = answer if writing is not None else None
            self.app.push_screen(InspectorScreen(answer, lambda wish: self._branch(message, answer, wish)))

    def _answer_of(self, message: Message, writing: Writing | None) -> InspectedAnswer:
        place, count = self.session.branch.place(message.id)
        row = self.local.live.models.get(message.model or self.session.model)
        known = writing.answering.tokens if writing else [shown_token(each) for each in self.history.tokens(message.id)]
        return InspectedAnswer(
            title=f"Answer {place} of {count}" if count > 1 else "Answer",
            tokens=known,
            cuts=self._cuts(),
            num_prompt=_num_prompt(message, writing),
            page_size=row.row.page_size if row is not None and row.row.page_size else 16,
            vocab_size=row.row.vocab_size if row is not None else 0,
            is_live=writing is not None,
            model=message.model,
        )

    def _cuts(self) -> SamplerCuts:
        """Those in force now, as far as they are known: the answer does not say with which it was written."""
        told, known = self.session.parameters, self.sampling
        names = ("temperature", "top_k", "top_p", "min_p")
        found = {name: getattr(known, name) for name in names} if known is not None else {}
        return SamplerCuts(**found | {name: told[name] for name in names if told.get(name) is not None})

    def _answer_ended(self, writing: Writing) -> None:
        if self._live_answer is not None and self._live_answer.tokens is writing.answering.tokens:
            self._live_answer.is_live = False
            self._live_answer = None
        super()._answer_ended(writing)

    def _branch(self, message: Message, answer: InspectedAnswer, wish: BranchWish) -> None:
        """One that is still being written ends first: a chat has one answer under way."""
        was = answer.tokens[wish.position]
        other = next((each for each in was.alternatives if each.token_id == wish.token_id), None)
        raw, logprob = (other.raw, other.logprob) if other else (was.raw, was.logprob)
        chosen = InspectedToken(wish.token_id, raw, logprob, was.alternatives, was.entropy, was.is_reasoning)
        tokens = [*answer.tokens[: wish.position], chosen]
        share = f" (p {chosen.probability:.2f})" if chosen.probability is not None else ""
        origin = f"from “{one_line(raw.decode('utf-8', 'replace'))}”{share}"
        self.stop_answer()
        self._branch_when_free(message, tokens, origin)

    def _branch_when_free(self, message: Message, tokens: list[InspectedToken], origin: str) -> None:
        if self.writing is not None or self.is_ending:
            self.set_timer(SMALLEST_WAIT_S, lambda: self._branch_when_free(message, tokens, origin))
        else:
            self.branch_from_tokens(message, tokens, origin)


def _num_prompt(message: Message, writing: Writing | None) -> int:
    """Tokens before the answer; 0 where nobody has said it."""
    if writing is not None and writing.answering.num_prompt:
        return writing.answering.num_prompt
    return message.stats.prompt_tokens if message.stats else 0
