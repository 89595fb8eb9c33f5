"""What all parts of the Chat screen stand on: its widgets, the chat that is open, and the answers under way."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import msgspec
from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical
from textual.strip import Strip

from localllm.errors import LocalLLMError
from localllm.history import DRAFT_OF_NEW, Attachment, Branch, Draft
from localllm.safe_text import one_line
from localllm.tui import words
from localllm.tui.chat.composer import Chips, Composer
from localllm.tui.chat.context import ContextBar
from localllm.tui.chat.panel import BranchRow, ChatPanel, PanelState, answer_facts, branch_rows
from localllm.tui.chat.session import ChatSession, opened_history
from localllm.tui.chat.side import ChatSide
from localllm.tui.chat.welcome import Offer, Welcome
from localllm.tui.chat.writers import Writers, Writing
from localllm.tui.conversation.turns import Turn
from localllm.tui.conversation.widget import Conversation
from localllm.tui.drawn import Drawn
from localllm.tui.frame import FrameScreen
from localllm.tui.lines import Line, heading, shortened
from localllm.tui.palette import Ink

if TYPE_CHECKING:
    from localllm.client.looking import PreviewSampling
    from localllm.tui.live.requests import Request


class ChatTitle(Drawn):
    """The title of the chat and how many messages its branch has."""

    DEFAULT_CSS = """
    ChatTitle { height: 1; }
    """

    def __init__(self) -> None:
        super().__init__()
        self._title, self._info, self._is_focused = "New chat", "", False

    def show(self, title: str, info: str, is_focused: bool) -> None:
        if (title, info, is_focused) != (self._title, self._info, self._is_focused):
            self._title, self._info, self._is_focused = title, info, is_focused
            self.redraw()

    def draw(self, ink: Ink, width: int, height: int) -> list[Strip]:
        info = Line((self._info, ink("muted"))) if self._info else None
        title = one_line(self._title)
        room = width - len(self._info) - 6
        return [heading(ink, width, shortened(title, max(8, room)), info, is_focused=self._is_focused).strip(width)]


class ChatBase(FrameScreen):
    """Opens chats and shows what they hold."""

    TAB = "chat"
    AUTO_FOCUS = "Composer"
    clock: Callable[[], float] = staticmethod(time.time)

    def __init__(self) -> None:
        super().__init__()
        self.title_line, self.conversation, self.welcome = ChatTitle(), Conversation(clock=self.clock), Welcome()
        self.bar, self.chips, self.side, self.panel = ContextBar(), Chips(), ChatSide(self.clock), ChatPanel()
        self.composer = Composer(self.send, self._past_prompts)
        self.files: tuple[Attachment, ...] = ()
        self.editing: int | None = None
        """The message that what is typed replaces."""
        self.sampling: PreviewSampling | None = None
        """What is in force for the next answer: the chat's parameters, else the model's own."""
        self._branches_of: Branch | None = None
        self._branches: tuple[tuple[BranchRow, ...], int] = ((), 1)
        self._offers: tuple[Offer, ...] = ()
        self.missing = ""
        """The model of the chat, if the daemon has said that it has none of this name."""
        self.parked = Draft()
        """What was being typed when an edit began."""

    def compose_body(self) -> ComposeResult:
        self.history, self._notice = opened_history(self.local.home)
        self.session = ChatSession(self.history, self.local.default_model)
        self.writers = Writers(self.history, self._answer_ended)
        with Horizontal(id="chat-columns"):
            yield self.side
            with Vertical(id="chat-main"):
                yield self.title_line
                yield self.welcome
                yield self.conversation
                yield self.bar
                yield self.chips
                yield self.composer
            yield self.panel

    def on_mount(self) -> None:
        self.composer.focus()
        self.show_chats()
        self.show_all()
        self.take_draft()
        if self._notice:
            self.notify(self._notice, severity="warning", timeout=10.0, markup=False)

    def on_unmount(self) -> None:
        with self.guarded():
            self.keep_draft()
        self.writers.close()
        self.history.close()

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """What the file or the daemon cannot do is said, and nothing breaks."""
        try:
            yield
        except LocalLLMError as error:
            if self.is_mounted and self.app.is_running:
                self.local.complain(error)

    def refuse(self, sentence: str) -> None:
        """Says why something cannot be done now."""
        self.notify(sentence, severity="warning", timeout=4.0, markup=False)

    # ---- the chat that is open

    @property
    def writing(self) -> Writing | None:
        """The answer under way in the chat that is open."""
        return self.writers.of(self.session.chat_id)

    @property
    def is_ending(self) -> bool:
        """Whether the last answer of this chat is just being put into the file."""
        return self.writers.is_ending(self.session.chat_id)

    @property
    def leaf(self) -> int | None:
        return self.session.branch.leaf

    def open_chat(self, chat_id: int, message_id: int | None = None) -> None:
        """0 begins a new one. What was typed stays with the chat it was typed for. `message_id`: to be seen first."""
        with self.guarded():
            self.keep_draft()
            if chat_id:
                self.session.open(chat_id)
            else:
                self.session.begin_anew()
            branch = self.session.branch
            if message_id is not None and message_id in branch.tree and message_id not in branch.ids:
                self.session.show_branch(message_id)
        self.take_draft()
        self.show_all()
        if message_id in self.session.branch.ids:
            self.conversation.go_to(self.session.branch.ids.index(message_id))
        self.composer.focus()

    def keep_draft(self) -> None:
        self.stop_editing()
        self.history.keep_draft(self.session.chat_id or DRAFT_OF_NEW, Draft(self.composer.text, self.files))

    def take_draft(self) -> None:
        self.editing = None
        with self.guarded():
            draft = self.history.draft(self.session.chat_id or DRAFT_OF_NEW)
            self.composer.write(draft.text)
            self.set_files(draft.attachments)

    def stop_editing(self) -> None:
        """What was typed before the edit comes back."""
        if self.editing is not None:
            self.editing = None
            self.composer.write(self.parked.text)
            self.set_files(self.parked.attachments)

    def set_files(self, files: tuple[Attachment, ...]) -> None:
        self.files = files
        note = "editing: a new branch begins here   esc leaves it as it was" if self.editing is not None else ""
        self.chips.show(files, note)
        self.draft_changed()

    # ---- what is shown

    def show_all(self) -> None:
        """The conversation anew, from its end, and everything around it."""
        self.show_conversation()
        self.show_around()

    def show_conversation(self) -> None:
        turns = self.session.turns
        writing = self.writing
        self.conversation.show(turns)
        if writing is not None and len(turns):
            self.conversation.replace(len(turns) - 1, self.live_turn(turns[-1], writing))

    def live_turn(self, turn: Turn, writing: Writing) -> Turn:
        return replace(turn, text=writing.text, reasoning=writing.reasoning, state="writing", trouble=None, stats=None)

    def show_around(self) -> None:
        """Title, side bar, panel, keys: everything but the conversation."""
        count = len(self.session.branch)
        self.conversation.set_class(not count, "-gone")
        self.welcome.set_class(bool(count), "-gone")
        info = words.plural(count, "message") if count else self.session.preset
        has_focus = self.focused is self.conversation or self.focused is self.welcome
        self.title_line.show(self.session.title, info, has_focus)
        self.composer.address(self.session.model)
        self.side.chats.mark(self.session.chat_id, self.writers.chat_ids)
        if not count:
            self.show_welcome()
        self.show_panel()
        self.refresh_bindings()
        self.bindings_changed()
        self.draft_changed()

    def show_chats(self) -> None:
        with self.guarded():
            self.side.show_chats(self.history.chats())

    def show_panel(self) -> None:
        if not self.panel.display:
            return
        if self._branches_of is not self.session.branch:
            self._branches_of, self._branches = self.session.branch, branch_rows(self.session.branch)
        rows, num_branches = self._branches
        last = self.session.turns[-1] if len(self.session.branch) else None
        if last is not None and (writing := self.writing) is not None:
            last = replace(last, stats=writing.answering.stats())
        self.panel.show(
            PanelState(
                self.session.parameters,
                self.session.preset,
                self.session.system,
                self.bar.budget.system if self.bar.budget and self.session.system else None,
                rows,
                max(1, num_branches),
                answer_facts(last, self._pages_text(last)),
                msgspec.structs.asdict(self.sampling) if self.sampling else {},
            )
        )

    def show_welcome(self) -> None:
        chats = [chat for chat in self.history.chats(1) if chat.title]
        offers = [Offer("Explain a file", "alt+a to attach one", "attach")]
        if self.missing:
            offers = [Offer("Get a model", "f5 shows those for this machine", "get_model")]
        if chats:
            used = words.day(chats[0].updated, self.clock())
            title = one_line(chats[0].title)[:32].strip()
            offers.append(
                Offer(f"Go on with “{title}”", "just now" if used == "now" else f"used {used} ago", "go_on_last")
            )
        offers.append(Offer("Set the tone", "alt+s writes a system prompt", "system"))
        self._offers = tuple(offers)
        self.show_welcome_sentence()

    def show_welcome_sentence(self) -> None:
        """Which model answers: that changes while one looks on."""
        self.welcome.show(self._model_sentence(one_line(self.session.model)), self._offers)

    def _model_sentence(self, model: str) -> str:
        app, name = self.local, words.model_name(model)
        if not model:
            return "No model is chosen yet: ctrl+l shows those of this machine."
        if app.link.state != "up":
            return f"{name} answers when the daemon is there."
        if self.missing:
            return f"{name} is not on this machine yet. Get it first, or ctrl+l for another model."
        where = "on this machine only" if app.place == "local" else f"at {app.place}"
        row = app.live.models.get(model)
        if row is None or row.row.state != "ready":
            return f"{name} is loaded with the first message, and runs {where}."
        return f"{name} is loaded and runs {where}."

    def _pages_text(self, turn: Turn | None) -> str:
        request = self.request_of(turn.stats.request_id) if turn is not None and turn.stats else None
        return words.count(request.pages) if request is not None and request.pages else ""

    def request_of(self, request_id: str) -> Request | None:
        """What the live feed says of a request."""
        return self.local.live.requests.rows.get(request_id)

    def _past_prompts(self) -> list[str]:
        with self.guarded():
            return self.history.prompts()
        return []

    # ---- for the parts above

    def draft_changed(self) -> None:
        """Something that a message would be made of is another now."""

    def send(self, text: str) -> None:
        raise NotImplementedError

    def _answer_ended(self, writing: Writing) -> None:
        raise NotImplementedError
