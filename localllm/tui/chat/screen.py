"""Chat: the conversation, the chats at its left, what can be set at its right, and a field to type in."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, ClassVar

from textual import events
from textual.binding import Binding, BindingType
from textual.widgets import TextArea

from localllm.errors import LocalLLMError
from localllm.history import Draft
from localllm.tui.chat.composer import Chips, Composer
from localllm.tui.chat.inspecting import Inspecting
from localllm.tui.chat.panel import ChatPanel
from localllm.tui.chat.side import ChatList, ChatSide
from localllm.tui.chat.welcome import Welcome
from localllm.tui.conversation.widget import Conversation

if TYPE_CHECKING:
    from localllm.daemon.feed import Frame

WHILE_DOWN = ("try_now", "start_daemon", "show_log")


class ChatScreen(Inspecting):
    """See design of the screens in docs/tui.md."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("f7", "try_now", "try now", id="chat.try_now", tooltip="Look for the daemon now"),
        Binding("f8", "start_daemon", "start the daemon", id="chat.start_daemon", tooltip="Start the daemon"),
        Binding("f9", "show_log", "log", id="chat.log", tooltip="Show the end of the daemon's log"),
        Binding("escape", "stop", "stop", id="chat.stop", tooltip="Stop the answer"),
        Binding("escape", "escape", "messages", show=False, id="chat.escape", tooltip="To the messages, and back"),
        Binding("ctrl+r", "again", "again", id="chat.again", tooltip="Answer once more; a cut answer goes on"),
        Binding("alt+e", "edit", "edit", id="chat.edit", tooltip="Edit your last message; a new branch begins"),
        Binding("ctrl+t", "inspect", "tokens", id="chat.tokens", tooltip="Look at the tokens of the answer"),
        Binding("ctrl+l", "model", "model", id="chat.model", tooltip="Talk to another model"),
        Binding("alt+a", "attach", "attach", id="chat.attach", tooltip="Attach a text file"),
        Binding("ctrl+o", "chats", "chats", id="chat.chats", tooltip="To the chats, and back"),
        Binding("ctrl+n", "new", "new", id="chat.new", tooltip="Begin a new chat"),
        Binding("alt+p", "parameters", "parameters", id="chat.parameters", tooltip="To the parameters, and back"),
        Binding("alt+s", "system", "system prompt", show=False, id="chat.system", tooltip="Edit the system prompt"),
        Binding("alt+g", "go_on", "go on", show=False, id="chat.go_on", tooltip="Write the last answer on"),
        Binding("alt+x", "export", "export", show=False, id="chat.export", tooltip="Export as Markdown, JSON or HTML"),
        Binding("alt+f", "find", "search", show=False, id="chat.search", tooltip="Search everything that was said"),
        Binding("alt+o", "show_over", "what is too much", show=False, id="chat.over", tooltip="Show what will not fit"),
        Binding("alt+left", "sibling(-1)", "before", show=False, id="chat.before", tooltip="The version before"),
        Binding("alt+right", "sibling(1)", "after", show=False, id="chat.after", tooltip="The version after"),
        *(
            Binding(f"alt+{n}", f"copy_block({n})", f"copy {n}", show=False,
                id=f"chat.copy_{n}", tooltip="Copy a block")
            for n in range(1, 10)
        ),
    ]  # fmt: skip

    CSS_PATH = "chat.tcss"

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Keys that would do nothing now are not offered."""
        if not self.is_mounted:
            return True
        is_down = self.local.is_down
        if action in WHILE_DOWN:
            return is_down and (action != "start_daemon" or self.local.link.can_start)
        if action == "stop":
            return self.writing is not None and self.editing is None
        if action in ("again", "edit", "inspect"):
            return bool(len(self.session.branch)) and (not is_down or action == "inspect")
        if action == "model":
            return not is_down
        return True

    def is_offered(self, action: str) -> bool:
        if action.startswith("copy_block("):
            return self.conversation.num_blocks() >= int(action[len("copy_block(") : -1])
        return self.writing is None or action not in ("again", "edit")

    # ---- messages of widgets

    def on_composer_pasted(self, event: Composer.Pasted) -> None:
        self.pasted(event.text)

    def on_text_area_changed(self, event: TextArea.Changed) -> None:
        self.draft_changed()

    def on_chips_removed(self, event: Chips.Removed) -> None:
        self.set_files(tuple(file for place, file in enumerate(self.files) if place != event.index))

    def on_welcome_taken(self, event: Welcome.Taken) -> None:
        {
            "attach": self.action_attach,
            "system": self.action_system,
            "go_on_last": self._open_last,
            "get_model": self._get_model,
        }[event.action]()

    def on_chat_list_wanted(self, event: ChatList.Wanted) -> None:
        if event.what == "open" and event.chat_id:
            self.set_class(False, "-chats")
            self.open_chat(event.chat_id, event.message_id)
        elif event.what == "rename" and event.chat_id:
            self.rename_chat(event.chat_id)
        elif event.what == "remove" and event.chat_id:
            self.remove_chat(event.chat_id)
        elif event.what == "search":
            self.side.search.focus()
        elif event.what == "leave":
            self._close_chats()

    async def on_chat_side_searched(self, event: ChatSide.Searched) -> None:
        text = event.text.strip()
        if not text:
            self.show_chats()
            return
        try:
            hits = await asyncio.to_thread(self.history.search, text)
        except LocalLLMError as error:
            self.local.complain(error)
            return
        if text == self.side.search.value.strip():
            self.side.show_hits(hits)

    def on_chat_panel_changed(self, event: ChatPanel.Changed) -> None:
        self.set_parameters(event.parameters)

    def on_chat_panel_wanted(self, event: ChatPanel.Wanted) -> None:
        if event.what == "leave":
            self._close_panel()
        else:
            self.panel_wanted(event)

    def on_conversation_edit(self, event: Conversation.Edit) -> None:
        self._edit(event.turn.id)

    def on_conversation_again(self, event: Conversation.Again) -> None:
        self.again(event.turn)

    def on_conversation_sibling(self, event: Conversation.Sibling) -> None:
        self._sibling(event.turn.id, event.step)

    def on_conversation_inspect(self, event: Conversation.Inspect) -> None:
        self.inspect(event.turn.id)

    def on_conversation_copied(self, event: Conversation.Copied) -> None:
        self.local.say(event.what)

    def on_screen_resume(self) -> None:
        """`localllm chat` may have written meanwhile."""
        if self.is_mounted and not self.side.search.value:
            self.show_chats()
        if self.is_mounted and self.missing:
            self.draft_changed()  # it may have been pulled meanwhile

    def on_descendant_focus(self, event: events.DescendantFocus) -> None:
        """What lies over the conversation goes when nobody is in it."""
        self.set_class(self.has_class("-panel") and self.focused is self.panel, "-panel")
        self.set_class(self.has_class("-chats") and self.focused in (self.side.chats, self.side.search), "-chats")
        self.show_around()

    def frame_arrived(self, frame: Frame) -> None:
        if not len(self.session.branch):
            self.show_welcome_sentence()
        self.show_panel()

    def link_changed(self) -> None:
        if self.is_mounted:
            self.show_bar()
            self.show_around()

    def resized(self, size_class: str) -> None:
        self.set_class(False, "-chats")
        self.set_class(False, "-panel")
        self.call_after_refresh(self.show_panel)

    # ---- actions

    def action_escape(self) -> None:
        """Out of an edit, else from the field to the messages and back."""
        if self.editing is not None:
            self.stop_editing()
        elif self.focused is self.composer:
            (self.conversation if len(self.session.branch) else self.welcome).focus()
        else:
            self.composer.focus()

    def action_stop(self) -> None:
        self.stop_answer()

    def action_try_now(self) -> None:
        self.local.action_try_now()

    async def action_start_daemon(self) -> None:
        await self.local.action_start_daemon()

    def action_show_log(self) -> None:
        self.local.action_show_log()

    def action_again(self) -> None:
        self.again()

    def action_go_on(self) -> None:
        if len(self.session.branch) and self.session.branch[-1].role == "assistant":
            self.go_on(self.session.branch[-1])

    def action_edit(self) -> None:
        """The message under the cursor, else the person's last one."""
        if self.focused is self.conversation and self.conversation.current is not None:
            self._edit(self.conversation.current.id)
            return
        branch = self.session.branch
        last = next(
            (branch[place].id for place in range(len(branch) - 1, -1, -1) if branch[place].role == "user"), None
        )
        if last is not None:
            self._edit(last)

    def action_inspect(self) -> None:
        turn = self.conversation.current
        if turn is not None:
            self.inspect(turn.id if turn.is_answer else (self.leaf or 0))

    def action_sibling(self, step: int) -> None:
        """Of the message under the cursor, else of the last one that has any."""
        turn = self.conversation.current if self.conversation.cursor is not None else None
        branch = self.session.branch
        chosen = turn.id if turn is not None else next(
            (each for each in reversed(branch.ids) if len(branch.tree.siblings(each)) > 1), None
        )  # fmt: skip
        if chosen is not None:
            self._sibling(chosen, step)

    def action_copy_block(self, number: int) -> None:
        self.conversation.copy_block(number)

    def action_new(self) -> None:
        self.open_chat(0)

    def action_chats(self) -> None:
        if self.side.chats.has_focus or self.side.search.has_focus:
            self._close_chats()
        else:
            self.set_class(True, "-chats")
            self.call_after_refresh(self.side.chats.focus)

    def action_find(self) -> None:
        self.set_class(True, "-chats")
        self.call_after_refresh(self.side.search.focus)

    def action_parameters(self) -> None:
        if self.panel.has_focus:
            self._close_panel()
        else:
            self.set_class(True, "-panel")
            self.call_after_refresh(self.show_panel)
            self.call_after_refresh(self.panel.focus)

    # ---- inside

    def _close_chats(self) -> None:
        self.set_class(False, "-chats")
        self.composer.focus()

    def _close_panel(self) -> None:
        self.set_class(False, "-panel")
        self.composer.focus()

    def _get_model(self) -> None:
        self.local.switch_mode("models")

    def _open_last(self) -> None:
        for chat in self.history.chats(1):
            self.open_chat(chat.id)

    def _edit(self, message_id: object) -> None:
        """Its text into the field; what was being typed waits."""
        if not isinstance(message_id, int) or message_id not in self.session.branch.tree:
            return
        if self.writing is not None:
            self.refuse("An answer is being written: esc stops it.")
            return
        if self.editing is None:
            self.parked = Draft(self.composer.text, self.files)
        self.editing = message_id
        message = self.session.branch.message(message_id)
        self.composer.write(message.content)
        self.set_files(message.attachments)
        self.composer.focus()

    def _sibling(self, message_id: object, step: int) -> None:
        if isinstance(message_id, int) and message_id in self.session.branch.tree and self.writing is None:
            with self.guarded():
                if self.session.show_sibling(message_id, step):
                    self.stop_editing()
                    self.show_all()
