"""Asking and answering: send, stop, again, go on from a cut answer, branch from an edit or from another token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from textual.timer import Timer

from localllm.errors import ChatNotFound, LocalLLMError
from localllm.history import DRAFT_OF_NEW, Draft, Message
from localllm.tui import words
from localllm.tui.chat.answering import Answering
from localllm.tui.chat.previews import Previews
from localllm.tui.chat.session import BodyMaker, shown_token
from localllm.tui.chat.turns import failure_trouble, turn_of
from localllm.tui.chat.writers import Writing
from localllm.tui.conversation.turns import Live, Siblings, Turn

if TYPE_CHECKING:
    from localllm.tui.inspector.inspected import InspectedToken

POLL_S = 0.04
"""Deltas are collected for so long before the conversation gets them."""


class Answers(Previews):
    """Everything that makes messages."""

    def __init__(self) -> None:
        super().__init__()
        self._poll_timer: Timer | None = None

    # ---- asking

    def send(self, text: str) -> None:
        """What was typed, below the last message or in place of the one that is edited."""
        if not text.strip() and not self.files:
            return
        if self.editing is not None and self.session.branch.message(self.editing).role == "assistant":
            self._rewrite_answer(self.session.branch.message(self.editing), text)
            return
        if refusal := self._why_not_now():
            self.refuse(refusal)
            return
        with self.guarded():
            drafted_for = self.session.chat_id or DRAFT_OF_NEW
            message = self.session.say(text, self.files, parent_id=self.draft_parent())
            self.history.keep_draft(drafted_for, Draft())
            is_edit, self.editing = self.editing is not None, None
            self.composer.write("")
            self.set_files(())
            self.keep_draft()
            if is_edit:
                self.show_conversation()
            else:
                self.conversation.append(turn_of(message, self.session.branch.place(message.id)))
            self.answer_below(message.id)
            self.show_chats()

    def _rewrite_answer(self, message: Message, text: str) -> None:
        with self.guarded():
            self.session.rewrite(message, text)
            self.editing = None
            self.composer.write(self.parked.text)
            self.set_files(self.parked.attachments)
            self.show_all()

    def _why_not_now(self) -> str:
        if self.writing is not None or self.is_ending:
            return "An answer is being written: esc stops it."
        if self.local.is_down:
            return "The draft is saved. It can be sent when the daemon is back."
        if not self.session.model:
            return "No model is chosen: ctrl+l shows those of this machine."
        return ""

    def answer_below(self, parent_id: int | None) -> None:
        """A new answer to a message; beside those that it has."""
        if refusal := self._why_not_now():
            self.refuse(refusal)
            return
        with self.guarded():
            body = self.session.body(parent_id)
            message = self.session.begin_answer(parent_id)
            self._begin(message, body)

    def again(self, turn: Turn | None = None) -> None:
        """The last answer once more, beside itself; one that was cut goes on instead."""
        branch = self.session.branch
        if not len(branch):
            return
        message = branch[-1] if turn is None or turn.id not in branch.tree else branch.message(int(turn.id))
        if message.role != "assistant":
            self.answer_below(message.id)
        elif turn is None and message.is_cut and (message.content or message.reasoning):
            self.go_on(message)
        else:
            self.answer_below(message.parent_id)

    def go_on(self, message: Message) -> None:
        """An answer that ended too early is written on, as if it had never ended."""
        if refusal := self._why_not_now():
            self.refuse(refusal)
            return
        with self.guarded():
            tokens = [shown_token(token) for token in self.history.tokens(message.id)]
            if tokens and all(token.token_id >= 0 for token in tokens):
                ids = [token.token_id for token in tokens]
                body = self.session.body_from_tokens(message.parent_id, ids)
            else:
                tokens, body = [], self.session.body_from_text(message)
            self._begin(message, body, tokens)

    def branch_from_tokens(self, message: Message, tokens: Sequence[InspectedToken], origin: str) -> None:
        """Another answer beside `message`, that begins with these tokens."""
        if refusal := self._why_not_now():
            self.refuse(refusal)
            return
        with self.guarded():
            body = self.session.body_from_tokens(message.parent_id, [token.token_id for token in tokens])
            self._begin(self.session.begin_answer(message.parent_id, origin), body, list(tokens))

    def _begin(self, message: Message, body: BodyMaker, given: list[InspectedToken] | None = None) -> None:
        chat_id = self.session.chat_id
        answering = Answering(self.local.link.client, body, model=self.session.model, given=given)
        writing = self.writers.start(chat_id, message, answering)
        self._show_beginning(message, writing)
        self.show_around()
        if self._poll_timer is None:
            self._poll_timer = self.set_interval(POLL_S, self._poll)

    def _show_beginning(self, message: Message, writing: Writing) -> None:
        branch = self.session.branch
        turn = turn_of(message, branch.place(message.id), model=self.session.model)
        turn = self.live_turn(turn, writing)
        count = len(self.conversation.turns)
        if count == len(branch) - 1:
            self.conversation.append(turn)
        elif count == len(branch) and self.conversation.turns[-1].id == message.id:
            self.conversation.replace(count - 1, turn)
        else:
            self.show_conversation()
        self.conversation.tell(Live("waiting"))

    def stop_answer(self) -> bool:
        """Ends the answer under way in this chat; False when there is none."""
        return self.writers.stop(self.session.chat_id)

    # ---- answers under way

    def _poll(self) -> None:
        for writing in self.writers.all():
            request = self.request_of(writing.answering.request_id)
            if request is not None and request.prompt and request.cached is not None:
                writing.answering.counted = (request.prompt, request.cached)
        for writing in self.writers.poll():
            if writing.chat_id == self.session.chat_id and not writing.answering.is_done:
                self._show_more(writing)
        current = self.writing
        if current is not None:
            self.conversation.tell(self._live(current))
        if not self.writers and self._poll_timer is not None:
            self._poll_timer.stop()
            self._poll_timer = None

    def _show_more(self, writing: Writing) -> None:
        turns = self.conversation.turns
        if not len(turns) or turns[-1].id != writing.message.id:
            return
        shown = turns[-1]
        if writing.text.startswith(shown.text) and writing.reasoning.startswith(shown.reasoning):
            self.conversation.stream(writing.text[len(shown.text) :], writing.reasoning[len(shown.reasoning) :])
        else:
            self.conversation.replace(len(turns) - 1, self.live_turn(shown, writing))

    def _live(self, writing: Writing) -> Live:
        answering = writing.answering
        if answering.first_token_s is None:
            return Live(*self._waiting(writing))
        doing = "writing" if writing.text or not writing.reasoning else "thinking"
        return Live(doing, answering.num_tokens, answering.tokens_per_s, answering.first_token_s)

    def _waiting(self, writing: Writing) -> tuple[str]:
        """Why there is no token yet, as far as the live feed tells."""
        model = self.local.live.models.get(writing.answering.model)
        if model is not None and model.row.state not in ("ready", "failed"):
            progress = model.row.progress
            if progress is not None and progress.total_bytes:
                return (f"reading weights {words.percent(progress.done_bytes / progress.total_bytes)}",)
            return ("loading the model",)
        request = self.request_of(writing.answering.request_id)
        if request is None or request.state in ("queued", "loading"):
            return ("waiting",)
        if request.state in ("waiting", "preempted"):
            return (f"waiting, {request.place} in the queue" if request.place else "waiting",)
        if request.prompt and request.computed < request.prompt:
            return (f"reading the prompt {words.percent(request.computed / request.prompt)}",)
        return ("reading the prompt",)

    def _answer_ended(self, writing: Writing) -> None:
        """It is in the file. The daemon may be gone, the chat another one, the screen closed."""
        if not self.is_mounted:
            return
        if writing.failure is not None and not isinstance(writing.failure, ChatNotFound):  # it was removed meanwhile
            self.local.complain(writing.failure)
        if writing.chat_id == self.session.chat_id:
            with self.guarded():
                self.session.reload()
            self._show_end(writing)
        self.show_chats()
        self.show_around()

    def _show_end(self, writing: Writing) -> None:
        branch, turns = self.session.branch, self.conversation.turns
        if not len(turns) or turns[-1].id != writing.message.id:
            self.show_conversation()
        elif writing.message.id in branch.tree:
            turn = turn_of(
                branch.message(writing.message.id),
                branch.place(writing.message.id),
                model=self.session.model,
                is_last=True,
            )
            error = writing.answering.error
            is_refused = error is not None and error.code not in ("daemon_unreachable", "worker_crashed")
            self.conversation.finish(
                replace(turn, trouble=failure_trouble(error), state="failed") if error and is_refused else turn
            )
        elif writing.answering.error is not None:
            self.conversation.finish(self._failed_turn(turns[-1], writing.answering.error))
        else:
            self.conversation.truncate(len(turns) - 1)

    def _failed_turn(self, shown: Turn, error: LocalLLMError) -> Turn:
        """Nothing came: the sentence stands where the answer would."""
        return replace(
            shown, id="failed", state="failed", trouble=failure_trouble(error), siblings=Siblings(), stats=None, text=""
        )
