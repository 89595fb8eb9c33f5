"""What the next message would cost: asked a moment after typing stops, never on each key."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from textual.timer import Timer

from localllm.errors import ContextExceeded, DaemonUnreachable, LocalLLMError
from localllm.history import Branch
from localllm.tui.chat.base import ChatBase
from localllm.tui.chat.context import Budget, budget_of

DELAY_S = 0.35
KEEP_DRAFT_AFTER_S = 1.0
OFF_NOTE = "The draft is saved. It can be sent when the daemon is back."


class Previews(ChatBase):
    """Keeps the context bar true."""

    def __init__(self) -> None:
        super().__init__()
        self._preview_timer: Timer | None = None
        self._draft_timer: Timer | None = None
        self._asked = 0
        self._is_asking = False
        self._budget: Budget | None = None

    def draft_changed(self) -> None:
        if not self.is_mounted:
            return
        self._asked += 1
        if self._preview_timer is not None:
            self._preview_timer.stop()
        self._preview_timer = self.set_timer(DELAY_S, self._begin_preview)
        if self._draft_timer is not None:
            self._draft_timer.stop()
        self._draft_timer = self.set_timer(KEEP_DRAFT_AFTER_S, self._save_draft)

    def _save_draft(self) -> None:
        if self.editing is None:
            with self.guarded():
                self.keep_draft()

    def _begin_preview(self) -> None:
        self._preview_timer = None
        if self.local.link.state != "up":
            self.show_bar()
        elif self.session.model and not self._is_asking:
            self.run_worker(self._preview(), group="preview")

    def _has_nothing(self) -> bool:
        """A chat in which nothing was said or typed: no request could be made of it."""
        return not (self.composer.text.strip() or self.files or len(self.session.branch))

    async def _preview(self) -> None:
        """One at a time; what changed meanwhile is asked for afterwards."""
        self._is_asking, asked = True, self._asked
        session, leaf = self.session, self.draft_parent()
        branch, chat_id = session.branch, session.chat_id
        draft, files = self.composer.text, self.files
        is_nothing = self._has_nothing()
        make_body = (
            session.preview_body(leaf, draft or " ", files) if is_nothing else session.preview_body(leaf, draft, files)
        )
        missing = self.missing
        try:
            preview = await self.local.link.ask(lambda client: client.looking.preview(make_body()))
            self._budget = budget_of(preview, sum(file.num_tokens or len(file.text) // 4 for file in files))
            if is_nothing:
                self._budget = opening_budget(self._budget)
            self.sampling, note, missing = preview.sampling, "", ""
            if preview.context_length and preview.prompt_tokens >= preview.context_length:
                raise ContextExceeded(preview.prompt_tokens, preview.context_length)
        except ContextExceeded as error:
            self._budget, note = await asyncio.to_thread(over_budget, error, branch), ""
        except DaemonUnreachable:
            note = OFF_NOTE
        except LocalLLMError as error:
            self._budget, note = None, error.message
            missing = session.model if error.code == "model_not_found" else ""
        finally:
            self._is_asking = False
        if missing != self.missing:
            self.missing = missing
            self.show_welcome()
        if chat_id == self.session.chat_id:
            self.show_bar(note)
            self.show_panel()
        if asked != self._asked:
            self.draft_changed()

    def show_bar(self, note: str = "") -> None:
        is_off = self.local.is_down
        self.bar.show(self._budget, OFF_NOTE if is_off else note, is_off=is_off)

    def draft_parent(self) -> int | None:
        """What the message that is being typed will stand below."""
        if self.editing is not None and self.editing in self.session.branch.tree:
            return self.session.branch.tree.parent(self.editing)
        return self.leaf

    def action_show_over(self) -> None:
        """To the first message that fits."""
        if self._budget is not None and self._budget.over:
            self.conversation.go_to(min(self._budget.over, len(self.session.branch) - 1))
            self.conversation.focus()


def opening_budget(budget: Budget) -> Budget:
    """Without the blank that was sent in place of a message."""
    return replace(budget, history=0, files=0, draft=0, cached=min(budget.cached, budget.system))


def over_budget(error: ContextExceeded, branch: Branch) -> Budget:
    """How many messages, from the first on, are too many: by their share of all that was written."""
    surplus = error.num_prompt_tokens - error.context_length
    lengths = [len(message.prompt) + 16 for message in branch]
    per_token = max(1.0, sum(lengths) / max(1, error.num_prompt_tokens))
    over, dropped = 0, 0.0
    for length in lengths:
        if dropped > surplus:
            break
        dropped += length / per_token
        over += 1
    return Budget(history=error.num_prompt_tokens, total=error.context_length, over=over)
